"""Multi-head attention: the layer, and the kernels that compute attention.

A kernel is the KERNEL of a module attention_NAME.py. It gets queries, keys, values and a `Scope`, which holds segment
ids, positions, the window and the table of relative biases. A kernel that needs a mask or biases makes them from the
scope.
"""

import functools
import importlib
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from t5x_lite.errors import ConfigError
from t5x_lite.models.attention_devices import by_heads, by_positions, with_biases_by_heads
from t5x_lite.models.attention_disentangled import DisentangledBias
from t5x_lite.models.attention_reference import attention_weights, with_keys_of
from t5x_lite.models.attention_scope import Dropout, Kernel, Scope
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Constrain, Dense, Norm, unconstrained
from t5x_lite.models.positions import Rotation, rotate

# `auto` computes attention in blocks from this L · M. On 2 CPU cores, it then takes at most 1.2 of the reference's time
# (0.7 with a causal mask, 0.6 at 2,048 tokens, 0.4 at 4,096) and a sixth of its memory. `auto` never takes Pallas'
# kernels, because they have not yet run on a GPU or TPU.
BLOCKWISE_FROM = 2**20
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
class Prepared:
    """Holds what a kernel prepared from a Scope, and the kernel itself."""

    shared: Any
    kernel: Kernel = struct.field(pytree_node=False)


def prepare(config: ModelConfig, scope: Scope, records_weights: bool = False) -> Prepared:
    """Returns a scope that is prepared by the kernel for its lengths.

    records_weights: whether the caller wants attention maps, which only the reference kernel computes.
    Raises ConfigError if `config` names a kernel that cannot compute attention here.
    """
    name = config.attention
    if records_weights or scope.visible_BLM is not None or not scope.rows_are_positions:
        name = "reference"
    elif name == "auto":
        size = scope.query_segment_ids_BL.shape[1] * scope.key_segment_ids_BM.shape[1]
        is_long = size >= BLOCKWISE_FROM and not kernel("blockwise").refusal(scope, config.head_dim)
        name = "blockwise" if is_long else "reference"
    chosen = kernel(name)
    if reason := chosen.refusal(scope, config.head_dim):
        raise ConfigError(f"model.attention={name!r}: {reason}; use auto")
    return Prepared(chosen.prepare(with_biases_by_heads(scope)), chosen)


def prepare_merged(scope: Scope, encoded_segment_ids_BS: jax.Array) -> Prepared:
    """Returns the scope of queries that attend to their own text and to the encoder's in one softmax (see `beside`).

    scope: of the queries and their own text. Only the reference kernel computes the two together.
    encoded_segment_ids_BS: of the encoder's rows, each of which serves as many adjacent rows of queries.
    """
    query_ids = scope.query_segment_ids_BL
    key_ids = _for_each(query_ids.shape[0], encoded_segment_ids_BS)
    chosen = kernel("reference")
    encoded = chosen.prepare(Scope(query_ids, key_ids, rows_are_positions=False))
    return Prepared(with_keys_of(chosen.prepare(scope), encoded), chosen)


def _for_each(rows: int, array: jax.Array) -> jax.Array:
    """Returns an array with as many rows as `rows`: each of its rows repeated, side by side."""
    times = rows // array.shape[0]
    return jnp.repeat(array, times, axis=0) if times > 1 else array


def kernel(name: str) -> Kernel:
    """Returns the kernel called `name`, one of KERNELS of models/config.py. Imports its module at the first call."""
    return importlib.import_module(f"t5x_lite.models.attention_{name}").KERNEL


class Attention(nn.Module):
    """Attends from one sequence to itself, to a different sequence (the encoder's), or to a cache."""

    config: ModelConfig
    constrain: Constrain = unconstrained

    def setup(self):
        config = self.config
        shape, axes = (config.d_model, config.num_heads, config.head_dim), ("embed", "heads", "kv")
        key_shape, bias = (config.d_model, config.kv_heads, config.head_dim), config.attention_bias in ("all", "qkv")
        dense = functools.partial(Dense, config, constrain=self.constrain)
        self.query = dense(shape, axes, "query", use_bias=bias)
        self.key = dense(key_shape, axes, "attention", use_bias=bias)
        self.value = dense(key_shape, axes, "attention", use_bias=bias)
        shape, axes = (*shape[1:], config.d_model), (*axes[1:], "embed")
        bias = config.attention_bias in ("all", "out")
        self.out = dense(shape, axes, "attention_out", inputs=2, use_bias=bias)
        if config.qk_norm != "none":
            self.query_norm, self.key_norm = Norm(config), Norm(config)

    def key_value(self, x_BMD: jax.Array, rotation: Rotation | None = None) -> KeyValue:
        """Returns the keys and values of the sequence x_BMD, both [B, H, M, K]. The keys are rotated by `rotation`, if
        given."""
        axes = ("batch", "heads", "length", "kv")
        key_BHMK = rotate(self._normed(self.key(x_BMD), "key_norm"), rotation, self.config).swapaxes(1, 2)
        return {"key": self.constrain(key_BHMK, axes), "value": self.constrain(self.value(x_BMD).swapaxes(1, 2), axes)}

    def queries(self, x_BLD: jax.Array, rotation: Rotation | None = None) -> jax.Array:
        """Returns the queries of the sequence x_BLD, [B, L, H, K], rotated and scaled.

        With disentangled positions, a logit is the sum of three products, and sqrt(3) divides it, too.
        """
        config = self.config
        query_BLHK = rotate(self._normed(self.query(x_BLD), "query_norm"), rotation, config)
        if config.query_dim != 1:
            products = 3 if config.positions == "disentangled" else 1
            query_BLHK *= (products * (config.query_dim or config.head_dim)) ** -0.5
        return query_BLHK

    def of_distances(self, vectors_ND: jax.Array) -> DisentangledBias:
        """Returns what the layer's queries and keys of tokens multiply, given the vectors of N buckets of distances."""
        query_1NHK, key_1NHK = self.queries(vectors_ND[None]), self._normed(self.key(vectors_ND[None]), "key_norm")
        key_1NHK = jnp.repeat(key_1NHK, self.config.num_heads // self.config.kv_heads, axis=2)
        query_HNK, key_HNK = (x_1NHK[0].swapaxes(0, 1) for x_1NHK in (query_1NHK, key_1NHK))
        return DisentangledBias(query_HNK, key_HNK, self.config.relative_max_distance)

    def _normed(self, x_BLHK: jax.Array, norm: str) -> jax.Array:
        """Returns queries or keys after `qk_norm`, which is over each head's dimensions, or over those of all heads.

        norm: the name of the norm's module.
        """
        if self.config.qk_norm == "none":
            return x_BLHK
        width = x_BLHK.shape[-1] if self.config.qk_norm == "head" else x_BLHK.shape[-2] * x_BLHK.shape[-1]
        return getattr(self, norm)(x_BLHK.reshape(*x_BLHK.shape[:2], -1, width)).reshape(x_BLHK.shape)

    def __call__(
        self,
        x_BLD: jax.Array,
        key_value: KeyValue,
        scope: Prepared,
        dropout_key: jax.Array | None = None,
        rotation: Rotation | None = None,
        is_local: Any = False,
    ) -> jax.Array:
        """[B, L, D] → [B, L, D].

        key_value: [rows, H, M, K]; `rows` is B or a divisor of B. Each row of keys serves B/rows adjacent rows of
            queries, because the samples of an example share one row of the encoder. The scope has as many rows as the
            keys.
        scope: which keys each query may attend to.
        """
        config = self.config
        query_BLHK = self.queries(x_BLD, rotation)
        folded = query_BLHK.reshape(key_value["key"].shape[0], -1, *query_BLHK.shape[2:])
        folded = self.constrain(folded, ("batch", "length", "heads", "kv"))
        arrays = by_heads(folded, key_value["key"], key_value["value"], self.constrain)
        if self.is_mutable_collection(INTERMEDIATES):
            weights_BHLM = attention_weights(*arrays[:2], scope.shared, is_local)[:, : config.num_heads]
            self.sow(INTERMEDIATES, "weights", weights_BHLM)
        dropout = Dropout(config.attention_dropout_rate, dropout_key, config.dropout_broadcasts_length)
        heads_BLHK = scope.kernel.attend(*arrays, scope.shared, is_local, dropout)
        heads_BLHK = by_positions(heads_BLHK, config.num_heads, self.constrain).reshape(query_BLHK.shape)
        return self.out(self.constrain(heads_BLHK, ("batch", "length", "heads", "kv")))


def extend(cached: KeyValue, new: KeyValue, index: jax.Array) -> KeyValue:
    """Returns the cache [B, H, M, K] after writing `new` [B, H, L, K] to slots `index` to `index` + L − 1."""
    return {
        "key": lax.dynamic_update_slice_in_dim(cached["key"], new["key"], index, axis=2),
        "value": lax.dynamic_update_slice_in_dim(cached["value"], new["value"], index, axis=2),
    }


def beside(own: KeyValue, other: KeyValue) -> KeyValue:
    """Returns the keys and values [B, H, M, K] with those of another text [rows, H, S, K] behind: [B, H, M + S, K].

    `rows` is B or a divisor of B. Each row of `other` serves B/rows adjacent rows.
    """
    rows = own["key"].shape[0]
    return {
        "key": jnp.concatenate([own["key"], _for_each(rows, other["key"])], axis=2),
        "value": jnp.concatenate([own["value"], _for_each(rows, other["value"])], axis=2),
    }
