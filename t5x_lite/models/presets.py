"""Configurations of published models. Sizes are those of the released checkpoints.

encoder_presets.py has BERT and what followed it, rotary_presets.py has the decoders from Llama on, bart_presets.py has
BART and the translators.
"""

import dataclasses
from pathlib import Path
from typing import Any

from t5x_lite import side_files
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup, unknown
from t5x_lite.models import bart_presets, encoder_presets, rotary_presets, stored
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.encoder_presets import bert


def t5(d_model: int, num_heads: int, num_layers: int, head_dim: int, d_ff: int, **changes) -> ModelConfig:
    """Returns T5 1.0 (Raffel et al. 2020, §2.1; t5x/examples/t5/t5_1_0): relu MLP, one table for inputs and logits."""
    return ModelConfig(
        **{
            "architecture": "text_to_text",
            "vocab_size": 32128,  # 32 000 pieces and 100 sentinels, rounded up to a multiple of 128
            "d_model": d_model,
            "d_ff": d_ff,
            "num_heads": num_heads,
            "head_dim": head_dim,
            "num_encoder_layers": num_layers,
            "num_decoder_layers": num_layers,
            "logits_scale": "rsqrt_d_model",
            "dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "dropout_hidden": True,
            "dropout_broadcasts_length": True,
        }
        | changes
    )


def t5_1_1(d_model: int, num_heads: int, num_layers: int, head_dim: int, d_ff: int, **changes) -> ModelConfig:
    """Returns T5 1.1 (t5x/examples/t5/t5_1_1): gated gelu, untied logits, pre-trained without dropout."""
    new = {
        "gated_mlp": True,
        "activation": "gelu_tanh",
        "tie_embeddings": False,
        "logits_scale": "none",
        "dropout_rate": 0.0,  # to fine-tune, set both rates to 0.1
        "attention_dropout_rate": 0.0,
    }
    return t5(d_model, num_heads, num_layers, head_dim, d_ff, **(new | changes))


def gpt2(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns GPT-2 (Radford et al. 2019): pre-norm, learned positions, tied logits.

    The initial stddev of the layers that write to the residual stream is divided by sqrt(2 · layers).
    """
    return ModelConfig(
        **{
            "architecture": "decoder_only",
            "vocab_size": 50257,
            "d_model": d_model,
            "d_ff": 4 * d_model,
            "num_heads": num_heads,
            "head_dim": d_model // num_heads,
            "num_decoder_layers": num_layers,
            "norm": "layer",
            "norm_epsilon": 1e-5,
            "activation": "gelu_tanh",
            "attention_bias": "all",
            "mlp_bias": True,
            "positions": "learned",
            "max_positions": 1024,
            "query_dim": 0,
            "dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "initializer": "normal_residual",
        }
        | changes
    )


def modernbert(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns ModernBERT (Warner et al. 2024): rotary positions, gated MLPs, no biases, norms before the sublayers.

    One layer in three attends to the whole text, the others to 64 tokens on each side, with a base of rotary positions
    of their own. The embeddings have a norm, and the first layer's attention has none.
    """
    return ModelConfig(
        **{
            "architecture": "encoder_only",
            "vocab_size": 50368,
            "d_model": d_model,
            "d_ff": d_ff,
            "num_heads": num_heads,
            "head_dim": d_model // num_heads,
            "num_encoder_layers": num_layers,
            "norm": "layer_no_bias",
            "norm_position": "pre_but_first",
            "norm_epsilon": 1e-5,
            "activation": "gelu_erf",
            "gated_mlp": True,
            "positions": "rotary",
            "max_positions": 8192,
            "rotary_base": 160000.0,
            "rotary_local_base": 10000.0,
            "local_window": 65,
            "layer_pattern": "gll",
            "query_dim": 0,
            "embedding_norm": True,
            "prediction_head": True,
            "heads": ("mlm",),
            "classifier_dropout_rate": 0.0,
            "initializer": "normal",
        }
        | changes
    )


def ettin_decoder(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns the decoders of Ettin (Weller et al. 2025): ModernBERT as a language model."""
    new = {
        "architecture": "decoder_only",
        "num_encoder_layers": 0,
        "num_decoder_layers": num_layers,
        "local_window": 64,
        "logits_bias": True,
        "heads": (),
    }
    return modernbert(d_model, num_heads, num_layers, d_ff, **(new | changes))


def gpt_neo(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns GPT-Neo (Black et al. 2021): every second layer attends only to the latest 256 tokens.

    Attention is not scaled. Of attention's dense layers, only the output layer has a bias.
    """
    new = {
        "max_positions": 2048,
        "local_window": 256,
        "query_dim": 1,
        "attention_bias": "out",
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "initializer": "normal",
    }
    return gpt2(d_model, num_heads, num_layers, **(new | changes))


def gpt_j(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns GPT-J (Wang and Komatsuzaki 2021): rotary positions, parallel attention and MLP, untied logits."""
    new = {
        "vocab_size": 50400,
        "max_positions": 2048,
        "positions": "rotary",
        "rotary_dim": 64,
        "rotary_interleaved": True,
        "parallel_block": True,
        "attention_bias": "none",
        "tie_embeddings": False,
        "logits_bias": True,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "initializer": "normal",
    }
    return gpt2(d_model, num_heads, num_layers, **(new | changes))


def transformer(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns the original Transformer (Vaswani et al. 2017): sinusoids and post-norm.

    Inputs and logits share one embedding table; inputs are scaled by sqrt(d_model).
    """
    return ModelConfig(
        **{
            "architecture": "text_to_text",
            "vocab_size": 37000,  # about 37000 byte-pairs shared by English and German (§5.1)
            "d_model": d_model,
            "d_ff": d_ff,
            "num_heads": num_heads,
            "head_dim": d_model // num_heads,
            "num_encoder_layers": num_layers,
            "num_decoder_layers": num_layers,
            "norm": "layer",
            "norm_position": "post",
            "mlp_bias": True,  # b1 and b2 of equation 2; the attention projections have none (§3.2.2)
            "positions": "sinusoidal",
            "query_dim": 0,
            "scale_embeddings": True,
            "dropout_rate": 0.1,
            "initializer": "glorot",
        }
        | changes
    )


# The initializer is T5's, which makes embeddings large. With BERT's initializer, the mean of a text's embeddings would
# be close to 0, and a classifier would not learn from it.
_ANCESTOR: dict[str, Any] = {"vocab_size": 4096, "heads": ("mlm",), "positions": "sinusoidal", "initializer": "t5"}
_UMT5: dict[str, Any] = {"vocab_size": 256384, "positions": "relative_per_layer"}  # Chung et al. 2023
PRESETS: dict[str, ModelConfig] = {
    "t5_small": t5(512, 8, 6, 64, 2048),
    "t5_base": t5(768, 12, 12, 64, 3072),
    "t5_large": t5(1024, 16, 24, 64, 4096),
    "t5_3b": t5(1024, 32, 24, 128, 16384),
    "t5_11b": t5(1024, 128, 24, 128, 65536),
    "t5_1_1_small": t5_1_1(512, 6, 8, 64, 1024),
    "t5_1_1_base": t5_1_1(768, 12, 12, 64, 2048),
    "t5_1_1_large": t5_1_1(1024, 16, 24, 64, 2816),
    "t5_1_1_xl": t5_1_1(2048, 32, 24, 64, 5120),
    "t5_1_1_xxl": t5_1_1(4096, 64, 24, 64, 10240),
    "mt5_small": t5_1_1(512, 6, 8, 64, 1024, vocab_size=250112),
    "mt5_base": t5_1_1(768, 12, 12, 64, 2048, vocab_size=250112),
    "mt5_large": t5_1_1(1024, 16, 24, 64, 2816, vocab_size=250112),
    "mt5_xl": t5_1_1(2048, 32, 24, 64, 5120, vocab_size=250112),
    "mt5_xxl": t5_1_1(4096, 64, 24, 64, 10240, vocab_size=250112),
    "byt5_small": t5_1_1(1472, 6, 12, 64, 3584, num_decoder_layers=4, vocab_size=384),
    "byt5_base": t5_1_1(1536, 12, 18, 64, 3968, num_decoder_layers=6, vocab_size=384),
    "byt5_large": t5_1_1(1536, 16, 36, 64, 3840, num_decoder_layers=12, vocab_size=384),
    "byt5_xl": t5_1_1(2560, 32, 36, 64, 6720, num_decoder_layers=12, vocab_size=384),
    "byt5_xxl": t5_1_1(4672, 64, 36, 64, 12352, num_decoder_layers=12, vocab_size=384),
    "umt5_small": t5_1_1(512, 6, 8, 64, 1024, **_UMT5),
    "umt5_base": t5_1_1(768, 12, 12, 64, 2048, **_UMT5),
    "umt5_xl": t5_1_1(2048, 32, 24, 64, 5120, **_UMT5),
    "umt5_xxl": t5_1_1(4096, 64, 24, 64, 10240, **_UMT5),
    "ul2": t5_1_1(4096, 16, 32, 256, 16384, activation="silu"),
    **encoder_presets.PRESETS,
    "modernbert_base": modernbert(768, 12, 22, 1152, pooling="mean"),
    "modernbert_large": modernbert(1024, 16, 28, 2624, pooling="mean"),
    "ettin_encoder_17m": modernbert(256, 4, 7, 384),
    "ettin_decoder_17m": ettin_decoder(256, 4, 7, 384),
    "ettin_encoder_32m": modernbert(384, 6, 10, 576),
    "ettin_decoder_32m": ettin_decoder(384, 6, 10, 576),
    "ettin_encoder_68m": modernbert(512, 8, 19, 768),
    "ettin_decoder_68m": ettin_decoder(512, 8, 19, 768),
    "ettin_encoder_150m": modernbert(768, 12, 22, 1152),
    "ettin_decoder_150m": ettin_decoder(768, 12, 22, 1152),
    "ettin_encoder_400m": modernbert(1024, 16, 28, 2624),
    "ettin_decoder_400m": ettin_decoder(1024, 16, 28, 2624),
    "ettin_encoder_1b": modernbert(1792, 28, 28, 3840),
    "ettin_decoder_1b": ettin_decoder(1792, 28, 28, 3840),
    "gpt2": gpt2(768, 12, 12),
    "gpt2_medium": gpt2(1024, 16, 24),
    "gpt2_large": gpt2(1280, 20, 36),
    "gpt2_xl": gpt2(1600, 25, 48),
    "gpt_neo_125m": gpt_neo(768, 12, 12),
    "gpt_neo_1_3b": gpt_neo(2048, 16, 24),
    "gpt_neo_2_7b": gpt_neo(2560, 20, 32),
    "gpt_j_6b": gpt_j(4096, 16, 28),
    **rotary_presets.PRESETS,
    **bart_presets.PRESETS,
    "transformer_base": transformer(512, 8, 6, 2048),
    "transformer_big": transformer(1024, 16, 6, 4096, dropout_rate=0.3),
    # For a CPU: first steps and tests. Override vocab_size with the size of the data's vocabulary.
    "t5_tiny": t5_1_1(128, 4, 2, 32, 256, vocab_size=4096, tie_embeddings=True, logits_scale="rsqrt_d_model"),
    "bert_tiny": bert(128, 4, 2, vocab_size=4096, max_positions=256),
    "cbow_tiny": bert(128, 4, 1, body="cbow", local_window=5, tie_embeddings=False, **_ANCESTOR),
    "elmo_tiny": bert(128, 4, 2, body="elmo", logits_scale="rsqrt_d_model", **_ANCESTOR),
    "gpt2_tiny": gpt2(128, 4, 2, vocab_size=4096, max_positions=512),
}


def find(name: str) -> ModelConfig:
    """Returns the configuration of a model: the one that `t5x-lite import` or a run stored in the directory `name`, or
    else the preset `name`.

    Raises ConfigError if neither exists, or if the stored one is invalid.
    """
    if side_files.is_there(Path(name) / stored.FILE):
        return stored.read(Path(name))
    if name not in PRESETS and Path(name).is_dir():
        raise ConfigError(
            f"model.preset={name!r} has no {stored.FILE}; it must be the name of a preset or an imported directory. If "
            f"this directory is in Hugging Face format, import it: `t5x-lite import {name} OUT`"
        )
    return lookup("model preset", name, PRESETS)


def preset(name: str, **overrides: Any) -> ModelConfig:
    """Returns the configuration that `find` returns for `name`, with the fields in `overrides` replaced.

    Raises ConfigError if the name or a field is unknown, or if the resulting configuration is not valid.

    >>> preset("t5_small", num_decoder_layers=2).num_layers
    8
    """
    config = find(name)
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for field in overrides:
        if field not in fields:
            raise ConfigError(unknown("model field", field, fields))
    return dataclasses.replace(config, **overrides).validate()
