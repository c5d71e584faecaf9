"""Configurations of BART and of published models of its parts: Pegasus, Marian, mBART, M2M-100 and NLLB.

Sizes are those of the released checkpoints.
"""

from typing import Any

from t5x_lite.models.config import ModelConfig


def bart(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns BART (Lewis et al. 2020): post-norm, and learned positions.

    The table of positions has two spare rows before position 0. The decoder starts from the end-of-text id.
    """
    return ModelConfig(
        **{
            "architecture": "text_to_text",
            "vocab_size": 50265,
            "d_model": d_model,
            "d_ff": 4 * d_model,
            "num_heads": num_heads,
            "head_dim": d_model // num_heads,
            "num_encoder_layers": num_layers,
            "num_decoder_layers": num_layers,
            "norm": "layer",
            "norm_position": "post",
            "norm_epsilon": 1e-5,
            "activation": "gelu_erf",
            "attention_bias": "all",
            "mlp_bias": True,
            "positions": "learned",
            "max_positions": 1024,
            "position_offset": 2,
            "query_dim": 0,
            "embedding_norm": True,
            "logits_bias": True,
            "decoder_start_id": 2,
            "fairseq_marks": True,
            "dropout_rate": 0.1,
            "initializer": "normal",
        }
        | changes
    )


def pegasus(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns Pegasus (Zhang et al. 2020): pre-norm, sinusoids, relu."""
    new = {
        "vocab_size": 96103,
        "norm_position": "pre",
        "embedding_norm": False,
        "activation": "relu",
        "positions": "sinusoidal_halves",
        "position_offset": 0,
        "scale_embeddings": True,
        "decoder_start_id": 0,
        "fairseq_marks": False,
    }
    return bart(d_model, num_heads, num_layers, **(new | changes))


def marian(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns Marian's Transformer (Junczys-Dowmunt et al. 2018), as in OPUS-MT: post-norm, sinusoids, silu.

    The vocabulary is that of English to German; other pairs of languages have their own.
    """
    new = {
        "vocab_size": 58101,
        "norm_position": "post",
        "activation": "silu",
        "max_positions": 512,
        "decoder_start_id": 58100,
    }
    return pegasus(d_model, num_heads, num_layers, **(new | changes))


def mbart(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns mBART (Liu et al. 2020): BART with pre-norm. The decoder's first token says the language."""
    new = {"norm_position": "pre", "scale_embeddings": True, "decoder_start_id": -1, "fairseq_marks": False}
    return bart(d_model, num_heads, num_layers, **(new | changes))


def m2m_100(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns M2M-100 (Fan et al. 2021): pre-norm, fairseq's sinusoids, relu. NLLB (2022) has a larger vocabulary."""
    new = {
        "vocab_size": 128112,
        "positions": "sinusoidal_fairseq",
        "position_offset": 2,
        "logits_bias": False,
        "attention_dropout_rate": 0.1,
        "decoder_start_id": 2,
    }
    return pegasus(d_model, num_heads, num_layers, **(new | changes))


_CLASSIFIER: dict[str, Any] = {
    "architecture": "encoder_only", "body": "encoder_decoder", "pooling": "last", "logits_bias": False,
}  # fmt: skip
_NLLB = 256206  # ids of its vocabulary
PRESETS: dict[str, ModelConfig] = {
    "bart_base": bart(768, 12, 6),
    "bart_large": bart(1024, 16, 12),
    "bart_large_mnli": bart(1024, 16, 12, **_CLASSIFIER, heads=("classification",), num_classes=3),
    "pegasus_large": pegasus(1024, 16, 16),
    "opus_mt_en_de": marian(512, 8, 6),
    "mbart_large_cc25": mbart(1024, 16, 12, vocab_size=250027),
    "mbart_large_50": mbart(1024, 16, 12, vocab_size=250054),
    "m2m_100_418m": m2m_100(1024, 16, 12),
    "m2m_100_1_2b": m2m_100(1024, 16, 24, d_ff=8192),
    "nllb_600m": m2m_100(1024, 16, 12, vocab_size=_NLLB),
    "nllb_1_3b": m2m_100(1024, 16, 24, d_ff=8192, vocab_size=_NLLB),
    "nllb_3_3b": m2m_100(2048, 16, 24, vocab_size=_NLLB),
}
