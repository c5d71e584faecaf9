"""Attention in blocks of queries and keys, in plain JAX. Its memory grows with L + M, not with L · M.

A scan visits pairs of a block of queries and a block of keys. It skips the pairs that the causal rule or the window
hides whole. The forward pass keeps a running maximum and a running sum of each query's softmax; the backward pass
computes the weights of each pair again, from log Σ exp of each query's logits.
Source: Dao 2023, FlashAttention-2, §3.1.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from t5x_lite.models.attention_parts import by_layer, folded, padded, visible_blocks, with_biases
from t5x_lite.models.attention_scope import MASKED, SAVED, Dropout, Kernel, Scope, no_vectors
from t5x_lite.models.layers import is_kept
from t5x_lite.models.positions import toeplitz
from t5x_lite.models.projection import capped

# Queries and keys of a block. On 2 CPU cores, the forward and backward pass of 4 × 1,024 tokens took 0.74 of the
# reference's time with blocks of 128 or 256, 0.92 with 512, 1.29 with 1,024; of 4,096 tokens, 0.34, 0.29, 0.26, 0.41.
BLOCK = 256


class Rules(NamedTuple):
    """Holds what is known when the program is compiled.

    lengths: (L, M).  causal, window, softcap, skew: as in `Scope`.  rate: of dropout.
    """

    lengths: tuple[int, int]
    causal: bool
    window: int
    rate: float
    softcap: float
    skew: int

    @property
    def blocks(self) -> tuple[int, int]:
        """Returns the numbers of queries and keys in a block."""
        return min(BLOCK, self.lengths[0]), min(BLOCK, self.lengths[1])

    def pairs(self) -> np.ndarray:
        """Returns the pairs of blocks with a visible pair of slots: int32 [P, 2], (first query, first key)."""
        (L, M), (Q, C) = self.lengths, self.blocks
        visible = visible_blocks((-(-L // Q), -(-M // C)), (Q, C), self.causal, self.window, self.skew)
        return (np.argwhere(visible) * (Q, C)).astype(np.int32)


class Inputs(NamedTuple):
    """Holds the arrays that attention reads. Lengths are multiples of a block.

    There are H = G · R heads of queries; R of them share a head of keys and values.
    """

    query_BGRLK: jax.Array
    key_BGMK: jax.Array
    value_BGMK: jax.Array
    bias_HO: jax.Array | None  # as `with_biases` returns it
    query_segment_ids_BL: jax.Array
    key_segment_ids_BM: jax.Array
    words: jax.Array | None  # the data of the dropout key


def attend(
    query_BLHK: jax.Array,
    key_BGMK: jax.Array,
    value_BGMK: jax.Array,
    shared: tuple[Scope, jax.Array | None],
    is_local: Any,
    dropout: Dropout,
) -> jax.Array:
    """Returns softmax(q·kᵀ + bias)·v, [B, L, H, K], as `attention_reference.attend` does, with the same dropout.

    A query that may attend to no key (padding) gets 0.
    """
    (scope, bias_HO), (B, L, H, K) = shared, query_BLHK.shape
    key_BGMK, value_BGMK, words = folded(dropout, query_BLHK, key_BGMK, value_BGMK)
    G, M = key_BGMK.shape[1:3]
    rules = Rules((L, M), scope.causal, 0, 0.0 if words is None else dropout.rate, scope.softcap, scope.skew)
    Q, C = rules.blocks
    if bias_HO is not None:
        bias_HO = jnp.pad(bias_HO, ((0, 0), (-L % Q, -M % C)))  # of padding, which no query sees
    inputs = Inputs(
        padded(query_BLHK.swapaxes(1, 2).reshape(B, G, H // G, L, K), 3, Q),
        padded(key_BGMK, 2, C),
        padded(value_BGMK, 2, C),
        bias_HO,
        padded(scope.query_segment_ids_BL, 1, Q, -1),
        padded(scope.key_segment_ids_BM, 1, C, -2),
        words,
    )
    layer = by_layer(lambda window: functools.partial(_attend, rules._replace(window=window)), scope, is_local)
    heads_BGRLK = layer(inputs)
    return heads_BGRLK[:, :, :, :L].reshape(B, H, L, K).swapaxes(1, 2)


KERNEL = Kernel(with_biases, attend, no_vectors)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rules: Rules, inputs: Inputs) -> jax.Array:
    return _forward(rules, inputs)[0]


def _forward(rules: Rules, inputs: Inputs):
    """Returns (heads [B, G, R, L, K], what the backward pass needs)."""
    query = inputs.query_BGRLK
    top = jnp.full(query.shape[:-1], MASKED / 2, jnp.float32)  # above masked logits, so that their weights are 0

    def visit(carry, starts):
        q, m = starts
        logits = _logits(rules, inputs, q, m)
        out, total, old_top = (_block(x, 3, q, logits.shape[3]) for x in carry)
        top = jnp.maximum(old_top, logits.max(-1))
        weights = jnp.exp(logits - top[..., None])
        shrunk = jnp.exp(old_top - top)
        total = total * shrunk + weights.sum(-1)
        dropped = _dropout(rules, inputs, weights, q, m).astype(query.dtype)
        value = _block(inputs.value_BGMK, 2, m, logits.shape[4])
        product = jnp.einsum("BGRLM,BGMK->BGRLK", dropped, value, preferred_element_type=jnp.float32)
        new = out * shrunk[..., None] + product, total, top
        return tuple(_put(x, 3, q, y) for x, y in zip(carry, new, strict=True)), None

    start = jnp.zeros(query.shape, jnp.float32), jnp.zeros_like(top), top
    (out, total, top), _ = lax.scan(visit, start, rules.pairs())
    total = jnp.where(total > 0, total, 1)  # 0 for queries without a visible key
    heads = checkpoint_name((out / total[..., None]).astype(query.dtype), SAVED)
    return heads, (inputs, heads, checkpoint_name(top + jnp.log(total), SAVED))


def _backward(rules: Rules, kept, d_heads: jax.Array):
    inputs, heads, log_totals = kept
    query, key = inputs.query_BGRLK, inputs.key_BGMK
    H, L = query.shape[1] * query.shape[2], query.shape[3]
    # Σ_m weight · d_weight, for the gradient of softmax
    means = (d_heads.astype(jnp.float32) * heads.astype(jnp.float32)).sum(-1)

    def visit(carry, starts):
        q, m = starts
        logits = _logits(rules, inputs, q, m)
        Q, C = logits.shape[3:]
        d_out, log_total, mean = (_block(x, 3, q, Q) for x in (d_heads, log_totals, means))
        weights = jnp.exp(logits - log_total[..., None])
        value = _block(inputs.value_BGMK, 2, m, C)
        d_weights = jnp.einsum("BGRLK,BGMK->BGRLM", d_out, value, preferred_element_type=jnp.float32)
        d_weights = _dropout(rules, inputs, d_weights, q, m)
        d_logits = weights * (d_weights - mean[..., None])
        if rules.softcap:  # times the derivative of the cap; masked logits are out of bounds, and their weights are 0
            d_logits *= 1 - jnp.square(jnp.clip(logits / rules.softcap, -1, 1))
        dropped = _dropout(rules, inputs, weights, q, m).astype(query.dtype)
        into = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        narrow = d_logits.astype(query.dtype)
        new = [
            into("BGRLM,BGMK->BGRLK", narrow, _block(key, 2, m, C)),
            into("BGRLM,BGRLK->BGMK", narrow, _block(query, 3, q, Q)),
            into("BGRLM,BGRLK->BGMK", dropped, d_out),
        ]
        places = [(3, q), (2, m), (2, m)]
        if inputs.bias_HO is not None:
            offsets = jax.ShapeDtypeStruct((H, Q + C - 1), jnp.float32)
            of_offsets = jax.linear_transpose(functools.partial(toeplitz, length=Q), offsets)
            new += of_offsets(d_logits.sum(0).reshape(H, Q, C))
            places.append((1, m - q + L - Q))
        added = [
            _put(x, axis, at, _block(x, axis, at, y.shape[axis]) + y)
            for x, y, (axis, at) in zip(carry, new, places, strict=True)
        ]
        return added, None

    read = [query, key, inputs.value_BGMK, *([] if inputs.bias_HO is None else [inputs.bias_HO])]
    sums, _ = lax.scan(visit, [jnp.zeros(x.shape, jnp.float32) for x in read], rules.pairs())
    gradients = [total.astype(x.dtype) for total, x in zip(sums, read, strict=True)]
    d_query, d_key, d_value, d_bias = (*gradients, None)[:4]
    return (Inputs(d_query, d_key, d_value, d_bias, None, None, None),)  # pyright: ignore[reportArgumentType]


_attend.defvjp(_forward, _backward)


def _logits(rules: Rules, inputs: Inputs, q: jax.Array, m: jax.Array) -> jax.Array:
    """Returns a pair's logits [B, G, R, Q, C], MASKED where the mask hides a key, given its first query and key."""
    Q, C = rules.blocks
    query, key = _block(inputs.query_BGRLK, 3, q, Q), _block(inputs.key_BGMK, 2, m, C)
    logits = jnp.einsum("BGRLK,BGMK->BGRLM", query, key, preferred_element_type=jnp.float32)
    if inputs.bias_HO is not None:
        L = inputs.query_segment_ids_BL.shape[1]
        offsets_HO = _block(inputs.bias_HO, 1, m - q + L - Q, Q + C - 1)
        logits += toeplitz(offsets_HO, Q).reshape(1, *logits.shape[1:])
    logits = capped(logits, rules.softcap)
    query_ids, key_ids = (
        _block(ids, 1, at, size)
        for ids, at, size in ((inputs.query_segment_ids_BL, q, Q), (inputs.key_segment_ids_BM, m, C))
    )
    mask = query_ids[:, :, None] == key_ids[:, None, :]
    distance = (q - m) + np.arange(Q)[:, None] - np.arange(C)[None, :]
    if rules.causal:
        mask &= (distance >= 0)[None]
    if rules.window:
        mask &= ((distance < rules.window) & (-distance < rules.window + rules.skew))[None]
    return jnp.where(mask[:, None, None], logits, MASKED)


def _dropout(rules: Rules, inputs: Inputs, x: jax.Array, q: jax.Array, m: jax.Array) -> jax.Array:
    """Applies the dropout of weights to one pair's weights or to their gradient, [B, G, R, Q, C]."""
    if inputs.words is None:
        return x
    B, G, R, Q, C = x.shape
    index = [np.arange(B), np.arange(G * R), q + np.arange(Q), m + np.arange(C)]
    shapes = (B, 1, 1, 1, 1), (1, G, R, 1, 1), (1, 1, 1, Q, 1), (1, 1, 1, 1, C)
    index = [indices.reshape(shape) for indices, shape in zip(index, shapes, strict=True)]
    keeps = is_kept(inputs.words, rules.rate, (B, G * R, *rules.lengths), index)
    return jnp.where(keeps, x / (1.0 - rules.rate), 0)


def _block(x: jax.Array, axis: int, start: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis)


def _put(x: jax.Array, axis: int, start: jax.Array, block: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, block, start, axis)
