"""Defines the families of GPT: GPT-2, GPT-Neo, GPT-J. rotary_families.py has the later decoders."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_lite.hub.family import ACTIVATIONS, ONLY_FALSE, QKV_OUT, Family, Key, each, setting
from t5x_lite.models import presets
from t5x_lite.models.config import MODEL_KEYS, ModelConfig

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
_GPT_ALIASES = {
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}  # fmt: skip


def _read_gpt(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns d_ff if config.json does not set it: four times the width."""
    return {} if settings.get("n_inner") is not None else {"d_ff": 4 * settings["n_embd"]}


_GPT_LAYER = "transformer.h.{i}"
GPT2 = Family(
    model_type="gpt2",
    base=dataclasses.replace(presets.PRESETS["gpt2"], decoder_start_id=50256),
    settings=_GPT_SETTINGS,
    also={"embd_pdrop": "resid_pdrop"},
    choices={
        "activation_function": ACTIVATIONS,
        "scale_attn_weights": {True: {"query_dim": 0}, False: {"query_dim": 1}},
        "scale_attn_by_inverse_layer_idx": ONLY_FALSE,
        "add_cross_attention": ONLY_FALSE,
    },
    aliases=_GPT_ALIASES,
    read=_read_gpt,
    classes={"GPT2LMHeadModel": (), "GPT2Model": ()},
    modules={
        "token_embedding": "transformer.wte",
        "decoder/position_embedding": "transformer.wpe",
        "decoder/final_norm": "transformer.ln_f",
        **{
            f"decoder/layers_{{i}}/self_attention/{n}": Key(f"{_GPT_LAYER}.attn.c_attn", part=(k, 3))
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
    """Returns our field `local_window`, which is 0 if all layers attend globally, and d_ff if config.json lacks it.

    Their attention_types gives the kind of each layer: [[["global", "local"], 12]] means a global layer and then a
    local layer, twelve times.

    Raises ValueError if attention_types has a different form or order, or does not describe all layers.
    """
    given = settings.get("attention_types")
    types, layers = [[["global", "local"], 12]] if given is None else given, settings["num_layers"]
    try:
        if any(len(pattern) * times > layers or times < 0 for pattern, times in types):
            raise ValueError("too many layers")
        kinds = [kind for pattern, times in types for kind in list(pattern) * times]
    except (TypeError, ValueError):
        kinds = []
    alternate = [("global", "local")[i % 2] for i in range(len(kinds))]
    if len(kinds) != layers or kinds not in (alternate, ["global"] * len(kinds)):
        raise ValueError(
            f"attention_types={str(given)[:80]} with num_layers={layers}: it must describe every layer, and either all "
            'layers are global, or global and local layers alternate: [[["global", "local"], layers / 2]]'
        )
    if settings.get("attention_layers") not in (None, kinds):
        raise ValueError("attention_layers contradicts attention_types; remove attention_layers")
    window = setting(settings, "window_size", 256)
    MODEL_KEYS["local_window"].check("window_size", window)
    wide = {} if settings.get("intermediate_size") is not None else {"d_ff": 4 * settings["hidden_size"]}
    return {"local_window": window if "local" in kinds else 0} | wide


def _write_gpt_neo(config: ModelConfig) -> dict[str, Any]:
    layers = config.num_decoder_layers
    pairs = [[["global", "local"], layers // 2]] + [[["global"], 1]] * (layers % 2)
    types = pairs if config.local_window else [[["global"], layers]]
    return {"attention_types": types, "window_size": config.local_window or 256}


GPT_NEO = Family(
    model_type="gpt_neo",
    base=dataclasses.replace(presets.PRESETS["gpt_neo_125m"], decoder_start_id=50256),
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
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    read=_read_gpt_neo,
    write=_write_gpt_neo,
    classes={"GPTNeoForCausalLM": (), "GPTNeoModel": ()},
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
    base=dataclasses.replace(presets.PRESETS["gpt_j_6b"], decoder_start_id=50256),
    settings={**_GPT_SETTINGS, "rotary_dim": "rotary_dim"},
    also={"embd_pdrop": "resid_pdrop"},
    choices={"activation_function": ACTIVATIONS},
    aliases=_GPT_ALIASES,
    read=_read_gpt,
    classes={"GPTJForCausalLM": (), "GPTJModel": ()},
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
