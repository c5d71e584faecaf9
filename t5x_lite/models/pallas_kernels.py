"""The Pallas kernels of attention_pallas.py: heads, and the gradients of queries, keys, values and biases.

A pair of blocks has C queries and C keys. The logits of a pair exist only on the chip.

    heads         a program computes C queries of one head; it visits the key blocks that they may attend to
    d_query       the same for the gradient
    d_key_value   a program computes C keys of one head; it visits the query blocks that may attend to them
    d_bias        a program sums the logits' gradients along a block diagonal

No kernel uses atomics, so the results are the same in every run. Source: Dao 2023, FlashAttention-2, §3.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as mosaic

from t5x_lite.models.attention_scope import MASKED
from t5x_lite.models.layers import is_kept

Array = Any  # of a kernel: a jax.Array, or a reference to one in memory


class Backend(NamedTuple):
    """Holds what differs between the compilers of Pallas.

    block: C, the number of queries and of keys in a block.
    is_mosaic: whether programs run one after another and read arrays as [B, H, L, K]. Otherwise they run in parallel
        and read arrays as the layers compute them, [B, L, H, K].
    """

    block: int
    compiler_params: Any = None
    interpret: bool = False
    is_mosaic: bool = False


class Call(NamedTuple):
    """Holds what kernels know when they are compiled.

    sizes: B, L, M, H, G, K. L and M are multiples of a block.
    lengths, head_dim: L and M, and K, before padding.
    grid: the order of the grid's axes: b (rows), h (heads) and x (blocks).
    """

    backend: Backend
    causal: bool
    window: int
    rate: float  # of dropout
    sizes: tuple[int, int, int, int, int, int]
    lengths: tuple[int, int]
    head_dim: int
    grid: str

    @property
    def blocks(self) -> tuple[int, int]:
        """Returns the numbers of query blocks and of key blocks."""
        return self.sizes[1] // self.backend.block, self.sizes[2] // self.backend.block

    @property
    def diagonals(self) -> int:
        """Returns the number of block diagonals, on each of which y − x is the same.

        Query block x and key block y are on diagonal y − x + (number of query blocks) − 1.
        """
        return sum(self.blocks) - 1

    @property
    def rows_at_once(self) -> int:
        """Returns the number of rows of which a program of d_bias sums the gradients."""
        return 1 if self.backend.is_mosaic else int(np.gcd(self.sizes[0], 8))

    def visible_slots(self) -> int:
        """Returns the number of pairs of a query and a key that `causal` and `window` do not hide."""
        (L, M), slots = self.lengths, np.arange(self.lengths[0])
        first = np.maximum(slots - self.window + 1, 0) if self.window else 0
        last = slots + 1 if self.causal else slots + self.window if self.window else np.full(L, M)
        return int(np.maximum(np.minimum(last, M) - first, 0).sum())

    def spec(self, block: tuple[int | None, ...], index: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
        """Returns the spec of an array of which program (b, h, x) reads or writes block number index(b, h, x)."""
        places = [self.grid.index(axis) for axis in "bhx"]
        return pl.BlockSpec(block, lambda *ids: index(*(ids[place] for place in places)))

    def ids(self) -> tuple[jax.Array, ...]:
        """Returns the row, head and block of the program that calls this."""
        return tuple(pl.program_id(self.grid.index(axis)) for axis in "bhx")

    def run(self, kernel, grid: dict[str, int], inputs: dict, outputs: list, products: int) -> list[jax.Array]:
        """Runs a kernel and returns its outputs.

        inputs: {name: (array, spec)}.  outputs: [(shape, dtype, spec)].
        products: the number of matrix products for a pair of blocks.
        """
        entries = self.sizes[0] * self.sizes[3] * self.visible_slots()
        flops = 2 * products * entries * self.head_dim
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs]
        moved = sum(x.size * x.dtype.itemsize for x in [*shapes, *(array for array, _ in inputs.values())])
        cost = pl.CostEstimate(flops=flops, transcendentals=entries, bytes_accessed=moved)

        def program(*refs):
            kernel(self, *refs)

        # Triton drops the estimate, and XLA a scope's name where it divides the kernel over devices. costs/roofline.py
        # reads this name.
        program.__name__ = f"{kernel.__name__}_flops_{flops}"
        return pl.pallas_call(
            program,
            grid=tuple(grid[axis] for axis in self.grid),
            in_specs=[{name: spec for name, (_, spec) in inputs.items()}],
            out_specs=[spec for _, _, spec in outputs],
            out_shape=shapes,
            cost_estimate=cost,
            name=program.__name__,
            compiler_params=self.backend.compiler_params,
            interpret=self.backend.interpret,
        )({name: array for name, (array, _) in inputs.items()})


# Arrays and specs -----------------------------------------------------------------------------------------------------


def reads(
    call: Call, arrays: dict[str, Any], own: str, group: int | None = None, rows: int | None = None
) -> dict[str, tuple[Any, Any]]:
    """Returns {name: (array, its spec)} of what a kernel reads.

    own: "query" or "key": a program reads only its own block of queries or keys, and all blocks of the other; "": a
        program reads all blocks, and its own tile.
    group: the number of query heads that a program reads; None: one, without an axis.  rows: likewise.
    """
    C, (_, L, M, H, G, _) = call.backend.block, call.sizes

    def vector(name: str, side: str, of_head: bool) -> tuple[Any, Any]:
        """Returns an array [B, L] or [B, H, L] as columns for axis 0 of the logits, or as lines for axis 1."""
        array, is_own = arrays[name], own == side
        leading = (rows, group)[: 1 + of_head]
        if side == ("query" if own == "query" else "key"):  # axis 0
            block = (*leading, C if is_own else array.shape[-1], 1)
            return array[..., None], call.spec(block, lambda *at: (*at[: len(leading)], at[2] * is_own, 0))
        lines = array.reshape(*array.shape[:-1], -1, 1, C)
        return lines, call.spec((*leading, *lines.shape[-3:]), lambda *at: (*at[: len(leading)], 0, 0, 0))

    of_queries = slots(call, C if own == "query" else L, group, rows, lambda b, h, x: (b, x * (own == "query"), h))
    shared = np.int32(1 if group else H // G)  # heads of the grid that share a head of keys
    of_keys = slots(
        call, C if own == "key" else M, None, rows, lambda b, h, x: (b, x * (own == "key"), lax.div(h, shared))
    )
    read = {name: (arrays[name], of_queries) for name in ("query", "d_heads") if name in arrays}
    read |= {name: (arrays[name], of_keys) for name in ("key", "value")}
    read |= {"query_ids": vector("query_ids", "query", False), "key_ids": vector("key_ids", "key", False)}
    read |= {name: vector(name, "query", True) for name in ("log_totals", "means") if name in arrays}
    read["ranges"] = scalars(call, _ranges(call, arrays["visible"], own))
    read |= {name: scalars(call, arrays[name]) for name in ("words", "rows", "heads") if arrays[name] is not None}
    if arrays["tiles"] is not None:
        tiles = arrays["tiles"] if own == "query" else arrays["tiles"].swapaxes(2, 3)
        spec = call.spec((group, call.diagonals if own else None, C, C), lambda b, h, x: (h, 0 if own else x, 0, 0))
        read["tiles"] = tiles, spec
    return read


def _ranges(call: Call, visible_BXY: jax.Array, own: str) -> jax.Array:
    """Returns the range of blocks that each program visits, int32 [B, blocks or diagonals, 2].

    visible_BXY: which pairs of a query block and a key block may have a visible key.
    """
    if own == "key":
        visible_BXY = visible_BXY.swapaxes(1, 2)
    elif not own:  # [B, diagonals, query blocks]
        (X, Y), x = call.blocks, np.arange(call.blocks[0])
        y = x + np.arange(call.diagonals)[:, None] - X + 1
        visible_BXY = visible_BXY[:, x, np.clip(y, 0, Y - 1)] & ((y >= 0) & (y < Y))[None]
    start, stop = visible_BXY.argmax(2), visible_BXY.shape[2] - visible_BXY[..., ::-1].argmax(2)
    return jnp.stack([start, jnp.where(visible_BXY.any(2), stop, start)], axis=2).astype(jnp.int32)


def slots(call: Call, size: int, heads: int | None = None, rows: int | None = None, index: Any = None) -> pl.BlockSpec:
    """Returns the spec of queries, keys or values.

    size, heads, rows: of a block; None: one, without an axis.  index: (b, h, x) -> block numbers (row, slots, head).
    """
    K = call.sizes[-1]
    index = index or (lambda b, h, x: (b, x, h))
    if not call.backend.is_mosaic:
        return call.spec((rows, size, heads, K), lambda *at: (*index(*at), 0))

    def heads_first(*at):
        row, slot, head = index(*at)
        return row, head, slot, 0

    return call.spec((rows, heads, size, K), heads_first)


def scalars(call: Call, array: jax.Array) -> tuple[jax.Array, pl.BlockSpec]:
    """Returns an array of integers that every program reads one by one, and its spec."""
    array = array.reshape(-1)
    if call.backend.is_mosaic:
        return array, pl.BlockSpec(memory_space=mosaic.SMEM)
    return array, call.spec(array.shape, lambda b, h, x: (0,))


def block_of(call: Call, ref: Array, *index: Any) -> jax.Array:
    """Returns a block, [C, K] or [C, 1], of a reference to [..., L, K] or [..., L, 1].

    index: of the leading axes; the last is the number of the block.
    """
    C = call.backend.block
    return ref[(*index[:-1], pl.ds(pl.multiple_of(index[-1] * C, C), C), slice(None))]


def of_head(call: Call, ref: Array, head: Any, block: Any) -> jax.Array:
    """Returns a block [C, K] of one head, of a reference to [L, R, K] (Mosaic: [R, L, K])."""
    C = call.backend.block
    at = pl.ds(pl.multiple_of(block * C, C), C)
    return ref[head, at, :] if call.backend.is_mosaic else ref[at, head, :]


# Pairs of blocks ------------------------------------------------------------------------------------------------------


def product(a: jax.Array, b: jax.Array, *axes: int) -> jax.Array:
    """Returns the product in float32 of two matrices, contracted along one axis of each."""
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


def logits_of(call: Call, query, key, query_ids, key_ids, bias, x, y, axis: int) -> jax.Array:
    """Returns the logits of query block x and key block y, [C, C], MASKED where the mask hides a key.

    axis: the axis of the queries, 0 or 1. ids: [C, 1] along axis 0, [1, C] along axis 1.
    """
    logits = product(query, key, 1, 1) if axis == 0 else product(key, query, 1, 1)
    if bias is not None:
        logits += bias
    mask = query_ids == key_ids
    if call.causal or call.window:
        query_slots, key_slots = slots_of(call, x, y, axis)
        distance = query_slots - key_slots
        if call.causal:
            mask &= distance >= 0
        if call.window:
            mask &= jnp.abs(distance) < call.window
    return jnp.where(mask, logits, MASKED)


def slots_of(call: Call, x, y, axis: int) -> tuple[jax.Array, jax.Array]:
    """Returns the slots of the queries and of the keys of a pair, both int32 [C, C]."""
    C = call.backend.block
    own, other = (lax.broadcasted_iota(jnp.int32, (C, C), which) for which in (axis, 1 - axis))
    return x * C + own, y * C + other


def drop(call: Call, refs: dict[str, Array], values: list[jax.Array], b, h, x, y, axis: int) -> list[jax.Array]:
    """Applies the dropout of weights to arrays of a pair, [C, C]."""
    if "words" not in refs:
        return values
    B, _, _, H, _, _ = call.sizes
    words: Any = refs["words"][0], refs["words"][1]
    index = refs["rows"][b], refs["heads"][h], *slots_of(call, x, y, axis)
    keeps = is_kept(words, call.rate, (B, H, *call.lengths), index)
    return [jnp.where(keeps, value / (1.0 - call.rate), 0.0) for value in values]


def d_logits_of(call: Call, refs, logits, value, d_heads, log_totals, means, b, h, x, y, axis: int):
    """Returns (the weights after dropout, the gradient of the logits), both [C, C]. log_totals, means: as ids."""
    weights = jnp.exp(logits - log_totals)
    d_weights = product(d_heads, value, 1, 1) if axis == 0 else product(value, d_heads, 1, 1)
    dropped, d_weights = drop(call, refs, [weights, d_weights], b, h, x, y, axis)
    return dropped, weights * (d_weights - means)


def loop(refs: dict[str, Array], number: Any, visit: Callable, start: Any) -> Any:
    """Returns the carry after visiting the blocks of range `number` in refs["ranges"]."""
    return lax.fori_loop(refs["ranges"][2 * number], refs["ranges"][2 * number + 1], visit, start)


def tile(call: Call, refs: dict[str, Array], x, y) -> jax.Array | None:
    """Returns the biases of a pair, [C, C]; None without biases."""
    return refs["tiles"][y - x + call.blocks[0] - 1] if "tiles" in refs else None


# Kernels --------------------------------------------------------------------------------------------------------------


def heads(call: Call, refs: dict[str, Array], heads_ref: Array, log_totals_ref: Array) -> None:
    b, h, x = call.ids()
    query, query_ids = refs["query"][...], refs["query_ids"][...]

    def visit(y, carry):
        out, total, old_top = carry
        key, value = block_of(call, refs["key"], y), block_of(call, refs["value"], y)
        logits = logits_of(call, query, key, query_ids, refs["key_ids"][y], tile(call, refs, x, y), x, y, 0)
        top = jnp.maximum(old_top, logits.max(1, keepdims=True))
        weights = jnp.exp(logits - top)
        shrunk = jnp.exp(old_top - top)
        (dropped,) = drop(call, refs, [weights], b, h, x, y, 0)
        out = out * shrunk + product(dropped.astype(value.dtype), value, 1, 0)
        return out, total * shrunk + weights.sum(1, keepdims=True), top

    C = call.backend.block
    top = jnp.full((C, 1), MASKED / 2, jnp.float32)  # above masked logits, so that their weights are 0
    start = jnp.zeros(query.shape, jnp.float32), jnp.zeros((C, 1), jnp.float32), top
    out, total, top = loop(refs, b * call.blocks[0] + x, visit, start)
    total = jnp.where(total > 0, total, 1.0)  # 0 for queries without a visible key
    heads_ref[...] = (out / total).astype(heads_ref.dtype)
    log_totals_ref[...] = top + jnp.log(total)


def d_query(call: Call, refs: dict[str, Array], d_query_ref: Array) -> None:
    b, h, x = call.ids()
    query, d_heads = refs["query"][...], refs["d_heads"][...]
    query_ids, log_totals, means = (refs[name][...] for name in ("query_ids", "log_totals", "means"))

    def visit(y, total):
        key, value = block_of(call, refs["key"], y), block_of(call, refs["value"], y)
        logits = logits_of(call, query, key, query_ids, refs["key_ids"][y], tile(call, refs, x, y), x, y, 0)
        _, d_logits = d_logits_of(call, refs, logits, value, d_heads, log_totals, means, b, h, x, y, 0)
        return total + product(d_logits.astype(key.dtype), key, 1, 0)

    total = loop(refs, b * call.blocks[0] + x, visit, jnp.zeros(query.shape, jnp.float32))
    d_query_ref[...] = total.astype(d_query_ref.dtype)


def d_key_value(call: Call, refs: dict[str, Array], d_key_ref: Array, d_value_ref: Array) -> None:
    b, g, y = call.ids()
    key, value, key_ids = refs["key"][...], refs["value"][...], refs["key_ids"][...]
    group = call.sizes[3] // call.sizes[4]  # heads of queries that share these keys

    def visit_head(r, sums):
        def visit(x, sums):
            query, d_heads = of_head(call, refs["query"], r, x), of_head(call, refs["d_heads"], r, x)
            bias = refs["tiles"][r, y - x + call.blocks[0] - 1] if "tiles" in refs else None
            logits = logits_of(call, query, key, refs["query_ids"][x], key_ids, bias, x, y, 1)
            log_totals, means = refs["log_totals"][r, x], refs["means"][r, x]
            where = b, g * group + r, x, y, 1
            dropped, d_logits = d_logits_of(call, refs, logits, value, d_heads, log_totals, means, *where)
            d_key = sums[0] + product(d_logits.astype(query.dtype), query, 1, 0)
            return d_key, sums[1] + product(dropped.astype(d_heads.dtype), d_heads, 1, 0)

        return loop(refs, b * call.blocks[1] + y, visit, sums)

    start = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    sums = visit_head(0, start) if group == 1 else lax.fori_loop(0, group, visit_head, start)
    d_key_ref[...], d_value_ref[...] = (total.astype(d_key_ref.dtype) for total in sums)


def d_bias(call: Call, refs: dict[str, Array], d_tile_ref: Array) -> None:
    """Writes the transposed gradient of one tile, summed over `rows_at_once` rows (on a TPU, over all rows)."""
    b, h, d = call.ids()
    bias, C = refs["tiles"][...], call.backend.block

    def visit_row(i, total):
        row = b * call.rows_at_once + i

        def visit(x, total):
            y = x + d - call.blocks[0] + 1
            query, d_heads = block_of(call, refs["query"], i, x), block_of(call, refs["d_heads"], i, x)
            key, value, key_ids = (block_of(call, refs[name], i, y) for name in ("key", "value", "key_ids"))
            logits = logits_of(call, query, key, refs["query_ids"][i, x], key_ids, bias, x, y, 1)
            log_totals, means = refs["log_totals"][i, x], refs["means"][i, x]
            return total + d_logits_of(call, refs, logits, value, d_heads, log_totals, means, row, h, x, y, 1)[1]

        return loop(refs, row * call.diagonals + d, visit, total)

    total = lax.fori_loop(0, call.rows_at_once, visit_row, jnp.zeros((C, C), jnp.float32))
    if not call.backend.is_mosaic:
        d_tile_ref[...] = total
        return

    @pl.when(b == 0)
    def _():
        d_tile_ref[...] = jnp.zeros((C, C), jnp.float32)

    d_tile_ref[...] += total
