"""CBOW (Mikolov et al. 2013, §3.1) predicts a word from its neighbours and ignores word order.

It represents a text as the mean of its words' vectors.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.encoder_only import example_outputs
from t5x_lite.models.layers import Constrain, Embedding, LanguageModelLogits, subkey, unconstrained


class ContinuousBagOfWords(nn.Module):
    """Reads the same arrays as `EncoderOnly` and has the same heads, except those that read every token."""

    config: ModelConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, batch, train: bool = False) -> dict[str, jax.Array]:
        """Returns {head: float32 output} as `EncoderOnly` does; without heads, {"hidden": [B, S, D]}."""
        config = self.config
        key = self.make_rng("dropout") if train and config.has_dropout else None
        table = Embedding(config, config.vocab_size, "vocab", constrain=self.constrain, name="token_embedding")
        x_BSD = table(batch["encoder_input_tokens"])
        outputs = {}
        if "mlm" in config.heads:
            context_BPD = mean(x_BSD, neighbours(batch, config.local_window))
            outputs["mlm"] = LanguageModelLogits(config, self.constrain, name="logits")(context_BPD, table).logits()
        outputs |= (
            example_outputs(config, mean(x_BSD, own_tokens(batch)), subkey(key, 0)) if config.pooled_heads else {}
        )
        return outputs or {"hidden": x_BSD.astype(jnp.float32)}


def mean(x_BSD: jax.Array, chosen_BPS: jax.Array) -> jax.Array:
    """Returns [B, P, D]: for each p, the mean of the vectors that are chosen for p; 0 if none is chosen.

    x_BSD: the vectors of all positions s.  chosen_BPS: bool, True where the vector at position s is chosen for p.
    """
    weights_BPS = chosen_BPS / jnp.maximum(chosen_BPS.sum(axis=-1, keepdims=True), 1)
    return jnp.einsum("BPS,BSD->BPD", weights_BPS.astype(x_BSD.dtype), x_BSD)


def neighbours(batch, window: int) -> jax.Array:
    """Returns bool [B, P, S]: True where position s is a neighbour of the masked position p.

    A neighbour is in the same example and at most `window` positions away. No position is its own neighbour.
    """
    positions_BP, segment_ids_BS = batch["mlm_positions"], batch["encoder_segment_ids"]
    distance_BPS = jnp.abs(jnp.arange(segment_ids_BS.shape[1])[None, None, :] - positions_BP[..., None])
    own_BP = jnp.take_along_axis(segment_ids_BS, positions_BP, axis=1)
    return (distance_BPS > 0) & (distance_BPS <= window) & (segment_ids_BS[:, None, :] == own_BP[..., None])


def own_tokens(batch) -> jax.Array:
    """Returns bool [B, E, S]: True where position s belongs to example e."""
    segment_ids_BS = batch["encoder_segment_ids"]
    own_BE = jnp.take_along_axis(segment_ids_BS, batch["pooled_positions"], axis=1)
    return segment_ids_BS[:, None, :] == own_BE[..., None]
