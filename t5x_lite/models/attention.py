"""Multi-head attention: the layer, and the kernels that compute attention.

KERNELS lists the kernels. A kernel gets queries, keys, values and a `Scope`, which holds segment ids, positions, the
window and the table of relative biases. If the kernel needs a mask or biases, it makes them from the scope.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Constrain, Dense, dropout, unconstrained
from t5x_lite.models.positions import BiasTable, Rotation, bias_between, bias_of_rows, rotate

# The logit of a masked key. It is finite, so that a query that may attend to no key (padding) gets the mean of the
# values instead of NaN.
MASKED = -1e10
INTERMEDIATES = "intermediates"  # flax's collection of hidden states and attention maps (models/intermediates.py)


class KeyValue(TypedDict):
    """Holds the keys and values of one layer, both [B, H, M, K].

    The axis of heads comes before the axis of positions. Keys and values are transposed once, when they are computed,
    so that XLA's CPU backend multiplies plain matrices. If they were [B, M, H, K], XLA would copy them for every
    product of the backward pass, and would copy a decoder's whole cache for every token.
    """

    key: jax.Array
    value: jax.Array


@struct.dataclass
class Scope:
    """Holds everything that determines attention's mask and bias. The mask says which keys each query may attend to.

    A query may attend to keys with the same segment id (ids count from 1; 0 is padding). If `causal`, it may not attend
    to slots after its own; query l is in slot `index` + l. In a layer with a window, it may only attend to keys that
    are less than `window` positions before it.

    visible_BLM: bool, True where a query may attend to a slot. If given, it replaces the rules for segments and
        `causal`. Beam search needs it if beams share a cache.
    bias: the table of biases, from which relative positions select what is added to the logits; None: no bias.
    rows_are_positions: whether l − m, for a query l and a key m of one segment, equals the difference of their
        positions. With a cache, it does not.
    """

    query_segment_ids_BL: jax.Array
    key_segment_ids_BM: jax.Array
    query_positions_BL: jax.Array | None = None
    key_positions_BM: jax.Array | None = None
    visible_BLM: jax.Array | None = None
    bias: BiasTable | None = None
    index: Any = 0
    window: int = struct.field(pytree_node=False, default=0)  # 0: no window
    causal: bool = struct.field(pytree_node=False, default=False)
    rows_are_positions: bool = struct.field(pytree_node=False, default=True)


class Kernel(NamedTuple):
    """Holds the two functions that compute attention.

    prepare: Scope -> `shared`, the masks and biases that all layers of a stack share.
    attend: (query_BLHK, key_BHMK, value_BHMK, shared, is_local, dropout_rate=…, dropout_key=…,
        dropout_broadcasts_queries=…) -> [B, L, H, K]. is_local: whether the scope's window applies to this layer.
    """

    prepare: Callable[[Scope], Any]
    attend: Callable[..., jax.Array]


def segment_mask(query_BL: jax.Array, key_BM: jax.Array, *, causal: bool = False, index=0) -> jax.Array:
    """Returns bool [B, 1, L, M]: True where the query may attend to the key.

    query_BL, key_BM: segment ids. A query may attend to keys of its own segment. If `causal`, it may not attend to
    later slots; query l is in slot `index` + l.
    """
    mask = query_BL[:, None, :, None] == key_BM[:, None, None, :]
    if causal:
        slots_L = index + jnp.arange(query_BL.shape[1])
        mask &= (slots_L[:, None] >= jnp.arange(key_BM.shape[1])[None, :])[None, None]
    return mask


# The reference kernel -------------------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """Holds the masks and biases that the reference kernel makes from a Scope, for every pair of a query and a key.

    mask_B1LM: the mask of layers without a window.  near_B1LM: the mask of layers with a window.
    bias: [1, H, L, M], or [B, H, L, M] if the rows of the batch differ (cached decoding).
    """

    mask_B1LM: jax.Array
    bias: jax.Array | None = None
    near_B1LM: jax.Array | None = None


def prepare(scope: Scope) -> Shared:
    """Returns the masks and the bias of a scope."""
    bias = None
    if scope.bias is not None and scope.rows_are_positions:
        bias = bias_of_rows(scope.bias, scope.query_segment_ids_BL.shape[1], scope.key_segment_ids_BM.shape[1])
    elif scope.bias is not None:
        assert scope.query_positions_BL is not None and scope.key_positions_BM is not None
        bias = bias_between(scope.bias, scope.query_positions_BL, scope.key_positions_BM)
    if scope.visible_BLM is None:
        segments = scope.query_segment_ids_BL, scope.key_segment_ids_BM
        mask_B1LM = segment_mask(*segments, causal=scope.causal, index=scope.index)
    else:
        mask_B1LM = scope.visible_BLM[:, None]
    near_B1LM = None
    if scope.window:
        assert scope.query_positions_BL is not None and scope.key_positions_BM is not None
        distance_BLM = scope.query_positions_BL[:, :, None] - scope.key_positions_BM[:, None, :]
        near_B1LM = mask_B1LM & (distance_BLM < scope.window)[:, None]
    return Shared(mask_B1LM, bias, near_B1LM)


def attention_weights(
    query_BLHK: jax.Array, key_BHMK: jax.Array, mask_B1LM: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Returns the weights softmax(q·kᵀ + bias), [B, H, L, M]. They are float32 for inputs of any dtype.

    mask_B1LM: bool, True where the query may attend to the key.  bias: [1, H, L, M] or [B, H, L, M].
    Keys may have fewer heads than queries, as in `attend`.
    """
    query_BHLK, key_BHMK = query_BLHK.swapaxes(1, 2), _of_query_heads(key_BHMK, query_BLHK)
    logits_BHLM = jnp.einsum("BHLK,BHMK->BHLM", query_BHLK, key_BHMK, preferred_element_type=jnp.float32)
    if bias is not None:
        logits_BHLM = add_shared_bias(logits_BHLM, bias) if bias.shape[0] == 1 else logits_BHLM + bias
    return jax.nn.softmax(jnp.where(mask_B1LM, logits_BHLM, MASKED), axis=-1)


def attend(
    query_BLHK: jax.Array,
    key_BHMK: jax.Array,
    value_BHMK: jax.Array,
    shared: Shared,
    is_local: Any = False,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    dropout_broadcasts_queries: bool = False,
) -> jax.Array:
    """Returns softmax(q·kᵀ + bias)·v, [B, L, H, K]. Logits and softmax are float32 for inputs of any dtype.

    There may be fewer key and value heads than query heads. Each key and value head then serves a group of query heads
    (Ainslie et al. 2023).
    """
    weights_BHLM = attention_weights(query_BLHK, key_BHMK, mask_of(shared, is_local), shared.bias)
    weights_BHLM = weights_BHLM.astype(value_BHMK.dtype)
    weights_BHLM = dropout(weights_BHLM, dropout_rate, dropout_key, 2 if dropout_broadcasts_queries else None)
    value_BHMK = _of_query_heads(value_BHMK, query_BLHK)
    return jnp.einsum("BHLM,BHMK->BHLK", weights_BHLM, value_BHMK).swapaxes(1, 2)


def mask_of(shared: Shared, is_local: Any) -> jax.Array:
    """Returns a layer's mask, bool [B, 1, L, M]. It includes the window if `is_local` and the stack has a window."""
    return shared.mask_B1LM if shared.near_B1LM is None else jnp.where(is_local, shared.near_B1LM, shared.mask_B1LM)


KERNELS = {"reference": Kernel(prepare, attend)}


def kernel_of(config: ModelConfig, records_weights: bool = False) -> Kernel:
    """Returns the kernel for a model's stacks.

    records_weights: whether the caller wants attention maps, which only the reference kernel computes.
    """
    return KERNELS["reference"]


def _of_query_heads(x_BHMK: jax.Array, query_BLHK: jax.Array) -> jax.Array:
    """Returns keys or values with as many heads as the queries: each head is repeated for every query head of its
    group."""
    groups = query_BLHK.shape[2] // x_BHMK.shape[1]
    return jnp.repeat(x_BHMK, groups, axis=1) if groups > 1 else x_BHMK


@jax.custom_vjp
def add_shared_bias(logits_BHLM: jax.Array, bias_1HLM: jax.Array) -> jax.Array:
    """Returns logits + bias, [B, H, L, M].

    The bias's gradient is a sum over rows. It is computed as a product with ones, because a plain reduction took XLA's
    CPU backend thirty times as long (5 % of a T5-small step).
    """
    return logits_BHLM + bias_1HLM


def _add_shared_bias_backward(_: None, d_logits_BHLM: jax.Array) -> tuple[jax.Array, jax.Array]:
    B, H, L, M = d_logits_BHLM.shape
    ones_1B = jnp.ones((1, B), d_logits_BHLM.dtype)
    # This product computes a sum, so it needs full float32; by default, accelerators multiply with fewer bits.
    d_bias = jnp.matmul(ones_1B, d_logits_BHLM.reshape(B, -1), precision=lax.Precision.HIGHEST)
    return d_logits_BHLM, d_bias.reshape(1, H, L, M)


add_shared_bias.defvjp(lambda logits, bias: (logits + bias, None), _add_shared_bias_backward)


class Attention(nn.Module):
    """Attends from one sequence to itself, to a different sequence (the encoder's), or to a cache."""

    config: ModelConfig
    constrain: Constrain = unconstrained

    def setup(self):
        config = self.config
        shape, axes = (config.d_model, config.num_heads, config.head_dim), ("embed", "heads", "kv")
        key_shape, bias = (config.d_model, config.kv_heads, config.head_dim), config.attention_bias
        self.query = Dense(config, shape, axes, "query", use_bias=bias)
        self.key = Dense(config, key_shape, axes, "attention", use_bias=bias)
        self.value = Dense(config, key_shape, axes, "attention", use_bias=bias)
        shape, axes = (*shape[1:], config.d_model), (*axes[1:], "embed")
        bias = bias or config.attention_out_bias
        self.out = Dense(config, shape, axes, "attention_out", inputs=2, use_bias=bias)

    def key_value(self, x_BMD: jax.Array, rotation: Rotation | None = None) -> KeyValue:
        """Returns the keys and values of the sequence x_BMD, both [B, H, M, K]. The keys are rotated by `rotation`, if
        given."""
        axes = ("batch", "heads", "keys", "kv")
        key_BHMK = rotate(self.key(x_BMD), rotation, self.config).swapaxes(1, 2)
        return {"key": self.constrain(key_BHMK, axes), "value": self.constrain(self.value(x_BMD).swapaxes(1, 2), axes)}

    def __call__(
        self,
        x_BLD: jax.Array,
        key_value: KeyValue,
        shared: Any,
        dropout_key: jax.Array | None = None,
        rotation: Rotation | None = None,
        is_local: Any = False,
    ) -> jax.Array:
        """[B, L, D] → [B, L, D].

        key_value: [rows, H, M, K]; `rows` is B or a divisor of B. Each row of keys serves B/rows adjacent rows of
            queries, because the samples of an example share one row of the encoder. The scope has as many rows as the
            keys.
        shared: the result of the kernel's `prepare` for the stack's scope.
        """
        config = self.config
        query_BLHK = rotate(self.query(x_BLD), rotation, config)
        if config.scale_attention:
            query_BLHK *= config.head_dim**-0.5
        folded = query_BLHK.reshape(key_value["key"].shape[0], -1, *query_BLHK.shape[2:])
        folded = self.constrain(folded, ("batch", "length", "heads", "kv"))
        records_weights = self.is_mutable_collection(INTERMEDIATES)
        if records_weights:
            mask_B1LM = mask_of(shared, is_local)
            self.sow(INTERMEDIATES, "weights", attention_weights(folded, key_value["key"], mask_B1LM, shared.bias))
        heads_BLHK = kernel_of(config, records_weights).attend(
            folded,
            key_value["key"],
            key_value["value"],
            shared,
            is_local,
            dropout_rate=config.attention_dropout_rate,
            dropout_key=dropout_key,
            dropout_broadcasts_queries=config.dropout_broadcasts_length,
        )
        heads_BLHK = heads_BLHK.reshape(query_BLHK.shape)
        return self.out(self.constrain(heads_BLHK, ("batch", "length", "heads", "kv")))


def extend(cached: KeyValue, new: KeyValue, index: jax.Array) -> KeyValue:
    """Returns the cache [B, H, M, K] after writing `new` [B, H, L, K] to slots `index` to `index` + L − 1."""
    return {
        "key": lax.dynamic_update_slice_in_dim(cached["key"], new["key"], index, axis=2),
        "value": lax.dynamic_update_slice_in_dim(cached["value"], new["value"], index, axis=2),
    }
