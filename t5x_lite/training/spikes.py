"""Detects loss spikes. A step skips its update if its loss is far above the losses of the last updates.

These losses are part of the optimizer's state, so a resumed run skips the same updates as an uninterrupted one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

WINDOW = 128  # a loss is compared with the losses of this many updates, as in levanter's skip_bad_steps
FEWEST = 16  # with fewer updates than this, no loss counts as a spike


class SpikesState(NamedTuple):
    """Holds the wrapped optimizer's state and the losses of the last updates.

    losses: float32 [WINDOW], a ring buffer of the losses of the last updates.
    count: number of updates made.
    inner: state of the wrapped optimizer.
    """

    losses: Any
    count: jax.Array
    inner: Any


def remembering(optimizer: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer that wraps `optimizer` and remembers the losses of the last updates.

    The wrapper's `update` takes the loss as the argument `value`.
    """

    def init(params: Any) -> SpikesState:
        return SpikesState(nn.Partitioned(jnp.zeros(WINDOW), (None,)), jnp.zeros([], jnp.int32), optimizer.init(params))

    def update(
        grads: Any, state: SpikesState, params: Any = None, *, value: jax.Array, **known: Any
    ) -> tuple[Any, SpikesState]:
        updates, inner = optimizer.update(grads, state.inner, params, **known)
        losses = state.losses.at[state.count % WINDOW].set(value)
        return updates, SpikesState(losses, jnp.asarray(optax.safe_increment(state.count)), inner)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def is_spike(state: SpikesState, loss: jax.Array, sigmas: float) -> jax.Array:
    """Returns whether the loss is more than `sigmas` standard deviations above the mean of the last WINDOW losses.

    loss: float32 scalar. The result is a bool scalar; it is False if fewer than FEWEST updates have been made.
    """
    known = jnp.arange(WINDOW) < state.count
    mean, deviation = jnp.mean(state.losses, where=known), jnp.std(state.losses, where=known)
    return (state.count >= FEWEST) & (loss > mean + sigmas * deviation)
