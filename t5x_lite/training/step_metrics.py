"""Computes the metrics of one step, as sums that can be added over microbatches, devices and steps.

These are the keys of a step's metrics. All values are scalars, except HEAD/task_sum and HEAD/task_weight:
    HEAD/loss_sum  HEAD/weight  HEAD/correct   sums over the step's targets (losses.py); no `correct` for regression
    HEAD/task_sum  HEAD/task_weight            the same per task, [tasks]; only when training on several tasks
    tokens  positions                          positions that hold a token; all positions (encoder and decoder)
    loss  grad_norm  learning_rate             of this step; training only
    grad_norm/GROUP                            the norm by layer and by part outside layers; train.log_layer_norms
    is_finite                                  1.0, or 0.0 if the loss or grad_norm is not finite; training only
    is_spike                                   1.0 if the loss is a spike, else 0.0; only with train.spike_sigmas
    steps                                      1.0; `fetch` adds it

reports/metric_sums.py adds the metrics of steps and divides sums by weights. The scores of a task's predictions
(accuracy, F1, …) are in tasks/metrics.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.models import paths
from t5x_lite.training.losses import LossSum


def batch_metrics(sums: Mapping[str, LossSum], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the additive metrics of one batch, as arrays on the devices.

    sums: the loss sums of each head. batch: arrays [B, …]; its `*_segment_ids` show which positions hold a token.
    """
    out = loss_metrics(sums)
    segments = [array for name, array in batch.items() if name.endswith("segment_ids")]
    out["tokens"] = sum((jnp.sum(array > 0, dtype=jnp.float32) for array in segments), jnp.float32(0))
    out["positions"] = jnp.float32(sum(array.size for array in segments))
    return out


def loss_metrics(sums: Mapping[str, LossSum]) -> dict[str, jax.Array]:
    """Returns the part of `batch_metrics` that depends only on the loss sums."""
    out = {}
    for head, loss in sums.items():
        out |= {f"{head}/loss_sum": loss.sum, f"{head}/weight": loss.weight}
        if loss.correct is not None:
            out[f"{head}/correct"] = loss.correct
        if loss.task_sum is not None and loss.task_weight is not None:
            out |= {f"{head}/task_sum": loss.task_sum, f"{head}/task_weight": loss.task_weight}
    return out


def norms_by_layer(grads: Any) -> dict[str, jax.Array]:
    """Returns {"grad_norm/GROUP": the norm of the group's gradients}, float32 scalars.

    A group is a layer ("encoder/layers_0") or a part outside layers ("token_embedding", "decoder/final_norm"). Scanned
    layers have the groups of unrolled ones.
    """
    squares: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        parts = paths.unrolled(paths.text(path), leaf.shape)
        is_stack = paths.SCANNED.match(paths.text(path)) is not None
        axes = tuple(range(is_stack, leaf.ndim))
        sums = jnp.square(leaf.astype(jnp.float32)).sum(axes).reshape(len(parts))
        for i, part in enumerate(parts):
            layer = paths.LAYER.match(part)
            group = layer[0].rstrip("/") if layer else "/".join(part.split("/")[:-1][:2])
            squares[group] = squares.get(group, 0.0) + sums[i]
    return {f"grad_norm/{group}": jnp.sqrt(square) for group, square in squares.items()}


def fetch(metrics: Mapping[str, jax.Array | float]) -> dict[str, Any]:
    """Returns a step's metrics on the host, after waiting for the device.

    They are float64, because float32 sums would stop growing at 2²⁴ tokens.
    """
    values = {name: np.asarray(value, np.float64)[()] for name, value in jax.device_get(dict(metrics)).items()}
    return values | {"steps": 1.0}
