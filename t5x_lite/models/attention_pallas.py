"""Fused attention for GPUs and TPUs: Pallas kernels with T5's biases inside. Its memory grows with L + M, not L · M.

Biases depend only on the difference of positions. So all pairs of blocks on one block diagonal have the same biases: a
tile. XLA makes the tiles from biases by relative position. The kernels read tiles, and sum the gradient of each tile.

Pallas compiles the kernels with Triton for GPUs and with Mosaic for TPUs. On other platforms its interpreter runs them;
it is slow, and is there for tests.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import triton

from t5x_lite.models import pallas_kernels
from t5x_lite.models.attention_blockwise import by_layer, folded_dropout
from t5x_lite.models.attention_scope import SAVED, Kernel, Scope
from t5x_lite.models.pallas_kernels import Backend, Call, reads, slots
from t5x_lite.models.positions import toeplitz

# Compiled for an H200 and for a TPU v5e, not yet run on them.
BACKENDS = {
    "cuda": Backend(64, {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=2)}),
    "tpu": Backend(256, {}, is_mosaic=True),
    "default": Backend(64, {"interpret": True}),
}


class Rules(NamedTuple):
    """Holds what is known when the program is compiled: `causal` and `window` as in `Scope`, and the dropout rate."""

    causal: bool
    window: int
    rate: float


class Inputs(NamedTuple):
    """Holds the arrays that attention reads. There are H = G · R heads of queries; R of them share a head of keys.

    bias_HO: float32 [H, L + M − 1], the bias of relative position o − (L − 1), o from 0.
    words: the data of the dropout key.
    """

    query_BLHK: jax.Array
    key_BMGK: jax.Array
    value_BMGK: jax.Array
    bias_HO: jax.Array | None
    query_ids_BL: jax.Array
    key_ids_BM: jax.Array
    words: jax.Array | None


def prepare(scope: Scope) -> tuple[Scope, jax.Array | None]:
    """Returns the scope and the biases by relative position, [H, L + M − 1]; None without biases."""
    L, M = scope.query_segment_ids_BL.shape[1], scope.key_segment_ids_BM.shape[1]
    return scope, None if scope.bias is None else scope.bias.at(np.arange(1 - L, M))


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

    A query that may attend to no key gets 0.
    """
    scope, bias_HO = shared
    dropout = dropout_rate, dropout_key, dropout_broadcasts_queries
    key_BGMK, value_BGMK, words = folded_dropout(query_BLHK, key_BGMK, value_BGMK, *dropout)
    ids = scope.query_segment_ids_BL, scope.key_segment_ids_BM
    inputs = Inputs(query_BLHK, key_BGMK.swapaxes(1, 2), value_BGMK.swapaxes(1, 2), bias_HO, *ids, words)
    rules = Rules(scope.causal, 0, 0.0 if words is None else dropout_rate)
    return by_layer(lambda window: functools.partial(_attend, rules._replace(window=window)), scope, is_local)(inputs)


KERNEL = Kernel(prepare, attend)


def _by_platform(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns function(backend, *arguments) with the backend of the platform for which the program is lowered.

    `jax.default_backend()` would not do: a program may be compiled for a GPU or TPU on a machine without one.
    """
    branches = {platform: functools.partial(function, backend) for platform, backend in BACKENDS.items()}
    return lax.platform_dependent(*arguments, **branches)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rules: Rules, inputs: Inputs) -> jax.Array:
    return _forward(rules, inputs)[0]


def _forward(rules: Rules, inputs: Inputs):
    """Returns (heads [B, L, H, K], what the backward pass needs)."""
    heads, log_totals = _by_platform(functools.partial(_heads, rules), inputs)
    heads, log_totals = checkpoint_name(heads, SAVED), checkpoint_name(log_totals, SAVED)
    return heads, (inputs, heads, log_totals)


def _backward(rules: Rules, kept, d_heads_BLHK: jax.Array):
    inputs, heads_BLHK, log_totals_BHL = kept
    # Σ_m weight · d_weight, for the gradient of softmax
    means_BLH = (d_heads_BLHK.astype(jnp.float32) * heads_BLHK.astype(jnp.float32)).sum(-1)
    arrays = inputs, d_heads_BLHK, log_totals_BHL, means_BLH.swapaxes(1, 2)
    d_query, d_key, d_value, d_bias = _by_platform(functools.partial(_gradients, rules), *arrays)
    return (Inputs(d_query, d_key, d_value, d_bias, None, None, None),)  # pyright: ignore[reportArgumentType]


_attend.defvjp(_forward, _backward)


# One backend ----------------------------------------------------------------------------------------------------------


def _heads(rules: Rules, backend: Backend, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """Returns (heads [B, L, H, K], log Σ exp of the logits [B, H, L])."""
    call, arrays = _call(rules, backend, inputs)
    (B, L, _, H, _, _), (length, _) = call.sizes, call.lengths
    outputs = [
        (arrays["query"].shape, inputs.query_BLHK.dtype, slots(call, backend.block)),
        ((B, H, L, 1), jnp.float32, call.spec((None, None, backend.block, 1), lambda b, h, x: (b, h, x, 0))),
    ]
    grid = {"b": B, "h": H, "x": call.blocks[0]}
    heads, log_totals = call.run(pallas_kernels.heads, grid, reads(call, arrays, "query"), outputs, products=2)
    return _restored(backend, heads, inputs.query_BLHK), log_totals[:, :, :length, 0]


def _gradients(rules: Rules, backend: Backend, inputs: Inputs, d_heads, log_totals, means):
    """Returns the gradients of queries, keys, values and biases (None without biases)."""
    call, arrays = _call(rules, backend, inputs)
    (B, _, _, H, G, _), (X, Y), C = call.sizes, call.blocks, backend.block
    arrays["d_heads"] = _arranged(backend, d_heads)
    arrays |= {"log_totals": _padded(backend, log_totals, 2), "means": _padded(backend, means, 2)}

    output = arrays["query"].shape, inputs.query_BLHK.dtype, slots(call, C)
    grid = {"b": B, "h": H, "x": X}
    d_query = call.run(pallas_kernels.d_query, grid, reads(call, arrays, "query"), [output], products=3)[0]

    output = arrays["key"].shape, inputs.key_BMGK.dtype, slots(call, C)
    grid = {"b": B, "h": G, "x": Y}
    read = reads(call, arrays, "key", group=H // G)
    d_key, d_value = call.run(pallas_kernels.d_key_value, grid, read, [output, output], products=4)

    d_bias_HO = None
    if inputs.bias_HO is not None:
        call = call._replace(grid="hxb" if backend.is_mosaic else call.grid)
        grid = {"b": B // call.rows_at_once, "h": H, "x": call.diagonals}
        sums = 1 if backend.is_mosaic else grid["b"]
        spec = call.spec((None, None, None, C, C), lambda b, h, x: (0 if backend.is_mosaic else b, h, x, 0, 0))
        output = (sums, H, call.diagonals, C, C), jnp.float32, spec
        read = reads(call, arrays, "", rows=call.rows_at_once)
        (d_tiles,) = call.run(pallas_kernels.d_bias, grid, read, [output], products=2)
        of_bias = jax.linear_transpose(functools.partial(_tiles, call), inputs.bias_HO)
        (d_bias_HO,) = of_bias(d_tiles.sum(0).swapaxes(2, 3))
    d_query = _restored(backend, d_query, inputs.query_BLHK)
    d_key, d_value = (_restored(backend, x, inputs.key_BMGK) for x in (d_key, d_value))
    return d_query, d_key, d_value, d_bias_HO


def _call(rules: Rules, backend: Backend, inputs: Inputs) -> tuple[Call, dict[str, Any]]:
    """Returns what the kernels know when they are compiled, and the arrays that they read, padded to whole blocks."""
    (B, L, H, _), (M, G) = inputs.query_BLHK.shape, inputs.key_BMGK.shape[1:3]
    query, key, value = (_arranged(backend, x) for x in (inputs.query_BLHK, inputs.key_BMGK, inputs.value_BMGK))
    query_ids = _padded(backend, inputs.query_ids_BL, 1, -1)  # slots up to whole blocks attend to no key
    key_ids = _padded(backend, inputs.key_ids_BM, 1, -2)
    sizes = (B, query_ids.shape[1], key_ids.shape[1], H, G, query.shape[-1])
    call = Call(backend, *rules, sizes, (L, M), "bhx" if backend.is_mosaic else "xhb")
    tiles = None if inputs.bias_HO is None else _tiles(call, inputs.bias_HO)
    arrays = {"query": query, "key": key, "value": value, "tiles": tiles, "words": inputs.words}
    return call, arrays | {"query_ids": query_ids, "key_ids": key_ids, "visible": _visible(call, query_ids, key_ids)}


def _visible(call: Call, query_ids_BL: jax.Array, key_ids_BM: jax.Array) -> jax.Array:
    """Returns which pairs of blocks may have a visible key: bool [B, query blocks, key blocks].

    A pair has none if the ranges of its segment ids do not meet. In a row, segment ids ascend, and 0 (padding) is last.
    """
    (B, L), C, most = query_ids_BL.shape, call.backend.block, jnp.iinfo(jnp.int32).max
    query_ids, key_ids = (jnp.where(ids == 0, most - 1, ids) for ids in (query_ids_BL, key_ids_BM))
    query_ids, key_ids = query_ids.reshape(B, L // C, 1, C), key_ids.reshape(B, 1, -1, C)
    first_query, first_key = (jnp.where(ids < 0, most, ids).min(-1) for ids in (query_ids, key_ids))
    return (first_query <= key_ids.max(-1)) & (first_key <= query_ids.max(-1)) & call.visible()[None]


def _tiles(call: Call, bias_HO: jax.Array) -> jax.Array:
    """Returns the biases of each block diagonal, [H, diagonals, C, C]: entry (q, m) of tile d is that of the pairs'
    query q and key m."""
    (H, _), (L, _), C = bias_HO.shape, call.lengths, call.backend.block
    ahead = call.blocks[0] * C - L  # queries that are padding
    padded_HP = jnp.pad(bias_HO, ((0, 0), (ahead, (call.diagonals + 1) * C - bias_HO.shape[1] - ahead)))
    blocks_HDC = padded_HP.reshape(H, -1, C)
    offsets = jnp.concatenate([blocks_HDC[:, :-1], blocks_HDC[:, 1:, :-1]], axis=2)  # diagonal d's begin at d · C
    return toeplitz(offsets.reshape(-1, 2 * C - 1), C).reshape(H, -1, C, C)


def _arranged(backend: Backend, x_BLHK: jax.Array) -> jax.Array:
    """Returns queries, keys or values as kernels read them, padded to whole blocks.

    Triton needs a power of two for K, and its products at least 16.
    """
    K = x_BLHK.shape[3]
    width = max(16, 2 ** (K - 1).bit_length())
    x_BLHK = jnp.pad(_padded(backend, x_BLHK, 1), ((0, 0), (0, 0), (0, 0), (0, width - K)))
    return x_BLHK.swapaxes(1, 2) if backend.is_mosaic else x_BLHK


def _restored(backend: Backend, x: jax.Array, like_BLHK: jax.Array) -> jax.Array:
    """Returns what `_arranged` arranged, without padding, in the shape of like_BLHK."""
    x_BLHK = x.swapaxes(1, 2) if backend.is_mosaic else x
    return x_BLHK[:, : like_BLHK.shape[1], :, : like_BLHK.shape[3]]


def _padded(backend: Backend, x: jax.Array, axis: int, value: int = 0) -> jax.Array:
    """Returns x, padded with `value` along `axis` to whole blocks."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % backend.block)
    return jnp.pad(x, widths, constant_values=value)
