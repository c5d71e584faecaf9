"""Gradual unfreezing: layers begin to learn from the last to the first."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_lite.cluster.sharding import path_text


class UnfreezingState(NamedTuple):
    """count: updates made; inner: state of the optimizer."""

    count: jax.Array
    inner: Any


def gradually(optimizer: optax.GradientTransformation, every_steps: int) -> optax.GradientTransformation:
    """The optimizer for a model whose last layers learn from the start, those before them `every_steps` updates later,
    and so on; encoder and decoder side by side (Howard and Ruder 2018, §3.3; T5 paper, §3.5.1). What is in no layer
    learns from the start. A layer that does not learn yet has no gradient, and is not decayed either.
    """

    def unfrozen(tree: Any, count: jax.Array) -> Any:
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        layer_of = [re.match(r"(.*/)layers_(\d+)/", path_text(path)) for path, _ in paths]
        last: dict[str, int] = {}
        for found in filter(None, layer_of):
            last[found[1]] = max(last.get(found[1], 0), int(found[2]))

        def masked(path: Any, leaf: jax.Array, found: re.Match | None) -> jax.Array:
            if found:
                return jnp.where(count >= every_steps * (last[found[1]] - int(found[2])), leaf, 0)
            if "/layers/" in path_text(path):  # scanned: stacked along the first axis
                later_N = leaf.shape[0] - 1 - jnp.arange(leaf.shape[0])
                learns_N = count >= every_steps * later_N
                return jnp.where(learns_N.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
            return leaf

        return treedef.unflatten([masked(p, leaf, found) for (p, leaf), found in zip(paths, layer_of, strict=True)])

    def init(params: Any) -> UnfreezingState:
        return UnfreezingState(jnp.zeros([], jnp.int32), optimizer.init(params))

    def update(grads: Any, state: UnfreezingState, params: Any = None) -> tuple[Any, UnfreezingState]:
        updates, inner = optimizer.update(unfrozen(grads, state.count), state.inner, params)
        return unfrozen(updates, state.count), UnfreezingState(jnp.asarray(optax.safe_increment(state.count)), inner)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
