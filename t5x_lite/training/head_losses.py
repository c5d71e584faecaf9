"""Computes the losses of encoders' heads: of labels, spans, choices, numbers and embeddings."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from t5x_lite.training.cross_entropy import token_losses

EXCLUDED = -1e10  # logit of a position that is not a candidate for the target
Losses = tuple[jax.Array, jax.Array]


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


# The entries of losses.LOSSES: (outputs, targets, batch, z_loss, label_smoothing) -> (losses, correct).


def of_numbers(outputs: jax.Array, targets: jax.Array, *_) -> tuple[jax.Array, None]:
    return squared_errors(outputs, targets)


def of_labels(outputs: jax.Array, targets: jax.Array, *_) -> Losses:
    return label_losses(outputs, targets)


def of_detections(outputs: jax.Array, targets: jax.Array, *_) -> Losses:
    return label_losses(outputs[..., None], targets)


def of_spans(outputs: jax.Array, starts: jax.Array, batch: Mapping, z_loss: float, _: float) -> Losses:
    return span_losses(outputs, starts, batch["span_ends"], batch["encoder_segment_ids"], z_loss)


def of_choices(outputs: jax.Array, questions: jax.Array, batch: Mapping, z_loss: float, _: float) -> Losses:
    return choice_losses(outputs, questions, z_loss)


def of_embeddings(
    outputs: jax.Array, roles: jax.Array, batch: Mapping, sizes: Sequence[int], symmetric: bool
) -> Losses:
    from t5x_lite.training.contrastive import contrastive_losses

    return contrastive_losses(outputs, roles, sizes, symmetric)
