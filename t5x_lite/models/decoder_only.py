"""Decoder-only language models: GPT-2, GPT-Neo, GPT-J, Llama."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Constrain, Embedding, LanguageModelLogits, unconstrained
from t5x_lite.models.projection import Projection, logits_of
from t5x_lite.models.transformer import Cache, Stack, empty_cache


class DecoderOnly(nn.Module):
    """Reads the batch's `decoder_*` arrays."""

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
        """Returns {"lm": logits_BLV}, float32."""
        return logits_of(self.projected(batch, train))

    def projected(self, batch, train: bool = False) -> dict[str, Projection]:
        """Returns {"lm": the logits before they are computed}."""
        hidden_BLD, _ = self.decoder(
            self.token_embedding(batch["decoder_input_tokens"]),
            batch["decoder_segment_ids"],
            batch["decoder_positions"],
            key=self.make_rng("dropout") if train and self.config.has_dropout else None,
        )
        return {"lm": self.logits(hidden_BLD, self.token_embedding)}

    def prefill(self, batch, capacity: int) -> tuple[jax.Array, Cache]:
        """Reads all tokens of the prompts at once. Returns (hidden_BLD, a cache with `capacity` slots per row)."""
        tokens_BL = batch["decoder_input_tokens"]
        return self.decoder(
            self.token_embedding(tokens_BL),
            batch["decoder_segment_ids"],
            batch["decoder_positions"],
            cache=empty_cache(self.config, tokens_BL.shape[0], capacity),
        )

    def step(
        self, tokens_BL: jax.Array, positions_BL: jax.Array, cache: Cache, visible_BLM: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Reads L more tokens of each row. Returns (logits_BLV, the new cache).

        The logits at index l predict the token after token l.  visible_BLM: see `Stack`.
        """
        hidden_BLD, cache = self.decoder(
            self.token_embedding(tokens_BL),
            jnp.ones_like(tokens_BL),
            positions_BL,
            cache=cache,
            visible_BLM=visible_BLM,
        )
        return self.logits(hidden_BLD, self.token_embedding).logits(decoding=True), cache

    def next_logits(self, hidden_BD: jax.Array) -> jax.Array:
        """Returns the logits of the next token: [B, D] → float32 [B, V]."""
        return self.logits(hidden_BD, self.token_embedding).logits(decoding=True)
