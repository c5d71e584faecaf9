"""The optimizers by name. Each is a function whose keyword arguments are its hyper-parameters, with its own defaults.

A function returns the parts of an optax chain that follow clipping: the optimizer's own rule, weight decay and the
learning rate. Optax's optimizers are used as they are, unless they would not treat scanned layers like unrolled ones.
To add an optimizer, write a function and its entry of OPTIMIZERS, and in recipe_keys.py its name and a config key for
each new hyper-parameter.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from t5x_lite.cluster.axes import STACK, factor_of, is_axes
from t5x_lite.errors import ConfigError
from t5x_lite.training import parameter_groups
from t5x_lite.training.optim import Parts

Chain = list[optax.GradientTransformation]


def adamw(
    parts: Parts, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8, momentum_dtype: str = "float32"
) -> Chain:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2), with the decay scaled by the learning rate, as in torch."""
    return [optax.scale_by_adam(b1, b2, epsilon, mu_dtype=momentum_dtype), parts.decay(), parts.rate()]


def adam(
    parts: Parts, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8, momentum_dtype: str = "float32"
) -> Chain:
    """Adam (Kingma and Ba 2015, algorithm 1): AdamW without weight decay."""
    if parts.groups.decays:
        raise ConfigError("optimizer.weight_decay: adam does not decay weights; use optimizer.name=adamw")
    return adamw(parts, b1=b1, b2=b2, epsilon=epsilon, momentum_dtype=momentum_dtype)


def adafactor(parts: Parts, *, decay_exponent: float = 0.8, min_dim_size_to_factor: int = 128) -> Chain:
    """T5's Adafactor (adafactor.py)."""
    from t5x_lite.training.adafactor import scale_by_adafactor

    return [scale_by_adafactor(parts.param_axes, decay_exponent, min_dim_size_to_factor), parts.decay(), parts.rate()]


def sgd(parts: Parts, *, momentum: float = 0.0, nesterov: bool = False, momentum_dtype: str = "float32") -> Chain:
    """Stochastic gradient descent: m = momentum · m + g; the update is m, or g + momentum · m (nesterov)."""
    return [optax.trace(momentum, nesterov, momentum_dtype), parts.decay(), parts.rate()]


def lion(parts: Parts, *, b1: float = 0.9, b2: float = 0.99, momentum_dtype: str = "float32") -> Chain:
    """Lion (Chen et al. 2023, algorithm 2). Its learning rate is 3 to 10 times smaller than AdamW's (§5)."""
    return [optax.scale_by_lion(b1, b2, momentum_dtype), parts.decay(), parts.rate()]


def lamb(
    parts: Parts, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-6, momentum_dtype: str = "float32"
) -> Chain:
    """LAMB (You et al. 2020, algorithm 2): Adam with decay, times ‖x‖ / ‖update‖ of each parameter x in each layer."""
    adam = optax.scale_by_adam(b1, b2, epsilon, mu_dtype=momentum_dtype)
    return [adam, parts.decay(), _scale_by_trust_ratio(parts.param_axes), parts.rate()]


def _scale_by_trust_ratio(param_axes: Any) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by ‖parameter‖ / ‖update‖, or by 1 if either is 0.

    optax's takes one norm over all layers of a scanned stack.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(axes: tuple, update: jax.Array, param: jax.Array) -> jax.Array:
            within = tuple(i for i, name in enumerate(axes) if factor_of(name) != STACK)
            of_param, of_update = (jnp.sqrt(jnp.square(x).sum(within, keepdims=True)) for x in (param, update))
            some = (of_param > 0) & (of_update > 0)
            return update * jnp.where(some, of_param / jnp.where(some, of_update, 1), 1)

        return jax.tree.map(one, param_axes, updates, params, is_leaf=is_axes), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def ademamix(
    parts: Parts,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9999,
    alpha: float = 5.0,
    mix_warmup_steps: int = 0,
    epsilon: float = 1e-8,
) -> Chain:
    """AdEMAMix (Pagliardini et al. 2024, algorithm 1): AdamW with a second, slower momentum, of weight alpha.

    mix_warmup_steps: number of updates over which alpha grows from 0, and b3 from b1 (§3); 0: none.
    Raises ConfigError if b3 has to grow from or to 0.
    """
    if mix_warmup_steps and not (b1 and b3):
        raise ConfigError(
            f"optimizer.b1={b1}, optimizer.b3={b3}: must be above 0 with optimizer.mix_warmup_steps={mix_warmup_steps}"
        )

    def share(n: Any) -> Any:
        return jnp.minimum((jnp.asarray(n, jnp.float32) + 1) / mix_warmup_steps, 1.0)

    def slow(n: Any) -> Any:
        first, last = math.log(b1), math.log(b3)
        return jnp.exp(first * last / ((1 - share(n)) * last + share(n) * first))

    grows = mix_warmup_steps > 0
    weight = (lambda n: alpha * share(n)) if grows else alpha
    rule = contrib.scale_by_ademamix(b1, b2, slow if grows else b3, weight, epsilon)
    return [rule, parts.decay(), parts.rate()]


def schedule_free(parts: Parts, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> Chain:
    """Schedule-free AdamW (Defazio et al. 2024): the parameters of a step lie between an average and AdamW's iterate.

    A share 1 − b1 of them is the iterate z of AdamW without momentum, and b1 is the average of all z, weighted by the
    squares of learning rates. The average is what evaluation, export and inference should use (averages.py). The
    schedule has a warm-up and no decay. Raises ConfigError if b1 is 0: the parameters would not hold the average.
    """
    if not b1:
        raise ConfigError("optimizer.b1=0: schedule_free needs a b1 above 0, such as 0.9")
    if any(group.start for group in parts.groups.groups):
        raise ConfigError(
            "optimizer.groups: from=… does not work with schedule_free, which would average frozen weights"
        )
    rms = optax.scale_by_rms(b2, epsilon, eps_in_sqrt=False, bias_correction=True)  # Adam without momentum
    rate = lambda n: parts.schedule(n - 1)  # noqa: E731  (optax counts from 1 for the weights, from 0 for the steps)
    return [contrib.schedule_free(optax.chain(rms, parts.decay(), parts.rate()), rate, b1)]


def prodigy(
    parts: Parts,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float | None = None,
    epsilon: float = 1e-8,
    initial_distance: float = 1e-6,
) -> Chain:
    """Prodigy (Mishchenko and Defazio 2023, algorithm 4): AdamW that estimates its learning rate.

    The learning rate of the config multiplies the estimate; 1 is usual.
    b3: decay of the estimate's sums; None: √b2.  initial_distance: the first estimate of the distance to the solution.
    While all rates are 0, as at the first update of a warm-up, the estimate and the parameters stay as they are. optax
    would divide 0 by 0.
    """
    rule = contrib.prodigy(parts.schedule, (b1, b2), b3, epsilon, initial_distance)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new_state: Any
        updates, new_state = rule.update(grads, state, params)
        is_known = ~jnp.isnan(new_state.estim_lr)
        new_state = new_state._replace(estim_lr=jnp.where(is_known, new_state.estim_lr, state.estim_lr))
        updates = jax.tree.map(lambda update: jnp.where(is_known, update, 0), updates)
        rate = state.estim_lr * parts.schedule(state.count)
        decays = parts.decay().update(jax.tree.map(jnp.zeros_like, updates), optax.EmptyState(), params)[0]
        return jax.tree.map(lambda update, decay: update - rate * decay, updates, decays), new_state

    rule_and_decay = optax.GradientTransformation(rule.init, update)  # type: ignore[arg-type]
    return [rule_and_decay, parameter_groups.scaled(parts.groups)]


def sophia(
    parts: Parts,
    *,
    b1: float = 0.965,
    b2: float = 0.99,
    gamma: float = 0.01,
    hessian_every_steps: int = 10,
    epsilon: float = 1e-12,
    momentum_dtype: str = "float32",
) -> Chain:
    """Sophia-H: momentum divided by an estimate of the Hessian's diagonal, and clipped (sophia.py)."""
    from t5x_lite.training.sophia import scale_by_sophia

    rule = scale_by_sophia(b1, b2, gamma, hessian_every_steps, epsilon, momentum_dtype)
    return [rule, parts.decay(), parts.rate()]


def muon(
    parts: Parts,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    momentum_dtype: str = "float32",
) -> Chain:
    """Muon for the matrices of layers, AdamW for all other parameters (matrix_optimizers.py)."""
    from t5x_lite.training import matrix_optimizers

    matrices = matrix_optimizers.scale_by_muon(parts.param_axes, momentum, nesterov, momentum_dtype)
    others = optax.scale_by_adam(b1, b2, epsilon, mu_dtype=momentum_dtype)
    return [matrix_optimizers.by_kind(parts.param_axes, matrices, others), parts.decay(), parts.rate()]


def soap(
    parts: Parts, *, b1: float = 0.95, b2: float = 0.95, epsilon: float = 1e-8, precondition_every_steps: int = 10
) -> Chain:
    """SOAP for the matrices of layers, AdamW for all other parameters (matrix_optimizers.py)."""
    from t5x_lite.training import matrix_optimizers

    matrices = matrix_optimizers.scale_by_soap(parts.param_axes, b1, b2, epsilon, precondition_every_steps)
    others = optax.scale_by_adam(b1, b2, epsilon)
    return [matrix_optimizers.by_kind(parts.param_axes, matrices, others), parts.decay(), parts.rate()]


OPTIMIZERS: dict[str, Callable[..., Chain]] = {
    function.__name__: function
    for function in (
        adamw, adafactor, adam, sgd, lion, muon, soap, ademamix, schedule_free, prodigy, lamb, sophia
    )
}  # fmt: skip
