"""The reference kernel of attention. It computes the logits of all pairs of a query and a key at once, [B, H, L, M]."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from t5x_lite.models import layers
from t5x_lite.models.attention_disentangled import DisentangledBias
from t5x_lite.models.attention_parts import of_query_heads
from t5x_lite.models.attention_scope import MASKED, Dropout, Kernel, Scope
from t5x_lite.models.positions import BiasTable, bias_between, bias_of_rows
from t5x_lite.models.projection import capped


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


@struct.dataclass
class Shared:
    """Holds the masks and biases that the reference kernel makes from a Scope, for every pair of a query and a key.

    mask_B1LM: the mask of layers without a window.  near_B1LM: the mask of layers with a window.
    bias: [1, H, L, M], or [B, H, L, M] if the rows of the batch differ (cached decoding); or a DisentangledBias, from
        which queries and keys make it.
    """

    mask_B1LM: jax.Array
    bias: jax.Array | DisentangledBias | None = None
    near_B1LM: jax.Array | None = None
    softcap: float = struct.field(pytree_node=False, default=0.0)


def prepare(scope: Scope) -> Shared:
    """Returns the masks and the bias of a scope."""
    bias: Any = scope.bias
    if isinstance(scope.bias, BiasTable) and scope.rows_are_positions:
        bias = bias_of_rows(scope.bias, scope.query_segment_ids_BL.shape[1], scope.key_segment_ids_BM.shape[1])
    elif isinstance(scope.bias, BiasTable):
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
        is_near_BLM = (distance_BLM < scope.window) & (-distance_BLM < scope.window + scope.skew)
        near_B1LM = mask_B1LM & is_near_BLM[:, None]
    return Shared(mask_B1LM, bias, near_B1LM, scope.softcap)


def with_keys_of(own: Shared, other: Shared) -> Shared:
    """Returns what `prepare` returns, for the keys of two scopes beside each other: those of `own` come first.

    Both are without biases. The window of `own` does not hide the other keys.
    """
    assert own.bias is None and other.bias is None
    mask_B1LM, near_B1LM = (
        None if mask is None else jnp.concatenate([mask, other.mask_B1LM], axis=-1)
        for mask in (own.mask_B1LM, own.near_B1LM)
    )
    assert mask_B1LM is not None
    return Shared(mask_B1LM, None, near_B1LM, own.softcap)


def attention_weights(query_BLHK: jax.Array, key_BHMK: jax.Array, shared: Shared, is_local: Any) -> jax.Array:
    """Returns the weights softmax(q·kᵀ + bias), [B, H, L, M]. They are float32 for inputs of any dtype.

    Keys may have fewer heads than queries, as in `attend`.
    """
    query_BHLK, key_BHMK = query_BLHK.swapaxes(1, 2), of_query_heads(key_BHMK, query_BLHK)
    logits_BHLM = jnp.einsum("BHLK,BHMK->BHLM", query_BHLK, key_BHMK, preferred_element_type=jnp.float32)
    if isinstance(shared.bias, DisentangledBias):
        logits_BHLM += shared.bias.between(query_BLHK, key_BHMK)
    elif (bias := shared.bias) is not None:
        logits_BHLM = add_shared_bias(logits_BHLM, bias) if bias.shape[0] == 1 else logits_BHLM + bias
    logits_BHLM = capped(logits_BHLM, shared.softcap)
    return jax.nn.softmax(jnp.where(mask_of(shared, is_local), logits_BHLM, MASKED), axis=-1)


def attend(
    query_BLHK: jax.Array,
    key_BHMK: jax.Array,
    value_BHMK: jax.Array,
    shared: Shared,
    is_local: Any,
    dropout: Dropout,
) -> jax.Array:
    """Returns softmax(q·kᵀ + bias)·v, [B, L, H, K]. Logits and softmax are float32 for inputs of any dtype.

    There may be fewer key and value heads than query heads. Each key and value head then serves a group of query heads
    (Ainslie et al. 2023).
    """
    weights_BHLM = attention_weights(query_BLHK, key_BHMK, shared, is_local)
    weights_BHLM = weights_BHLM.astype(value_BHMK.dtype)
    shared_axis = 2 if dropout.broadcasts_queries else None
    weights_BHLM = layers.dropout(weights_BHLM, dropout.rate, dropout.key, shared_axis)
    value_BHMK = of_query_heads(value_BHMK, query_BLHK)
    return jnp.einsum("BHLM,BHMK->BHLK", weights_BHLM, value_BHMK).swapaxes(1, 2)


def mask_of(shared: Shared, is_local: Any) -> jax.Array:
    """Returns a layer's mask, bool [B, 1, L, M]. It includes the window if `is_local` and the stack has a window."""
    return shared.mask_B1LM if shared.near_B1LM is None else jnp.where(is_local, shared.near_B1LM, shared.mask_B1LM)


KERNEL = Kernel(prepare, attend)


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
