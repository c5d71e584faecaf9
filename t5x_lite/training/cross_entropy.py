"""Cross entropy: of logits, and fused with the product that makes them, for a few tokens at a time.

The logits [B, T, V] of a batch are the largest array of a step: 6.6 GB for GPT-2 with 32 × 1,024 tokens. A scan in
`projected_losses` computes the logits of a chunk, its losses and their gradient, and keeps only the gradients of the
hidden states and of the matrix. The forward pass makes these gradients, so that the logits are computed once, not once
more in the backward pass. This is possible because the loss is a sum: one factor scales the gradients of all tokens.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5x_lite.models.projection import Projection


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


# Fused with the product -----------------------------------------------------------------------------------------------


class Options(NamedTuple):
    """Holds the number of chunks, and the options of `token_losses`."""

    chunks: int
    z_loss: float
    label_smoothing: float


def chunks_of(tokens: int, chunk_tokens: int) -> int:
    """Returns the number of chunks of at most `chunk_tokens` tokens; 1 if chunk_tokens is 0."""
    return -(-tokens // chunk_tokens) if chunk_tokens else 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def projected_losses(options: Options, projection: Projection, targets_BT: jax.Array, weights_BT: jax.Array):
    """Returns (Σ weight · loss, the losses [B, T], whether each target is predicted correctly [B, T]).

    Only the sum has a gradient, and only to the projection. The chunks split the axis T, so that the rows stay on
    their devices.

    projection: of states [B, T, D].  targets_BT: int, in [0, V).
    """
    return _over_chunks(options, projection, targets_BT, weights_BT, with_gradient=False)[0]


def _forward(options: Options, projection: Projection, targets_BT: jax.Array, weights_BT: jax.Array):
    return _over_chunks(options, projection, targets_BT, weights_BT, with_gradient=True)


def _backward(options: Options, gradient: Projection, cotangents) -> tuple[Projection, None, None]:
    return jax.tree.map(lambda leaf: (cotangents[0] * leaf).astype(leaf.dtype), gradient), None, None


projected_losses.defvjp(_forward, _backward)


def _over_chunks(options: Options, projection: Projection, targets_BT, weights_BT, with_gradient: bool):
    """Returns (the result of `projected_losses`, the gradient of its sum to the projection or None)."""
    T = targets_BT.shape[1]
    length = -(-T // options.chunks)

    def of_chunk(projection: Projection, targets_BC: jax.Array, weights_BC: jax.Array):
        losses_BC, correct_BC = token_losses(projection.logits(), targets_BC, options.z_loss, options.label_smoothing)
        return (losses_BC * weights_BC).sum(), (losses_BC, correct_BC)

    def chunk_of(x_BT: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(x_BT, start, length, axis=1)

    def padded(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(x_BT, [(0, 0), (0, -T % length), *[(0, 0)] * (x_BT.ndim - 2)])

    states, targets, weights = padded(projection.x), padded(targets_BT), padded(weights_BT)

    def with_states(projection: Projection, x: jax.Array) -> Projection:
        return dataclasses.replace(projection, x=x)

    def visit(carry, start):
        total, sums = carry
        arguments = with_states(projection, chunk_of(states, start)), chunk_of(targets, start), chunk_of(weights, start)
        if not with_gradient:
            loss, each = of_chunk(*arguments)
            return (total + loss, sums), (each, None)
        (loss, each), gradient = jax.value_and_grad(of_chunk, has_aux=True)(*arguments)
        sums = jax.tree.map(jnp.add, sums, with_states(gradient, sums.x))  # of what all chunks share
        return (total + loss, sums), (each, gradient.x)

    nothing = jnp.zeros(())
    start = nothing, jax.tree.map(jnp.zeros_like, with_states(projection, nothing))
    (loss, sums), (each, d_states) = lax.scan(  # pyright: ignore[reportAssignmentType]
        visit, start, jnp.arange(0, T, length)
    )

    def joined(x_NBC: jax.Array) -> jax.Array:
        """[chunks, B, C, …] → [B, T, …]"""
        x_BNC = x_NBC.swapaxes(0, 1)
        return x_BNC.reshape(x_BNC.shape[0], -1, *x_BNC.shape[3:])[:, :T]

    gradient = with_states(sums, joined(d_states)) if with_gradient else None  # pyright: ignore[reportArgumentType]
    return (loss, *map(joined, each)), gradient
