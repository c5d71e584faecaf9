"""Loss spikes: an update whose loss lies far above those before it is left out.

The last losses are part of the optimizer's state: a resumed run leaves out the same updates as one that went on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

WINDOW = 128  # updates that a loss is compared with; levanter's skip_bad_steps has as many
FEWEST = 16  # before so many there is no judgement


class SpikesState(NamedTuple):
    """losses: float32 [WINDOW], of the last updates made, in a ring; count: updates made; inner: of the optimizer."""

    losses: Any
    count: jax.Array
    inner: Any


def remembering(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer, which remembers the loss (`value`) of each update it makes."""

    def init(params: Any) -> SpikesState:
        return SpikesState(nn.Partitioned(jnp.zeros(WINDOW), (None,)), jnp.zeros([], jnp.int32), optimizer.init(params))

    def update(grads: Any, state: SpikesState, params: Any = None, *, value: jax.Array) -> tuple[Any, SpikesState]:
        updates, inner = optimizer.update(grads, state.inner, params)
        losses = state.losses.at[state.count % WINDOW].set(value)
        return updates, SpikesState(losses, jnp.asarray(optax.safe_increment(state.count)), inner)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def is_spike(state: SpikesState, loss: jax.Array, sigmas: float) -> jax.Array:
    """Whether the loss lies more than `sigmas` standard deviations above the mean of the last WINDOW updates'."""
    known = jnp.arange(WINDOW) < state.count
    mean, deviation = jnp.mean(state.losses, where=known), jnp.std(state.losses, where=known)
    return (state.count >= FEWEST) & (loss > mean + sigmas * deviation)
