"""Decoder-only language models: GPT-2, GPT-Neo, GPT-J, Llama."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Constrain, Embedding, LanguageModelLogits, unconstrained
from t5x_lite.models.transformer import Cache, Stack, empty_cache


class DecoderOnly(nn.Module):
    """Reads `decoder_*` of the batch."""

    config: ModelConfig
    constrain: Constrain = unconstrained

    def setup(self):
        config = self.config
        self.token_embedding = Embedding(
            config, config.vocab_size, "vocab", scaled=config.scale_embeddings, constrain=self.constrain
        )
        self.decoder = Stack(config, config.num_decoder_layers, causal=True, constrain=self.constrain)
        self.logits = LanguageModelLogits(config, self.constrain)

    def __call__(self, batch, train: bool = False) -> dict[str, jax.Array]:
        """{"lm": logits_BLV}."""
        hidden_BLD, _ = self.decoder(
            self.token_embedding(batch["decoder_input_tokens"]),
            batch["decoder_segment_ids"],
            batch["decoder_positions"],
            key=self.make_rng("dropout") if train and self.config.has_dropout else None,
        )
        return {"lm": self.logits(hidden_BLD, self.token_embedding)}

    def prefill(self, batch, capacity: int) -> tuple[jax.Array, Cache]:
        """Reads the prompts at once: (hidden_BLD, cache with `capacity` slots per row)."""
        tokens_BL = batch["decoder_input_tokens"]
        return self.decoder(
            self.token_embedding(tokens_BL),
            batch["decoder_segment_ids"],
            batch["decoder_positions"],
            cache=empty_cache(self.config, tokens_BL.shape[0], capacity),
        )

    def step(self, tokens_B: jax.Array, positions_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads one more token per row: (logits_BV of the one after it, cache)."""
        x_B1D = self.token_embedding(tokens_B[:, None])
        hidden_B1D, cache = self.decoder(x_B1D, jnp.ones_like(tokens_B)[:, None], positions_B[:, None], cache=cache)
        return self.next_logits(hidden_B1D[:, 0]), cache

    def next_logits(self, hidden_BD: jax.Array) -> jax.Array:
        """[B, D] → [B, V]."""
        return self.logits(hidden_BD, self.token_embedding)
