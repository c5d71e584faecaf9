"""Parts of a training step in the form that an accelerator's compiler makes into kernels that read and write little.

A CPU takes plain forms instead (tracing.py): it computes tanh, exp and hashes more slowly than it reads them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

# Recomputed -----------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns function(*arrays), of which the backward pass computes everything again from the arrays.

    XLA would keep each array that a derivative reads, such as the tanh inside a gelu and the mask of dropout.
    """
    return function(*arrays)


def _recomputed_backward(function: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], gradient: jax.Array):
    # Behind a barrier, XLA cannot see that it has computed this before.
    return jax.vjp(function, *map(lax.optimization_barrier, arrays))[1](gradient)


recomputed.defvjp(lambda function, *arrays: (function(*arrays), arrays), _recomputed_backward)


# Biases ---------------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def biased(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns x·kernel + bias in x's dtype: […, I], [I, O], float32 [O] → […, O].

    The sum is in float32. XLA makes this one kernel for a GPU; a bias of bfloat16 it would add in a second one.
    """
    y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return (y + lax.broadcast_to_rank(bias, x.ndim)).astype(x.dtype)


def _row(x: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.broadcast_to(bias.astype(x.dtype), (*x.shape[:-1], bias.size))


def _biased_backward(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, kernel, bias = kept
    linear = (lambda x: x @ kernel, x), (lambda kernel: x @ kernel, kernel), (lambda bias: _row(x, bias), bias)
    return tuple(jax.linear_transpose(function, array)(gradient)[0] for function, array in linear)


biased.defvjp(lambda *arrays: (biased(*arrays), arrays), _biased_backward)


# Norms ----------------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalised(rules: tuple[bool, float, str], x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns (x − mean) / √(variance + epsilon) · scale + bias over the last axis.

    rules: whether the norm is of layers (else, the mean is 0), epsilon, and the dtype of the result.
    """
    return _normalised_forward(rules, x, scale, bias)[0]


def _normalised_forward(rules: tuple[bool, float, str], x: jax.Array, scale: jax.Array, bias: jax.Array | None):
    is_layer, epsilon, dtype = rules
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True) if is_layer else jnp.zeros(())
    y -= mean
    reciprocal = lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    z = y * reciprocal * lax.broadcast_to_rank(scale, x.ndim)
    z = z if bias is None else z + lax.broadcast_to_rank(bias, x.ndim)
    return z.astype(dtype), (x, scale, bias, mean, reciprocal)


def _normalised_backward(rules: tuple[bool, float, str], kept, gradient: jax.Array):
    """Returns the gradients to x, scale and bias (Ba et al. 2016, Layer normalization, differentiated by hand).

    Let z be x before the scale, r the reciprocal standard deviation, and g the gradient times the scale. Then

            d_x = r · (g − mean(g) − z · mean(g · z)),  d_scale = Σ gradient · z,  d_bias = Σ gradient

    Without the statistics of the forward pass, XLA would write gradient · z for d_scale, a float32 array of x's shape.
    """
    x, scale, bias, *statistics = kept
    mean, reciprocal = lax.optimization_barrier(statistics)  # or XLA computes them again from x
    d_y, leading = gradient.astype(jnp.float32), tuple(range(x.ndim - 1))
    z = (x.astype(jnp.float32) - mean) * reciprocal
    g = d_y * lax.broadcast_to_rank(scale, x.ndim)
    d_z = g - z * jnp.mean(g * z, axis=-1, keepdims=True)
    if rules[0]:
        d_z -= jnp.mean(g, axis=-1, keepdims=True)
    d_bias = None if bias is None else d_y.sum(leading)
    return (d_z * reciprocal).astype(x.dtype), (d_y * z).sum(leading), d_bias


normalised.defvjp(_normalised_forward, _normalised_backward)


# Softmax --------------------------------------------------------------------------------------------------------------


def top_and_total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (the maximum of the last axis, Σ exp(x − maximum)) after reading x once.

    XLA reads it twice for two reductions: 1.4 ms more for GPT-2's 32 × 1,024 tokens on an H200. Source: Milakov and
    Gimelshein 2018, Online normalizer calculation for softmax.
    """

    def join(one, other):
        top = jnp.maximum(jnp.maximum(one[0], other[0]), start[0])  # finite, also for two logits of −∞ (padding)
        return top, one[1] * jnp.exp(one[0] - top) + other[1] * jnp.exp(other[0] - top)

    start = jnp.finfo(x.dtype).min, jnp.zeros((), x.dtype)
    return lax.reduce((x, jnp.ones_like(x)), start, join, (x.ndim - 1,))
