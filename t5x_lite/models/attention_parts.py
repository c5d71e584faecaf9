"""What the kernels of attention share: dropout, windows, biases by relative position, and blocks of slots."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from t5x_lite.models.attention_scope import Dropout, Scope
from t5x_lite.models.layers import is_kept
from t5x_lite.models.positions import BiasTable


def of_query_heads(x_BHMK: jax.Array, query_BLHK: jax.Array) -> jax.Array:
    """Returns keys or values with as many heads as the queries: each head is repeated for every query head of its
    group."""
    groups = query_BLHK.shape[2] // x_BHMK.shape[1]
    return jnp.repeat(x_BHMK, groups, axis=1) if groups > 1 else x_BHMK


def folded(
    dropout: Dropout, query_BLHK: jax.Array, key_BGMK: jax.Array, value_BGMK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns (keys, values, the data of the dropout key; None if no dropout of weights is left to do).

    If all queries share a dropout mask, the mask multiplies the values instead of the weights. Then keys and values
    have as many heads as queries.
    """
    if not dropout.is_on:
        return key_BGMK, value_BGMK, None
    words = jax.random.key_data(dropout.key)  # pyright: ignore[reportArgumentType]
    if not dropout.broadcasts_queries:
        return key_BGMK, value_BGMK, words
    key_BHMK, value_BHMK = (of_query_heads(x, query_BLHK) for x in (key_BGMK, value_BGMK))
    kept_BH1M = is_kept(words, dropout.rate, (*value_BHMK.shape[:2], 1, value_BHMK.shape[2]))
    return key_BHMK, jnp.where(kept_BH1M.swapaxes(2, 3), value_BHMK / (1.0 - dropout.rate), 0), None


def by_layer(attend: Callable[[int], Callable[[Any], jax.Array]], scope: Scope, is_local: Any):
    """Returns the function of inputs that attends in a layer: attend(window), with window 0 if the layer has none."""
    if not scope.window:
        return attend(0)
    if isinstance(is_local, jax.Array):  # scanned layers
        return lambda inputs: lax.cond(is_local, attend(scope.window), attend(0), inputs)
    return attend(scope.window if is_local else 0)


def with_biases(scope: Scope) -> tuple[Scope, jax.Array | None]:
    """Returns the scope, and the biases by relative position: float32 [H, L + M − 1]; None without biases.

    Entry o is the bias of relative position o − (L − 1).
    """
    L, M = scope.query_segment_ids_BL.shape[1], scope.key_segment_ids_BM.shape[1]
    return scope, scope.bias.at(np.arange(1 - L, M)) if isinstance(scope.bias, BiasTable) else None


def visible_blocks(
    counts: tuple[int, int], sizes: tuple[int, int], causal: bool, window: int, skew: int = 0
) -> np.ndarray:
    """Returns which pairs of blocks the rules of a Scope do not hide whole: bool [query blocks, key blocks].

    All queries of a segment are in consecutive slots, so that the difference of slots is that of positions.
    counts, sizes: the numbers of query blocks and key blocks, and of slots in each.
    """
    (X, Y), (Q, C) = counts, sizes
    difference = Q * np.arange(X)[:, None] - C * np.arange(Y)[None, :]
    least, most = difference - C + 1, difference + Q - 1  # of a query's slot minus a key's
    after = (most >= 0) | (not causal)
    return after & ((least < window) & (most > -window - skew) | (not window))


def padded(x: jax.Array, axis: int, multiple: int, value: int = 0) -> jax.Array:
    """Returns x, padded at the end of `axis` with `value` to a multiple of `multiple`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=value)
