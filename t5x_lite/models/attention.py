"""Multi-head attention with segment masks, a bias, dropout and a cache of keys and values."""

from typing import TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Constrain, Dense, dropout, unconstrained
from t5x_lite.models.positions import Rotation, rotate

# Finite, so that a query with nothing to attend to (padding) reads a mean and not NaN.
MASKED = -1e10
INTERMEDIATES = "intermediates"  # flax's collection of what is computed on the way (models/intermediates.py)


class KeyValue(TypedDict):
    """Keys and values of one layer, both [B, H, M, K].

    Heads before positions, turned round once, where they are made, and not inside the products: XLA's CPU backend then
    multiplies plain matrices. It would copy [B, M, H, K] for every product of the backward pass, and a decoder's whole
    cache for every token.
    """

    key: jax.Array
    value: jax.Array


def segment_mask(query_BL: jax.Array, key_BM: jax.Array, *, causal: bool = False, index=0) -> jax.Array:
    """[B, 1, L, M] bool from segment ids: True where the query may look at the key.

    It may within its own segment and, if `causal`, at no later slot: query l stands in slot `index` + l.
    """
    mask = query_BL[:, None, :, None] == key_BM[:, None, None, :]
    if causal:
        slots_L = index + jnp.arange(query_BL.shape[1])
        mask &= slots_L[:, None] >= jnp.arange(key_BM.shape[1])
    return mask


def attention_weights(
    query_BLHK: jax.Array, key_BHMK: jax.Array, mask_B1LM: jax.Array, bias_1HLM: jax.Array | None = None
) -> jax.Array:
    """softmax(q·kᵀ + bias), float32 [B, H, L, M], whatever the inputs' dtype; see `attend`."""
    query_BHLK, key_BHMK = query_BLHK.swapaxes(1, 2), _of_query_heads(key_BHMK, query_BLHK)
    logits_BHLM = jnp.einsum("BHLK,BHMK->BHLM", query_BHLK, key_BHMK, preferred_element_type=jnp.float32)
    if bias_1HLM is not None:
        shared = bias_1HLM.shape[0] == 1
        logits_BHLM = add_shared_bias(logits_BHLM, bias_1HLM) if shared else logits_BHLM + bias_1HLM
    return jax.nn.softmax(jnp.where(mask_B1LM, logits_BHLM, MASKED), axis=-1)


def attend(
    query_BLHK: jax.Array,
    key_BHMK: jax.Array,
    value_BHMK: jax.Array,
    mask_B1LM: jax.Array,
    bias_1HLM: jax.Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    dropout_broadcasts_queries: bool = False,
) -> jax.Array:
    """softmax(q·kᵀ + bias)·v, [B, L, H, K]; logits and softmax in float32, whatever the inputs' dtype.

    Keys and values may have fewer heads than queries: each then serves a group of them (Ainslie et al. 2023).

    `bias`: [1, H, L, M], or [B, H, L, M] where rows differ (cached decoding).
    """
    weights_BHLM = attention_weights(query_BLHK, key_BHMK, mask_B1LM, bias_1HLM).astype(value_BHMK.dtype)
    weights_BHLM = dropout(weights_BHLM, dropout_rate, dropout_key, 2 if dropout_broadcasts_queries else None)
    value_BHMK = _of_query_heads(value_BHMK, query_BLHK)
    return jnp.einsum("BHLM,BHMK->BHLK", weights_BHLM, value_BHMK).swapaxes(1, 2)


def _of_query_heads(x_BHMK: jax.Array, query_BLHK: jax.Array) -> jax.Array:
    """Keys or values with as many heads as the queries have: each repeated for its group."""
    groups = query_BLHK.shape[2] // x_BHMK.shape[1]
    return jnp.repeat(x_BHMK, groups, axis=1) if groups > 1 else x_BHMK


@jax.custom_vjp
def add_shared_bias(logits_BHLM: jax.Array, bias_1HLM: jax.Array) -> jax.Array:
    """Their sum. The bias's gradient is a product with ones: as a reduction over the rows it took XLA's CPU backend
    thirty times as long, 5 % of a T5-small step."""
    return logits_BHLM + bias_1HLM


def _add_shared_bias_backward(_: None, d_logits_BHLM: jax.Array) -> tuple[jax.Array, jax.Array]:
    B, H, L, M = d_logits_BHLM.shape
    ones_1B = jnp.ones((1, B), d_logits_BHLM.dtype)
    # A sum in full float32, as it stands for: accelerators would multiply in fewer bits by default.
    d_bias = jnp.matmul(ones_1B, d_logits_BHLM.reshape(B, -1), precision=lax.Precision.HIGHEST)
    return d_logits_BHLM, d_bias.reshape(1, H, L, M)


add_shared_bias.defvjp(lambda logits, bias: (logits + bias, None), _add_shared_bias_backward)


class Attention(nn.Module):
    """Queries from one sequence; keys and values from the same, from another, or from a cache."""

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
        """The keys and values of a sequence."""
        axes = ("batch", "heads", "keys", "kv")
        key_BHMK = rotate(self.key(x_BMD), rotation, self.config).swapaxes(1, 2)
        return {"key": self.constrain(key_BHMK, axes), "value": self.constrain(self.value(x_BMD).swapaxes(1, 2), axes)}

    def __call__(
        self,
        x_BLD: jax.Array,
        key_value: KeyValue,
        mask_B1LM: jax.Array,
        bias_1HLM: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        """[B, L, D] → [B, L, D]. Keys and values may have fewer rows, each for B/rows queries' rows side by side (the
        samples of an example, which read one encoder); the mask has as many as they."""
        config = self.config
        query_BLHK = rotate(self.query(x_BLD), rotation, config)
        if config.scale_attention:
            query_BLHK *= config.head_dim**-0.5
        folded = query_BLHK.reshape(key_value["key"].shape[0], -1, *query_BLHK.shape[2:])
        folded = self.constrain(folded, ("batch", "length", "heads", "kv"))
        if self.is_mutable_collection(INTERMEDIATES):
            self.sow(INTERMEDIATES, "weights", attention_weights(folded, key_value["key"], mask_B1LM, bias_1HLM))
        heads_BLHK = attend(
            folded,
            key_value["key"],
            key_value["value"],
            mask_B1LM,
            bias_1HLM,
            dropout_rate=config.attention_dropout_rate,
            dropout_key=dropout_key,
            dropout_broadcasts_queries=config.dropout_broadcasts_length,
        )
        heads_BLHK = heads_BLHK.reshape(query_BLHK.shape)
        return self.out(self.constrain(heads_BLHK, ("batch", "length", "heads", "kv")))


def extend(cached: KeyValue, new: KeyValue, index: jax.Array) -> KeyValue:
    """The cache [B, H, M, K] with `new` [B, H, L, K] written from slot `index` on."""
    return {
        "key": lax.dynamic_update_slice_in_dim(cached["key"], new["key"], index, axis=2),
        "value": lax.dynamic_update_slice_in_dim(cached["value"], new["value"], index, axis=2),
    }
