"""Classifiers that read a text with an encoder and then with a decoder: BART, T5."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.encoder_only import example_outputs, pooled_states, square_dense
from t5x_lite.models.layers import ACTIVATIONS, Constrain, Embedding, subkey, unconstrained
from t5x_lite.models.projection import logits_of
from t5x_lite.models.transformer import Stack


class EncoderDecoder(nn.Module):
    """Reads the same arrays as `EncoderOnly`, and has its heads for whole examples.

    The decoder reads each example's own tokens, shifted right by one behind `decoder_start_id`. The heads read the
    decoder's states, as a rule that of the last token, which has seen all others (Lewis et al. 2020, §3.1).
    """

    config: ModelConfig
    constrain: Constrain = unconstrained

    def __call__(self, batch, train: bool = False) -> dict[str, jax.Array]:
        """Returns {head: float32 [B, E, C] or [B, E]}; without heads, {"hidden": the decoder's states, [B, S, D]}."""
        return logits_of(self.projected(batch, train))

    @nn.compact
    def projected(self, batch, train: bool = False) -> dict[str, Any]:
        """Returns the outputs. (No head has logits that are not yet computed.)"""
        config = self.config
        key = self.make_rng("dropout") if train and config.has_dropout else None
        scaled = config.scale_embeddings
        token_embedding = Embedding(
            config, config.vocab_size, "vocab", scaled=scaled, constrain=self.constrain, name="token_embedding"
        )
        tokens_BS, segment_ids_BS, positions_BS = (
            batch[f"encoder_{name}"] for name in ("input_tokens", "segment_ids", "positions")
        )
        encoder = Stack(config, config.num_encoder_layers, causal=False, constrain=self.constrain, name="encoder")
        encoded_BSD, _ = encoder(token_embedding(tokens_BS), segment_ids_BS, positions_BS, key=subkey(key, 0))
        previous_BS = jnp.where(positions_BS == 0, config.decoder_start_id, jnp.roll(tokens_BS, 1, axis=1))
        decoder = Stack(
            config, config.num_decoder_layers, causal=True, cross=True, constrain=self.constrain, name="decoder"
        )
        hidden_BSD, _ = decoder(
            token_embedding(previous_BS),
            segment_ids_BS,
            positions_BS,
            encoded_BSD=encoded_BSD,
            encoded_segment_ids_BS=segment_ids_BS,
            key=subkey(key, 1),
        )
        if not config.heads:
            return {"hidden": hidden_BSD.astype(jnp.float32)}
        where = batch["encoder_segment_ids"], batch["pooled_positions"]
        pooled_BED = square_dense(config, "pooler")(pooled_states(config.pooling, hidden_BSD, *where))
        return example_outputs(config, ACTIVATIONS[config.pooler_activation](pooled_BED), subkey(key, 2))
