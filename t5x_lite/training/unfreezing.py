"""Gradual unfreezing: layers become trainable one after the other, from the last to the first."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_lite.models import paths


class UnfreezingState(NamedTuple):
    """Holds the number of updates made (`count`) and the wrapped optimizer's state (`inner`)."""

    count: jax.Array
    inner: Any


def gradually(
    optimizer: optax.GradientTransformationExtraArgs, every_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer wrapped so that it unfreezes layers gradually.

    The last layer of each stack is trainable from the start. Each other layer becomes trainable `every_steps` updates
    after the layer above it. Encoder and decoder unfreeze in parallel. Parameters outside layers are trainable from the
    start. The gradients of a frozen layer are set to zero, and weight decay does not change its parameters.

    Sources: Howard and Ruder 2018, §3.3; T5 paper, §3.5.1.
    """

    def unfrozen(tree: Any, count: jax.Array) -> Any:
        last: dict[str, int] = {}  # stack -> number of its last layer
        for path, _ in jax.tree_util.tree_leaves_with_path(tree):
            if layer := paths.LAYER.match(paths.text(path)):
                last[layer[1]] = max(last.get(layer[1], 0), int(layer[2]))

        def masked(path: tuple, leaf: jax.Array) -> jax.Array:
            parameter = paths.text(path)
            if layer := paths.LAYER.match(parameter):
                return jnp.where(count >= every_steps * (last[layer[1]] - int(layer[2])), leaf, 0)
            if paths.SCANNED.match(parameter):
                later_N = leaf.shape[0] - 1 - jnp.arange(leaf.shape[0])
                is_trainable_N = count >= every_steps * later_N
                return jnp.where(is_trainable_N.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
            return leaf

        return jax.tree_util.tree_map_with_path(masked, tree)

    def init(params: Any) -> UnfreezingState:
        return UnfreezingState(jnp.zeros([], jnp.int32), optimizer.init(params))

    def update(grads: Any, state: UnfreezingState, params: Any = None, **known: Any) -> tuple[Any, UnfreezingState]:
        updates, inner = optimizer.update(unfrozen(grads, state.count), state.inner, params, **known)
        return unfrozen(updates, state.count), UnfreezingState(jnp.asarray(optax.safe_increment(state.count)), inner)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]
