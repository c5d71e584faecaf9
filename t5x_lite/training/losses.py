"""From logits and targets to (sum, weight), head by head; divided once, by the weights of the whole batch.

Everything is float32. A loss is never a mean here: sums add over microbatches, devices and steps, so the
gradient does not depend on how a batch was cut.
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

EXCLUDED = -1e10  # logit of what is no candidate for a target
AUXILIARY = "auxiliary"  # the output of a model with losses of its own, {name: (sum, weight)}


@struct.dataclass
class LossSum:
    """A loss over a batch, of one head or an auxiliary one, as sums that add.

    sum: Σ weight · loss, in nats (squared error for regression).
    weight: Σ weight.
    correct: Σ weight where no logit is larger than the target's (of several labels, where all are right); None for a
        number, which is never predicted exactly.
    task_sum, task_weight: sum and weight of each task [tasks], where the batch says which token is whose.
    """

    sum: jax.Array
    weight: jax.Array
    correct: jax.Array | None = None
    task_sum: jax.Array | None = None
    task_weight: jax.Array | None = None


def loss_weights(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """head -> Σ weight, for each head the batch has targets for; what the sums of all microbatches are divided by."""
    return {name: batch[head.weights].sum() for name, head in WITH_LOSS.items() if head.weights in batch}


def loss_sums(
    outputs: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    tasks: int = 0,
) -> dict[str, LossSum]:
    """The loss of each head in the model's outputs, by the function of LOSSES that the head names (heads.py); and the
    model's own, from its output "auxiliary": {name: (Σ weight · loss, Σ weight)}, of a router or a regularizer.

    tasks: how many tasks the batch's task ids tell apart; 0 where it has none.

    A later fusion of the logits' matrix product with the loss, chunk by chunk, belongs here: a model may then
    return hidden states with their table in place of logits, and `token_losses` is the one place to meet them.
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
    """(Σ weight · loss, Σ weight) of each task [tasks]. One fused pass: a sum over targets per task, no scatter."""
    task_ids = batch["encoder_task_ids" if head.reads else "decoder_task_ids"]
    if head.positions:
        task_ids = jnp.take_along_axis(task_ids, batch[head.positions], axis=1)
    weight_of = jnp.where(task_ids[..., None] == jnp.arange(1, tasks + 1), weights[..., None], 0)
    return (losses[..., None] * weight_of).sum((0, 1)), weight_of.sum((0, 1))


def total_loss(sums: Mapping[str, LossSum], weights: Mapping[str, jax.Array]) -> jax.Array:
    """Σ over losses of sum / weight; a loss whose weight is 0 has nothing to learn from and adds 0.

    weights: of the whole batch, by loss.
    """
    total = jnp.zeros((), jnp.float32)
    for name, loss in sums.items():
        some = weights[name] > 0
        total += jnp.where(some, loss.sum / jnp.where(some, weights[name], 1), 0)
    return total


def token_losses(
    logits: jax.Array, targets: jax.Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each target under softmax(logits), and whether no logit is larger than the target's.

    With p = softmax(logits), log Z = logsumexp(logits), and q = 1−s on the target, s/(V−1) on the others:

        loss = −Σ_v q_v log p_v + Σ_v q_v log q_v + z_loss · (log Z)²

    so that a perfect prediction of q costs 0 (t5x/losses.py; the z-loss of Mesh TensorFlow).
    The backward pass keeps e = exp(logits − maximum), in the logits' dtype and place, and forms
    (1 + 2·z_loss·log Z)·e/Σe − q in one pass: a [..., V] buffer less than automatic differentiation. Logits split over
    the vocabulary stay where they are: only one number per target is summed over devices. (Correct is a comparison
    with the maximum because an argmax, on a CPU, would take longer than all the rest.)

    Args:
      logits: [..., V].
      targets: int [...], in [0, V).
    Returns:
      loss [...] in nats and correct [...] (1 or 0), float32.
    """
    # Flat, as the product that made the logits is (Embedding.attend): XLA copies none of them then.
    losses, correct = _token_losses(  # pyright: ignore[reportGeneralTypeIssues]  (a custom_vjp)
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), z_loss, label_smoothing
    )
    return losses.reshape(targets.shape), correct.reshape(targets.shape)


def label_losses(logits_BEC: jax.Array, targets_BY: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean over classes of the cross entropy of having each or not, [B, E], and whether all are right (above 0 the
    model says yes). The mean is that of transformers' multi_label_classification."""
    logits_BEC, targets_BEC = logits_BEC.astype(jnp.float32), targets_BY.reshape(logits_BEC.shape)
    right_BEC = (logits_BEC > 0) == (targets_BEC > 0)
    losses_BE = optax.sigmoid_binary_cross_entropy(logits_BEC, targets_BEC).mean(-1)
    return losses_BE, right_BEC.all(-1).astype(jnp.float32)


def span_losses(
    logits_BS2: jax.Array, starts_BE: jax.Array, ends_BE: jax.Array, segment_ids_BS: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """The mean of the cross entropies of an answer's first and last token among all tokens of its example, [B, E], and
    whether both are right (Devlin et al. 2019, §4.2).

    No label smoothing: what is no candidate would get a share of it.
    """
    segment_BE = jnp.take_along_axis(segment_ids_BS, starts_BE, axis=1)
    is_of_BES = segment_ids_BS[:, None, :] == segment_BE[..., None]
    found = [
        token_losses(jnp.where(is_of_BES, logits_BS2[:, None, :, side], EXCLUDED), targets_BE, z_loss)
        for side, targets_BE in enumerate((starts_BE, ends_BE))
    ]
    (start_losses, starts_right), (end_losses, ends_right) = found
    return (start_losses + end_losses) / 2, starts_right * ends_right


def choice_losses(logits_BE: jax.Array, questions_BE: jax.Array, z_loss: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """The cross entropy of each choice among those of its question, [B, E], and whether it has the largest logit; as if
    each were the right one: the weights say which is. No label smoothing, as in `span_losses`."""
    is_of_BEE = questions_BE[:, None, :] == questions_BE[:, :, None]
    slots_BE = jnp.broadcast_to(jnp.arange(questions_BE.shape[1]), questions_BE.shape)
    return token_losses(jnp.where(is_of_BEE, logits_BE[:, None, :], EXCLUDED), slots_BE, z_loss)


def squared_errors(predicted: jax.Array, targets: jax.Array) -> tuple[jax.Array, None]:
    """(predicted − target)²; whether a number is predicted exactly is not asked."""
    return jnp.square(predicted.astype(jnp.float32) - targets), None


# (outputs, targets, batch, z_loss, label_smoothing) -> the loss of each target and whether it is predicted correctly,
# in the shape of the head's weights. A head names its own (heads.py).
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
    # Kept for the backward pass, so made once: XLA's CPU backend takes three times as long where it sums an exp that it
    # does not store.
    e = jnp.exp(x - top[..., None])
    total = e.sum(-1)
    log_z = jnp.log(total) + top
    picked = jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0]  # past the end: NaN, which stops the run
    loss = log_z - (on - off) * picked
    if off:
        loss += on * math.log(on) + (V - 1) * off * math.log(off) - off * x.sum(-1)
    if z_loss:
        loss += z_loss * jnp.square(log_z)
    return (loss, (picked == top).astype(jnp.float32)), (e.astype(logits.dtype), targets, total, log_z)


def _target_probabilities(V: int, label_smoothing: float) -> tuple[float, float]:
    """(probability of the target, of each other class)."""
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
