"""Configurations of published models with rotary positions, RMSNorm and gated MLPs: Llama and what followed it.

Sizes are those of the released checkpoints.
"""

from typing import Any

from t5x_lite.models.config import ModelConfig


def llama(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns Llama (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, no biases, untied logits."""
    return ModelConfig(
        **{
            "architecture": "decoder_only",
            "vocab_size": 32000,
            "d_model": d_model,
            "d_ff": d_ff,
            "num_heads": num_heads,
            "head_dim": d_model // num_heads,
            "num_decoder_layers": num_layers,
            "norm_epsilon": 1e-5,
            "activation": "silu",
            "gated_mlp": True,
            "positions": "rotary",
            "max_positions": 4096,
            "query_dim": 0,
            "tie_embeddings": False,
            "initializer": "normal",
        }
        | changes
    )


def llama3(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns Llama 3.1 or 3.2 (Grattafiori et al. 2024).

    Groups of query heads share keys and values, and long wavelengths of the rotation are stretched for long texts.
    """
    new = {
        "vocab_size": 128256,
        "max_positions": 131072,
        "num_kv_heads": 8,
        "rotary_base": 500000.0,
        "rotary_factor": 8.0,
    }
    return llama(d_model, num_heads, num_layers, d_ff, **(new | changes))


def mistral(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns Mistral 0.1 (Jiang et al. 2023): Llama with grouped heads and a window in all layers."""
    new = {"max_positions": 32768, "num_kv_heads": 8, "local_window": 4096, "layer_pattern": "l"}
    return llama(d_model, num_heads, num_layers, d_ff, **(new | changes))


def qwen2(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns Qwen 2.5 (Qwen team 2024): Llama with biases of queries, keys and values."""
    new = {"vocab_size": 151936, "max_positions": 32768, "rotary_base": 1e6, "norm_epsilon": 1e-6}
    new |= {"attention_bias": "qkv", "tie_embeddings": True}
    return llama(d_model, num_heads, num_layers, d_ff, **(new | changes))


def qwen3(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns Qwen 3 (Qwen team 2025): no biases, but a norm of each head's query and key."""
    new = {"max_positions": 40960, "num_kv_heads": 8, "head_dim": 128, "attention_bias": "none", "qk_norm": "head"}
    return qwen2(d_model, num_heads, num_layers, d_ff, **(new | changes))


def olmo2(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns OLMo 2 (OLMo team 2025): norms on the outputs of branches, and on all queries and all keys."""
    new = {"vocab_size": 100352, "rotary_base": 500000.0, "norm_epsilon": 1e-6}
    new |= {"norm_position": "output", "qk_norm": "all"}
    return llama(d_model, num_heads, num_layers, d_ff, **(new | changes))


def smollm2(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns SmolLM 2 (Ben Allal et al. 2025): a small Llama with tied embeddings."""
    new = {"vocab_size": 49152, "max_positions": 8192, "rotary_base": 100000.0, "tie_embeddings": True}
    return llama(d_model, num_heads, num_layers, d_ff, **(new | changes))


def smollm3(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns SmolLM 3 (Hugging Face 2025): every fourth layer has no positions (Yang et al. 2025)."""
    new = {"vocab_size": 128256, "max_positions": 65536, "rotary_base": 5e6, "norm_epsilon": 1e-6}
    new |= {"num_kv_heads": 4, "layer_pattern": "gggn"}
    return smollm2(d_model, num_heads, num_layers, d_ff, **(new | changes))


def gemma2(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns Gemma 2 (Gemma team 2024): norms around branches, bounded logits, a window in every second layer."""
    new = {
        "vocab_size": 256000,
        "max_positions": 8192,
        "head_dim": 256,
        "query_dim": 256,
        "norm": "rms_zero_centered",
        "norm_epsilon": 1e-6,
        "norm_position": "both",
        "activation": "gelu_tanh",
        "scale_embeddings": True,
        "tie_embeddings": True,
        "local_window": 4096,
        "layer_pattern": "lg",
        "attention_softcap": 50.0,
        "logits_softcap": 30.0,
    }
    return llama(d_model, num_heads, num_layers, d_ff, **(new | changes))


def gemma3(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns Gemma 3 (Gemma team 2025), its text model: norms of queries and keys in place of Gemma 2's bounds.

    Five of six layers have a window, and a base of rotary positions of their own.
    """
    new = {
        "vocab_size": 262144,
        "max_positions": 32768,
        "qk_norm": "head",
        "rotary_base": 1e6,
        "rotary_local_base": 10000.0,
        "local_window": 512,
        "layer_pattern": "lllllg",
        "attention_softcap": 0.0,
        "logits_softcap": 0.0,
    }
    return gemma2(d_model, num_heads, num_layers, d_ff, **(new | changes))


def t5gemma(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns T5Gemma (Zhang et al. 2025): an encoder and a decoder of Gemma 2's parts, each with its own table.

    Attention to the encoder has no positions, and has norms before and after it.
    """
    new = {
        "architecture": "text_to_text",
        "num_encoder_layers": num_layers,
        "share_embeddings": False,
        "decoder_start_id": 2,
        "dropout_hidden": True,
    }
    return gemma2(d_model, num_heads, num_layers, d_ff, **(new | changes))


def t5gemma2(d_model: int, num_heads: int, num_layers: int, d_ff: int, **changes) -> ModelConfig:
    """Returns T5Gemma 2 (Zhang et al. 2025, "T5Gemma 2"), its text model: an encoder and a decoder of Gemma 3's parts.

    Both read one table, with which logits are computed, too. The decoder's layers attend to their own text and to the
    encoder's in one softmax.
    """
    new = {
        "architecture": "text_to_text",
        "body": "merged_attention",
        "num_encoder_layers": num_layers,
        "decoder_start_id": 2,
        "dropout_hidden": True,
    }
    return gemma3(d_model, num_heads, num_layers, d_ff, **(new | changes))


_T5_HEADS: dict[str, Any] = {"head_dim": 64, "query_dim": 64}  # of the models with T5's sizes
_GEMMA3_LONG: dict[str, Any] = {
    "max_positions": 131072, "rotary_scaling": "linear", "rotary_factor": 8.0, "local_window": 1024, "num_kv_heads": 4,
}  # fmt: skip
PRESETS: dict[str, ModelConfig] = {
    "llama_2_7b": llama(4096, 32, 32, 11008),
    "llama_3_1_8b": llama3(4096, 32, 32, 14336),
    "llama_3_2_1b": llama3(2048, 32, 16, 8192, tie_embeddings=True, rotary_factor=32.0),
    "mistral_7b": mistral(4096, 32, 32, 14336),
    "qwen_2_5_0_5b": qwen2(896, 14, 24, 4864, num_kv_heads=2),
    "qwen_2_5_1_5b": qwen2(1536, 12, 28, 8960, num_kv_heads=2),
    "qwen_2_5_7b": qwen2(3584, 28, 28, 18944, num_kv_heads=4, vocab_size=152064, tie_embeddings=False),
    "qwen_3_0_6b": qwen3(1024, 16, 28, 3072),
    "qwen_3_1_7b": qwen3(2048, 16, 28, 6144),
    "qwen_3_4b": qwen3(2560, 32, 36, 9728),
    "qwen_3_8b": qwen3(4096, 32, 36, 12288, tie_embeddings=False),
    "olmo_2_1b": olmo2(2048, 16, 16, 8192),
    "olmo_2_7b": olmo2(4096, 32, 32, 11008),
    "smollm_2_135m": smollm2(576, 9, 30, 1536, num_kv_heads=3),
    "smollm_2_360m": smollm2(960, 15, 32, 2560, num_kv_heads=5),
    "smollm_2_1_7b": smollm2(2048, 32, 24, 8192, rotary_base=130000.0),
    "smollm_3_3b": smollm3(2048, 16, 36, 11008),
    "gemma_2_2b": gemma2(2304, 8, 26, 9216, num_kv_heads=4),
    "gemma_2_9b": gemma2(3584, 16, 42, 14336, num_kv_heads=8),
    "gemma_3_270m": gemma3(640, 4, 18, 2048, num_kv_heads=1),
    "gemma_3_1b": gemma3(1152, 4, 26, 6912, num_kv_heads=1),
    "gemma_3_4b": gemma3(2560, 8, 34, 10240, **_GEMMA3_LONG),
    "t5gemma_small": t5gemma(512, 8, 8, 1024, **_T5_HEADS),
    "t5gemma_base": t5gemma(768, 12, 12, 2048, **_T5_HEADS),
    "t5gemma_large": t5gemma(1024, 16, 24, 2816, **_T5_HEADS),
    "t5gemma_xl": t5gemma(2048, 32, 24, 5120, **_T5_HEADS),
    "t5gemma_2b_2b": t5gemma(2304, 8, 26, 9216, num_kv_heads=4),
    "t5gemma_9b_9b": t5gemma(3584, 16, 42, 14336, num_kv_heads=8),
    "t5gemma2_270m_270m": t5gemma2(640, 4, 18, 2048, num_kv_heads=1),
    "t5gemma2_1b_1b": t5gemma2(1152, 4, 26, 6912, num_kv_heads=1),
}
