"""Training metrics: adding steps and then dividing equals one step over all data."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.reports import metric_sums
from t5x_lite.training import step_metrics
from t5x_lite.training.losses import LossSum


def step(loss_sum, weight, correct, tokens, **more):
    sums = {"lm": LossSum(jnp.float32(loss_sum), jnp.float32(weight), jnp.float32(correct))}
    segments = jnp.zeros((2, 8), jnp.int32).at[0, :tokens].set(1)
    return step_metrics.batch_metrics(sums, {"decoder_segment_ids": segments}) | more


def test_steps_are_weighted_by_their_targets_and_not_averaged():
    total = None
    for values in (step(4.0, 2.0, 1.0, 4), step(3.0, 8.0, 8.0, 8)):
        total = metric_sums.add(
            total, step_metrics.fetch(values | {"grad_norm": values["lm/weight"], "learning_rate": jnp.float32(0.5)})
        )
    out = metric_sums.finalise(total)
    assert out["loss"] == out["loss/lm"] == pytest.approx(0.7)
    assert out["accuracy/lm"] == pytest.approx(0.9)
    assert out["grad_norm"] == pytest.approx(5.0)
    assert out["learning_rate"] == pytest.approx(0.5)
    assert (out["tokens"], out["padding"]) == (12, pytest.approx(1 - 12 / 32))


def test_the_learning_rate_is_the_last_step_s():
    total = metric_sums.add(None, step_metrics.fetch({"learning_rate": 1.0, "is_finite": 1.0}))
    assert metric_sums.add(total, step_metrics.fetch({"learning_rate": 0.25, "is_finite": 0.0})) == {
        "learning_rate": 0.25,
        "is_finite": 1.0,
        "steps": 2.0,
    }


def test_a_head_without_targets_has_no_loss():
    out = metric_sums.finalise(metric_sums.add(None, step_metrics.fetch(step(0.0, 0.0, 0.0, 0))))
    assert "loss/lm" not in out
    assert out["padding"] == 1.0
    assert np.isfinite(list(out.values())).all()


def test_sums_do_not_lose_small_steps():
    """Float32 sums would stop growing at 2²⁴ tokens."""
    total = {"tokens": float(2**24), "steps": 1.0}
    assert metric_sums.add(total, step_metrics.fetch({"tokens": jnp.float32(1)}))["tokens"] == 2**24 + 1


def test_the_loss_by_task_is_divided_by_its_own_weight_over_all_steps():
    total = None
    for sums, weights in (([4.0, 0.0, 0.0], [2.0, 0.0, 0.0]), ([2.0, 9.0, 0.0], [4.0, 3.0, 0.0])):
        loss = LossSum(*jnp.float32([sum(sums), sum(weights), 0.0]), jnp.float32(sums), jnp.float32(weights))
        segments = jnp.ones((1, 4), jnp.int32)
        metrics = step_metrics.batch_metrics({"lm": loss}, {"decoder_segment_ids": segments})
        total = metric_sums.add(total, step_metrics.fetch(metrics))
    out = metric_sums.finalise(total, ("a", "b", "unseen"))
    assert {k: v for k, v in out.items() if k.startswith("task")} == {"task_loss/a": 1.0, "task_loss/b": 3.0}
    assert out["loss"] == pytest.approx(15 / 9)
