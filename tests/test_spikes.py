"""A loss far above the recent losses changes nothing; noise is not a spike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_models import FAMILIES
from training import start

from t5x_lite.training import spikes
from t5x_lite.training.spikes import SpikesState


def state_of(losses) -> SpikesState:
    ring = jnp.zeros(spikes.WINDOW).at[: len(losses)].set(jnp.asarray(losses[-spikes.WINDOW :]))
    return SpikesState(ring, jnp.int32(len(losses)), None)


def test_a_spike_is_what_lies_far_above_the_last_losses():
    losses = 2 + 0.1 * np.random.default_rng(0).normal(size=100)
    assert not spikes.is_spike(state_of(losses), jnp.float32(2.5), 6.0)
    assert spikes.is_spike(state_of(losses), jnp.float32(2.8), 6.0)
    assert not spikes.is_spike(state_of(losses), jnp.float32(-9), 6.0)  # a fall is welcome
    assert not spikes.is_spike(state_of(losses[: spikes.FEWEST - 1]), jnp.float32(9), 6.0)
    assert not spikes.is_spike(state_of([1000.0, *losses]), jnp.float32(2.8), 6.0)  # it is in the window
    assert spikes.is_spike(state_of([*losses[:28], *losses]), jnp.float32(2.8), 6.0)


def test_the_update_of_a_spike_is_left_out_and_its_loss_not_remembered():
    config = FAMILIES["gpt2"]
    run = start(config, rows=4, optimizer=spikes.remembering(optax.adam(1e-2)), spike_sigmas=1.5)
    run.advance(spikes.FEWEST)
    assert {m["is_spike"] for m in run.metrics} == {0.0}
    before, good = jax.device_get(run.state), run.batch
    np.testing.assert_allclose(before.opt_state.losses[: spikes.FEWEST], [m["loss"] for m in run.metrics])
    targets = good["decoder_target_tokens"]
    run.batch = good | {"decoder_target_tokens": (targets + 1) % config.vocab_size}  # unlike all it has learned
    run.advance(1)
    assert run.metrics[-1]["is_spike"] == 1.0 and run.metrics[-1]["is_finite"] == 1.0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state), before.replace(step=before.step + 1))
    run.batch = good
    run.advance(1)
    assert run.metrics[-1]["is_spike"] == 0.0 and int(run.state.opt_state.count) == spikes.FEWEST + 1
