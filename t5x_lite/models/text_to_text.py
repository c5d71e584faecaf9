"""Encoder-decoder models: T5, BART, Pegasus, Marian, M2M-100, T5Gemma 1 and 2, the original Transformer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Constrain, Embedding, LanguageModelLogits, embedding_init, named, unconstrained
from t5x_lite.models.projection import Projection, logits_of
from t5x_lite.models.transformer import Cache, Stack, empty_cache


class TextToText(nn.Module):
    """Reads the batch's `encoder_*` and `decoder_*` arrays.

    The encoder and the decoder share one token table if `share_embeddings`. Otherwise each has its own, and tied logits
    are computed with the decoder's.
    """

    config: ModelConfig
    constrain: Constrain = unconstrained

    def setup(self):
        config = self.config

        def table() -> Embedding:
            scaled = config.scale_embeddings
            return Embedding(config, config.vocab_size, "vocab", scaled=scaled, constrain=self.constrain)

        self.token_embedding = table()
        if not config.share_embeddings:
            self.decoder_token_embedding = table()
        self.encoder = Stack(config, config.num_encoder_layers, causal=False, constrain=self.constrain)
        self.decoder = Stack(config, config.num_decoder_layers, causal=True, cross=True, constrain=self.constrain)
        self.logits = LanguageModelLogits(config, self.constrain)
        if config.prompt_tokens:  # Lester et al. 2021
            init, shape = named(embedding_init(config), ("positions", "embed")), (config.prompt_tokens, config.d_model)
            self.prompt = self.constrain(self.param("prompt", init, shape, jnp.float32), ("positions", None))

    @property
    def decoder_table(self) -> Embedding:
        """Returns the table that the decoder reads, and with which tied logits are computed."""
        return self.token_embedding if self.config.share_embeddings else self.decoder_token_embedding

    def __call__(self, batch, train: bool = False) -> dict[str, jax.Array]:
        """Returns {"lm": logits_BLV}, float32."""
        return logits_of(self.projected(batch, train))

    def projected(self, batch, train: bool = False) -> dict[str, Projection]:
        """Returns {"lm": the logits before they are computed}."""
        encoder_key, decoder_key = (None, None)
        if train and self.config.has_dropout:
            encoder_key, decoder_key = jax.random.split(self.make_rng("dropout"))
        hidden_BLD, _ = self.decoder(
            self.decoder_table(batch["decoder_input_tokens"]),
            batch["decoder_segment_ids"],
            batch["decoder_positions"],
            encoded_BSD=self.encode(batch, encoder_key),
            encoded_segment_ids_BS=batch["encoder_segment_ids"],
            key=decoder_key,
        )
        return {"lm": self.logits(hidden_BLD, self.decoder_table)}

    def encode(self, batch, key: jax.Array | None = None) -> jax.Array:
        """Returns the encoder's hidden states, [B, S, D]. key: for dropout; None: no dropout."""
        x_BSD = self.token_embedding(batch["encoder_input_tokens"])
        if self.config.prompt_tokens:  # the prompt replaces the placeholders at the start of each example
            positions_BS = batch["encoder_positions"]
            prompt_BSD = jnp.take(self.prompt, positions_BS, axis=0, mode="clip").astype(x_BSD.dtype)
            x_BSD = jnp.where((positions_BS < self.config.prompt_tokens)[..., None], prompt_BSD, x_BSD)
        encoded_BSD, _ = self.encoder(x_BSD, batch["encoder_segment_ids"], batch["encoder_positions"], key=key)
        return encoded_BSD

    def prefill(self, batch, capacity: int) -> tuple[jax.Array, Cache]:
        """Encodes the inputs, and reads all given tokens of the decoder at once.

        Returns (hidden_BLD, a cache with `capacity` slots per row).
        """
        tokens_BL = batch["decoder_input_tokens"]
        return self.decoder(
            self.decoder_table(tokens_BL),
            batch["decoder_segment_ids"],
            batch["decoder_positions"],
            encoded_BSD=self.encode(batch),
            encoded_segment_ids_BS=batch["encoder_segment_ids"],
            cache=empty_cache(self.config, tokens_BL.shape[0], capacity),
        )

    def step(
        self, tokens_BL: jax.Array, positions_BL: jax.Array, cache: Cache, visible_BLM: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Reads L more tokens of each row. Returns (logits_BLV, the new cache).

        The logits at index l predict the token after token l.  visible_BLM: see `Stack`.
        """
        hidden_BLD, cache = self.decoder(
            self.decoder_table(tokens_BL),
            jnp.ones_like(tokens_BL),
            positions_BL,
            cache=cache,
            visible_BLM=visible_BLM,
        )
        return self.logits(hidden_BLD, self.decoder_table).logits(decoding=True), cache

    def next_logits(self, hidden_BD: jax.Array) -> jax.Array:
        """Returns the logits of the next token: [B, D] → float32 [B, V]."""
        return self.logits(hidden_BD, self.decoder_table).logits(decoding=True)
