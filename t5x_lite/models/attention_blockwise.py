"""Attention in blocks of queries and keys, in plain JAX. Its memory grows with L + M, not with L · M.

A scan visits pairs of a block of queries and a block of keys. It skips the pairs that the causal rule or the window
hides whole. The forward pass keeps a running maximum and a running sum of each query's softmax; the backward pass
computes the weights of each pair again, from log Σ exp of each query's logits.
Source: Dao 2023, FlashAttention-2, §3.1.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from t5x_lite.models.attention_reference import of_query_heads
from t5x_lite.models.attention_scope import MASKED, SAVED, Kernel, Scope
from t5x_lite.models.layers import is_kept
from t5x_lite.models.positions import toeplitz

# Queries and keys of a block. On 2 CPU cores, the forward and backward pass of 4 × 1,024 tokens took 0.74 of the
# reference's time with blocks of 128 or 256, 0.92 with 512, 1.29 with 1,024; of 4,096 tokens, 0.34, 0.29, 0.26, 0.41.
BLOCK = 256


class Rules(NamedTuple):
    """Holds what is known when the program is compiled.

    lengths: (L, M).  causal, window: as in `Scope`.  rate: of dropout.
    """

    lengths: tuple[int, int]
    causal: bool
    window: int
    rate: float

    @property
    def blocks(self) -> tuple[int, int]:
        """Returns the numbers of queries and keys in a block."""
        return _padded(self.lengths[0])[1], _padded(self.lengths[1])[1]

    def pairs(self) -> np.ndarray:
        """Returns the pairs of blocks with at least one visible pair of slots: int32 [P, 2], (first query, first key).

        All queries of a segment are in consecutive slots, so that the difference of slots is that of positions.
        """
        Q, C = self.blocks
        starts = ((q, m) for q in range(0, self.lengths[0], Q) for m in range(0, self.lengths[1], C))
        return np.array([(q, m) for q, m in starts if self._is_visible(q - m - C + 1, q + Q - 1 - m)], np.int32)

    def _is_visible(self, least: int, most: int) -> bool:
        """Returns whether a key may be visible if the query's slot minus the key's is between `least` and `most`."""
        return (most >= 0 or not self.causal) and (not self.window or (least < self.window and most > -self.window))


class Inputs(NamedTuple):
    """Holds the arrays that attention reads. Lengths are multiples of a block.

    There are H = G · R heads of queries; R of them share a head of keys and values.
    """

    query_BGRLK: jax.Array
    key_BGMK: jax.Array
    value_BGMK: jax.Array
    bias_HO: jax.Array | None  # the bias of relative position o − (L − 1), o from 0
    query_segment_ids_BL: jax.Array
    key_segment_ids_BM: jax.Array
    dropout_key: jax.Array | None


def prepare(scope: Scope) -> tuple[Scope, jax.Array | None]:
    """Returns the scope and the biases by relative position, [H, L + M − 1] for padded L and M; None without biases."""
    if scope.bias is None:
        return scope, None
    L, M = (_padded(ids.shape[1])[0] for ids in (scope.query_segment_ids_BL, scope.key_segment_ids_BM))
    return scope, scope.bias.at(np.arange(1 - L, M))


def attend(
    query_BLHK: jax.Array,
    key_BGMK: jax.Array,
    value_BGMK: jax.Array,
    shared: tuple[Scope, jax.Array | None],
    is_local: Any = False,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    dropout_broadcasts_queries: bool = False,
) -> jax.Array:
    """Returns softmax(q·kᵀ + bias)·v, [B, L, H, K], as `attention_reference.attend` does, with the same dropout.

    A query that may attend to no key (padding) gets 0.
    """
    (scope, bias_HO), (B, L, H, K) = shared, query_BLHK.shape
    dropout = dropout_rate, dropout_key, dropout_broadcasts_queries
    key_BGMK, value_BGMK, words = folded_dropout(query_BLHK, key_BGMK, value_BGMK, *dropout)
    G, M = key_BGMK.shape[1:3]
    rules = Rules((L, M), scope.causal, 0, 0.0 if words is None else dropout_rate)
    inputs = Inputs(
        _pad(query_BLHK.swapaxes(1, 2).reshape(B, G, H // G, L, K), 3),
        _pad(key_BGMK, 2),
        _pad(value_BGMK, 2),
        bias_HO,
        _pad(scope.query_segment_ids_BL, 1, -1),
        _pad(scope.key_segment_ids_BM, 1, -2),
        words,
    )
    heads_BGRLK = by_layer(lambda window: functools.partial(_attend, rules._replace(window=window)), scope, is_local)(
        inputs
    )
    return heads_BGRLK[:, :, :, :L].reshape(B, H, L, K).swapaxes(1, 2)


def folded_dropout(
    query_BLHK: jax.Array,
    key_BGMK: jax.Array,
    value_BGMK: jax.Array,
    rate: float,
    key: jax.Array | None,
    broadcasts_queries: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns (keys, values, the data of the dropout key; None if no dropout of weights is left to do).

    If all queries share a dropout mask, the mask multiplies the values instead of the weights. Then keys and values
    have as many heads as queries.
    """
    if key is None or not rate:
        return key_BGMK, value_BGMK, None
    words = jax.random.key_data(key)
    if not broadcasts_queries:
        return key_BGMK, value_BGMK, words
    key_BHMK, value_BHMK = (of_query_heads(x, query_BLHK) for x in (key_BGMK, value_BGMK))
    kept_BH1M = is_kept(words, rate, (*value_BHMK.shape[:2], 1, value_BHMK.shape[2]))
    return key_BHMK, jnp.where(kept_BH1M.swapaxes(2, 3), value_BHMK / (1.0 - rate), 0), None


def by_layer(attend: Callable[[int], Callable[[Any], jax.Array]], scope: Scope, is_local: Any):
    """Returns the function of inputs that attends in a layer: attend(window), with window 0 if the layer has none."""
    if not scope.window:
        return attend(0)
    if isinstance(is_local, jax.Array):  # scanned layers
        return lambda inputs: lax.cond(is_local, attend(scope.window), attend(0), inputs)
    return attend(scope.window if is_local else 0)


KERNEL = Kernel(prepare, attend)


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
            of_offsets = jax.linear_transpose(functools.partial(toeplitz, length=Q), _offsets(H, Q, C))
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
    query_ids, key_ids = (
        _block(ids, 1, at, size)
        for ids, at, size in ((inputs.query_segment_ids_BL, q, Q), (inputs.key_segment_ids_BM, m, C))
    )
    mask = query_ids[:, :, None] == key_ids[:, None, :]
    distance = (q - m) + np.arange(Q)[:, None] - np.arange(C)[None, :]
    if rules.causal:
        mask &= (distance >= 0)[None]
    if rules.window:
        mask &= (jnp.abs(distance) < rules.window)[None]
    return jnp.where(mask[:, None, None], logits, MASKED)


def _dropout(rules: Rules, inputs: Inputs, x: jax.Array, q: jax.Array, m: jax.Array) -> jax.Array:
    """Applies the dropout of weights to one pair's weights or to their gradient, [B, G, R, Q, C]."""
    if inputs.dropout_key is None:
        return x
    B, G, R, Q, C = x.shape
    index = [np.arange(B), np.arange(G * R), q + np.arange(Q), m + np.arange(C)]
    shapes = (B, 1, 1, 1, 1), (1, G, R, 1, 1), (1, 1, 1, Q, 1), (1, 1, 1, 1, C)
    index = [indices.reshape(shape) for indices, shape in zip(index, shapes, strict=True)]
    keeps = is_kept(inputs.dropout_key, rules.rate, (B, G * R, *rules.lengths), index)
    return jnp.where(keeps, x / (1.0 - rules.rate), 0)


def _offsets(num_heads: int, Q: int, C: int) -> jax.ShapeDtypeStruct:
    """Returns the type of the biases that one pair reads."""
    return jax.ShapeDtypeStruct((num_heads, Q + C - 1), jnp.float32)


def _padded(length: int) -> tuple[int, int]:
    """Returns (the length padded to a multiple of a block, the length of a block)."""
    block = min(BLOCK, length)
    return -(-length // block) * block, block


def _pad(x: jax.Array, axis: int, value: int = 0) -> jax.Array:
    """Returns x, padded with `value` along `axis` to a multiple of a block."""
    length = x.shape[axis]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, _padded(length)[0] - length)
    return jnp.pad(x, widths, constant_values=value)


def _block(x: jax.Array, axis: int, start: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis)


def _put(x: jax.Array, axis: int, start: jax.Array, block: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, block, start, axis)
