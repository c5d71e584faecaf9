"""Makes the training step: a jitted function, (state, batch) -> (new state, metrics), that consumes its input state.

The step does no I/O and has no global state. Callers pass the module, optimizer, loss and layout to this module;
`t5x_lite/runtime.py` puts them together.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from t5x_lite import models
from t5x_lite.cluster import sharding
from t5x_lite.cluster.sharding import Layout
from t5x_lite.models.tracing import traced_for
from t5x_lite.training import losses
from t5x_lite.training.step_metrics import batch_metrics, loss_metrics, norms_by_layer
from t5x_lite.training.trainable import Trainable, everything, merge, split

if TYPE_CHECKING:
    from t5x_lite.training.averages import Averaging  # few runs average
    from t5x_lite.training.schedules import Schedule

Batch = Mapping[str, Any]  # arrays, or jax.ShapeDtypeStruct where only shapes matter
LossFn = Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict[str, losses.LossSum]]
Metrics = dict[str, jax.Array]

PURPOSES = {"init": 0, "dropout": 1, "sample": 2}


@struct.dataclass
class TrainState:
    """Holds the state of training. A training step takes it and returns a new one; a checkpoint saves it.

    step: int32 scalar, number of steps made, including steps whose update was skipped.
    params, opt_state: trees of arrays without boxes; parameters are float32.
    average: moving average of the trainable parameters (averages.py); None: none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    average: Any = None


def step_key(seed: int, step: jax.Array | int, purpose: str) -> jax.Array:
    """Returns the random key for one purpose at one step.

    The key depends only on the arguments, so a resumed run draws the same random numbers as an uninterrupted one.
    purpose: a key of PURPOSES.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), PURPOSES[purpose])


# State ----------------------------------------------------------------------------------------------------------------


def abstract_params(module: nn.Module, batch: Batch) -> Any:
    """Returns the shapes of the boxed parameters, as `sharding.param_axes` needs them. Allocates no arrays.

    batch: arrays or shapes [B, …].
    """
    return jax.eval_shape(lambda: _init_params(module, batch, 0))


def abstract_state(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    batch: Batch,
    trainable: Trainable = everything,
    averages: bool = False,
) -> TrainState:
    """Returns the shapes and shardings of the train state, for restoring a checkpoint. Allocates no arrays.

    batch: arrays or shapes [B, …]. Raises ConfigError if a parameter has no logical axes, or if a dimension of a
    parameter is not divisible by the size of the mesh axes that split it.
    """
    boxed = jax.eval_shape(lambda: _init_state(module, optimizer, batch, 0, trainable, averages))

    def placed(place: jax.sharding.NamedSharding, leaf: Any) -> jax.ShapeDtypeStruct:
        shape = nn.meta.unbox(leaf)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    return jax.tree.map(placed, sharding.shardings(boxed, layout), boxed)


def init_state(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    batch: Batch,
    seed: int = 0,
    trainable: Trainable = everything,
    averages: bool = False,
) -> TrainState:
    """Returns a fresh state. Each array is created sharded, and its numbers are the same on any mesh.

    batch: arrays or shapes [B, …]. Raises ConfigError as `abstract_state` does.
    """
    places = _places(abstract_state(module, optimizer, layout, batch, trainable, averages))
    # The seed is an argument, not a constant: one compiled program serves every seed.
    init = jax.jit(
        lambda seed: nn.meta.unbox(_init_state(module, optimizer, batch, seed, trainable, averages)),
        out_shardings=places,
    )
    return init(np.uint32(seed))


def state_from(
    optimizer: optax.GradientTransformation, like: TrainState, params: Any, trainable: Trainable = everything
) -> TrainState:
    """Returns the state of a run that starts from these parameters.

    Some optimizers keep copies of the first parameters (schedule-free, Prodigy), so their state is made from `params`.
    like: a state, or the result of `abstract_state`, with the same shardings.
    """

    def rest(params: Any) -> tuple[Any, Any, Any]:
        # Copies: the training step donates each array, so no array may be in two places.
        trained = jax.tree.map(jnp.copy, split(params, trainable)[0])
        average = None if like.average is None else trained
        return jnp.zeros([], jnp.int32), nn.meta.unbox(optimizer.init(trained)), average

    places = _places((like.step, like.opt_state, like.average))
    number, opt_state, average = jax.jit(rest, out_shardings=places)(params)
    return TrainState(number, params, opt_state, average)


def _init_params(module: nn.Module, batch: Batch, seed: Any) -> Any:
    shapes = tuple((name, array.shape, str(array.dtype)) for name, array in sorted(batch.items()))
    return _init_params_of(module, shapes, seed)


# This is jitted so that it is traced only once, however often a run needs shapes, axes and shardings.
@functools.partial(jax.jit, static_argnames=("module", "shapes"))
def _init_params_of(module: nn.Module, shapes: tuple[tuple[str, tuple[int, ...], str], ...], seed: Any) -> Any:
    zeros = {name: jnp.zeros(shape, dtype) for name, shape, dtype in shapes}
    return models.init_params(module, step_key(seed, 0, "init"), zeros)


def _init_state(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    seed: Any,
    trainable: Trainable,
    averages: bool,
) -> TrainState:
    params = _init_params(module, batch, seed)
    trained = split(params, trainable)[0]
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(trained), trained if averages else None)


def _places(state: Any) -> Any:
    return jax.tree.map(lambda array: array.sharding, state)


# Steps ----------------------------------------------------------------------------------------------------------------


def make_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: "Schedule",
    layout: Layout,
    state: TrainState,
    *,
    loss_fn: LossFn = losses.loss_sums,
    outputs_fn: Callable[..., dict[str, Any]] | None = None,
    microbatches: int = 1,
    seed: int = 0,
    trainable: Trainable = everything,
    spike_sigmas: float = 0.0,
    averaging: "Averaging | None" = None,
    weigh: Callable[[Batch], Batch] | None = None,
    layer_norms: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted step, (state, batch) -> (state, metrics), which donates (consumes) its input state.

    The loss is Σ_head (Σ weight · loss / Σ weight) over the whole batch [B, …]. Its gradient does not depend on the
    number of microbatches, because each microbatch's sums are divided by the weights of the whole batch. If the loss or
    gradient norm is not finite, or if the loss is a spike, the step only adds 1 to `state.step`. So no bad state can be
    saved. step_metrics.py describes the metrics. The step raises ConfigError if B is not divisible by microbatches.

    Args:
      schedule: only for the learning rate in the metrics; the optimizer applies its own schedule.
      state: a state, or the result of `abstract_state`; the step takes and returns states with the same shardings.
      loss_fn: (outputs, batch) -> {head: LossSum}, such as `functools.partial(loss_sums, z_loss=…, label_smoothing=…)`.
      outputs_fn: (module, params, batch, **options) -> the outputs for `loss_fn`; None: the module's outputs.
      microbatches: number of parts into which the batch is split; they run one after the other, to save memory.
      seed: seed of dropout, which depends only on (seed, step, microbatch), and of the tokens that a model samples.
      trainable: selects the trainable parameters; the others have no gradient and no optimizer state, and never change.
      spike_sigmas: a loss more than this many standard deviations above the mean of the last losses is a spike; 0: off.
      averaging: how the parameters are averaged, if the state has an average.
      weigh: changes the weights of a batch's targets (example_weights.py).
      layer_norms: whether the metrics have the norms of gradients by layer.
    """
    places = _places(state)
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = step_key(seed, state.step, "dropout")
        batch = weigh(batch) if weigh else batch
        params, frozen = split(state.params, trainable)
        weights = losses.loss_weights(batch)

        def outputs_of(params: Any, batch: Batch, key: jax.Array) -> dict[str, Any]:
            # One key for all microbatches: a draw does not depend on how a batch is split.
            rngs = {"dropout": key, "sample": step_key(seed, state.step, "sample")}
            return (outputs_fn or outputs)(module, merge(params, frozen), batch, train=True, rngs=rngs)

        parts = whole = None
        if microbatches > 1:
            from t5x_lite.training import microbatches as accumulation

            forward = functools.partial(outputs_of, params)
            parts, weights, whole = accumulation.prepare(batch, microbatches, layout, forward, loss_fn, key, weights)

        def loss_of(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            of_heads, term = outputs_of(params, batch, key), 0.0
            if whole:
                of_heads, term = whole.second_pass(of_heads, batch)
            sums = loss_fn(of_heads, batch)
            own = {name: jax.lax.stop_gradient(loss.weight) for name, loss in sums.items()}
            return losses.total_loss(sums, own | weights) + term, batch_metrics(sums, batch)

        def over_batch(function: Callable) -> Any:
            """Returns function(batch, key), summed over microbatches if there are any."""
            return function(batch, key) if parts is None else accumulation.sum_over(parts, microbatches, key, function)

        (loss, metrics), grads = over_batch(functools.partial(jax.value_and_grad(loss_of, has_aux=True), params))
        if whole:
            loss, metrics = loss + whole.loss, metrics | loss_metrics(whole.sums)
        # Each device receives only the sum of its own shard.
        grads = jax.lax.with_sharding_constraint(grads, split(places.params, trainable)[0])
        grad_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # Only second-order optimizers use the Hessian.
        known: dict[str, Any] = {"hessian_product": functools.partial(_hessian_product, loss_of, params, over_batch)}
        is_good = is_finite
        if spike_sigmas:
            from t5x_lite.training import spikes

            is_spike = spikes.is_spike(state.opt_state, loss, spike_sigmas)
            metrics |= {"is_spike": is_spike.astype(jnp.float32)}
            is_good, known["value"] = is_finite & ~is_spike, loss
        new_state = _updated(optimizer, averaging, state, grads, trainable, is_good, **known)
        metrics |= {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step),
            "is_finite": is_finite.astype(jnp.float32),
        }
        return new_state, metrics | (norms_by_layer(grads) if layer_norms else {})

    return jax.jit(
        traced_for(layout.mesh.devices.flat[0].platform)(train_step),
        in_shardings=(places, layout.batch_sharding),
        out_shardings=(places, layout.replicated),
        donate_argnums=0,
    )


def outputs(module: nn.Module, params: Any, batch: Batch, **options: Any) -> dict[str, Any]:
    """Returns a model's outputs; from this project's models, projections in place of logits over the vocabulary."""
    method = "projected" if hasattr(module, "projected") else None
    return module.apply({"params": params}, batch, method=method, **options)  # type: ignore[return-value]


def _hessian_product(loss_of: Callable, params: Any, over_batch: Callable, vector: Any) -> Any:
    """Returns the product of the loss's Hessian at `params` and `vector`, a tree like `params`.

    loss_of: (params, batch, key) -> (loss, metrics).  over_batch: sums a function of (batch, key) over the batch.
    """

    def product(batch: Batch, key: jax.Array) -> Any:
        def slope(params: Any) -> Any:
            return optax.tree.vdot(jax.grad(loss_of, has_aux=True)(params, batch, key)[0], vector)

        return jax.grad(slope)(params)

    return over_batch(product)


def _updated(
    optimizer: optax.GradientTransformationExtraArgs,
    averaging: "Averaging | None",
    state: TrainState,
    grads: Any,
    trainable: Trainable,
    is_good: Any,
    **known: Any,
) -> TrainState:
    """Returns the state after an update. If `is_good` is False, there is no update, and only `step` increases.

    known: keyword arguments of the optimizer's update, such as `value`, the loss.
    """

    def update(state: TrainState, grads: Any) -> TrainState:
        params, frozen = split(state.params, trainable)
        updates, opt_state = optimizer.update(grads, state.opt_state, params, **known)
        params: Any = optax.apply_updates(params, updates)
        average = state.average
        if averaging:
            from t5x_lite.training.averages import next_average

            average = next_average(averaging, average, params, state.step + 1)
        return TrainState(state.step + 1, merge(params, frozen), opt_state, average)

    # This is a branch, not a `where`. To select between the old and the new state with a `where`, XLA would copy every
    # moment before overwriting it.
    return jax.lax.cond(is_good, update, lambda state, grads: state.replace(step=state.step + 1), state, grads)


def make_eval_step(
    module: nn.Module, layout: Layout, params: Any, *, loss_fn: LossFn = losses.loss_sums
) -> Callable[[Any, Batch], Metrics]:
    """Returns the jitted evaluation step, (params, batch) -> metrics, which can be added (step_metrics.py).

    The model runs without dropout, and its auxiliary losses are left out. The default `loss_fn` computes each head's
    loss without z-loss and without label smoothing.

    params: sharded parameters, or their shapes and shardings. batch: arrays [B, …].
    """

    def eval_step(params: Any, batch: Batch) -> Metrics:
        every = outputs(module, params, batch, train=False)
        of_heads = {name: output for name, output in every.items() if name != losses.AUXILIARY}
        return batch_metrics(loss_fn(of_heads, batch), batch)

    return jax.jit(eval_step, in_shardings=(_places(params), layout.batch_sharding), out_shardings=layout.replicated)
