"""Encoder-only models with heads: BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA, DeBERTa."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.heads import EMBEDDINGS, EXAMPLES, HEADS, MASKED, TOKENS
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import (
    ACTIVATIONS,
    Constrain,
    Dense,
    Embedding,
    Norm,
    PredictionHead,
    dropout,
    subkey,
    unconstrained,
    vocabulary_bias,
)
from t5x_lite.models.projection import Projection, Targeted, logits_of
from t5x_lite.models.transformer import Stack


class EncoderOnly(nn.Module):
    """Reads the batch's `encoder_*` arrays, `token_type_ids`, and the positions that its heads need."""

    config: ModelConfig
    constrain: Constrain = unconstrained

    def __call__(self, batch, train: bool = False) -> dict[str, jax.Array]:
        """Returns {head: float32 output} (heads.py); without heads, {"hidden": [B, S, D]}.

        An output is [B, P, V] if the head reads masked tokens, [B, S, C] if it reads every token, and [B, E, C] if it
        reads examples. C is the head's number of outputs; if it is 1, there is no axis C. The outputs of the heads
        "pooled" and "contrastive" are [B, E, D].
        """
        return logits_of(self.projected(batch, train))

    @nn.compact
    def projected(
        self, batch, train: bool = False, embeddings: tuple[Embedding, Embedding | None] | None = None
    ) -> dict[str, Any]:
        """Returns the outputs, with the logits of masked tokens before they are computed.

        With a generator, the head mlm is the generator's. All else reads the text whose masked tokens it has replaced
        (replaced_tokens.py); the output of the head rtd is a `Targeted`.

        embeddings: those of tokens and of types, if this is a generator that shares them.
        """
        config = self.config
        key = self.make_rng("dropout") if train and config.has_dropout else None
        difference = config.has_generator and config.generator_embeddings == "disentangled"
        token_embedding, type_embedding = embeddings or (
            Embedding(
                config,
                config.vocab_size,
                "vocab",
                scaled=config.scale_embeddings,
                constrain=self.constrain,
                is_difference=difference,
                name="token_embedding",
            ),
            Embedding(config, config.type_vocab_size, "types", constrain=self.constrain, name="type_embedding")
            if config.type_vocab_size
            else None,
        )
        outputs: dict[str, Any] = {}
        targets_BS, base = None, None
        if config.has_generator:
            from t5x_lite.models import generator, replaced_tokens  # few models have a generator

            narrow = EncoderOnly(generator.of(config), self.constrain, name="generator")
            shared = (token_embedding, type_embedding) if config.generator_embeddings == "shared" else None
            outputs["mlm"] = narrow.projected(batch, train, shared)["mlm"]
            sample_key = self.make_rng("sample") if train and self.has_rng("sample") else jax.random.key(0)
            batch, targets_BS = replaced_tokens.replaced(batch, outputs["mlm"], sample_key)
            base = jax.lax.stop_gradient(outputs["mlm"].matrix) if difference else None
        x_BSD = token_embedding(batch["encoder_input_tokens"], base)
        if type_embedding is not None:
            # RoBERTa's table has only one row, so both sentences read row 0.
            x_BSD += type_embedding(jnp.minimum(batch["token_type_ids"], config.type_vocab_size - 1))
        encoder = Stack(config, config.num_encoder_layers, causal=False, constrain=self.constrain, name="encoder")
        hidden_BSD, _ = encoder(x_BSD, batch["encoder_segment_ids"], batch["encoder_positions"], key=subkey(key, 0))
        if not config.heads:
            return {"hidden": hidden_BSD.astype(jnp.float32)}
        has_shared = config.prediction_head
        shared = PredictionHead(config, name="prediction_head") if has_shared else (lambda x: x)
        if config.heads_that_read(MASKED) and not config.has_generator:
            mlm = MaskedLanguageModelHead(config, self.constrain, name="mlm")
            outputs["mlm"] = mlm(shared(rows_at(hidden_BSD, batch["mlm_positions"])), token_embedding)
        if config.heads_that_read(TOKENS):
            rate = config.head_dropout_rate if has_shared else config.dropout_rate
            outputs |= head_outputs(config, TOKENS, shared(hidden_BSD), rate, subkey(key, 2))
        if "rtd" in config.heads:
            logits_BS = ReplacedTokenHead(config, name="rtd")(shared(hidden_BSD))
            outputs["rtd"] = logits_BS if targets_BS is None else Targeted(logits_BS, targets_BS)
        if config.pooled_heads or config.heads_that_read(EMBEDDINGS):
            where = batch["encoder_segment_ids"], batch["pooled_positions"]
            state_BED = pooled_states(config.pooling, hidden_BSD, *where)
        if config.pooled_heads:
            pooled_BED = shared(state_BED)
            if not has_shared:
                pooled_BED = ACTIVATIONS[config.pooler_activation](square_dense(config, "pooler")(pooled_BED))
            outputs |= example_outputs(config, pooled_BED, subkey(key, 1))
        if config.heads_that_read(EMBEDDINGS):
            from t5x_lite.models.embeddings import Embeddings  # few models need it

            outputs |= Embeddings(config, name="contrastive")(state_BED)
        return outputs


def head_outputs(
    config: ModelConfig, states: str, x_BND: jax.Array, dropout_rate: float, key: jax.Array | None
) -> dict[str, jax.Array]:
    """Returns {head: output} for the heads that read `states` (TOKENS or EXAMPLES of heads.py) and have a dense layer.

    An output is float32 [B, N, C]; if C, the head's number of outputs, is 1, it is [B, N]. The heads' layers become
    children of the module that calls this function.

    x_BND: the hidden states; N is S or E.
    """
    outputs = {}
    dropped_BND = dropout(x_BND, dropout_rate, key)
    for name in config.heads_that_read(states):
        head = HEADS[name]
        if head.outputs is None:
            continue
        size = config.num_classes if head.has_classes else int(head.outputs)
        output_BNC = class_dense(config, size, name)(dropped_BND if head.dropout else x_BND)
        outputs[name] = output_BNC[..., 0] if head.outputs == 1 else output_BNC
    return outputs


def example_outputs(config: ModelConfig, pooled_BED: jax.Array, key: jax.Array | None) -> dict[str, jax.Array]:
    """Returns {head: output} for the heads that read one vector per example, pooled_BED.

    If "pooled" is one of the heads, its output is pooled_BED itself. The heads' layers become children of the module
    that calls this function.
    """
    outputs = head_outputs(config, EXAMPLES, pooled_BED, config.head_dropout_rate, key)
    return outputs | ({"pooled": pooled_BED.astype(jnp.float32)} if "pooled" in config.heads else {})


class MaskedLanguageModelHead(nn.Module):
    """Maps states to logits over the vocabulary: a dense layer, a norm, the token table and a bias per entry.

    With a `prediction_head`, the states already come from its dense layer and norm.
    Source: BERT, run_pretraining.py: get_masked_lm_output.
    """

    config: ModelConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, hidden_BPD: jax.Array, token_embedding: Embedding) -> Projection:
        """[B, P, D] → the logits [B, P, V] before they are computed."""
        config = self.config
        x_BPD = hidden_BPD
        if not config.prediction_head:
            shape = (config.d_model, config.table_dim)
            transform = Dense(config, shape, ("embed", "mlp"), "head", use_bias=True, name="transform")
            x_BPD = Norm(config, name="norm")(ACTIVATIONS[config.activation](transform(hidden_BPD)))
        # Without this constraint, XLA (jax 0.10.2) splits x over `tensor`, contracts it with a table that is split over
        # `tensor` and `fsdp`, and returns a wrong gradient on meshes of data × fsdp × tensor
        # (tests/test_step_devices.py detects it).
        x_BPD = self.constrain(x_BPD, ("batch", "length", "embed"))
        return token_embedding.projection(x_BPD, vocabulary_bias(self, config))


class ReplacedTokenHead(nn.Module):
    """Maps each token's state to the logit that the token was replaced: a dense layer, the activation, a dense layer.

    Source: Clark et al. 2020, ELECTRA, §2; the released code, get_discriminator_predictions.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BSD: jax.Array) -> jax.Array:
        """[B, S, D] → float32 [B, S]."""
        transform = square_dense(self.config, "transform")
        x_BSD = ACTIVATIONS[self.config.activation](transform(hidden_BSD))
        return class_dense(self.config, 1, "output")(x_BSD)[..., 0]


def pooled_states(pooling: str, hidden_BSD: jax.Array, segment_ids_BS: jax.Array, positions_BE: jax.Array) -> jax.Array:
    """Returns the state that the heads of examples read, [B, E, D]: that of an example's first or last token, or the
    mean of the states of its tokens.

    pooling: a value of ModelConfig.pooling.  positions_BE: index into S of each example's first token.
    """
    if pooling == "first":
        return rows_at(hidden_BSD, positions_BE)
    segment_BE = jnp.take_along_axis(segment_ids_BS, positions_BE, axis=1)
    is_own_BES = segment_BE[:, :, None] == segment_ids_BS[:, None, :]
    if pooling == "last":
        return rows_at(hidden_BSD, jnp.max(jnp.where(is_own_BES, jnp.arange(is_own_BES.shape[-1]), 0), axis=-1))
    is_own_BES = is_own_BES.astype(jnp.float32)
    total_BED = jnp.einsum("BES,BSD->BED", is_own_BES, hidden_BSD, preferred_element_type=jnp.float32)
    return (total_BED / is_own_BES.sum(-1, keepdims=True)).astype(hidden_BSD.dtype)


def rows_at(x_BSD: jax.Array, indices_BP: jax.Array) -> jax.Array:
    """Returns the hidden states at the positions `indices_BP` of each row, [B, P, D]."""
    return jnp.take_along_axis(x_BSD, indices_BP[..., None], axis=1)


def square_dense(config: ModelConfig, name: str) -> Dense:
    """Returns a dense layer D → D with a bias.

    The axis of its outputs is named "mlp" instead of "embed", because no two axes of a kernel may have the same name.
    """
    return Dense(config, (config.d_model, config.d_model), ("embed", "mlp"), "head", use_bias=True, name=name)


def class_dense(config: ModelConfig, classes: int, name: str) -> Dense:
    """Returns a dense layer D → classes with a bias.

    It computes in float32, because it has so few FLOPs that bfloat16 would save no time.
    """
    shape, axes = (config.d_model, classes), ("embed", "classes")
    return Dense(config, shape, axes, "head", use_bias=True, dtype="float32", name=name)
