"""Makes tiny models of every family, batches for them, and parameters without any 0 or 1."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from promised_shapes import OUTPUTS, assert_shapes

from t5x_lite.models import build
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.presets import preset

SIZES = {"vocab_size": 48, "d_model": 16, "d_ff": 24, "num_heads": 2, "head_dim": 8}
BOTH = {"num_encoder_layers": 2, "num_decoder_layers": 2}
NO_DROPOUT = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0, "classifier_dropout_rate": -1.0}

FAMILIES: dict[str, ModelConfig] = {
    "t5": preset("t5_small", **SIZES, **BOTH, **NO_DROPOUT),
    "t5_1_1": preset("t5_1_1_small", **SIZES, **BOTH),
    "transformer": preset("transformer_base", **SIZES, **BOTH, **NO_DROPOUT),
    "bert": preset("bert_tiny", **SIZES, **NO_DROPOUT, max_positions=32),
    "gpt2": preset("gpt2_tiny", **SIZES, **NO_DROPOUT, max_positions=64),
    "albert": preset("albert_base", **SIZES, **NO_DROPOUT, max_positions=32, embedding_dim=8, num_encoder_layers=2),
    "gpt_j": preset("gpt_j_6b", **SIZES, rotary_dim=4, num_decoder_layers=2),
    "llama": preset(
        "llama_3_1_8b", **SIZES | {"num_heads": 4}, num_kv_heads=2, num_decoder_layers=2, rotary_original_positions=8
    ),
    # Not a published model: T5's parts in a decoder, so that relative positions are also cached per row.
    "t5_decoder": dataclasses.replace(
        preset("t5_1_1_small", **SIZES, architecture="decoder_only", num_encoder_layers=0, num_decoder_layers=2)
    ),
}

# The same parts in other combinations, for laws about whole models.
OTHERS: dict[str, ModelConfig] = {
    "roberta": preset("roberta_base", **SIZES, **NO_DROPOUT, max_positions=32, num_encoder_layers=2),
    "distilbert": preset("distilbert_base", **SIZES, **NO_DROPOUT, max_positions=32, num_encoder_layers=2),
    "electra": preset("electra_small_discriminator", **SIZES, **NO_DROPOUT, embedding_dim=8, num_encoder_layers=2),
    "deberta": preset(
        "deberta_v3_base", **SIZES, **NO_DROPOUT, relative_buckets=6, relative_max_distance=5, num_encoder_layers=2
    ),
    "gpt_neo": preset("gpt_neo_125m", **SIZES, max_positions=64, local_window=3, num_decoder_layers=2),
    "modernbert": preset("modernbert_base", **SIZES, local_window=3, pooling="mean", num_encoder_layers=2),
    "gemma_2": preset("gemma_2_2b", **SIZES, query_dim=5, local_window=3, num_kv_heads=1, num_decoder_layers=3),
    "gemma_3": preset(
        "gemma_3_4b", **SIZES, query_dim=5, local_window=3, layer_pattern="lg", num_kv_heads=1, num_decoder_layers=3
    ),
    "t5gemma": preset("t5gemma_2b_2b", **SIZES, **BOTH, query_dim=5, local_window=3, num_kv_heads=1),
    "t5gemma2": preset(
        "t5gemma2_1b_1b", **SIZES, **BOTH, query_dim=5, local_window=4, layer_pattern="lg", num_kv_heads=1
    ),
    "olmo_2": preset("olmo_2_1b", **SIZES, num_decoder_layers=2),
    "smollm_3": preset("smollm_3_3b", **SIZES, num_kv_heads=1, layer_pattern="gn", num_decoder_layers=2),
    "cbow": preset("cbow_tiny", **SIZES, **NO_DROPOUT, local_window=2),
    "elmo": preset("elmo_tiny", **SIZES, **NO_DROPOUT, num_encoder_layers=2),
    "umt5": preset("umt5_small", **SIZES, **BOTH),
    "marian": preset("opus_mt_en_de", **SIZES, **BOTH, **NO_DROPOUT, decoder_start_id=-1),
    "m2m_100": preset("m2m_100_418m", **SIZES, **BOTH, **NO_DROPOUT),
    "bart": preset("bart_base", **SIZES, **BOTH, **NO_DROPOUT, max_positions=64),
    "bart_mnli": preset("bart_large_mnli", **SIZES, **BOTH, **NO_DROPOUT, max_positions=64),
    "t5_encoder": dataclasses.replace(
        preset("t5_1_1_small", **SIZES), architecture="encoder_only", num_encoder_layers=2, num_decoder_layers=0
    ),
}


def random_batch(config: ModelConfig, segments=((5, 3, 0), (8, 0, 0)), seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens. Row b packs examples of the lengths `segments[b]`, in encoder and decoder.
    Rows are one token longer than the longest, so that there is padding."""
    rng = np.random.default_rng(seed)
    length = max(sum(row) for row in segments) + 1
    segment_ids = np.zeros((len(segments), length), np.int32)
    positions = np.zeros_like(segment_ids)
    for b, row in enumerate(segments):
        start = 0
        for i, n in enumerate(row):
            segment_ids[b, start : start + n] = i + 1
            positions[b, start : start + n] = np.arange(n)
            start += n
    batch = {}
    for side in ("encoder", "decoder"):
        batch |= {
            f"{side}_input_tokens": rng.integers(0, config.vocab_size, segment_ids.shape).astype(np.int32),
            f"{side}_segment_ids": segment_ids,
            f"{side}_positions": positions,
        }
    batch["token_type_ids"] = rng.integers(0, 2, segment_ids.shape).astype(np.int32)
    batch["mlm_positions"] = np.tile(np.arange(4, dtype=np.int32), (len(segments), 1))
    batch["pooled_positions"] = np.zeros((len(segments), 1), np.int32)
    return batch


def random_params(config: ModelConfig, seed: int = 0):
    """Returns normal values of an initializer's size, even for biases and scales. numpy draws them, because
    compiling the model's own initialization would take most of the tests' time."""
    abstract = jax.eval_shape(build(config).init, jax.random.key(0), random_batch(config))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf) -> jax.Array:
        values = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            values /= np.sqrt(config.d_model)
        elif path[-1].key in ("scale", "bias"):
            values = 0.1 * values + (path[-1].key == "scale")
        return jnp.asarray(values, jnp.float32)

    return jax.tree.map_with_path(draw, nn.meta.unbox(abstract))


def forward(config: ModelConfig, params, batch, key=None) -> dict[str, jax.Array]:
    """Returns the model's outputs, jitted, and checks their dtypes and shapes; with `key`, in training mode."""
    outputs = _forward(config)(params, batch, key)
    assert_shapes(OUTPUTS, {n: x for n, x in batch.items() if n in OUTPUTS} | outputs)
    return outputs


@functools.cache  # traced once for all tests with the same config
def _forward(config: ModelConfig):
    module = build(config)

    def outputs(params, batch, key):
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, batch, train=key is not None, rngs=rngs)

    return jax.jit(outputs)
