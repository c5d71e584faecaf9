"""Computes the losses of a batch from each head's outputs and targets.

All results are float32. A loss is kept as two sums, Σ weight · loss and Σ weight. These sums are added over
microbatches, devices and steps, and divided only once, by the weight of the whole batch. So the gradient does not
depend on how a batch is split.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from t5x_lite.errors import DataError
from t5x_lite.heads import WITH_LOSS, Head
from t5x_lite.lookup import lookup
from t5x_lite.models.projection import Projection, Targeted
from t5x_lite.training.cross_entropy import token_losses

AUXILIARY = "auxiliary"  # the model output that holds the model's own losses, {name: (sum, weight)}


@struct.dataclass
class LossSum:
    """Holds the sums of one loss (a head's or an auxiliary one) over a batch. The sums of batches can be added.

    sum: Σ weight · loss, in nats (squared error for regression).
    weight: Σ weight.
    correct: Σ weight of the correct predictions. A prediction is correct if no logit exceeds the target's (multi-label:
        if all labels of the example are right). None for auxiliary losses, and for regression, because a predicted
        number hardly ever equals its target.
    task_sum, task_weight: `sum` and `weight` of each task alone, [tasks]; None if the batch has no task ids.
    factor: of this loss in the total. Reports show losses without it.
    """

    sum: jax.Array
    weight: jax.Array
    correct: jax.Array | None = None
    task_sum: jax.Array | None = None
    task_weight: jax.Array | None = None
    factor: float = struct.field(pytree_node=False, default=1.0)


def loss_weights(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns {head: Σ weight} for each head whose weights are in the batch.

    The loss sums of all microbatches are divided by these sums of weights. batch: arrays [B, …].
    """
    return {name: batch[head.weights].sum() for name, head in WITH_LOSS.items() if head.weights in batch}


def compared(batch: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the heads that have targets in the batch and whose losses compare the examples of the whole batch."""
    return tuple(name for name, head in WITH_LOSS.items() if head.compares and head.weights in batch)


def loss_sums(
    outputs: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    tasks: int = 0,
    chunk_tokens: int = 0,
    focal_gamma: float = 0.0,
    embedding_sizes: Sequence[int] = (),
    symmetric: bool = False,
    rtd_weight: float = 1.0,
) -> dict[str, LossSum]:
    """Returns {name: LossSum} for each head in the model's outputs and for each of the model's auxiliary losses.

    heads.py names each head's loss function, a key of LOSSES.

    Args:
      outputs: the model's output for each head, or the `Projection` that computes it. The output "auxiliary" is
          {name: (Σ weight · loss, Σ weight)}, for example the losses of a router or a regularizer.
      batch: arrays [B, …]; the targets and weights of each head.
      tasks: number of tasks that the batch's task ids distinguish; 0 if the batch has no task ids.
      focal_gamma: for heads that predict one class, the focal loss (1 − p)^focal_gamma · −log p, where p is the
          probability of the target (Lin et al. 2017, eq. 4); then without z-loss and label smoothing. 0: off.
      embedding_sizes, symmetric: of contrastive losses (contrastive.py).
      chunk_tokens: number of tokens of a `Projection` whose logits are computed at a time; 0: all of them.
      rtd_weight: factor of the head rtd in the total (Clark et al. 2020, ELECTRA, §2: λ).
    Raises:
      DataError: the batch lacks a head's targets or weights.
      ConfigError: an output has no loss.
    """
    sums = {}
    for name, predicted in outputs.items():
        if name == AUXILIARY:
            sums |= {own: LossSum(*pair) for own, pair in predicted.items()}
            continue
        head = lookup("output that has a loss", name, WITH_LOSS)
        targets = batch.get(head.targets)
        if isinstance(predicted, Targeted):
            predicted, targets = predicted.output, predicted.targets
        if targets is None or head.weights not in batch:
            raise DataError(
                f"the model's {name} head needs {head.targets or 'a generator'} and {head.weights}; the batch has "
                f"{', '.join(sorted(batch))}"
            )
        weights = batch[head.weights]
        chunks = -(-weights.size // chunk_tokens) if chunk_tokens else 1
        if isinstance(predicted, Projection) and chunks > 1:
            from t5x_lite.training.chunked_cross_entropy import Options, projected_losses

            options = Options(chunks, z_loss, label_smoothing)
            total, losses, correct = projected_losses(  # pyright: ignore[reportGeneralTypeIssues]  (a custom_vjp)
                options, predicted, targets, weights
            )
        else:
            predicted = predicted.logits() if isinstance(predicted, Projection) else predicted
            is_focal = focal_gamma > 0 and head.has_classes and head.loss == "cross_entropy"
            more = (0.0, 0.0) if is_focal else (z_loss, label_smoothing)
            more = (embedding_sizes, symmetric) if head.loss == "contrastive" else more
            losses, correct = LOSSES[head.loss](predicted, targets, batch, *more)
            if is_focal:
                losses *= jnp.maximum(1 - jnp.exp(-losses), 1e-6) ** focal_gamma  # at 0, a root has no gradient
            total = (losses * weights).sum()
        by_task = _by_task(head, losses, weights, batch, tasks) if tasks else (None, None)
        correct = None if correct is None else (correct * weights).sum()
        sums[name] = LossSum(total, weights.sum(), correct, *by_task, factor=rtd_weight if name == "rtd" else 1.0)
    return sums


def _by_task(head: Head, losses: jax.Array, weights: jax.Array, batch: Mapping[str, jax.Array], tasks: int):
    """Returns (Σ weight · loss, Σ weight) of each task, both [tasks].

    losses, weights: [B, T], with T targets per row. One fused pass sums over the targets of each task, without a
    scatter.
    """
    weight_of = jnp.where(
        task_ids_of(head, batch)[..., None] == jnp.arange(1, tasks + 1)[None, None, :], weights[..., None], 0
    )
    return (losses[..., None] * weight_of).sum((0, 1)), weight_of.sum((0, 1))


def task_ids_of(head: Head, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the task id of each of the head's targets, int [B, T]: 0 on padding, otherwise from 1."""
    task_ids = batch["encoder_task_ids" if head.reads else "decoder_task_ids"]
    return jnp.take_along_axis(task_ids, batch[head.positions], axis=1) if head.positions else task_ids


def total_loss(sums: Mapping[str, LossSum], weights: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the total of all losses, Σ (factor · sum / weight), a float32 scalar. A loss of weight 0 adds 0.

    weights: the weight of each loss over the whole batch.
    """
    total = jnp.zeros((), jnp.float32)
    for name, loss in sums.items():
        some = weights[name] > 0
        total += loss.factor * jnp.where(some, loss.sum / jnp.where(some, weights[name], 1), 0)
    return total


def _lazily(name: str) -> Callable[..., tuple[jax.Array, jax.Array | None]]:
    """Returns a loss of LOSSES that is imported when it is first called. Most runs train only one head."""

    def loss(*arguments: Any) -> tuple[jax.Array, jax.Array | None]:
        from t5x_lite.training import head_losses

        return getattr(head_losses, name)(*arguments)

    return loss


# (outputs, targets, batch, z_loss, label_smoothing) -> (the loss of each target, whether the target is predicted
# correctly). Both have the shape of the head's weights. heads.py names one of these functions for each head. In place
# of the last two arguments, "contrastive" takes its own.
LOSSES: dict[str, Callable[..., tuple[jax.Array, jax.Array | None]]] = {
    "cross_entropy": lambda outputs, targets, batch, *options: token_losses(outputs, targets, *options),
    "squared_error": _lazily("of_numbers"),
    "binary_cross_entropy": _lazily("of_labels"),
    "detection": _lazily("of_detections"),
    "span": _lazily("of_spans"),
    "choice": _lazily("of_choices"),
    "contrastive": _lazily("of_embeddings"),
}
