"""Disentangled attention: queries and keys also multiply vectors of the distance between two tokens.

Let r be the vector of the distance l − m, and W_q, W_k the layer's dense layers for queries and keys. The logit of the
query q_l and the key k_m is

    (q_l · k_m  +  q_l · W_k r  +  k_m · W_q r) / sqrt(3 K).

Source: He et al. 2021, DeBERTa, §3.1, equation 4. As in the released code of DeBERTa-v2 and v3, tokens and distances
share dense layers, buckets of distances grow geometrically, and both products read the bucket of l − m.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Constrain, Norm, embedding_init, named, unconstrained


def distance_buckets(distances: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each distance l − m between a query l and a key m: int32 of the same shape.

    Half of the buckets are for keys after the query, and half for the others. Distances up to a quarter of num_buckets
    have a bucket each. Further buckets grow geometrically up to max_distance − 1; all larger distances share the last
    one. If max_distance is half of num_buckets, each distance below it has a bucket of its own.

    Source: the released code, make_log_bucket_position.

    >>> distance_buckets(np.arange(0, 12), 12, 12)
    array([ 6,  7,  8,  9, 10, 10, 11, 11, 11, 11, 11, 11], dtype=int32)
    """
    half, sizes = num_buckets // 2, np.abs(distances)
    if max_distance > half:
        exact = half // 2
        logs = np.log(np.maximum(sizes, exact) / exact) / np.log((max_distance - 1) / exact)
        sizes = np.where(sizes <= exact, sizes, exact + np.ceil(logs * (exact - 1)))
    return np.clip(half + np.sign(distances) * sizes, 0, num_buckets - 1).astype(np.int32)


def skewed(x_BHLO: jax.Array) -> jax.Array:
    """Returns [B, H, L, M] from [B, H, L, O] with O = L + M: entry (l, m) is `x[:, :, l, m − l + L − 1]`.

    Among a head's L·O numbers, the entry is at l·(O − 1) + m + L − 1. So each row of the result starts O − 1 numbers
    after the row before it. As in `positions.toeplitz`, this needs no gather, whose gradient would be slow.
    """
    B, H, L, offsets = x_BHLO.shape
    flat = x_BHLO.reshape(B, H, L * offsets)[..., L - 1 : -1]
    return flat.reshape(B, H, L, offsets - 1)[..., : offsets - L]


@struct.dataclass
class DisentangledBias:
    """Holds a layer's queries and keys of the distance vectors of N buckets, both [H, N, K].

    The queries of tokens multiply the keys of distances, and the keys of tokens multiply the queries of distances. The
    queries of distances are scaled in the same way as the queries of tokens.
    """

    query_HNK: jax.Array
    key_HNK: jax.Array
    max_distance: int = struct.field(pytree_node=False)

    def between(self, query_BLHK: jax.Array, key_BHMK: jax.Array) -> jax.Array:
        """Returns q_l · W_k r + k_m · W_q r for all pairs of a query and a key, float32 [B, H, L, M].

        Slots' numbers are positions: l − m is the distance of any two tokens of one segment.
        """
        L, M = query_BLHK.shape[1], key_BHMK.shape[2]
        offsets_O = np.arange(L + M)
        query_HOK = self.query_HNK[:, self._buckets(offsets_O - (M - 1))]
        key_HOK = self.key_HNK[:, self._buckets((L - 1) - offsets_O)]
        of_queries = jnp.einsum("BLHK,HOK->BHLO", query_BLHK, key_HOK, preferred_element_type=jnp.float32)
        of_keys = jnp.einsum("BHMK,HOK->BHMO", key_BHMK, query_HOK, preferred_element_type=jnp.float32)
        return skewed(of_queries) + skewed(of_keys).swapaxes(2, 3)

    def _buckets(self, distances_O: np.ndarray) -> np.ndarray:
        return distance_buckets(distances_O, self.key_HNK.shape[1], self.max_distance)


class DistanceVectors(nn.Module):
    """Owns the vectors of the buckets of distances, which all layers of a stack share, and the norm on them."""

    config: ModelConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns [N, D]."""
        config, axes = self.config, ("relative_buckets", "embed")
        shape = config.relative_buckets, config.d_model
        table_ND = self.param("embedding", named(embedding_init(config), axes), shape, jnp.float32)
        return Norm(config, name="norm")(self.constrain(table_ND, (axes[0], None)))
