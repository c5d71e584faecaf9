"""Unfreezing: parameters become trainable after a number of updates, layer by layer or group by group."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_lite.models.paths import LAYER
from t5x_lite.training.parameter_groups import Group, depths_of, group_of, of_each


class UnfreezingState(NamedTuple):
    """Holds the number of updates made (`count`) and the wrapped optimizer's state (`inner`)."""

    count: jax.Array
    inner: Any


def gradually(
    optimizer: optax.GradientTransformationExtraArgs, every_steps: int, groups: Sequence[Group] = ()
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer wrapped so that it unfreezes layers and groups.

    The last layer of each stack is trainable from the start. Each other layer becomes trainable `every_steps` updates
    after the layer above it. Encoder and decoder unfreeze in parallel. A parameter of a group also waits until the
    group starts. All other parameters are trainable from the start. The gradients of a frozen parameter are set to
    zero, and weight decay does not change it.

    Sources: Howard and Ruder 2018, §3.3; T5 paper, §3.5.1.
    """

    def unfrozen(tree: Any, count: jax.Array) -> Any:
        depths = depths_of(tree)

        def start(path: str) -> float:
            group, layer = group_of(path, groups), LAYER.match(path)
            above = depths[layer[1]] - 1 - int(layer[2]) if layer else 0
            return max(every_steps * above, group.start if group else 0)

        return jax.tree.map(lambda start, leaf: jnp.where(count >= start, leaf, 0), of_each(tree, start), tree)

    def init(params: Any) -> UnfreezingState:
        return UnfreezingState(jnp.zeros([], jnp.int32), optimizer.init(params))

    def update(grads: Any, state: UnfreezingState, params: Any = None, **known: Any) -> tuple[Any, UnfreezingState]:
        updates, inner = optimizer.update(unfrozen(grads, state.count), state.inner, params, **known)
        return unfrozen(updates, state.count), UnfreezingState(jnp.asarray(optax.safe_increment(state.count)), inner)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]
