"""Adds up the metrics of several steps (training/step_metrics.py) on the host. Divides the sums once, at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

LAST = ("learning_rate",)  # the value of the last step is kept; all other metrics are summed


def add(total: Mapping[str, Any] | None, step: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `total` plus the metrics of one more step. Before the first step, `total` is None."""
    total = total or {}
    return {name: value if name in LAST else total.get(name, 0.0) + value for name, value in step.items()}


def finalise(total: Mapping[str, Any], tasks: Sequence[str] = ()) -> dict[str, float]:
    """Returns the values to report for the summed steps.

    loss/HEAD: Σ loss / Σ weight of a head, in nats per target. loss: the sum of loss/HEAD over the heads.
    accuracy/HEAD: Σ correct / Σ weight of a head, from 0 to 1.
    task_loss/TASK: the loss on the targets of one task.
    grad_norm, grad_norm/GROUP: the means over steps. learning_rate: the value at the last step.
    tokens: the number of tokens. padding: the share of positions without a token.

    tasks: the names of the tasks, in the order of the sums per task; (): no task_loss.
    """
    out: dict[str, float] = {"loss": 0.0}
    heads = [name.removesuffix("/weight") for name in total if name.endswith("/weight")]
    for head in heads:
        weight = total[f"{head}/weight"]
        if not weight:
            continue  # a head without targets has no loss; 0 would be wrong
        out[f"loss/{head}"] = total[f"{head}/loss_sum"] / weight
        out["loss"] += out[f"loss/{head}"]
        if f"{head}/correct" in total:
            out[f"accuracy/{head}"] = total[f"{head}/correct"] / weight
        for number, task in enumerate(tasks):
            if task_weight := total[f"{head}/task_weight"][number]:
                name = f"task_loss/{task}"
                out[name] = out.get(name, 0.0) + total[f"{head}/task_sum"][number] / task_weight
    out |= {name: value / total["steps"] for name, value in total.items() if name.startswith("grad_norm")}
    if "learning_rate" in total:
        out["learning_rate"] = total["learning_rate"]
    out["tokens"] = total["tokens"]
    out["padding"] = 1 - total["tokens"] / total["positions"] if total["positions"] else 0.0
    return out
