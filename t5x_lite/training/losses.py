"""Computes the losses of a batch from each head's outputs and targets.

All results are float32. A loss is kept as two sums, Σ weight · loss and Σ weight. These sums are added over
microbatches, devices and steps, and divided only once, by the weight of the whole batch. So the gradient does not
depend on how a batch is split.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from t5x_lite.errors import DataError
from t5x_lite.heads import WITH_LOSS, Head
from t5x_lite.lookup import lookup

EXCLUDED = -1e10  # logit of a position that is not a candidate for the target
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
    """

    sum: jax.Array
    weight: jax.Array
    correct: jax.Array | None = None
    task_sum: jax.Array | None = None
    task_weight: jax.Array | None = None


def loss_weights(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns {head: Σ weight} for each head whose weights are in the batch.

    The loss sums of all microbatches are divided by these sums of weights. batch: arrays [B, …].
    """
    return {name: batch[head.weights].sum() for name, head in WITH_LOSS.items() if head.weights in batch}


def loss_sums(
    outputs: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    tasks: int = 0,
) -> dict[str, LossSum]:
    """Returns {name: LossSum} for each head in the model's outputs and for each of the model's auxiliary losses.

    heads.py names each head's loss function, a key of LOSSES. (A later version may fuse the matrix product for the
    logits with the loss, chunk by chunk. Models would then return hidden states and the embedding table instead of
    logits, and only `token_losses` would have to change.)

    Args:
      outputs: the model's output for each head. The output "auxiliary" is {name: (Σ weight · loss, Σ weight)}, for
          example the losses of a router or a regularizer.
      batch: arrays [B, …]; the targets and weights of each head.
      tasks: number of tasks that the batch's task ids distinguish; 0 if the batch has no task ids.
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
        if not {head.targets, head.weights} <= set(batch):
            raise DataError(
                f"the model's {name} head needs {head.targets} and {head.weights}; the batch has "
                f"{', '.join(sorted(batch))}"
            )
        weights = batch[head.weights]
        losses, correct = LOSSES[head.loss](predicted, batch[head.targets], batch, z_loss, label_smoothing)
        by_task = _by_task(head, losses, weights, batch, tasks) if tasks else (None, None)
        correct = None if correct is None else (correct * weights).sum()
        sums[name] = LossSum((losses * weights).sum(), weights.sum(), correct, *by_task)
    return sums


def _by_task(head: Head, losses: jax.Array, weights: jax.Array, batch: Mapping[str, jax.Array], tasks: int):
    """Returns (Σ weight · loss, Σ weight) of each task, both [tasks].

    losses, weights: [B, T], with T targets per row. One fused pass sums over the targets of each task, without a
    scatter.
    """
    task_ids = batch["encoder_task_ids" if head.reads else "decoder_task_ids"]
    if head.positions:
        task_ids = jnp.take_along_axis(task_ids, batch[head.positions], axis=1)
    weight_of = jnp.where(task_ids[..., None] == jnp.arange(1, tasks + 1)[None, None, :], weights[..., None], 0)
    return (losses[..., None] * weight_of).sum((0, 1)), weight_of.sum((0, 1))


def total_loss(sums: Mapping[str, LossSum], weights: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the total of all losses, Σ (sum / weight), a float32 scalar. A loss of weight 0 adds 0.

    weights: the weight of each loss over the whole batch.
    """
    total = jnp.zeros((), jnp.float32)
    for name, loss in sums.items():
        some = weights[name] > 0
        total += jnp.where(some, loss.sum / jnp.where(some, weights[name], 1), 0)
    return total


def token_losses(
    logits: jax.Array, targets: jax.Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Returns each target's cross entropy under softmax(logits), and whether the target is predicted correctly.

    The prediction is correct if no logit exceeds the target's logit.

    Let p = softmax(logits), log Z = logsumexp(logits), and s be the label smoothing. Let q be the smoothed target: 1−s
    for the target's class and s/(V−1) for each other class. Then

            loss = −Σ_v q_v log p_v + Σ_v q_v log q_v + z_loss · (log Z)²

    The second sum makes a perfect prediction of q cost 0 (t5x/losses.py; the z-loss is Mesh TensorFlow's).

    The forward pass keeps e = exp(logits − maximum), in the logits' dtype and sharding. From e, the backward pass
    computes

            (1 + 2·z_loss·log Z)·e/Σe − q

    in one pass. This needs one [..., V] buffer less than automatic differentiation. If the logits are sharded over the
    vocabulary, they stay on their devices: only one number per target is summed over devices. (`correct` compares the
    target's logit with the maximum, because an argmax on a CPU would take longer than everything else.)

    Args:
      logits: [..., V].
      targets: int [...], in [0, V).
    Returns:
      loss [...] in nats and correct [...] (1 or 0), float32.
    """
    # The product that made the logits is flat too (Embedding.attend), so XLA does not copy them.
    losses, correct = _token_losses(  # pyright: ignore[reportGeneralTypeIssues]  (a custom_vjp)
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), z_loss, label_smoothing
    )
    return losses.reshape(targets.shape), correct.reshape(targets.shape)


def label_losses(logits_BEC: jax.Array, targets_BY: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each example's mean binary cross entropy over classes, and whether all labels of the example are right.

    A label is predicted if its logit is above 0. transformers' multi_label_classification takes the same mean.

    Args:
      logits_BEC: [B, E, C].
      targets_BY: float [B, Y], Y = E · C; 1 for each class that an example has, else 0.
    Returns:
      loss [B, E] in nats and correct [B, E] (1 or 0), float32.
    """
    logits_BEC, targets_BEC = logits_BEC.astype(jnp.float32), targets_BY.reshape(logits_BEC.shape)
    right_BEC = (logits_BEC > 0) == (targets_BEC > 0)
    losses_BE = optax.sigmoid_binary_cross_entropy(logits_BEC, targets_BEC).mean(-1)
    return losses_BE, right_BEC.all(-1).astype(jnp.float32)


def span_losses(
    logits_BS2: jax.Array, starts_BE: jax.Array, ends_BE: jax.Array, segment_ids_BS: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Returns each answer's loss, and whether its first and last token are both predicted (Devlin et al. 2019, §4.2).

    The loss is the mean of two cross entropies: that of the first token and that of the last. The candidates are all
    tokens of the answer's example. There is no label smoothing, because it would give probability to tokens that are
    not candidates.

    Args:
      logits_BS2: [B, S, 2], for start and end.
      starts_BE, ends_BE: int [B, E], index into S of the answer's first and last token.
      segment_ids_BS: int [B, S], the example of each token.
    Returns:
      loss [B, E] in nats and correct [B, E] (1 or 0), float32.
    """
    segment_BE = jnp.take_along_axis(segment_ids_BS, starts_BE, axis=1)
    is_of_BES = segment_ids_BS[:, None, :] == segment_BE[..., None]
    start_and_end = [
        token_losses(jnp.where(is_of_BES, logits_BS2[:, None, :, side], EXCLUDED), targets_BE, z_loss)
        for side, targets_BE in enumerate((starts_BE, ends_BE))
    ]
    (start_losses, starts_right), (end_losses, ends_right) = start_and_end
    return (start_losses + end_losses) / 2, starts_right * ends_right


def choice_losses(logits_BE: jax.Array, questions_BE: jax.Array, z_loss: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Returns each choice's cross entropy among its question's choices, and whether no other one has a larger logit.

    The loss of every choice is computed as if that choice were the right one. The head's weights, which are 1 for right
    choices and 0 for the others, then select the losses that count. There is no label smoothing, as in `span_losses`.

    Args:
      logits_BE: [B, E], a logit for each choice.
      questions_BE: int [B, E], equal for the choices of one question.
    Returns:
      loss [B, E] in nats and correct [B, E] (1 or 0), float32.
    """
    is_of_BEE = questions_BE[:, None, :] == questions_BE[:, :, None]
    slots_BE = jnp.broadcast_to(jnp.arange(questions_BE.shape[1]), questions_BE.shape)
    return token_losses(jnp.where(is_of_BEE, logits_BE[:, None, :], EXCLUDED), slots_BE, z_loss)


def squared_errors(predicted: jax.Array, targets: jax.Array) -> tuple[jax.Array, None]:
    """Returns ((predicted − target)², float32 [B, E], None). A predicted number is neither correct nor wrong.

    predicted, targets: [B, E].
    """
    return jnp.square(predicted.astype(jnp.float32) - targets), None


# (outputs, targets, batch, z_loss, label_smoothing) -> (the loss of each target, whether the target is predicted
# correctly). Both have the shape of the head's weights. heads.py names one of these functions for each head.
LOSSES: dict[str, Callable[..., tuple[jax.Array, jax.Array | None]]] = {
    "cross_entropy": lambda outputs, targets, batch, z_loss, smoothing: token_losses(
        outputs, targets, z_loss, smoothing
    ),
    "squared_error": lambda outputs, targets, *_: squared_errors(outputs, targets),
    "binary_cross_entropy": lambda outputs, targets, *_: label_losses(outputs, targets),
    "span": lambda outputs, starts, batch, z_loss, _: span_losses(
        outputs, starts, batch["span_ends"], batch["encoder_segment_ids"], z_loss
    ),
    "choice": lambda outputs, questions, batch, z_loss, _: choice_losses(outputs, questions, z_loss),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _token_losses(logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float):
    return _token_losses_forward(logits, targets, z_loss, label_smoothing)[0]


def _token_losses_forward(logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float):
    x = logits.astype(jnp.float32)
    V = x.shape[-1]
    on, off = _target_probabilities(V, label_smoothing)
    top = x.max(-1)
    # The backward pass needs e, so e is stored. Storing it also saves time: XLA's CPU backend takes three times as long
    # to sum an exp that it does not store.
    e = jnp.exp(x - top[..., None])
    total = e.sum(-1)
    log_z = jnp.log(total) + top
    picked = jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0]  # NaN for a target ≥ V: stops the run
    loss = log_z - (on - off) * picked
    if off:
        loss += on * math.log(on) + (V - 1) * off * math.log(off) - off * x.sum(-1)
    if z_loss:
        loss += z_loss * jnp.square(log_z)
    return (loss, (picked == top).astype(jnp.float32)), (e.astype(logits.dtype), targets, total, log_z)


def _target_probabilities(V: int, label_smoothing: float) -> tuple[float, float]:
    """Returns (probability of the target, probability of each other class)."""
    return 1.0 - label_smoothing, label_smoothing / (V - 1) if V > 1 else 0.0


def _token_losses_backward(z_loss: float, label_smoothing: float, kept, cotangents):
    e, targets, total, log_z = kept
    d_loss = cotangents[0]
    on, off = _target_probabilities(e.shape[-1], label_smoothing)
    ids = jax.lax.broadcasted_iota(jnp.int32, e.shape, e.ndim - 1)
    q = jnp.where(ids == targets[..., None], on, off)
    d_logits = d_loss[..., None] * (((1 + 2 * z_loss * log_z) / total)[..., None] * e.astype(jnp.float32) - q)
    return d_logits.astype(e.dtype), None


_token_losses.defvjp(_token_losses_forward, _token_losses_backward)
