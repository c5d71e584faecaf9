"""The contrastive loss of embeddings: a query's match must be more similar to it than the other texts of the batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import ConfigError
from t5x_lite.heads import MATCH, NEGATIVE, QUERY
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.embeddings import unit
from t5x_lite.training.cross_entropy import token_losses
from t5x_lite.training.head_losses import EXCLUDED


def options(loss: Mapping[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Returns the arguments `embedding_sizes` and `symmetric` of `losses.loss_sums`. loss: that section of a config.

    Raises ConfigError if a size is no number of dimensions, or if the model has no contrastive loss.
    """
    if "contrastive" not in model.heads:
        key = "loss.embedding_sizes" if loss["embedding_sizes"] else "loss.symmetric"
        raise ConfigError(f"{key} needs an encoder that is trained on a task with the target Match; unset it")
    for size in loss["embedding_sizes"]:
        if not (str(size).isdecimal() and 1 <= int(size) <= model.d_model):
            raise ConfigError(
                f"loss.embedding_sizes has {size!r}; it must be a number of dimensions, 1 to d_model={model.d_model}"
            )
    return {"embedding_sizes": tuple(map(int, loss["embedding_sizes"])), "symmetric": loss["symmetric"]}


def contrastive_losses(
    embeddings_BED: jax.Array, roles_BE: jax.Array, sizes: Sequence[int] = (), symmetric: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Returns each query's cross entropy among the matches and negatives of the whole batch, and whether its own match
    has the largest product with it.

    Let q_i be the queries, d_j all matches and negatives, and d_i the match of q_i, which is in the slot after q_i:

        loss_i = −log (exp(q_i · d_i) / Σ_j exp(q_i · d_j))

    (van den Oord et al. 2018, eq. 4, with the batch's other texts as negatives; Karpukhin et al. 2020, §3.2). The
    embeddings' length is √(1 / temperature), so the products are cosines divided by the temperature. Losses of slots
    that are not queries have no meaning; their weights are 0.

    Args:
      embeddings_BED: float32 [B, E, D].
      roles_BE: int [B, E]; QUERY, MATCH or NEGATIVE of heads.py, or 0 for an unused slot.
      sizes: numbers of dimensions. The loss is the sum of the losses of embeddings that have only their first n
          dimensions, scaled to the same length, for n = D and each n of `sizes` (Matryoshka; Kusupati et al. 2022,
          eq. 1).
      symmetric: whether the loss is the mean of two: the other finds the query of each match among all queries
          (Radford et al. 2021, CLIP, fig. 3).
    Returns:
      loss [B, E] in nats and correct [B, E] (1 or 0) with all dimensions, float32.
    """
    x_ND, roles_N = embeddings_BED.reshape(-1, embeddings_BED.shape[-1]), roles_BE.reshape(-1)
    is_query_N, is_found_N = roles_N == QUERY, (roles_N == MATCH) | (roles_N == NEGATIVE)
    slots_N = jnp.arange(len(roles_N))
    matches_N = jnp.minimum(slots_N + 1, len(roles_N) - 1)
    losses_N, correct_N = jnp.zeros(len(roles_N)), jnp.zeros(len(roles_N))
    for size in sorted({*sizes, x_ND.shape[1]}):
        part_ND = _first_dimensions(x_ND, size)
        # TPUs would round the factors to bfloat16, an error of up to 0.1 in a logit of 20.
        products_NN = jnp.matmul(part_ND, part_ND.T, precision=jax.lax.Precision.HIGHEST)
        of_size_N, correct_N = token_losses(jnp.where(is_found_N, products_NN, EXCLUDED), matches_N)
        if symmetric:
            back_N, _ = token_losses(jnp.where(is_query_N, products_NN[matches_N], EXCLUDED), slots_N)
            of_size_N = (of_size_N + back_N) / 2
        losses_N += of_size_N
    return losses_N.reshape(roles_BE.shape), correct_N.reshape(roles_BE.shape)


def _first_dimensions(x_ND: jax.Array, size: int) -> jax.Array:
    """Returns the first `size` dimensions of each vector, scaled to the length of the whole vector."""
    if size == x_ND.shape[1]:
        return x_ND
    squares_N1 = jnp.square(x_ND).sum(-1, keepdims=True)
    return unit(x_ND[:, :size]) * jnp.sqrt(jnp.maximum(squares_N1, 1e-24))  # at 0, the root has no gradient
