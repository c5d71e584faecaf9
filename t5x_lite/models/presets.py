"""Published models as configurations. Sizes and parameter counts are those of the released checkpoints."""

import dataclasses
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup, unknown
from t5x_lite.models.config import ModelConfig


def t5(d_model: int, num_heads: int, num_layers: int, head_dim: int, d_ff: int, **changes) -> ModelConfig:
    """T5 1.0 (Raffel et al. 2020, §2.1; t5x/examples/t5/t5_1_0): relu MLP, one table for everything."""
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
    """T5 1.1 (t5x/examples/t5/t5_1_1): gated gelu, logits of their own, pre-trained without dropout."""
    new = {
        "gated_mlp": True,
        "activation": "gelu_tanh",
        "tie_embeddings": False,
        "logits_scale": "none",
        "dropout_rate": 0.0,  # 0.1, both, to fine-tune
        "attention_dropout_rate": 0.0,
    }
    return t5(d_model, num_heads, num_layers, head_dim, d_ff, **(new | changes))


def bert(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """BERT (Devlin et al. 2019): post-norm, learned positions, masked tokens and next sentence."""
    return ModelConfig(
        **{
            "architecture": "encoder_only",
            "vocab_size": 30522,
            "d_model": d_model,
            "d_ff": 4 * d_model,
            "num_heads": num_heads,
            "head_dim": d_model // num_heads,
            "num_encoder_layers": num_layers,
            "norm": "layer",
            "norm_position": "post",
            "norm_epsilon": 1e-12,
            "activation": "gelu_erf",
            "attention_bias": True,
            "mlp_bias": True,
            "positions": "learned",
            "max_positions": 512,
            "type_vocab_size": 2,
            "scale_attention": True,
            "embedding_norm": True,
            "heads": ("mlm", "nsp"),
            "dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "initializer": "normal",
        }
        | changes
    )


def gpt2(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """GPT-2 (Radford et al. 2019): pre-norm, learned positions, tied logits, residual projections ÷ sqrt(2N)."""
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
            "attention_bias": True,
            "mlp_bias": True,
            "positions": "learned",
            "max_positions": 1024,
            "scale_attention": True,
            "dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "initializer": "normal",
            "scale_residual_init": True,
        }
        | changes
    )


def transformer(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """The original Transformer (Vaswani et al. 2017): sinusoids, post-norm, one scaled table for everything."""
    return ModelConfig(
        **{
            "architecture": "text_to_text",
            "vocab_size": 37000,  # about that many byte-pairs shared by English and German (§5.1)
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
            "scale_attention": True,
            "scale_embeddings": True,
            "dropout_rate": 0.1,
            "initializer": "glorot",
        }
        | changes
    )


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
    "bert_base": bert(768, 12, 12),
    "bert_large": bert(1024, 16, 24),
    "gpt2": gpt2(768, 12, 12),
    "gpt2_medium": gpt2(1024, 16, 24),
    "gpt2_large": gpt2(1280, 20, 36),
    "gpt2_xl": gpt2(1600, 25, 48),
    "transformer_base": transformer(512, 8, 6, 2048),
    "transformer_big": transformer(1024, 16, 6, 4096, dropout_rate=0.3),
    # For a CPU: first steps and tests. The vocabulary is the data's: override vocab_size.
    "t5_tiny": t5_1_1(128, 4, 2, 32, 256, vocab_size=4096, tie_embeddings=True, logits_scale="rsqrt_d_model"),
    "bert_tiny": bert(128, 4, 2, vocab_size=4096, max_positions=256),
    "gpt2_tiny": gpt2(128, 4, 2, vocab_size=4096, max_positions=512),
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The preset `name` with some fields replaced, validated.

    >>> preset("t5_small", num_decoder_layers=2).num_layers
    8
    """
    config = lookup("model preset", name, PRESETS)
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for field in overrides:
        if field not in fields:
            raise ConfigError(unknown("model field", field, fields))
    return dataclasses.replace(config, **overrides).validate()
