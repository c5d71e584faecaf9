"""Training metrics that add: each step returns sums, steps are added on the host, and divided once at the end.

The keys of a step's metrics, all scalars:
    HEAD/loss_sum  HEAD/weight  HEAD/correct   sums over the step's targets (losses.py)
    HEAD/task_sum  HEAD/task_weight            the same by task [tasks], in training on several
    tokens  positions                          positions that hold a token, of all there are (encoder and decoder)
    loss  grad_norm  learning_rate             of that step (training only); is_finite: 1.0, or 0.0 where it diverged

The scores of a task's predictions (accuracy, F1, ROUGE, …) are another thing: tasks/metrics.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.training.losses import LossSum

LAST = ("learning_rate",)  # of several steps, the last one's value is meant; everything else is summed


def batch_metrics(sums: Mapping[str, LossSum], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The additive metrics of one batch, on the devices."""
    out = {}
    for head, loss in sums.items():
        out |= {f"{head}/loss_sum": loss.sum, f"{head}/weight": loss.weight, f"{head}/correct": loss.correct}
        if loss.task_sum is not None and loss.task_weight is not None:
            out |= {f"{head}/task_sum": loss.task_sum, f"{head}/task_weight": loss.task_weight}
    segments = [array for name, array in batch.items() if name.endswith("segment_ids")]
    out["tokens"] = sum((jnp.sum(array > 0, dtype=jnp.float32) for array in segments), jnp.float32(0))
    out["positions"] = jnp.float32(sum(array.size for array in segments))
    return out


def add(total: Mapping[str, Any] | None, metrics: Mapping[str, jax.Array | float]) -> dict[str, Any]:
    """The running sum, on the host, with one more step's metrics; `total` is None to begin. Waits for the device."""
    step = {name: np.asarray(value, np.float64)[()] for name, value in jax.device_get(dict(metrics)).items()}
    return sum_of(total, step | {"steps": 1.0})


def sum_of(total: Mapping[str, Any] | None, added: Mapping[str, Any]) -> dict[str, Any]:
    """The running sums `total` and those of later steps, together."""
    total = total or {}
    return {name: value if name in LAST else total.get(name, 0.0) + value for name, value in added.items()}


def finalise(total: Mapping[str, Any], tasks: Sequence[str] = ()) -> dict[str, float]:
    """What to report for the steps added up.

    loss: Σ over heads of Σ loss_sum / Σ weight, in nats per target; loss/HEAD and accuracy/HEAD likewise (accuracy
    is a fraction); task_loss/TASK: the loss on that one's targets, where `tasks` names those of the task sums;
    grad_norm: mean over steps; learning_rate: of the last; tokens: number; padding: share of the positions that hold
    no token.
    """
    out: dict[str, float] = {"loss": 0.0}
    heads = [name.removesuffix("/weight") for name in total if name.endswith("/weight")]
    for head in heads:
        weight = total[f"{head}/weight"]
        if not weight:
            continue  # no target of this head: it has no loss, not a loss of 0
        out[f"loss/{head}"] = total[f"{head}/loss_sum"] / weight
        out["loss"] += out[f"loss/{head}"]
        if head != "regression":
            out[f"accuracy/{head}"] = total[f"{head}/correct"] / weight
        for number, task in enumerate(tasks):
            if task_weight := total[f"{head}/task_weight"][number]:
                name = f"task_loss/{task}"
                out[name] = out.get(name, 0.0) + total[f"{head}/task_sum"][number] / task_weight
    if "grad_norm" in total:
        out["grad_norm"] = total["grad_norm"] / total["steps"]
        out["learning_rate"] = total["learning_rate"]
    out["tokens"] = total["tokens"]
    out["padding"] = 1 - total["tokens"] / total["positions"] if total["positions"] else 0.0
    return out
