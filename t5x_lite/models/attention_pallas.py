"""Fused attention for GPUs and TPUs: Pallas kernels with T5's biases inside. Its memory grows with L + M, not L · M.

Biases depend only on the difference of positions. So all pairs of blocks on one block diagonal have the same biases: a
tile. XLA makes the tiles from biases by relative position. The kernels read tiles, and sum the gradient of each tile.

Pallas compiles the kernels with Triton for GPUs and with Mosaic for TPUs. On other platforms its interpreter runs them;
it is slow, and is there for tests.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import tpu as mosaic
from jax.experimental.pallas import triton

from t5x_lite.models import pallas_kernels
from t5x_lite.models.attention_devices import HEADS
from t5x_lite.models.attention_parts import by_layer, folded, padded, visible_blocks, with_biases
from t5x_lite.models.attention_scope import SAVED, Dropout, Kernel, Scope, no_vectors
from t5x_lite.models.layers import Constrain
from t5x_lite.models.pallas_kernels import Backend, Call, reads, slots
from t5x_lite.models.positions import toeplitz

# Compiled for an H200 and for a TPU v5e, not yet run on them. jax 0.11 and 0.12 warn that a later version will remove
# Triton from Pallas.
BACKENDS = {
    "cuda": Backend(64, triton.CompilerParams(num_warps=4, num_stages=2)),
    "tpu": Backend(256, mosaic.CompilerParams(vmem_limit_bytes=2**26), is_mosaic=True),
    "default": Backend(64, interpret=True),
}
GPU_HEAD_DIM = 128  # with 256, blocks of 64 take 262 kB of an H200's 232 kB of shared memory
TPU_LENGTH = 8192  # a program holds all keys and values of a head


class Rules(NamedTuple):
    """Holds what is known when the program is compiled: `causal` and `window` as in `Scope`, and the dropout rate."""

    causal: bool
    window: int
    rate: float


class Inputs(NamedTuple):
    """Holds the arrays that attention reads. There are H = G · R heads of queries; R of them share a head of keys.

    bias_HO: as `with_biases` returns it.
    words: the two words of the dropout key that `random_bits` reads; None without dropout.
    rows_B, heads_H: the numbers of the rows and of the query heads, of which one device may have only some.
    """

    query_BLHK: jax.Array
    key_BMGK: jax.Array
    value_BMGK: jax.Array
    bias_HO: jax.Array | None
    query_ids_BL: jax.Array
    key_ids_BM: jax.Array
    words: jax.Array | None
    rows_B: jax.Array | None
    heads_H: jax.Array | None


# The axes of the arrays that the kernels read and write. b, h and g may be split over devices.
AXES: Any = Inputs(*("blhk", "bmgk", "bmgk", "ho", "bl", "bm", "w", "b", "h"))  # pyright: ignore[reportArgumentType]


def attend(
    query_BLHK: jax.Array,
    key_BGMK: jax.Array,
    value_BGMK: jax.Array,
    shared: tuple[Scope, jax.Array | None],
    is_local: Any,
    dropout: Dropout,
) -> jax.Array:
    """Returns softmax(q·kᵀ + bias)·v, [B, L, H, K], as `attention_reference.attend` does, with the same dropout.

    A query that may attend to no key gets 0.
    """
    scope, bias_HO = shared
    key_BGMK, value_BGMK, words = folded(dropout, query_BLHK, key_BGMK, value_BGMK)
    ids = scope.query_segment_ids_BL, scope.key_segment_ids_BM
    inputs = Inputs(query_BLHK, key_BGMK.swapaxes(1, 2), value_BGMK.swapaxes(1, 2), bias_HO, *ids, None, None, None)
    if words is not None:
        rows_B, heads_H = (jnp.arange(size) for size in (query_BLHK.shape[0], query_BLHK.shape[2]))
        inputs = inputs._replace(words=jnp.stack([words[0], words[-1]]), rows_B=rows_B, heads_H=heads_H)
    rules = Rules(scope.causal, 0, 0.0 if words is None else dropout.rate)

    def in_layer(window: int):
        return functools.partial(_attend, scope.constrain, rules._replace(window=window))

    return by_layer(in_layer, scope, is_local)(inputs)


def refusal(scope: Scope, head_dim: int) -> str:
    """Returns why the kernels cannot run on the devices of this process; "" if they can."""
    platform = jax.default_backend()
    if reason := no_vectors(scope, head_dim):
        return reason
    if scope.softcap:
        return f"its kernels cannot bound logits, and model.attention_softcap={scope.softcap}"
    if scope.skew:
        return "its kernels cannot have windows with more tokens after a query than before it"
    longest = max(ids.shape[1] for ids in (scope.query_segment_ids_BL, scope.key_segment_ids_BM))
    if "rocm" in jax.devices()[0].client.platform_version:
        return "its kernels were only compiled for CUDA, not for ROCm"
    if platform == "gpu" and head_dim > GPU_HEAD_DIM:
        return f"model.head_dim={head_dim} does not fit a GPU's shared memory; the most is {GPU_HEAD_DIM}"
    if platform == "tpu" and longest > TPU_LENGTH:
        return f"rows of {longest} tokens do not fit a TPU's vector memory; the most is {TPU_LENGTH}"
    return ""


KERNEL = Kernel(with_biases, attend, refusal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(constrain: Constrain, rules: Rules, inputs: Inputs) -> jax.Array:
    return _forward(constrain, rules, inputs)[0]


def _forward(constrain: Constrain, rules: Rules, inputs: Inputs):
    """Returns (heads [B, L, H, K], what the backward pass needs)."""
    heads, log_totals = _on_each_device(_heads, constrain, rules, (inputs,), (AXES,), ("blhk", "bhl"))
    heads, log_totals = checkpoint_name(heads, SAVED), checkpoint_name(log_totals, SAVED)
    return heads, (inputs, heads, log_totals)


def _backward(constrain: Constrain, rules: Rules, kept, d_heads_BLHK: jax.Array):
    inputs, heads_BLHK, log_totals_BHL = kept
    # Σ_m weight · d_weight, for the gradient of softmax
    means_BLH = (d_heads_BLHK.astype(jnp.float32) * heads_BLHK.astype(jnp.float32)).sum(-1)
    arrays = inputs, d_heads_BLHK, log_totals_BHL, means_BLH.swapaxes(1, 2)
    axes = AXES, "blhk", "bhl", "bhl"
    outputs = AXES[: 3 if inputs.bias_HO is None else 4]
    gradients = _on_each_device(_gradients, constrain, rules, arrays, axes, outputs)
    return (Inputs(*gradients, *[None] * (len(AXES) - len(gradients))),)


_attend.defvjp(_forward, _backward)


# Devices and platforms ------------------------------------------------------------------------------------------------


def _on_each_device(function, constrain: Constrain, rules: Rules, arguments: Any, axes: Any, outputs: Any) -> Any:
    """Returns function(rules, backend, *arguments). Each device computes its rows and heads.

    axes, outputs: the axes of the arrays, as in AXES.
    """
    arrays, tree = jax.tree.flatten(arguments)
    axes = jax.tree.leaves(jax.tree.map(lambda names, array: None if array is None else names, axes, arguments))
    return _divided(function, constrain, rules, tuple(BACKENDS.items()), tree, tuple(axes), outputs)(*arrays)


@functools.cache  # so that layers of the same sizes are traced and lowered once
def _divided(function, constrain: Constrain, rules: Rules, backends, tree, axes: tuple[str, ...], outputs):
    """Returns a jitted function of the leaves of `tree`, which each device computes for its rows and heads.

    axes, outputs: of the leaves and of the results. A result without the axis b is a sum over rows.
    """

    def on_device(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        # Not `jax.default_backend()`: a program may be compiled for a GPU or TPU on a machine without one.
        branches = {platform: functools.partial(function, rules, backend) for platform, backend in backends}
        return lax.platform_dependent(*jax.tree.unflatten(tree, arrays), **branches)

    logical = {"b": "batch", "h": HEADS, "g": HEADS}
    inputs, outputs = ([[logical.get(name) for name in names] for names in each] for each in (axes, outputs))
    return jax.jit(constrain.divided(on_device, inputs, outputs))


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


def _gradients(rules: Rules, backend: Backend, inputs: Inputs, d_heads, log_totals, means) -> tuple[jax.Array, ...]:
    """Returns the gradients of queries, keys, values and (if there are any) biases."""
    call, arrays = _call(rules, backend, inputs)
    (B, _, _, H, G, _), (X, Y), C = call.sizes, call.blocks, backend.block
    arrays["d_heads"] = _arranged(backend, d_heads)
    arrays |= {"log_totals": padded(log_totals, 2, backend.block), "means": padded(means, 2, backend.block)}

    output = arrays["query"].shape, inputs.query_BLHK.dtype, slots(call, C)
    grid = {"b": B, "h": H, "x": X}
    d_query = call.run(pallas_kernels.d_query, grid, reads(call, arrays, "query"), [output], products=3)[0]

    output = arrays["key"].shape, inputs.key_BMGK.dtype, slots(call, C)
    grid = {"b": B, "h": G, "x": Y}
    read = reads(call, arrays, "key", group=H // G)
    d_key, d_value = call.run(pallas_kernels.d_key_value, grid, read, [output, output], products=4)

    d_query = _restored(backend, d_query, inputs.query_BLHK)
    d_key, d_value = (_restored(backend, x, inputs.key_BMGK) for x in (d_key, d_value))
    if inputs.bias_HO is None:
        return d_query, d_key, d_value
    return d_query, d_key, d_value, _d_bias(call, arrays, inputs.bias_HO)


def _d_bias(call: Call, arrays: dict[str, Any], bias_HO: jax.Array) -> jax.Array:
    """Returns the gradient of the biases, [H, L + M − 1]."""
    (B, _, _, H, _, _), C = call.sizes, call.backend.block
    is_mosaic = call.backend.is_mosaic
    call = call._replace(grid="hxb" if is_mosaic else call.grid)
    grid = {"b": B // call.rows_at_once, "h": H, "x": call.diagonals}
    spec = call.spec((None, None, None, C, C), lambda b, h, x: (0 if is_mosaic else b, h, x, 0, 0))
    output = (1 if is_mosaic else grid["b"], H, call.diagonals, C, C), jnp.float32, spec
    read = reads(call, arrays, "", rows=call.rows_at_once)
    (d_tiles,) = call.run(pallas_kernels.d_bias, grid, read, [output], products=2)
    return jax.linear_transpose(functools.partial(_tiles, call), bias_HO)(d_tiles.sum(0).swapaxes(2, 3))[0]


def _call(rules: Rules, backend: Backend, inputs: Inputs) -> tuple[Call, dict[str, Any]]:
    """Returns what the kernels know when they are compiled, and the arrays that they read, padded to whole blocks."""
    (B, L, H, K), (M, G) = inputs.query_BLHK.shape, inputs.key_BMGK.shape[1:3]
    query, key, value = (_arranged(backend, x) for x in (inputs.query_BLHK, inputs.key_BMGK, inputs.value_BMGK))
    query_ids = padded(inputs.query_ids_BL, 1, backend.block, -1)  # slots up to whole blocks attend to no key
    key_ids = padded(inputs.key_ids_BM, 1, backend.block, -2)
    sizes = (B, query_ids.shape[1], key_ids.shape[1], H, G, query.shape[-1])
    call = Call(backend, *rules, sizes, (L, M), K, "bhx" if backend.is_mosaic else "xhb")
    tiles = None if inputs.bias_HO is None else _tiles(call, inputs.bias_HO)
    arrays = {"query": query, "key": key, "value": value, "tiles": tiles, "words": inputs.words}
    arrays |= {"rows": inputs.rows_B, "heads": inputs.heads_H}
    return call, arrays | {"query_ids": query_ids, "key_ids": key_ids, "visible": _visible(call, query_ids, key_ids)}


def _visible(call: Call, query_ids_BL: jax.Array, key_ids_BM: jax.Array) -> jax.Array:
    """Returns which pairs of blocks may have a visible key: bool [B, query blocks, key blocks].

    A pair has none if the ranges of its segment ids do not meet. In a row, segment ids ascend, and 0 (padding) is last.
    """
    (B, L), C, most = query_ids_BL.shape, call.backend.block, jnp.iinfo(jnp.int32).max
    query_ids, key_ids = (jnp.where(ids == 0, most - 1, ids) for ids in (query_ids_BL, key_ids_BM))
    query_ids, key_ids = query_ids.reshape(B, L // C, 1, C), key_ids.reshape(B, 1, -1, C)
    first_query, first_key = (jnp.where(ids < 0, most, ids).min(-1) for ids in (query_ids, key_ids))
    meet = (first_query <= key_ids.max(-1)) & (first_key <= query_ids.max(-1))
    return meet & visible_blocks(call.blocks, (C, C), call.causal, call.window)[None]


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
    x_BLHK = jnp.pad(padded(x_BLHK, 1, backend.block), ((0, 0), (0, 0), (0, 0), (0, width - K)))
    return x_BLHK.swapaxes(1, 2) if backend.is_mosaic else x_BLHK


def _restored(backend: Backend, x: jax.Array, like_BLHK: jax.Array) -> jax.Array:
    """Returns what `_arranged` arranged, without padding, in the shape of like_BLHK."""
    x_BLHK = x.swapaxes(1, 2) if backend.is_mosaic else x
    return x_BLHK[:, : like_BLHK.shape[1], :, : like_BLHK.shape[3]]
