"""What one step measures, as sums that add over microbatches, devices and steps.

The keys of a step's metrics, all scalars:
    HEAD/loss_sum  HEAD/weight  HEAD/correct   sums over the step's targets (losses.py); no correct of a number
    HEAD/task_sum  HEAD/task_weight            the same by task [tasks], in training on several
    tokens  positions                          positions that hold a token, of all there are (encoder and decoder)
    loss  grad_norm  learning_rate             of that step (training only); is_finite: 1.0, or 0.0 where it diverged
    steps                                      1.0, once fetched

reports/metric_sums.py adds steps and divides. The scores of a task's predictions (accuracy, F1, ROUGE, …) are another
thing: tasks/metrics.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.training.losses import LossSum


def batch_metrics(sums: Mapping[str, LossSum], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The additive metrics of one batch, on the devices."""
    out = {}
    for head, loss in sums.items():
        out |= {f"{head}/loss_sum": loss.sum, f"{head}/weight": loss.weight}
        if loss.correct is not None:
            out[f"{head}/correct"] = loss.correct
        if loss.task_sum is not None and loss.task_weight is not None:
            out |= {f"{head}/task_sum": loss.task_sum, f"{head}/task_weight": loss.task_weight}
    segments = [array for name, array in batch.items() if name.endswith("segment_ids")]
    out["tokens"] = sum((jnp.sum(array > 0, dtype=jnp.float32) for array in segments), jnp.float32(0))
    out["positions"] = jnp.float32(sum(array.size for array in segments))
    return out


def fetch(metrics: Mapping[str, jax.Array | float]) -> dict[str, Any]:
    """A step's metrics on the host, in float64: float32 sums would stop growing at 2²⁴ tokens. Waits for the device."""
    values = {name: np.asarray(value, np.float64)[()] for name, value in jax.device_get(dict(metrics)).items()}
    return values | {"steps": 1.0}
