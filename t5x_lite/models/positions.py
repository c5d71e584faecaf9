"""Encodings of positions: T5's relative buckets, sinusoids, rotations."""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from t5x_lite.models.config import GLOBAL, LAYER_KINDS, LOCAL, UNPOSITIONED, ModelConfig
from t5x_lite.models.layers import named


def bucket_boundaries(num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the smallest distance of each bucket except bucket 0: int32 [num_buckets - 1], ascending.

    Half of the buckets hold one distance each; the others grow geometrically up to `max_distance` (T5 paper, §2.1).
    Distances are compared with these integers, so every backend assigns a distance to the same bucket. If a backend
    computed a logarithm instead, rounding could move a distance across a boundary.

    >>> bucket_boundaries(8, 32)
    array([ 1,  2,  3,  4,  7, 12, 20], dtype=int32)
    """
    exact = num_buckets // 2
    steps = np.arange(1, num_buckets - exact)
    geometric = exact * (max_distance / exact) ** (steps / (num_buckets - exact))
    return np.concatenate([np.arange(1, exact + 1), np.ceil(geometric * (1 - 1e-12))]).astype(np.int32)


def relative_buckets(
    relative_positions, *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> jax.Array:
    """Returns the bucket of each relative position (key − query), int32 of the same shape.

    If `bidirectional`, half of the buckets are for keys at or before the query, and half for keys after it. Otherwise
    all keys after the query are in bucket 0 (the causal mask hides them anyway). Source: T5 paper, §2.1.
    """
    relative_positions = jnp.asarray(relative_positions)
    if bidirectional:
        num_buckets //= 2
        offset, distance = jnp.where(relative_positions > 0, num_buckets, 0), jnp.abs(relative_positions)
    else:
        offset, distance = 0, -relative_positions
    boundaries = bucket_boundaries(num_buckets, max_distance)
    return (offset + jnp.searchsorted(boundaries, distance, side="right", method="compare_all")).astype(jnp.int32)


def toeplitz(values_HO: jax.Array, length: int) -> jax.Array:
    """Returns [H, L, M] from [H, O] with O = L + M − 1: entry (l, m) is `values[:, m − l + L − 1]`.

    A head's O values and one value of padding are repeated L times, and then read as L rows of O values. So each row
    starts one value earlier than the row before it. This needs no gather, so the gradient is a sum. The gradient of a
    gather would be L·M scatter-adds that collide.
    """
    num_heads, num_offsets = values_HO.shape
    period = num_offsets + 1
    padded_HP = jnp.pad(values_HO, ((0, 0), (0, 1)))
    repeated = jnp.broadcast_to(padded_HP[:, None, :], (num_heads, length, period)).reshape(num_heads, -1)
    return repeated[:, : length * num_offsets].reshape(num_heads, length, num_offsets)[:, :, length - 1 :]


@struct.dataclass
class BiasTable:
    """Holds T5's bias on attention logits for each head and bucket of relative positions, float32 [H, buckets]."""

    values_HN: jax.Array
    bidirectional: bool = struct.field(pytree_node=False)
    max_distance: int = struct.field(pytree_node=False)

    def at(self, relative_positions: Any) -> jax.Array:
        """Returns the biases for relative positions (key − query), an array of any shape: [H, *shape]."""
        buckets = relative_buckets(
            relative_positions,
            bidirectional=self.bidirectional,
            num_buckets=self.values_HN.shape[1],
            max_distance=self.max_distance,
        )
        return self.values_HN[:, buckets]


def bias_of_rows(table: BiasTable, query_length: int, key_length: int) -> jax.Array:
    """Returns the biases [1, H, L, M] if each token's position is its index in the row, l or m.

    All rows of the batch share these biases.
    """
    offsets_O = np.arange(1 - query_length, key_length)
    return toeplitz(table.at(offsets_O), query_length)[None]


def bias_between(table: BiasTable, query_positions_BL: jax.Array, key_positions_BM: jax.Array) -> jax.Array:
    """Returns the biases [B, H, L, M] for any positions (cached decoding)."""
    return jnp.moveaxis(table.at(key_positions_BM[:, None, :] - query_positions_BL[:, :, None]), 0, 1)


class RelativeBias(nn.Module):
    """Owns the parameters of T5's bias: one table for all layers of a stack, or for one layer (umT5)."""

    config: ModelConfig
    bidirectional: bool

    @nn.compact
    def __call__(self) -> BiasTable:
        # As in T5X: uniform, variance 1/mean(fan_in, fan_out).
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        shape = self.config.num_heads, self.config.relative_buckets
        values_HN = self.param("embedding", named(init, ("heads", "relative_buckets")), shape, jnp.float32)
        return BiasTable(values_HN, self.bidirectional, self.config.relative_max_distance)


def sinusoids(positions_BL: jax.Array, d_model: int, kind: str = "sinusoidal") -> jax.Array:
    """Returns float32 [B, L, D]: for position p, sin(p·f) and cos(p·f) of each of D/2 frequencies f.

    sinusoidal: frequency i is 10000^(−2i/D). Its sine is at index 2i of D, its cosine at 2i + 1 (Vaswani et al. 2017,
        §3.5).
    sinusoidal_halves: the same numbers, but the sine is at index i, the cosine at i + D/2 (Marian, Pegasus).
    sinusoidal_fairseq: as halves, but frequency i is 10000^(−i/(D/2 − 1)) (fairseq's SinusoidalPositionalEmbedding).
    """
    half = d_model // 2
    last = half - 1 if kind == "sinusoidal_fairseq" else half
    frequencies = 10000.0 ** (-np.arange(half, dtype=np.float64) / last)
    angles = positions_BL[..., None].astype(jnp.float32) * frequencies.astype(np.float32)[None, None, :]
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1 if kind == "sinusoidal" else -2)
    return pairs.reshape(*positions_BL.shape, d_model)


class Rotation(NamedTuple):
    """Holds the cosine and sine of the angle by which each pair of dimensions is rotated at each position.

    Both are float32 [B, L, 1, R / 2]. R is the number of rotated dimensions of a head.
    """

    cos: jax.Array
    sin: jax.Array


def rotary_frequencies(config: ModelConfig) -> np.ndarray:
    """Returns the frequency of each pair of dimensions in radians per position, float32 [R / 2] (Su et al. 2021,
    §3.2.2).

    If `rotary_factor` is not 1, it divides the frequencies by the rule `rotary_scaling`. Let a pair's turns be the
    number of its wavelengths in `rotary_original_positions`.

    linear: all frequencies are divided (Chen et al. 2023, §2.3).
    llama3: those with at most 1 turn are divided, those with at least 4 are kept. In between, the kept share grows
        linearly with the turns. (Llama 3.1 calls the bounds low_freq_factor and high_freq_factor.)
    yarn: those with at most 1 turn are divided, those with at least 32 are kept. In between, the kept share grows
        linearly with the index of the pair, between the bounds' indices, rounded outwards (Peng et al. 2023, §3.2).
    """
    R = config.rotary_dim or config.head_dim
    frequencies = config.rotary_base ** -(np.arange(0, R, 2) / R)
    if config.rotary_factor == 1:
        return frequencies.astype(np.float32)
    original = config.rotary_original_positions
    kept: Any = 0.0
    if config.rotary_scaling == "llama3":
        kept = np.clip((frequencies * original / (2 * np.pi) - 1) / (4 - 1), 0, 1)
    elif config.rotary_scaling == "yarn":
        first, last = (
            R * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(config.rotary_base)) for turns in (32, 1)
        )
        first, last = max(np.floor(first), 0), min(np.ceil(last), R - 1)
        kept = 1 - np.clip((np.arange(R // 2) - first) / (last - first or 0.001), 0, 1)
    return (frequencies * (kept + (1 - kept) / config.rotary_factor)).astype(np.float32)


def rotations(positions_BL: jax.Array, config: ModelConfig) -> dict[str, Rotation]:
    """Returns, for each kind of layer, the rotation that `rotate` applies to queries and keys at positions_BL.

    If layers with a window have a base of their own (`rotary_local_base`), their wavelengths are not stretched. With
    rotary_scaling=yarn, cosines and sines are multiplied by 0.1·ln(rotary_factor) + 1, the square root of the
    temperature (Peng et al. 2023, §3.4).
    """

    def rotation(config: ModelConfig) -> Rotation:
        angles = positions_BL[..., None, None].astype(jnp.float32) * rotary_frequencies(config)[None, None, None, :]
        stretched = config.rotary_scaling == "yarn" and config.rotary_factor > 1
        size = 0.1 * math.log(config.rotary_factor) + 1 if stretched else 1.0
        return Rotation(size * jnp.cos(angles), size * jnp.sin(angles))

    by_kind = dict.fromkeys(LAYER_KINDS, rotation(config))
    if config.rotary_local_base:
        by_kind[LOCAL] = rotation(dataclasses.replace(config, rotary_base=config.rotary_local_base, rotary_factor=1.0))
    if UNPOSITIONED in config.layer_pattern:
        cos, sin = by_kind[GLOBAL]
        by_kind[UNPOSITIONED] = Rotation(jnp.ones_like(cos), jnp.zeros_like(sin))
    return by_kind


def rotate(x_BLHK: jax.Array, by: Rotation | None, config: ModelConfig) -> jax.Array:
    """Rotates pairs (a, b) of the first R dimensions of each head: (a, b) → (a·cos − b·sin, b·cos + a·sin).

    The dimensions of a pair are 2i and 2i + 1 if `rotary_interleaved` (GPT-J), else i and i + R/2 (Llama).

    by: the rotation. If it is None, x_BLHK is returned unchanged.
    """
    if by is None:
        return x_BLHK
    R = config.rotary_dim or config.head_dim
    rotated, rest = x_BLHK[..., :R], x_BLHK[..., R:]
    pairs = (R // 2, 2) if config.rotary_interleaved else (2, R // 2)
    axis = -1 if config.rotary_interleaved else -2
    a, b = jnp.moveaxis(rotated.reshape(*rotated.shape[:-1], *pairs).astype(jnp.float32), axis, 0)
    rotated = jnp.stack([a * by.cos - b * by.sin, b * by.cos + a * by.sin], axis=axis).reshape(rotated.shape)
    return jnp.concatenate([rotated.astype(x_BLHK.dtype), rest], axis=-1)
