"""What a kernel of attention gets: segment ids, positions, the window and the relative biases."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import struct

from t5x_lite.models.attention_disentangled import DisentangledBias
from t5x_lite.models.layers import Constrain, unconstrained
from t5x_lite.models.positions import BiasTable

# The logit of a masked key. It is finite, so that a query that may attend to no key (padding) gets the mean of the
# values instead of NaN.
MASKED = -1e10


@struct.dataclass
class Scope:
    """Holds everything that determines attention's mask and bias. The mask says which keys each query may attend to.

    A query may attend to keys with the same segment id (ids count from 1; 0 is padding). If `causal`, it may not attend
    to slots after its own; query l is in slot `index` + l. In a layer with a window, it may only attend to keys that
    are less than `window` positions before it, or less than `window` + `skew` after it.

    visible_BLM: bool, True where a query may attend to a slot. If given, it replaces the rules for segments and
        `causal`. Beam search needs it if beams share a cache.
    bias: what is added to the logits; None: nothing. A BiasTable has a number for each relative position. A
        DisentangledBias has vectors, which the layer's queries and keys multiply.
    rows_are_positions: whether l − m, for a query l and a key m of one segment, equals the difference of their
        positions. With a cache, it does not.
    constrain: divides a kernel over devices.
    """

    query_segment_ids_BL: jax.Array
    key_segment_ids_BM: jax.Array
    query_positions_BL: jax.Array | None = None
    key_positions_BM: jax.Array | None = None
    visible_BLM: jax.Array | None = None
    bias: BiasTable | DisentangledBias | None = None
    index: Any = 0
    window: int = struct.field(pytree_node=False, default=0)  # 0: no window
    skew: int = struct.field(pytree_node=False, default=0)
    causal: bool = struct.field(pytree_node=False, default=False)
    softcap: float = struct.field(pytree_node=False, default=0.0)  # as in projection.capped; 0: no bound
    rows_are_positions: bool = struct.field(pytree_node=False, default=True)
    constrain: Constrain = struct.field(pytree_node=False, default=unconstrained)


SAVED = "attention"  # names the arrays of a kernel that the remat policy of this name keeps


class Dropout(NamedTuple):
    """Holds the dropout of attention's weights. broadcasts_queries: whether all queries share one mask (T5)."""

    rate: float = 0.0
    key: jax.Array | None = None
    broadcasts_queries: bool = False

    @property
    def is_on(self) -> bool:
        return self.key is not None and self.rate > 0


def both_sides(size: int) -> dict[str, int]:
    """Returns `window` and `skew` of a window of `size` tokens around a query, with itself.

    An even window has one token more after the query than before it, as in T5Gemma 2; an odd one has as many.
    """
    return {"window": (size + 1) // 2, "skew": 1 - size % 2}


def no_refusal(scope: Scope, head_dim: int) -> str:
    """Returns "": the kernel computes attention of every scope on every platform."""
    return ""


def no_vectors(scope: Scope, head_dim: int) -> str:
    """Returns why a kernel that adds only biases from a table cannot compute attention of the scope; "" if it can."""
    if isinstance(scope.bias, DisentangledBias):
        return "it cannot add model.positions=disentangled: their biases depend on queries and keys"
    return ""


class Kernel(NamedTuple):
    """Holds the functions of one way to compute attention.

    prepare: Scope -> `shared`, the masks and biases that all layers of a stack share.
    attend: (query_BLHK, key_BHMK, value_BHMK, shared, is_local, dropout) -> [B, L, H, K]. is_local: whether the scope's
        window applies to this layer.
    refusal: (Scope, head_dim) -> why the kernel cannot compute attention here; "" if it can.
    """

    prepare: Callable[[Scope], Any]
    attend: Callable[..., jax.Array]
    refusal: Callable[[Scope, int], str] = no_refusal
