"""Learning-rate schedules, and optimizers as optax chains: AdamW and T5's Adafactor.

An optimizer in this module has four parts. In this order, they clip gradients, scale them, decay weights, and multiply
by −learning rate. If a parameter is boxed, its optimizer state is boxed with the same logical axes, so that the state
is sharded like the parameter (cluster/sharding.py).
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from t5x_lite import models, own_code
from t5x_lite.cluster.axes import COLUMN, ROW, STACK, WHOLE, factor_of
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup
from t5x_lite.models import paths

Schedule = Callable[[Any], Any]  # n, the number of updates made so far -> a factor or a learning rate


# Schedules ------------------------------------------------------------------------------------------------------------


def constant() -> Schedule:
    """Returns a schedule that is always 1."""
    return lambda n: jnp.ones_like(n, jnp.float32)


def linear_warmup(warmup_steps: int) -> Schedule:
    """Returns the schedule min(1, n / warmup_steps). It is 0 at the first update, as in T5X and Hugging Face."""
    return lambda n: _progress(n, 0, warmup_steps)


def linear_decay(total_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0) -> Schedule:
    """Returns a schedule that falls linearly from 1 at warmup_steps to final_fraction at total_steps.

    The schedule is constant before warmup_steps and after total_steps.
    """
    return lambda n: 1 - (1 - final_fraction) * _progress(n, warmup_steps, total_steps)


def cosine_decay(total_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0) -> Schedule:
    """Returns a schedule that falls along half a cosine from 1 at warmup_steps to final_fraction at total_steps.

    The schedule is constant before warmup_steps and after total_steps.
    """

    def schedule(n: jax.Array) -> jax.Array:
        falling = 0.5 * (1 + jnp.cos(math.pi * _progress(n, warmup_steps, total_steps)))
        return final_fraction + (1 - final_fraction) * falling

    return schedule


def rsqrt_decay(flat_steps: int) -> Schedule:
    """Returns the schedule √(flat_steps / max(n, flat_steps)): 1 for flat_steps updates, then falling as 1/√n."""
    flat = float(max(1, flat_steps))
    return lambda n: jnp.sqrt(flat / jnp.maximum(jnp.asarray(n, jnp.float32), flat))


def product(*schedules: Schedule) -> Schedule:
    """Returns the product of schedules.

    For example, `product(linear_warmup(w), rsqrt_decay(w))` is T5X's warm-up and 1/√n decay.
    """
    return lambda n: math.prod((schedule(n) for schedule in schedules), start=jnp.float32(1))


def _progress(n: jax.Array, begin: int, end: int) -> jax.Array:
    """Returns how far n is on the way from begin to end, as a fraction in [0, 1]; 1 if end <= begin."""
    if end <= begin:
        return jnp.ones_like(n, jnp.float32)
    return jnp.clip((jnp.asarray(n, jnp.float32) - begin) / (end - begin), 0, 1)


def make_schedule(
    name: str | Schedule,
    learning_rate: float,
    warmup_steps: int = 0,
    total_steps: int = 0,
    final_fraction: float = 0.0,
) -> Schedule:
    """Returns the learning rate as a function of n, the number of updates made so far.

    The learning rate is the peak `learning_rate` times a factor. The factor depends on `name`:

    constant: the factor rises from 0 to 1 over `warmup_steps`, then stays 1.
    linear, cosine: the factor rises from 0 to 1 over `warmup_steps`, then falls to final_fraction at `total_steps`.
    rsqrt: the factor stays 1 for `warmup_steps`, then falls as 1/√n. With learning_rate=0.01 and warmup_steps=10_000,
        this is the schedule of T5's pre-training, 1/√max(n, 10⁴) (Raffel et al. 2020, §3.1.2).
    a user's function, n -> factor: the factor is what the function returns.

    Raises ConfigError if the name is unknown, an argument is negative, or a decay ends before the warm-up.
    """
    if warmup_steps < 0 or not learning_rate >= 0:
        raise ConfigError(f"learning_rate={learning_rate}, warmup_steps={warmup_steps}: both must be 0 or more")
    if not isinstance(name, str):
        what = f"schedule.name={own_code.name_of(name)}"
        return lambda n: learning_rate * own_code.called(what, name, n)
    if name in ("linear", "cosine") and total_steps <= warmup_steps:
        raise ConfigError(
            f"schedule {name!r} decays from warmup_steps={warmup_steps} to total_steps={total_steps}; "
            "raise total_steps or lower warmup_steps"
        )
    ramp = linear_warmup(warmup_steps)
    table: dict[str, Schedule] = {
        "constant": ramp,
        "linear": product(ramp, linear_decay(total_steps, warmup_steps, final_fraction)),
        "cosine": product(ramp, cosine_decay(total_steps, warmup_steps, final_fraction)),
        "rsqrt": rsqrt_decay(warmup_steps),
    }
    shape = lookup("schedule", name, table)
    return lambda n: learning_rate * shape(n)


# Optimizers -----------------------------------------------------------------------------------------------------------

NO_DECAY = (r"(.*/)?(bias|scale)",)  # matches the paths of all biases and of the scales of norms


def make_optimizer(
    name: str | Callable[[Schedule], optax.GradientTransformation],
    schedule: Schedule,
    param_axes: Any,
    *,
    weight_decay: float = 0.0,
    no_decay: tuple[str, ...] = NO_DECAY,
    clip_norm: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    decay_exponent: float = 0.8,
    min_dim_size_to_factor: int = 128,
) -> optax.GradientTransformation:
    """Returns the optimizer `name`, with weight decay and with clipping by the global norm.

    Args:
      name: adamw, adafactor, or a user's function, schedule -> optimizer. Only clipping is added to a user's optimizer.
          The arrays of a user's optimizer state are replicated on every device unless they have the shapes of
          parameters.
      schedule: number of updates made so far -> learning rate.
      param_axes: tree of logical axis names (`sharding.param_axes`); Adafactor uses them to factor moments.
      weight_decay: decoupled weight decay: each update also adds −learning_rate · weight_decay · parameter.
      no_decay: regular expressions; a parameter whose whole path ("decoder/norm/scale") matches one does not decay.
      clip_norm: gradients are scaled down to this global norm; 0: no clipping.
      b1, b2, epsilon: AdamW's constants (Loshchilov and Hutter 2019).
      decay_exponent, min_dim_size_to_factor: Adafactor's constants, see `scale_by_adafactor`.
    Raises:
      ConfigError: the name is unknown; clip_norm or weight_decay is negative; weight_decay is not 0 for a user's
          optimizer; or a user's function fails or does not return an optax optimizer.
    """
    table: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adamw": lambda: optax.scale_by_adam(b1, b2, epsilon),
        "adafactor": lambda: scale_by_adafactor(param_axes, decay_exponent, min_dim_size_to_factor),
    }
    if clip_norm < 0 or weight_decay < 0:
        raise ConfigError(f"clip_norm={clip_norm}, weight_decay={weight_decay}: both must be 0 (off) or more")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    if not isinstance(name, str):
        if weight_decay:
            raise ConfigError(
                f"optimizer.weight_decay={weight_decay} must be 0 with optimizer.name={own_code.name_of(name)}: "
                "decay weights in that function"
            )
        return optax.chain(clip, _own(name, schedule))
    # The chain always has four parts, so that a resumed run may switch clipping or decay on.
    return optax.chain(
        clip,
        lookup("optimizer", name, table)(),
        optax.add_decayed_weights(weight_decay, decay_mask(param_axes, no_decay)),
        optax.scale_by_learning_rate(schedule),
    )


def _own(function: Callable[[Schedule], optax.GradientTransformation], schedule: Schedule) -> Any:
    what = f"optimizer.name={own_code.name_of(function)}"
    optimizer = own_code.called(what, function, schedule)
    if not isinstance(optimizer, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
        raise ConfigError(
            f"{what} returns a {type(optimizer).__name__}; it must return an optax.GradientTransformation"
        )
    return optimizer._replace(init=lambda params: models.boxed(optimizer.init(params)))


def decay_mask(param_axes: Any, no_decay: tuple[str, ...] = NO_DECAY) -> Any:
    """Returns a tree that says for each parameter whether it decays (bool).

    param_axes: the tree of logical axis names. no_decay: see `make_optimizer`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(re.fullmatch(rule, paths.text(path)) for rule in no_decay), param_axes, is_leaf=_is_axes
    )


class FactorDims(NamedTuple):
    """Groups the dimensions of one parameter by their role in Adafactor's moments.

    `rows` and `columns` are () if the parameter is not factored.
    """

    rows: tuple[int, ...]  # averaged in the column moment
    columns: tuple[int, ...]  # averaged in the row moment
    within: tuple[int, ...]  # all dimensions except stacks of layers; the RMS is taken over these


class FactoredMoment(NamedTuple):
    """Holds the second moments of one factored parameter.

    `row` is averaged over the parameter's columns; `column` is averaged over the parameter's rows.
    """

    row: Any
    column: Any


class AdafactorState(NamedTuple):
    """Holds the state of `scale_by_adafactor`."""

    count: Any  # number of updates made
    moments: Any  # for each parameter, a FactoredMoment or one array of the parameter's shape


def factor_dims(axes: tuple[str | None, ...], shape: tuple[int, ...], min_dim_size_to_factor: int = 128) -> FactorDims:
    """Returns how Adafactor factors a parameter with these logical axes and this shape.

    cluster/axes.py gives each logical axis a role: ROW, COLUMN, STACK or WHOLE. A parameter is factored if all of this
    is true:
    - It has axes with the role ROW and axes with the role COLUMN.
    - The product of the sizes of its ROW axes is at least `min_dim_size_to_factor`, and so is that of its COLUMN axes
      (such as heads and kv).
    - None of its axes is WHOLE. An axis that is not listed in cluster/axes.py is WHOLE.

    T5X applies the minimum size only to unstacked parameters. This function also applies it to stacked parameters, so
    that scanned and unrolled layers train alike.
    """
    roles = [factor_of(name) for name in axes]
    rows, columns, stack = (tuple(i for i, role in enumerate(roles) if role == r) for r in (ROW, COLUMN, STACK))
    smallest = min(math.prod(shape[i] for i in dims) if dims else 0 for dims in (rows, columns))
    within = tuple(i for i in range(len(shape)) if i not in stack)
    if WHOLE in roles or smallest < max(1, min_dim_size_to_factor):
        return FactorDims((), (), within)
    return FactorDims(rows, columns, within)


def scale_by_adafactor(
    param_axes: Any,
    decay_exponent: float = 0.8,
    min_dim_size_to_factor: int = 128,
    clip_rms: float = 1.0,
    min_parameter_scale: float = 1e-3,
    epsilon: float = 1e-30,
) -> optax.GradientTransformation:
    """Returns T5's Adafactor without learning rate and momentum (Shazeer and Stern 2018; t5x/adafactor.py).

    For each parameter x with gradient g at update t = 0, 1, …:

            β₂ = 1 − (t+1)^−decay_exponent
            v  = β₂ v + (1−β₂) (g² + epsilon)
            u  = g / √v
            u  = u / max(1, RMS(u) / clip_rms)
            update = u · max(RMS(x), min_parameter_scale)

    If x is factored, only the row and column means of v are kept, and v ≈ row ⊗ column / mean(row).
    `optax.adafactor` differs: it factors the two largest dimensions, whatever their meaning.

    param_axes: tree of logical axis names (`sharding.param_axes`).
    min_dim_size_to_factor: smaller parameters are not factored; see `factor_dims`.
    """

    def dims_of(axes: tuple, value: Any) -> FactorDims:
        return factor_dims(axes, value.shape, min_dim_size_to_factor)

    def init(params: Any) -> AdafactorState:
        def moment(axes: tuple, param: Any) -> Any:
            value = param.value if isinstance(param, nn.Partitioned) else param
            dims = dims_of(axes, value)

            def zeros(dropped: tuple[int, ...]) -> Any:
                kept = [i for i in range(value.ndim) if i not in dropped]
                array = jnp.zeros([value.shape[i] for i in kept], jnp.float32)
                return array if value is param else nn.Partitioned(array, tuple(axes[i] for i in kept))

            return FactoredMoment(zeros(dims.columns), zeros(dims.rows)) if dims.rows else zeros(())

        return AdafactorState(jnp.zeros([], jnp.int32), jax.tree.map(moment, param_axes, params, is_leaf=_is_axes))

    def update(grads: Any, state: AdafactorState, params: Any = None) -> tuple[Any, AdafactorState]:
        if params is None:
            raise ValueError("Adafactor scales updates by the parameters; pass params to `update`")
        b2 = 1 - (state.count.astype(jnp.float32) + 1) ** -decay_exponent

        def one(axes: tuple, grad: jax.Array, moment: Any, param: jax.Array) -> tuple[jax.Array, Any]:
            rows, columns, within = dims_of(axes, grad)
            grad = grad.astype(jnp.float32)
            squared = jnp.square(grad) + epsilon
            if rows:
                row = b2 * moment.row + (1 - b2) * squared.mean(columns)
                column = b2 * moment.column + (1 - b2) * squared.mean(rows)
                moment = FactoredMoment(row, column)
                row = jnp.expand_dims(row, columns)
                scaled = grad * jax.lax.rsqrt(row / row.mean(rows, keepdims=True))
                scaled *= jnp.expand_dims(jax.lax.rsqrt(column), rows)
            else:
                moment = b2 * moment + (1 - b2) * squared
                scaled = grad * jax.lax.rsqrt(moment)
            scaled /= jnp.maximum(1.0, _rms(scaled, within) / clip_rms)
            return scaled * jnp.maximum(_rms(param, within), min_parameter_scale), moment

        leaves, tree = jax.tree.flatten(param_axes, is_leaf=_is_axes)
        done = [
            one(*each)
            for each in zip(leaves, *(tree.flatten_up_to(t) for t in (grads, state.moments, params)), strict=True)
        ]
        updates, moments = (tree.unflatten([d[i] for d in done]) for i in (0, 1))
        return updates, AdafactorState(optax.safe_increment(state.count), moments)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _rms(x: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean(dims, keepdims=True))


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)
