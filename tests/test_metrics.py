"""Training metrics: adding steps and then dividing is the same as one step over everything."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import metrics
from t5x_lite.losses import LossSum


def step(loss_sum, weight, correct, tokens, **more):
    sums = {"lm": LossSum(jnp.float32(loss_sum), jnp.float32(weight), jnp.float32(correct))}
    segments = jnp.zeros((2, 8), jnp.int32).at[0, :tokens].set(1)
    return metrics.batch_metrics(sums, {"decoder_segment_ids": segments}) | more


def test_steps_are_weighted_by_their_targets_and_not_averaged():
    total = None
    for values in (step(4.0, 2.0, 1.0, 4), step(3.0, 8.0, 8.0, 8)):
        total = metrics.add(total, values | {"grad_norm": values["lm/weight"], "learning_rate": jnp.float32(0.5)})
    out = metrics.finalise(total)
    assert out["loss"] == out["loss/lm"] == pytest.approx(0.7)
    assert out["accuracy/lm"] == pytest.approx(0.9)
    assert out["grad_norm"] == pytest.approx(5.0)
    assert out["learning_rate"] == pytest.approx(0.5)
    assert (out["tokens"], out["padding"]) == (12, pytest.approx(1 - 12 / 32))


def test_the_learning_rate_is_the_last_step_s():
    total = metrics.add(None, {"learning_rate": 1.0, "is_finite": 1.0})
    assert metrics.add(total, {"learning_rate": 0.25, "is_finite": 0.0}) == {
        "learning_rate": 0.25,
        "is_finite": 1.0,
        "steps": 2.0,
    }


def test_a_head_without_targets_has_no_loss():
    out = metrics.finalise(metrics.add(None, step(0.0, 0.0, 0.0, 0)))
    assert "loss/lm" not in out
    assert out["padding"] == 1.0
    assert np.isfinite(list(out.values())).all()


def test_sums_do_not_lose_small_steps():
    """Float32 sums would stop growing at 2²⁴ tokens."""
    total = {"tokens": float(2**24), "steps": 1.0}
    assert metrics.add(total, {"tokens": jnp.float32(1)})["tokens"] == 2**24 + 1
