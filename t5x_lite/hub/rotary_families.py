"""Defines the families of decoders with rotary positions: Llama, Mistral, Qwen, OLMo, SmolLM and Gemma.

Llama's family is a whole table; each of the others is Llama's table with its differences.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from t5x_lite.hub.family import ACTIVATIONS, ONLY_FALSE, QKV_O, Family, each, setting
from t5x_lite.hub.rotary_keys import (
    BIASES,
    Fields,
    Settings,
    count,
    heads,
    layer_types,
    pattern,
    rope_of,
    ropes_of,
    window_of,
    write_layer_types,
    write_rope,
    write_ropes,
)
from t5x_lite.models import presets
from t5x_lite.models.config import GLOBAL, LOCAL, MODEL_KEYS, UNPOSITIONED, ModelConfig

# Llama and its kin ----------------------------------------------------------------------------------------------------


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {"num_key_value_heads": config.kv_heads} | write_rope(config)


_LAYER = "model.layers.{i}"
LLAMA = Family(
    model_type="llama",
    base=dataclasses.replace(presets.PRESETS["llama_2_7b"], norm_epsilon=1e-6, max_positions=2048, decoder_start_id=1),
    settings={
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "num_heads": "num_attention_heads",
        "head_dim": "head_dim",
        "num_decoder_layers": "num_hidden_layers",
        "max_positions": "max_position_embeddings",
        "norm_epsilon": "rms_norm_eps",
        "mlp_bias": "mlp_bias",
        "attention_dropout_rate": "attention_dropout",
        "initializer_stddev": "initializer_range",
        "tie_embeddings": "tie_word_embeddings",
        "decoder_start_id": "bos_token_id",
    },
    choices={"hidden_act": ACTIVATIONS, **BIASES},
    read=lambda settings: heads(settings) | rope_of(settings, LLAMA.base),
    write=_write_llama,
    classes={"LlamaForCausalLM": (), "LlamaModel": ()},
    modules={
        "token_embedding": "model.embed_tokens",
        "decoder/final_norm": "model.norm",
        **each("decoder/layers_{i}/self_attention", f"{_LAYER}.self_attn.*_proj", **QKV_O),
        "decoder/layers_{i}/self_attention_norm": f"{_LAYER}.input_layernorm",
        "decoder/layers_{i}/mlp/wi_0": f"{_LAYER}.mlp.gate_proj",
        "decoder/layers_{i}/mlp/wi_1": f"{_LAYER}.mlp.up_proj",
        "decoder/layers_{i}/mlp/wo": f"{_LAYER}.mlp.down_proj",
        "decoder/layers_{i}/mlp_norm": f"{_LAYER}.post_attention_layernorm",
        "logits/dense": "lm_head",
    },
    prefix="model.",
    ignored={r"(.*\.)?rotary_emb\.inv_freq": "follows from rope_theta"},
    constants={"bos_token_id": 1, "eos_token_id": 2},
)
_NO_MLP_BIAS = {field: key for field, key in LLAMA.settings.items() if field != "mlp_bias"}
_QK_NORMS = each("decoder/layers_{i}/self_attention", f"{_LAYER}.self_attn.*_norm", query_norm="q", key_norm="k")


def _kin(model_type: str, base: ModelConfig, name: str, read: Callable[..., Fields], **changes: Any) -> Family:
    """Returns Llama's family with changes.

    name: the first part of its classes' names in transformers.  read: (settings, base) -> as `Family.read` returns.
    """
    made = {
        "model_type": model_type,
        "base": base,
        "read": lambda settings: read(settings, base),
        "classes": {f"{name}ForCausalLM": (), f"{name}Model": ()},
    }
    return dataclasses.replace(LLAMA, **made | changes)


# Mistral (Jiang et al. 2023): all layers have a window.
MISTRAL = _kin(
    "mistral",
    dataclasses.replace(presets.PRESETS["mistral_7b"], norm_epsilon=1e-6, max_positions=131072, decoder_start_id=1),
    "Mistral",
    lambda settings, base: (
        heads(settings, 8) | rope_of(settings, base)
        | layer_types(settings, lambda layers: LOCAL * layers, window_of(settings))
    ),
    settings=_NO_MLP_BIAS,
    choices={"hidden_act": ACTIVATIONS},
    write=lambda config: _write_llama(config) | {"sliding_window": config.local_window or None},
)  # fmt: skip


# Qwen 2 and 2.5 (biases of queries, keys and values), Qwen 3 (norms of queries and keys)


def _read_qwen(settings: Settings, base: ModelConfig, head_dim: int = 0) -> Fields:
    window = window_of(settings) if setting(settings, "use_sliding_window", False) else 0
    first = count(settings, "max_window_layers", 28, least=0)
    kinds = layer_types(settings, lambda layers: GLOBAL * min(first, layers) + LOCAL * max(layers - first, 0), window)
    return heads(settings, 32, head_dim) | rope_of(settings, base) | kinds


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    kinds = config.layer_kinds(config.num_decoder_layers)
    window = {"use_sliding_window": LOCAL in kinds, "max_window_layers": kinds.find(LOCAL) if LOCAL in kinds else 28}
    return _write_llama(config) | write_layer_types(config) | window


_QWEN: dict[str, Any] = {
    "d_ff": 22016, "max_positions": 32768, "rotary_base": 10000.0, "tie_embeddings": False, "num_kv_heads": 0,
}  # fmt: skip
QWEN2 = _kin(
    "qwen2",
    dataclasses.replace(presets.PRESETS["qwen_2_5_0_5b"], **_QWEN),
    "Qwen2",
    _read_qwen,
    settings=_NO_MLP_BIAS,
    choices={"hidden_act": ACTIVATIONS},
    write=_write_qwen,
    constants={},
)
QWEN3 = _kin(
    "qwen3",
    dataclasses.replace(presets.PRESETS["qwen_3_0_6b"], **_QWEN),
    "Qwen3",
    functools.partial(_read_qwen, head_dim=128),
    settings=_NO_MLP_BIAS,
    write=_write_qwen,
    modules={**LLAMA.modules, **_QK_NORMS},
    constants={},
)


# OLMo 2 (OLMo team 2025): norms after the branches, and of all queries and all keys
OLMO2 = _kin(
    "olmo2",
    dataclasses.replace(presets.PRESETS["olmo_2_7b"], norm_epsilon=1e-5, max_positions=2048, rotary_base=10000.0),
    "Olmo2",
    lambda settings, base: heads(settings) | rope_of(settings, base),
    settings=_NO_MLP_BIAS,
    modules={
        **LLAMA.modules,
        **_QK_NORMS,
        "decoder/layers_{i}/self_attention_norm": f"{_LAYER}.post_attention_layernorm",
        "decoder/layers_{i}/mlp_norm": f"{_LAYER}.post_feedforward_layernorm",
    },
    constants={"pad_token_id": 1, "eos_token_id": 50279},
)


# SmolLM 3: every fourth layer has no positions. (SmolLM 2 is Llama.)


def _read_smollm3(settings: Settings, base: ModelConfig) -> Fields:
    """Raises ValueError if a layer has a window: in SmolLM 3, it has no positions, and our layers have no such kind."""
    layers = settings["num_hidden_layers"]
    every = count(settings, "no_rope_layer_interval", 4)
    rotated = settings.get("no_rope_layers")
    if rotated is None:
        rotated = [int((i + 1) % every != 0) for i in range(layers)]
    if not isinstance(rotated, list) or len(rotated) < layers or any(one not in (0, 1) for one in rotated):
        raise ValueError(f"no_rope_layers={str(rotated)[:80]}, num_hidden_layers={layers}: each layer must have 0 or 1")
    if setting(settings, "use_sliding_window", False) and settings.get("sliding_window") is not None:
        raise ValueError("use_sliding_window=True is not supported: its layers with a window have no positions")
    kinds = "".join(GLOBAL if one else UNPOSITIONED for one in rotated[:layers])
    return heads(settings, 4) | rope_of(settings, base) | pattern(kinds, 0)


def _write_smollm3(config: ModelConfig) -> dict[str, Any]:
    rotated = [int(kind != UNPOSITIONED) for kind in config.layer_kinds(config.num_decoder_layers)]
    written = {"no_rope_layers": rotated, "no_rope_layer_interval": 4, "use_sliding_window": False}
    return _write_llama(config) | write_layer_types(config) | written


SMOLLM3 = _kin(
    "smollm3",
    dataclasses.replace(
        presets.PRESETS["smollm_3_3b"], max_positions=32768, rotary_base=2000000.0, decoder_start_id=128000
    ),
    "SmolLM3",
    _read_smollm3,
    write=_write_smollm3,
    constants={"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004},
)


# Gemma 2 and 3 --------------------------------------------------------------------------------------------------------


def _softcap(settings: Settings, key: str, assumed: float) -> float:
    """Returns a bound of logits; null means no bound."""
    softcap = 0.0 if key in settings and settings[key] is None else setting(settings, key, assumed)
    MODEL_KEYS["logits_softcap"].check(key, softcap)
    return softcap


def _read_gemma(settings: Settings, base: ModelConfig, every: int) -> Fields:
    """Returns the fields that Gemma 2 and 3 have. every: one layer in so many is global."""
    kinds = layer_types(
        settings,
        lambda layers: "".join(LOCAL if (i + 1) % every else GLOBAL for i in range(layers)),
        window_of(settings),
    )
    return {
        **heads(settings, 4, base.head_dim),
        **kinds,
        "query_dim": count(settings, "query_pre_attn_scalar", base.query_dim),
        "attention_softcap": _softcap(settings, "attn_logit_softcapping", base.attention_softcap),
        "logits_softcap": _softcap(settings, "final_logit_softcapping", base.logits_softcap),
    }


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    return write_layer_types(config) | {
        "num_key_value_heads": config.kv_heads,
        "query_pre_attn_scalar": config.query_dim or config.head_dim,
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logits_softcap or None,
    }


_GEMMA: dict[str, Any] = {
    "settings": _NO_MLP_BIAS,
    "choices": {"hidden_activation": ACTIVATIONS, "use_bidirectional_attention": ONLY_FALSE, **BIASES},
    "modules": {
        **LLAMA.modules,
        "decoder/layers_{i}/self_attention_output_norm": f"{_LAYER}.post_attention_layernorm",
        "decoder/layers_{i}/mlp_norm": f"{_LAYER}.pre_feedforward_layernorm",
        "decoder/layers_{i}/mlp_output_norm": f"{_LAYER}.post_feedforward_layernorm",
    },
    "constants": {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
}
GEMMA2 = _kin(
    "gemma2",
    dataclasses.replace(presets.PRESETS["gemma_2_2b"], decoder_start_id=2),
    "Gemma2",
    lambda settings, base: _read_gemma(settings, base, 2) | rope_of(settings, base),
    write=lambda config: write_rope(config) | _write_gemma(config),
    **_GEMMA,
)


def _read_gemma3(settings: Settings, base: ModelConfig) -> Fields:
    if settings.get("attn_logit_softcapping") is not None:
        raise ValueError("attn_logit_softcapping is not supported: transformers ignores it in this family; remove it")
    every = count(settings, "sliding_window_pattern", count(settings, "_sliding_window_pattern", 6))
    return _read_gemma(settings, base, every) | ropes_of(settings, base, **_GEMMA3_BASES)


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    pattern = {"sliding_window_pattern": 6, "_sliding_window_pattern": 6}
    return _write_gemma(config) | write_ropes(config, **_GEMMA3_BASES) | pattern


_GEMMA3_BASES = {"global_base": "rope_theta", "local_base": "rope_local_base_freq"}
GEMMA3 = _kin(
    "gemma3_text",
    dataclasses.replace(
        presets.PRESETS["gemma_3_1b"], d_ff=9216, vocab_size=262208, local_window=4096, max_positions=131072,
        decoder_start_id=2,
    ),
    "Gemma3Text",
    _read_gemma3,
    write=_write_gemma3,
    **_GEMMA | {"modules": _GEMMA["modules"] | _QK_NORMS, "classes": {"Gemma3ForCausalLM": (), "Gemma3TextModel": ()}},
)  # fmt: skip
