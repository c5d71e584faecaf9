"""Sums of steps' metrics (training/step_metrics.py), on the host: added step by step, divided once at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

LAST = ("learning_rate",)  # of several steps the last one's value counts; everything else is summed


def add(total: Mapping[str, Any] | None, step: Mapping[str, Any]) -> dict[str, Any]:
    """The running sum with one more step's metrics; `total` is None to begin."""
    total = total or {}
    return {name: value if name in LAST else total.get(name, 0.0) + value for name, value in step.items()}


def finalise(total: Mapping[str, Any], tasks: Sequence[str] = ()) -> dict[str, float]:
    """The values to report for the steps added up.

    loss: Σ over heads of Σ loss_sum / Σ weight, in nats per target; loss/HEAD and accuracy/HEAD likewise (accuracy
    is a fraction); task_loss/TASK: the loss on that task's targets, where `tasks` names those of the task sums;
    grad_norm: mean over steps; learning_rate: of the last step; tokens: number; padding: share of the positions that
    hold no token.
    """
    out: dict[str, float] = {"loss": 0.0}
    heads = [name.removesuffix("/weight") for name in total if name.endswith("/weight")]
    for head in heads:
        weight = total[f"{head}/weight"]
        if not weight:
            continue  # no target of this head: it has no loss, not a loss of 0
        out[f"loss/{head}"] = total[f"{head}/loss_sum"] / weight
        out["loss"] += out[f"loss/{head}"]
        if f"{head}/correct" in total:
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
