"""Logits over the vocabulary, before and after the product that computes them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax


@struct.dataclass
class Projection:
    """Holds hidden states and the matrix whose product with them gives logits over the vocabulary.

    A loss can compute the product for a few tokens at a time (training/chunked_cross_entropy.py). Then the logits of a
    whole batch, its largest array, never exist.

    x: […, D].  matrix: float32, [V, D] (a token table) if `is_table`, else [D, V].  bias: [V], or None.
    dtype: of the operands; the sums are float32.  softcap: bounds the logits, as in `capped`; 0: no bound.
    constrain: see `models.build`.
    cast: the matrix in `dtype`, if several products share it.
    size: V, if the matrix and the bias are padded beyond V; 0: they are not.
    """

    x: jax.Array
    matrix: jax.Array
    bias: jax.Array | None = None
    is_table: bool = struct.field(pytree_node=False, default=True)
    dtype: str = struct.field(pytree_node=False, default="float32")
    constrain: Any = struct.field(pytree_node=False, default=lambda x, axes: x)
    softcap: float = struct.field(pytree_node=False, default=0.0)
    cast: jax.Array | None = None
    size: int = struct.field(pytree_node=False, default=0)

    def logits(self, decoding: bool = False) -> jax.Array:
        """Returns the logits, float32 […, V].

        x is reshaped to a matrix for the product. Otherwise XLA would copy the transposed logits for the table's
        gradient, which is a sum over all positions.

        decoding: whether x has only a few rows, so that almost all time goes into reading a table. The table is then
            the left operand, which XLA's CPU backend reads 1.3 to 1.7 times as fast as the right one. A barrier keeps
            it on the left.
        """
        flat = self.x.reshape(-1, self.x.shape[-1]).astype(self.dtype)
        if decoding and self.is_table:
            product: Any = lax.optimization_barrier(_dot(self.matrix.astype(self.dtype), flat, 1, 1)).T
        else:
            cast = lax.stop_gradient(self.matrix.astype(self.dtype)) if self.cast is None else self.cast
            product = _product(1 if self.is_table else 0, flat, cast, self.matrix)
        logits = product.reshape(*self.x.shape[:-1], -1)
        if self.bias is not None:
            logits += lax.broadcast_to_rank(self.bias, logits.ndim)
        logits = capped(logits, self.softcap)
        if self.size:
            column = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
            logits = jnp.where(column < self.size, logits, -jnp.inf)
        return self.constrain(logits, ("batch", "length", "vocab") if logits.ndim == 3 else ("batch", "vocab"))


@struct.dataclass
class Targeted:
    """Holds the output of a head whose targets the model itself makes, with these targets."""

    output: jax.Array
    targets: jax.Array


def capped(logits: jax.Array, softcap: float) -> jax.Array:
    """Returns softcap · tanh(logits / softcap), which is within ± softcap (Gemma 2, §2); 0: the logits themselves."""
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def logits_of(outputs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns a model's outputs with logits in place of projections, and without targets."""
    outputs = {name: x.output if isinstance(x, Targeted) else x for name, x in outputs.items()}
    return {name: x.logits() if isinstance(x, Projection) else x for name, x in outputs.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(axis: int, x: jax.Array, cast: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns the product of x [N, D] and a matrix whose axis `axis` is D, in x's dtype with float32 sums.

    The backward pass rounds the gradient of the logits to x's dtype before it enters a product. Otherwise its products
    would have float32 operands, which accelerators multiply at half the speed of bfloat16 or less. The gradient of the
    matrix is not rounded.

    cast: the matrix in x's dtype, which is read.  matrix: in float32, which gets the gradient.
    """
    return _dot(x, cast, 1, axis)


def _product_backward(axis: int, kept, d_logits: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    x, cast = kept
    d_logits = d_logits.astype(x.dtype)
    d_x, d_table = _dot(d_logits, cast, 1, 1 - axis), _dot(d_logits, x, 0, 0)
    return d_x.astype(x.dtype), None, d_table if axis else d_table.T


def _dot(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)


_product.defvjp(lambda axis, x, cast, matrix: (_product(axis, x, cast, matrix), (x, cast)), _product_backward)
