"""Sophia-H, a second-order optimizer: momentum divided by an estimate of the Hessian's diagonal, and clipped."""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x_lite.models import paths


class SophiaState(NamedTuple):
    """Holds the number of updates made, the momentum, and the estimate of the Hessian's diagonal."""

    count: jax.Array
    momentum: Any
    diagonal: Any


def scale_by_sophia(
    b1: float, b2: float, gamma: float, every_steps: int, epsilon: float, momentum_dtype: str
) -> optax.GradientTransformationExtraArgs:
    """Returns Sophia-H without learning rate and weight decay (Liu et al. 2023, algorithms 1 and 3).

            m = b1 m + (1−b1) g
            h = b2 h + (1−b2) s · (H s)         every `every_steps` updates, from the first; s: random signs
            update = clip(m / max(gamma h, epsilon), −1, 1)

    The product H s needs two more passes through the model, through which attention has to be differentiable twice: it
    may be reference or blockwise, but not pallas. The signs of a parameter depend on the number of the update and on
    its path, not on whether its layers are scanned.

    `update` takes the function v → H v as the argument `hessian_product`.
    """

    def init(params: Any) -> SophiaState:
        momentum = optax.tree.zeros_like(params, dtype=momentum_dtype)
        return SophiaState(jnp.zeros([], jnp.int32), momentum, optax.tree.zeros_like(params))

    def update(
        grads: Any, state: SophiaState, params: Any = None, *, hessian_product: Callable[[Any], Any], **known: Any
    ) -> tuple[Any, SophiaState]:
        def estimated() -> Any:
            signs = jax.tree_util.tree_map_with_path(functools.partial(_signs, state.count), params)
            product = hessian_product(signs)

            def mean(h: jax.Array, sign: jax.Array, p: jax.Array) -> jax.Array:
                return jnp.where(jnp.isfinite(p), b2 * h + (1 - b2) * sign * p, h)  # the step checks only gradients

            return jax.tree.map(mean, state.diagonal, signs, product)

        diagonal = jax.lax.cond(state.count % every_steps == 0, estimated, lambda: state.diagonal)
        momentum = jax.tree.map(lambda m, g: b1 * m.astype(jnp.float32) + (1 - b1) * g, state.momentum, grads)
        updates = jax.tree.map(lambda m, h: jnp.clip(m / jnp.maximum(gamma * h, epsilon), -1, 1), momentum, diagonal)
        return updates, SophiaState(state.count + 1, optax.tree.cast(momentum, momentum_dtype), diagonal)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _signs(count: jax.Array, path: tuple, param: jax.Array) -> jax.Array:
    """Returns random signs in the shape of a parameter."""
    name = paths.text(path)
    parts = paths.unrolled(name, param.shape)
    numbers = np.array([zlib.crc32(part.encode()) for part in parts], np.uint32)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(count)))(numbers)
    shape = param.shape[1:] if parts != [name] else param.shape
    return jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.float32))(keys).reshape(param.shape)
