"""Defines the families of decoder_only models: GPT-2, GPT-Neo, GPT-J, Llama."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.hub.family import ACTIVATIONS, ONLY_FALSE, QKV_O, QKV_OUT, Family, Key, each
from t5x_lite.models import presets
from t5x_lite.models.config import ModelConfig

# GPT-2, GPT-Neo, GPT-J ------------------------------------------------------------------------------------------------


_MASKS = {r"(.*\.)?h\.\d+\.attn\.(attention\.)?(bias|masked_bias)": "a mask"}
_GPT_SETTINGS = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "d_ff": "n_inner",
    "num_heads": "n_head",
    "num_decoder_layers": "n_layer",
    "max_positions": "n_positions",
    "norm_epsilon": "layer_norm_epsilon",
    "dropout_rate": "resid_pdrop",
    "attention_dropout_rate": "attn_pdrop",
    "initializer_stddev": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
    "decoder_start_id": "bos_token_id",
}
_GPT_LAYER = "transformer.h.{i}"
GPT2 = Family(
    model_type="gpt2",
    base=presets.PRESETS["gpt2"],
    settings=_GPT_SETTINGS,
    also={"embd_pdrop": "resid_pdrop"},
    choices={
        "activation_function": ACTIVATIONS,
        "scale_attn_weights": {True: {"scale_attention": True}, False: {"scale_attention": False}},
        "scale_attn_by_inverse_layer_idx": ONLY_FALSE,
        "add_cross_attention": ONLY_FALSE,
    },
    classes={"GPT2LMHeadModel": ()},
    modules={
        "token_embedding": "transformer.wte",
        "decoder/position_embedding": "transformer.wpe",
        "decoder/final_norm": "transformer.ln_f",
        **{
            f"decoder/layers_{{i}}/self_attention/{n}": Key(f"{_GPT_LAYER}.attn.c_attn", third=k)
            for k, n in enumerate(("query", "key", "value"))
        },
        "decoder/layers_{i}/self_attention/out": f"{_GPT_LAYER}.attn.c_proj",
        "decoder/layers_{i}/self_attention_norm": f"{_GPT_LAYER}.ln_1",
        "decoder/layers_{i}/mlp/wi": f"{_GPT_LAYER}.mlp.c_fc",
        "decoder/layers_{i}/mlp/wo": f"{_GPT_LAYER}.mlp.c_proj",
        "decoder/layers_{i}/mlp_norm": f"{_GPT_LAYER}.ln_2",
        "logits/dense": Key("lm_head", turned=True),  # a Linear; all other layers are Conv1D
    },
    prefix="transformer.",
    kernels_turned=False,
    ignored=_MASKS,
    constants={"bos_token_id": 50256, "eos_token_id": 50256},
)


def _read_gpt_neo(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our field `local_window`, which is 0 if all layers attend globally.

    Their attention_types gives the kind of each layer: [[["global", "local"], 12]] means a global layer and then a
    local layer, twelve times.
    """
    kinds = [kind for pattern, times in settings.get("attention_types") or () for kind in list(pattern) * times]
    if set(kinds) <= {"global"}:
        return {"local_window": 0}
    if kinds != [("global", "local")[i % 2] for i in range(len(kinds))]:
        raise ValueError(f"attention_types={settings['attention_types']!r}: global and local layers must alternate")
    return {"local_window": settings.get("window_size", 256)}


def _write_gpt_neo(config: ModelConfig) -> dict[str, Any]:
    layers = config.num_decoder_layers
    pairs = [[["global", "local"], layers // 2]] + [[["global"], 1]] * (layers % 2)
    types = pairs if config.local_window else [[["global"], layers]]
    return {"attention_types": types, "window_size": config.local_window or 256}


GPT_NEO = Family(
    model_type="gpt_neo",
    base=presets.PRESETS["gpt_neo_125m"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "num_heads": "num_heads",
        "num_decoder_layers": "num_layers",
        "max_positions": "max_position_embeddings",
        "norm_epsilon": "layer_norm_epsilon",
        "dropout_rate": "resid_dropout",
        "attention_dropout_rate": "attention_dropout",
        "initializer_stddev": "initializer_range",
        "tie_embeddings": "tie_word_embeddings",
        "decoder_start_id": "bos_token_id",
    },
    also={"embed_dropout": "resid_dropout"},
    choices={"activation_function": ACTIVATIONS},
    read=_read_gpt_neo,
    write=_write_gpt_neo,
    classes={"GPTNeoForCausalLM": ()},
    modules={
        **{k: v for k, v in GPT2.modules.items() if "self_attention/" not in k},
        **each("decoder/layers_{i}/self_attention", f"{_GPT_LAYER}.attn.attention.*_proj", **QKV_OUT),
    },
    prefix="transformer.",
    ignored=_MASKS,
    constants={"bos_token_id": 50256, "eos_token_id": 50256},
)

GPT_J = Family(
    model_type="gptj",
    base=presets.PRESETS["gpt_j_6b"],
    settings={**_GPT_SETTINGS, "rotary_dim": "rotary_dim"},
    also={"embd_pdrop": "resid_pdrop"},
    choices={"activation_function": ACTIVATIONS},
    classes={"GPTJForCausalLM": ()},
    modules={
        "token_embedding": "transformer.wte",
        "decoder/final_norm": "transformer.ln_f",
        **each("decoder/layers_{i}/self_attention", f"{_GPT_LAYER}.attn.*_proj", **QKV_OUT),
        "decoder/layers_{i}/self_attention_norm": f"{_GPT_LAYER}.ln_1",
        "decoder/layers_{i}/mlp/wi": f"{_GPT_LAYER}.mlp.fc_in",
        "decoder/layers_{i}/mlp/wo": f"{_GPT_LAYER}.mlp.fc_out",
        "logits/dense": "lm_head",
        "logits/bias": "lm_head.bias",
    },
    prefix="transformer.",
    ignored=_MASKS,
    constants={"bos_token_id": 50256, "eos_token_id": 50256},
)


# Llama ----------------------------------------------------------------------------------------------------------------


def _read_llama(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our rotary fields and num_kv_heads.

    transformers 5 keeps the rotary settings in rope_parameters; older versions use rope_theta and rope_scaling.
    """
    rope = dict(settings.get("rope_parameters") or settings.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    shared = settings.get("num_key_value_heads")
    fields = {
        "rotary_base": float(rope.get("rope_theta", settings.get("rope_theta", 10000.0))),
        "num_kv_heads": 0 if shared in (None, settings.get("num_attention_heads")) else shared,
    }
    if kind == "llama3" and (rope.get("low_freq_factor"), rope.get("high_freq_factor")) == (1, 4):
        return fields | {
            "rotary_factor": float(rope["factor"]),
            "rotary_original_positions": rope["original_max_position_embeddings"],
        }
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} with {rope}; allowed: default, or llama3 with frequency factors 1 and 4")
    return fields


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    scaling = None
    if config.rotary_factor != 1:
        scaling = {
            "rope_type": "llama3",
            "factor": config.rotary_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": config.rotary_original_positions,
        }
    both = {"rope_theta": config.rotary_base, **(scaling or {"rope_type": "default"})}
    return {
        "rope_theta": config.rotary_base,
        "rope_scaling": scaling,
        "rope_parameters": both,
        "num_key_value_heads": config.kv_heads,
    }


_LLAMA_LAYER = "model.layers.{i}"
LLAMA = Family(
    model_type="llama",
    base=presets.PRESETS["llama_2_7b"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "num_heads": "num_attention_heads",
        "head_dim": "head_dim",
        "num_decoder_layers": "num_hidden_layers",
        "max_positions": "max_position_embeddings",
        "norm_epsilon": "rms_norm_eps",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "attention_dropout_rate": "attention_dropout",
        "initializer_stddev": "initializer_range",
        "tie_embeddings": "tie_word_embeddings",
        "decoder_start_id": "bos_token_id",
    },
    choices={"hidden_act": ACTIVATIONS},
    read=_read_llama,
    write=_write_llama,
    classes={"LlamaForCausalLM": ()},
    modules={
        "token_embedding": "model.embed_tokens",
        "decoder/final_norm": "model.norm",
        **each("decoder/layers_{i}/self_attention", f"{_LLAMA_LAYER}.self_attn.*_proj", **QKV_O),
        "decoder/layers_{i}/self_attention_norm": f"{_LLAMA_LAYER}.input_layernorm",
        "decoder/layers_{i}/mlp/wi_0": f"{_LLAMA_LAYER}.mlp.gate_proj",
        "decoder/layers_{i}/mlp/wi_1": f"{_LLAMA_LAYER}.mlp.up_proj",
        "decoder/layers_{i}/mlp/wo": f"{_LLAMA_LAYER}.mlp.down_proj",
        "decoder/layers_{i}/mlp_norm": f"{_LLAMA_LAYER}.post_attention_layernorm",
        "logits/dense": "lm_head",
    },
    prefix="model.",
    ignored={r"(.*\.)?rotary_emb\.inv_freq": "follows from rope_theta"},
    constants={"bos_token_id": 1, "eos_token_id": 2},
)
