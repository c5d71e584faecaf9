"""Distillation: the outputs of a trained model, the teacher, are targets of another one, the student.

The teacher's outputs are arrays of the batch (teacher.py adds them), so microbatches and devices split them as targets:

    teacher/HEAD            [B, T, V]         the teacher's logits of a head's T targets
    teacher/hidden/STACK    [B, M + 1, L, D]  its hidden states: the input of each of its M layers, and the output
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.heads import WITH_LOSS
from t5x_lite.models import intermediates
from t5x_lite.models.attention import INTERMEDIATES
from t5x_lite.models.embeddings import unit
from t5x_lite.models.projection import logits_of
from t5x_lite.training.losses import LossSum

TEACHER, HIDDEN = "teacher/", "hidden/"  # begin the names of the teacher's arrays, and of hidden states


class Weights(NamedTuple):
    """The temperature of `logits_loss`, and the factors of the losses in the total: of `logits_loss`, `cosine_loss` and
    `hidden_loss`, and of the losses of the data's own targets."""

    temperature: float
    logits: float
    cosine: float
    hidden: float
    targets: float

    @property
    def needs_hidden(self) -> bool:
        return self.cosine > 0 or self.hidden > 0


def weights(distill: Mapping[str, Any]) -> Weights:
    """Returns the weights of the section `distill` of a config."""
    return Weights(*(distill[name] for name in Weights._fields))


def taught(heads: Sequence[str]) -> tuple[str, ...]:
    """Returns those of the heads that can learn from a teacher's logits: those that predict one class or token."""
    return tuple(name for name in WITH_LOSS if name in heads and WITH_LOSS[name].loss == "cross_entropy")


def outputs(module: nn.Module, params: Any, batch: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Returns the outputs of a model's heads and, as "hidden/STACK", its hidden states [B, N + 1, L, D]."""
    variables = {"params": params}
    of_heads, recorded = module.apply(variables, batch, method="projected", mutable=[INTERMEDIATES], **options)
    scanned: bool = module.config.scan_layers  # type: ignore[attr-defined]
    states = intermediates.hidden_states(recorded[INTERMEDIATES], scanned)  # type: ignore[index]
    return {**of_heads, **{HIDDEN + stack: jnp.swapaxes(x, 0, 1) for stack, x in states.items()}}  # type: ignore[dict-item]


def loss_sums(
    own: Callable[..., dict[str, LossSum]], weights: Weights, outputs: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> dict[str, LossSum]:
    """Returns the losses of the data's targets, and those of the teacher's outputs: teacher_HEAD, cosine_STACK and
    hidden_STACK.

    own: (outputs, batch) -> {head: LossSum}, the losses of the data's targets.
    outputs: of the student.  batch: arrays [B, …] with those of the teacher.
    """
    of_heads = {name: output for name, output in outputs.items() if not name.startswith(HIDDEN)}
    sums = {
        name: dataclasses.replace(loss, factor=loss.factor * weights.targets)
        for name, loss in own(of_heads, batch).items()
    }
    for head in taught(tuple(of_heads)) if weights.logits else ():
        if TEACHER + head in batch:
            student, of_targets = logits_of({head: of_heads[head]})[head], batch[WITH_LOSS[head].weights]
            losses = logits_loss(student, batch[TEACHER + head], weights.temperature)
            sums[f"teacher_{head}"] = _sum(losses, of_targets, weights.logits)
    for name in (name for name in outputs if name.startswith(HIDDEN)):
        stack = name.removeprefix(HIDDEN)
        is_token_BL = (batch[f"{stack}_segment_ids"] > 0).astype(jnp.float32)
        for kind, of_states, factor in (
            ("cosine", cosine_loss, weights.cosine),
            ("hidden", hidden_loss, weights.hidden),
        ):
            if factor:
                sums[f"{kind}_{stack}"] = _sum(of_states(outputs[name], batch[TEACHER + name]), is_token_BL, factor)
    return sums


def _sum(losses: jax.Array, weights: jax.Array, factor: float) -> LossSum:
    return LossSum((losses * weights).sum(), weights.sum(), factor=factor)


def logits_loss(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """Returns T² · KL(softmax(teacher / T) ‖ softmax(student / T)) of each target, in nats, float32 [B, T].

    The factor T² keeps the size of the gradient (Hinton et al. 2015, §2). student, teacher: logits [B, T, V].
    """
    log_p, log_q = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (teacher, student))
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def cosine_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns 1 − the cosine of each token's last hidden states, float32 [B, L] (Sanh et al. 2019, DistilBERT, §2).

    student, teacher: [B, N + 1, L, D] and [B, M + 1, L, D].
    """
    a, b = (unit(x[:, -1].astype(jnp.float32)) for x in (student, teacher))
    return 1 - (a * b).sum(-1)


def hidden_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns the mean squared difference of each token's hidden states, float32 [B, L] (Sun et al. 2019, PKD, §3.2).

    The output of each of the student's N layers is compared with that of one of the teacher's M layers. These are
    evenly spaced and end with the last. student: [B, N + 1, L, D]; teacher: [B, M + 1, L, D].
    """
    N, M = student.shape[1] - 1, teacher.shape[1] - 1
    of_teacher = jnp.take(teacher, jnp.array([-(-i * M // N) for i in range(1, N + 1)]), axis=1)
    return jnp.square(student[:, 1:].astype(jnp.float32) - of_teacher.astype(jnp.float32)).mean((1, 3))
