"""Divides attention over devices by rows and heads. Each device has all positions of its rows and heads.

Outside attention, the mesh axis `sequence` splits rows by positions. An all-to-all exchange gives each device all
positions of some heads before attention, and another one changes back after it. So every kernel works as on one device,
and no device holds queries, keys or values of whole rows for all heads. Source: Jacobs et al. 2023, DeepSpeed-Ulysses,
§3.1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from t5x_lite.models.attention_parts import padded
from t5x_lite.models.attention_scope import Scope
from t5x_lite.models.layers import Constrain

HEADS = ("heads", "length")  # what splits the heads inside attention


def by_heads(
    query_BLHK: jax.Array, key_BGMK: jax.Array, value_BGMK: jax.Array, constrain: Constrain
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries, keys and values that are split by heads. Heads are repeated or added to divide them evenly.

    A head of keys that serves query heads of several devices is repeated. Added heads are 0, and come last.
    """
    (H, G), parts = (query_BLHK.shape[2], key_BGMK.shape[1]), constrain.parts(HEADS)
    times = (H if H % parts else math.lcm(G, parts)) // G
    query_BLHK = constrain(padded(query_BLHK, 2, parts), ("batch", None, HEADS, "kv"))
    key_BGMK, value_BGMK = (
        constrain(padded(jnp.repeat(x, times, axis=1) if times > 1 else x, 1, parts), ("batch", HEADS, None, "kv"))
        for x in (key_BGMK, value_BGMK)
    )
    return query_BLHK, key_BGMK, value_BGMK


def by_positions(heads_BLHK: jax.Array, H: int, constrain: Constrain) -> jax.Array:
    """Returns attention's results for the first H heads, split by positions, as all layers but attention compute."""
    # With the second constraint alone, XLA would split the kernel's loops by positions, too.
    heads_BLHK = constrain(heads_BLHK, ("batch", None, HEADS, "kv"))
    return constrain(heads_BLHK, ("batch", "length", "heads", "kv"))[:, :, :H]


def with_biases_by_heads(scope: Scope) -> Scope:
    """Returns the scope with biases for the heads that `by_heads` returns, split as they are."""

    def of_heads(x: jax.Array) -> jax.Array:
        return scope.constrain(padded(x, 0, scope.constrain.parts(HEADS)), (HEADS, *[None] * (x.ndim - 1)))

    return dataclasses.replace(scope, bias=jax.tree.map(of_heads, scope.bias))
