"""Blocks of attention and MLP, and stacks of blocks. A stack is either scanned or unrolled, and may be rematerialised.

Scanning and rematerialisation change the cost but never the numbers. Dropout keys are split explicitly, one per layer,
so scanned and unrolled layers get the same keys.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from t5x_lite.models.adapter import Adapter
from t5x_lite.models.attention import (
    INTERMEDIATES,
    Attention,
    KeyValue,
    Prepared,
    beside,
    extend,
    prepare,
    prepare_merged,
)
from t5x_lite.models.attention_disentangled import DistanceVectors
from t5x_lite.models.attention_scope import SAVED, Scope, both_sides
from t5x_lite.models.config import LAYER_KINDS, LOCAL, MERGED, ModelConfig
from t5x_lite.models.layers import (
    Constrain,
    Dense,
    Embedding,
    Mlp,
    Norm,
    dropout,
    residual_dropout,
    subkey,
    unconstrained,
)
from t5x_lite.models.positions import RelativeBias, Rotation, rotations, sinusoids

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(SAVED),  # of the kernels that name them
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# What scanned layers keep without remat. Without this policy, a scan stacks every array that some derivative reads,
# even if it costs less to compute again than to write and read. Compiled for an H200, a step of T5 1.1 large moves
# 519 GB with the policy and 798 GB without it, and needs 31 GB instead of 84 GB.
PRODUCTS = jax.checkpoint_policies.save_from_both_policies(REMAT_POLICIES["dots"], REMAT_POLICIES["attention"])

KINDS = list(LAYER_KINDS)
Cache = dict[str, Any]


class Context(NamedTuple):
    """Holds the values that all layers of a stack share in one call."""

    scope: Prepared | Scope  # of self-attention; a Scope if each layer has its own biases
    encoded: jax.Array | None = None  # [B, S, D]; None if the cache holds the encoder's keys and values
    encoded_scope: Prepared | None = None  # of attention to the encoder; None without an encoder
    index: Any = 0  # slot of the first query; 0 without a cache
    rotations: Mapping[str, Rotation] | None = None  # of queries and new keys, for each kind of layer
    distances_ND: jax.Array | None = None  # vectors of distances, for disentangled positions


class Block(nn.Module):
    """Applies self-attention, attention to an encoder (if `cross`) and an MLP, each on a residual branch.

    With `config.body` merged_attention, self-attention's queries also attend to the encoder, in the same softmax. The
    same layers compute both texts' keys and values; the encoder's keys are not rotated (T5Gemma 2).

    `config.norm_position` says where the norms of a branch are:

    pre: x + f(norm(x))
    pre_but_first: the same, but the first layer's attention has no norm (ModernBERT: the embeddings have one)
    post: norm(x + f(x))
    both: x + norm(f(norm(x))) (Gemma 2)
    output: x + norm(f(x)) (OLMo 2)
    """

    config: ModelConfig
    cross: bool = False
    constrain: Constrain = unconstrained
    is_first: bool = False  # of an unrolled stack

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context, cache: Any, key: jax.Array | None, kind: Any = 0):
        """Returns (x_BLD after the block, this layer's new cache). The new cache is None if `cache` is None.

        x_BLD: [B, L, D].  key: for dropout; None: no dropout.  kind: of this layer, an index of KINDS.
        """
        config = self.config
        self.sow(INTERMEDIATES, "hidden", x_BLD)

        def adapted(name: str, y_BLD: jax.Array) -> jax.Array:
            return Adapter(config, name=f"{name}_adapter")(y_BLD) if config.adapter_dim else y_BLD

        def branch(name: str, purpose: int, layer, x_BLD: jax.Array) -> jax.Array:
            position, norm = config.norm_position, Norm(config, name=f"{name}_norm")
            without = position == "pre_but_first" and self.is_first and name == "self_attention"
            before = position in ("pre", "pre_but_first", "both") and not without
            y_BLD = adapted(name, layer(norm(x_BLD) if before else x_BLD))
            if position == "both":
                y_BLD = Norm(config, name=f"{name}_output_norm")(y_BLD)
            elif position == "output":
                y_BLD = norm(y_BLD)
            y_BLD = residual_dropout(y_BLD, config, subkey(key, purpose))
            x_BLD = norm(x_BLD + y_BLD) if position == "post" else x_BLD + y_BLD
            return self.constrain(x_BLD, ("batch", "length", "embed"))

        new: Cache = {}
        attention = Attention(config, self.constrain, name="self_attention")
        merges = self.cross and config.body == MERGED

        def of_encoder(layer: Attention) -> KeyValue:
            new["cross"] = cache["cross"] if context.encoded is None else layer.key_value(context.encoded)
            return new["cross"]

        def self_attention(x_BLD: jax.Array) -> jax.Array:
            rotation = None if context.rotations is None else _of_kind(context.rotations, kind)
            key_value = attention.key_value(x_BLD, rotation)
            if cache is not None:
                key_value = new["self"] = extend(cache["self"], key_value, context.index)
            if merges:
                key_value = beside(key_value, of_encoder(attention))
            is_local = kind == KINDS.index(LOCAL)
            scope = context.scope
            if isinstance(scope, Scope):
                if context.distances_ND is None:
                    bias = RelativeBias(config, bidirectional=not scope.causal, name="relative_bias")()
                else:
                    bias = attention.of_distances(dropout(context.distances_ND, config.dropout_rate, subkey(key, 6)))
                scope = prepare(
                    config, dataclasses.replace(scope, bias=bias), self.is_mutable_collection(INTERMEDIATES)
                )
            return attention(x_BLD, key_value, scope, subkey(key, 0), rotation, is_local)

        mlp = Mlp(config, self.constrain, name="mlp")
        if config.parallel_block:
            y_BLD = Norm(config, name="self_attention_norm")(x_BLD)
            x_BLD += residual_dropout(adapted("self_attention", self_attention(y_BLD)), config, subkey(key, 1))
            x_BLD += residual_dropout(adapted("mlp", mlp(y_BLD, subkey(key, 4))), config, subkey(key, 5))
            return self.constrain(x_BLD, ("batch", "length", "embed")), (None if cache is None else new)
        x_BLD = branch("self_attention", 1, self_attention, x_BLD)
        if self.cross and not merges:
            cross_attention = Attention(config, self.constrain, name="cross_attention")

            def attend_encoded(x_BLD: jax.Array) -> jax.Array:
                assert context.encoded_scope is not None
                return cross_attention(x_BLD, of_encoder(cross_attention), context.encoded_scope, subkey(key, 2))

            x_BLD = branch("cross_attention", 3, attend_encoded, x_BLD)
        x_BLD = branch("mlp", 5, lambda x_BLD: mlp(x_BLD, subkey(key, 4)), x_BLD)
        return x_BLD, (None if cache is None else new)


def _of_kind(rotations: Mapping[str, Rotation], kind: Any) -> Rotation:
    """Returns the rotation of a layer. kind: as in `Block`; an array if layers are scanned."""
    each = [rotations[name] for name in KINDS]
    if not isinstance(kind, jax.Array):
        return each[kind]
    if all(rotation is each[0] for rotation in each):
        return each[0]
    return jax.tree.map(lambda *arrays: lax.select_n(kind, *arrays), *each)


def _window(config: ModelConfig, causal: bool) -> dict[str, Any]:
    """Returns the window of a stack's local layers, as fields of a Scope.

    The encoder of T5Gemma, the only rotary one with a decoder behind it, sees local_window tokens on each side of a
    token. That of T5Gemma 2 divides the window between both sides.
    """
    size = config.local_window
    if causal or config.architecture != "text_to_text" or not size:
        return {"window": size}
    if config.body == MERGED:
        return both_sides(size)
    return {"window": size + (config.positions == "rotary")}


class Stack(nn.Module):
    """Computes hidden states from embedded tokens. It applies positions, embedding norm, layers and final norm."""

    config: ModelConfig
    num_layers: int
    causal: bool
    cross: bool = False
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        segment_ids_BL: jax.Array,
        positions_BL: jax.Array,
        *,
        encoded_BSD: jax.Array | None = None,
        encoded_segment_ids_BS: jax.Array | None = None,
        cache: Cache | None = None,
        visible_BLM: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Returns (hidden states [B, L, D], new cache, which is None if `cache` is None). `key` turns dropout on.

        With a `cache` (see `empty_cache`), the L new tokens are written after the cached tokens, and attend to cached
        and new tokens. Only the first call with a cache needs `encoded_BSD`; later ones find its keys and values there.
        visible_BLM: bool, True where a token may attend to a slot. None: it may attend to all slots up to its own.
        """
        config = self.config
        x_BLD = self.embed_positions(x_BLD, positions_BL)
        if config.embedding_norm:
            x_BLD = Norm(config, name="embedding_norm")(x_BLD)
        x_BLD = residual_dropout(x_BLD, config, subkey(key, 0))
        if config.embedding_dim:
            shape, axes = (config.embedding_dim, config.d_model), ("kv", "embed")
            x_BLD = Dense(config, shape, axes, "head", use_bias=True, name="embedding_projection")(x_BLD)
        x_BLD = self.constrain(x_BLD, ("batch", "length", "embed"))

        index: Any = 0
        key_segment_ids, key_positions = segment_ids_BL, positions_BL
        if cache is not None:
            index = cache["index"]
            key_segment_ids = lax.dynamic_update_slice_in_dim(cache["segment_ids"], segment_ids_BL, index, axis=1)
            key_positions = lax.dynamic_update_slice_in_dim(cache["positions"], positions_BL, index, axis=1)
            if encoded_segment_ids_BS is None:
                encoded_segment_ids_BS = cache.get("encoded_segment_ids")
        bias = None
        if config.positions == "relative":
            bias = RelativeBias(config, bidirectional=not self.causal, name="relative_bias")()
        records_weights = self.is_mutable_collection(INTERMEDIATES)
        shared: dict[str, Any] = {"softcap": config.attention_softcap, "constrain": self.constrain}
        shared["rows_are_positions"] = cache is None
        rules: dict[str, Any] = _window(config, self.causal) | {"causal": self.causal} | shared
        places = positions_BL, key_positions
        scope = Scope(segment_ids_BL, key_segment_ids, *places, visible_BLM, bias, index, **rules)
        is_disentangled = config.positions == "disentangled"
        encoded_scope, own = None, scope
        if encoded_segment_ids_BS is not None and config.body == MERGED:
            own = prepare_merged(scope, encoded_segment_ids_BS)
        elif not is_disentangled and config.positions != "relative_per_layer":
            own = prepare(config, scope, records_weights)
        if encoded_segment_ids_BS is not None and config.body != MERGED:
            query_ids = segment_ids_BL.reshape(encoded_segment_ids_BS.shape[0], -1)  # samples share an encoder row
            encoded_scope = prepare(config, Scope(query_ids, encoded_segment_ids_BS, **shared), records_weights)
        context = Context(
            scope=own,
            encoded=encoded_BSD,
            encoded_scope=encoded_scope,
            index=index,
            rotations=rotations(positions_BL, config) if config.positions == "rotary" else None,
            distances_ND=DistanceVectors(config, self.constrain, name="distances")() if is_disentangled else None,
        )
        layer_keys = None if key is None else jax.random.split(subkey(key, 1), self.num_layers)
        x_BLD, layer_caches = self.layers(x_BLD, context, None if cache is None else cache["layers"], layer_keys)
        if config.norm_position != "post":
            x_BLD = Norm(config, name="final_norm")(x_BLD)
        if config.dropout_hidden:
            x_BLD = residual_dropout(x_BLD, config, subkey(key, 2))
        self.sow(INTERMEDIATES, "hidden", x_BLD)
        if cache is not None:
            cache = {
                "index": index + segment_ids_BL.shape[1],
                "segment_ids": key_segment_ids,
                "positions": key_positions,
                "layers": layer_caches,
            }
            if encoded_segment_ids_BS is not None:
                cache["encoded_segment_ids"] = encoded_segment_ids_BS
        return x_BLD, cache

    def embed_positions(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """Returns x_BLD, [B, L, D], with learned or sinusoidal positions added.

        Other kinds of positions act in attention; for them, x_BLD is unchanged.
        """
        config = self.config
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            table = Embedding(config, rows, "positions", constrain=self.constrain, name="position_embedding")
            return x_BLD + table(positions_BL + config.position_offset)
        if config.positions.startswith("sinusoidal"):
            places_BL = positions_BL + config.position_offset
            return x_BLD + sinusoids(places_BL, config.table_dim, config.positions).astype(x_BLD.dtype)
        return x_BLD

    def layers(self, x_BLD: jax.Array, context: Context, caches, keys):
        """Applies all blocks in order. Returns ([B, L, D], new caches).

        `caches` and `keys` have one entry per layer, or are None.
        """
        config = self.config
        block = Block
        if config.remat != "none" or config.scan_layers:
            # Inside a scan, the loop already keeps XLA from merging the recomputation with the original computation.
            policy = PRODUCTS if config.remat == "none" else REMAT_POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers)
        kinds = [KINDS.index(kind) for kind in config.layer_kinds(self.num_layers)]
        if config.scan_layers:
            stacked: dict[Any, Any] = {INTERMEDIATES: 0} | ({} if config.share_layers else {"params": 0})
            scanned = nn.scan(
                block,
                variable_broadcast="params" if config.share_layers else False,
                variable_axes=stacked,
                split_rngs={"params": not config.share_layers, "dropout": True},
                in_axes=(nn.broadcast, 0, 0, 0),  # pyright: ignore[reportArgumentType]  (one per argument)
                length=self.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            name = "shared_layer" if config.share_layers else "layers"
            stack = scanned(config, self.cross, self.constrain, name=name)
            return stack(x_BLD, context, caches, keys, np.asarray(kinds))
        new_caches = []
        shared = block(config, self.cross, self.constrain, name="shared_layer") if config.share_layers else None
        for i in range(self.num_layers):
            layer = shared or block(config, self.cross, self.constrain, i == 0, name=f"layers_{i}")
            cache, key = (None if each is None else each[i] for each in (caches, keys))
            x_BLD, cache = layer(x_BLD, context, cache, key, kinds[i])
            new_caches.append(cache)
        return x_BLD, (None if caches is None else tuple(new_caches))


def empty_cache(config: ModelConfig, batch_rows: int, capacity: int) -> Cache:
    """Returns an empty cache for a decoder, with `capacity` slots per row.

    A slot's segment id is 0 until the slot is written. Queries have segment ids from 1, so they do not attend to unused
    slots. All rows write the same slot at the same time, even if their positions differ.
    """

    def key_value(*leading: int) -> Cache:
        shape = (*leading, batch_rows, config.kv_heads, capacity, config.head_dim)
        return {"self": {"key": jnp.zeros(shape, config.dtype), "value": jnp.zeros(shape, config.dtype)}}

    layers = config.num_decoder_layers
    return {
        "index": jnp.zeros((), jnp.int32),
        "segment_ids": jnp.zeros((batch_rows, capacity), jnp.int32),
        "positions": jnp.zeros((batch_rows, capacity), jnp.int32),
        "layers": key_value(layers) if config.scan_layers else tuple(key_value() for _ in range(layers)),
    }


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Returns the cache with every row repeated `times` times, side by side.

    The encoder's keys and values are not repeated, because the copies share them.
    """

    def of_layers(path, array: jax.Array) -> jax.Array:
        names = [getattr(key, "key", None) for key in path]
        return array if "cross" in names else jnp.repeat(array, times, array.ndim - 4)  # scanned: axis 0 is layers

    return cache | {
        "segment_ids": jnp.repeat(cache["segment_ids"], times, axis=0),
        "positions": jnp.repeat(cache["positions"], times, axis=0),
        "layers": jax.tree.map_with_path(of_layers, cache["layers"]),
    }


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Returns an unrolled model's parameters in the scanned model's layout: layers_0, layers_1, … → layers.

    Works on any nested dict of arrays. `unstack_layers` is the inverse.
    """
    out = {name: stack_layers(p) if isinstance(p, dict) else p for name, p in params.items()}
    count = sum(name.startswith("layers_") for name in params)
    if count:
        layers = [out.pop(f"layers_{i}") for i in range(count)]
        out["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return out


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Returns a scanned model's parameters in the unrolled model's layout: layers → layers_0, layers_1, …

    Boxed parameters stay boxed and lose the name of the stacked axis.
    """

    def layer(leaf: Any, i: int) -> Any:
        if isinstance(leaf, nn.Partitioned):
            return leaf.replace(value=leaf.value[i], names=leaf.names[1:])
        return leaf[i]

    out = {name: unstack_layers(p) if isinstance(p, dict) else p for name, p in params.items()}
    if "layers" in params:
        layers = out.pop("layers")
        for i in range(jax.tree.leaves(layers)[0].shape[0]):
            out[f"layers_{i}"] = jax.tree.map(
                lambda leaf, i=i: layer(leaf, i), layers, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
            )
    return out
