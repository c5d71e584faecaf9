"""Replaced-token detection (Clark et al. 2020, ELECTRA, §2): a model replaces tokens, another one detects them.

The generator is a small encoder with a masked language model. It reads a row with masked tokens. At each of their
positions, a token drawn from its distribution replaces the masked one. The discriminator reads the result; its head rtd
says of each token whether it differs from the original one. No gradient flows through the draw, so the discriminator
never trains the generator's layers. `ModelConfig.generator_embeddings` says what both share:

    shared         the tables of tokens and types; a table as wide as the discriminator's is projected to the generator
                   (ELECTRA, which also shares the table of positions and a norm)
    disentangled   the discriminator reads the generator's table of tokens, without a gradient to it, plus a table of
                   differences, which begins as zeros (He et al. 2021, DeBERTa-v3, §3.2.3)
    separate       nothing

The discriminator's parameters have the paths of an ordinary encoder; the generator's are below "generator".
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from t5x_lite.models.layers import random_bits
from t5x_lite.models.projection import Projection


def replaced(
    batch: Mapping[str, jax.Array], projection: Projection, key: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns (the batch with masked tokens replaced, float32 [B, S]: 1 for each token that is not the original one).

    A token drawn from the generator's distribution replaces each selected token, also the selected ones that were not
    hidden. If it equals the original token, the target is 0 (ELECTRA, §2).

    batch: arrays [B, …]. At mlm_positions, it has the originals as mlm_targets. If it has no mlm_weights, nothing is
        replaced.
    projection: of the logits [B, P, V] at mlm_positions.
    key: of the draws. A draw depends only on it and on the tokens and positions of the example, not on the example's
        place in a batch. So packing, microbatches and devices do not change it.
    """
    tokens_BS, segment_ids_BS = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
    if "mlm_weights" not in batch:
        return dict(batch), jnp.zeros(tokens_BS.shape, jnp.float32)
    positions_BP = batch["mlm_positions"]
    columns_11S = lax.iota(jnp.int32, tokens_BS.shape[1])[None, None]
    is_at_BPS = (positions_BP[..., None] == columns_11S) & (batch["mlm_weights"] > 0)[..., None]
    drawn_BP = _drawn(projection, key, _hashes(batch))
    # Sums over slots, of which at most one is at a position. Unlike a scatter, they need no exchange between devices.
    drawn_BS, original_BS = (
        jnp.sum(jnp.where(is_at_BPS, ids_BP[..., None], 0), axis=1) for ids_BP in (drawn_BP, batch["mlm_targets"])
    )
    is_selected_BS = is_at_BPS.any(axis=1) & (segment_ids_BS > 0)
    tokens_BS = jnp.where(is_selected_BS, drawn_BS, tokens_BS)
    is_replaced_BS = is_selected_BS & (drawn_BS != original_BS)
    return {**batch, "encoder_input_tokens": tokens_BS}, is_replaced_BS.astype(jnp.float32)


def _hashes(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns a hash of each masked position and of the tokens of its example, uint32 [B, P]."""
    tokens_BS, places_BS = batch["encoder_input_tokens"], batch["encoder_positions"]
    segment_ids_BS, positions_BP = batch["encoder_segment_ids"], batch["mlm_positions"]
    zeros = jnp.zeros(2, jnp.uint32)
    of_token_BS = random_bits(zeros, (1, 1), [tokens_BS, places_BS])
    segment_BP, place_BP = (jnp.take_along_axis(x, positions_BP, axis=1) for x in (segment_ids_BS, places_BS))
    is_of_BPS = segment_BP[..., None] == segment_ids_BS[:, None, :]
    of_example_BP = jnp.sum(jnp.where(is_of_BPS, of_token_BS[:, None, :], 0), axis=-1, dtype=jnp.uint32)
    return random_bits(zeros, (1, 1), [of_example_BP, place_BP])


def _drawn(projection: Projection, key: jax.Array, hashes_BP: jax.Array) -> jax.Array:
    """Returns a token drawn for each masked position, int32 [B, P]: the largest logit plus Gumbel noise.

    If the loss needs the logits at once, XLA computes them only once for both.
    """
    logits_BPV = lax.stop_gradient(projection.logits())
    V = logits_BPV.shape[-1]
    ids_11V = lax.iota(jnp.uint32, V)[None, None]
    bits_BPV = random_bits(jax.random.key_data(key), (1, V), [hashes_BP[..., None], ids_11V])
    # Odd multiples of 2⁻²⁴: exact in float32, and never 0 or 1.
    uniform_BPV = ((bits_BPV >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return jnp.argmax(logits_BPV - jnp.log(-jnp.log(uniform_BPV)), axis=-1).astype(jnp.int32)
