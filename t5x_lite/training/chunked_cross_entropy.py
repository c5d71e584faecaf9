"""Cross entropy fused with the product that makes the logits, for a few tokens at a time.

The logits [B, T, V] of a batch are the largest array of a step: 6.6 GB for GPT-2 with 32 × 1,024 tokens. A scan in
`projected_losses` computes the logits of a chunk, its losses and their gradient, and keeps only the gradients of the
hidden states and of the matrix. The forward pass makes these gradients, so that the logits are computed once, not once
more in the backward pass. This is possible because the loss is a sum: one factor scales the gradients of all tokens.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5x_lite.models.projection import Projection
from t5x_lite.models.tracing import platform
from t5x_lite.training.cross_entropy import token_losses


class Options(NamedTuple):
    """Holds the number of chunks, and the options of `token_losses`."""

    chunks: int
    z_loss: float
    label_smoothing: float


def projected_losses(options: Options, projection: Projection, targets_BT: jax.Array, weights_BT: jax.Array):
    """Returns (Σ weight · loss, the losses [B, T], whether each target is predicted correctly [B, T]).

    Only the sum has a gradient, and only to the projection. The chunks split the axis T, so that the rows stay on
    their devices.

    projection: of states [B, T, D].  targets_BT: int, in [0, V).
    """
    if platform() == "gpu" and not options.label_smoothing:  # which would give probability to padding
        projection = _aligned(projection)
    return _projected_losses(options, projection, targets_BT, weights_BT)


def _aligned(projection: Projection) -> Projection:
    """Returns the projection with V padded to a multiple of 128.

    Otherwise XLA pads the gradient of every chunk, because GPUs multiply bfloat16 matrices fast only if their sizes are
    multiples of 8, also the sizes of the up to 16 parts into which XLA splits a long sum.
    """
    axis = 0 if projection.is_table else 1
    V = projection.matrix.shape[axis]
    after = (0, -V % 128)
    matrix = jnp.pad(projection.matrix, [after if i == axis else (0, 0) for i in (0, 1)])
    bias = None if projection.bias is None else jnp.pad(projection.bias, after)
    return dataclasses.replace(projection, matrix=matrix, bias=bias, size=V) if after[1] else projection


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _projected_losses(options: Options, projection: Projection, targets_BT: jax.Array, weights_BT: jax.Array):
    return _over_chunks(options, projection, targets_BT, weights_BT, with_gradient=False)[0]


def _forward(options: Options, projection: Projection, targets_BT: jax.Array, weights_BT: jax.Array):
    return _over_chunks(options, projection, targets_BT, weights_BT, with_gradient=True)


def _backward(options: Options, gradient: Projection, cotangents) -> tuple[Projection, None, None]:
    return jax.tree.map(lambda leaf: (cotangents[0] * leaf).astype(leaf.dtype), gradient), None, None


_projected_losses.defvjp(_forward, _backward)


def _over_chunks(options: Options, projection: Projection, targets_BT, weights_BT, with_gradient: bool):
    """Returns (the result of `projected_losses`, the gradient of its sum to the projection or None)."""
    T = targets_BT.shape[1]
    length = -(-T // options.chunks)

    cast = projection.matrix.astype(projection.dtype)  # once, not in every chunk

    def of_chunk(projection: Projection, targets_BC: jax.Array, weights_BC: jax.Array):
        logits = dataclasses.replace(projection, cast=cast).logits()
        losses_BC, correct_BC = token_losses(logits, targets_BC, options.z_loss, options.label_smoothing)
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
