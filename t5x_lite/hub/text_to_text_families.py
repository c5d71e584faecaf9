"""Defines the families of text_to_text models: T5, mT5, umT5, BART. translation_families.py has those like BART.

text_reader_families.py has the same models as encoders and classifiers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_lite.hub.family import ACTIVATIONS, ONLY_FALSE, QKV_O, QKV_OUT, Family, Key, each, setting
from t5x_lite.models import presets
from t5x_lite.models.config import ModelConfig

# T5 -------------------------------------------------------------------------------------------------------------------


def _read_t5(settings: Mapping[str, Any], feed_forward: str = "relu") -> dict[str, Any]:
    """Returns those of our fields that Family.settings and Family.choices do not cover.

    In transformers 5, the key scale_decoder_outputs says whether logits are scaled. Older versions scale logits if and
    only if embeddings are tied.

    feed_forward: the default of feed_forward_proj.

    Raises ValueError if dense_act_fn or is_gated_act contradicts feed_forward_proj. transformers would read these two.
    """
    feed_forward = setting(settings, "feed_forward_proj", feed_forward)
    gated, activation = feed_forward.startswith("gated-"), feed_forward.removeprefix("gated-")
    expected = {"dense_act_fn": "gelu_new" if activation == "gelu" else activation, "is_gated_act": gated}
    for key, value in expected.items():
        if settings.get(key) not in (None, value):
            raise ValueError(f"{key}={settings[key]!r} contradicts feed_forward_proj={feed_forward!r}; remove {key}")
    scaled = setting(settings, "scale_decoder_outputs", settings.get("tie_word_embeddings") is not False)
    return {
        "logits_scale": "rsqrt_d_model" if scaled else "none",
        "attention_dropout_rate": setting(settings, "dropout_rate", 0.1),
        "num_decoder_layers": setting(settings, "num_decoder_layers", settings["num_layers"]),
    }


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    scaled = config.logits_scale == "rsqrt_d_model"
    return {"scale_decoder_outputs": scaled, "tie_word_embeddings": config.tie_embeddings or scaled}


_T5_BLOCK = "{s}.block.{i}.layer"
_T5_MLP = {name: name for name in ("wi", "wi_0", "wi_1", "wo")}
T5 = Family(
    model_type="t5",
    base=presets.PRESETS["t5_small"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "d_ff": "d_ff",
        "head_dim": "d_kv",
        "num_heads": "num_heads",
        "num_encoder_layers": "num_layers",
        "num_decoder_layers": "num_decoder_layers",
        "relative_buckets": "relative_attention_num_buckets",
        "relative_max_distance": "relative_attention_max_distance",
        "norm_epsilon": "layer_norm_epsilon",
        "dropout_rate": "dropout_rate",
        "decoder_start_id": "decoder_start_token_id",
    },
    choices={
        "feed_forward_proj": {
            "relu": {"activation": "relu", "gated_mlp": False},
            "gated-gelu": {"activation": "gelu_tanh", "gated_mlp": True},
            "gated-silu": {"activation": "silu", "gated_mlp": True},
            "gated-relu": {"activation": "relu", "gated_mlp": True},
        },
        "is_encoder_decoder": {True: {}},
    },
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    read=_read_t5,
    write=_write_t5,
    classes={"T5ForConditionalGeneration": (), "T5Model": (), "T5WithLMHeadModel": ()},
    modules={
        "token_embedding": "shared",
        "{s}/relative_bias": Key("{s}.block.0.layer.0.SelfAttention.relative_attention_bias", turned=True),
        "{s}/final_norm": "{s}.final_layer_norm",
        "logits/dense": "lm_head",
        **each("{s}/layers_{i}/self_attention", f"{_T5_BLOCK}.0.SelfAttention.*", **QKV_O),
        "{s}/layers_{i}/self_attention_norm": f"{_T5_BLOCK}.0.layer_norm",
        **each("decoder/layers_{i}/cross_attention", "decoder.block.{i}.layer.1.EncDecAttention.*", **QKV_O),
        "decoder/layers_{i}/cross_attention_norm": "decoder.block.{i}.layer.1.layer_norm",
        **each("encoder/layers_{i}/mlp", "encoder.block.{i}.layer.1.DenseReluDense.*", **_T5_MLP),
        "encoder/layers_{i}/mlp_norm": "encoder.block.{i}.layer.1.layer_norm",
        **each("decoder/layers_{i}/mlp", "decoder.block.{i}.layer.2.DenseReluDense.*", **_T5_MLP),
        "decoder/layers_{i}/mlp_norm": "decoder.block.{i}.layer.2.layer_norm",
    },
    tied={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
    ignored={
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": "T5's code never reads it",
    },
    constants={"is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1},
)
MT5 = dataclasses.replace(  # transformers never scales mT5's logits, even if the embeddings are tied
    T5,
    model_type="mt5",
    base=dataclasses.replace(
        presets.PRESETS["mt5_small"], dropout_rate=0.1, attention_dropout_rate=0.1, decoder_start_id=0
    ),
    classes={"MT5ForConditionalGeneration": (), "MT5Model": ()},
    read=lambda settings: _read_t5(settings, "gated-gelu") | {"logits_scale": "none"},
    write=lambda config: {"tie_word_embeddings": config.tie_embeddings},
)
_UMT5_BIAS = Key("{s}.block.{i}.layer.0.SelfAttention.relative_attention_bias", turned=True)
UMT5 = dataclasses.replace(  # it scales logits by T5's rule
    T5,
    model_type="umt5",
    base=dataclasses.replace(
        MT5.base, vocab_size=presets.PRESETS["umt5_small"].vocab_size, positions="relative_per_layer"
    ),
    classes={"UMT5ForConditionalGeneration": (), "UMT5Model": ()},
    modules={k: v for k, v in T5.modules.items() if k != "{s}/relative_bias"}
    | {"{s}/layers_{i}/relative_bias": _UMT5_BIAS},
    read=lambda settings: _read_t5(settings, "gated-gelu"),
    ignored={},
)


# BART -----------------------------------------------------------------------------------------------------------------


_BART_LAYER = "model.{s}.layers.{i}"
BART = Family(
    model_type="bart",
    base=presets.PRESETS["bart_large"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "d_ff": "encoder_ffn_dim",
        "num_heads": "encoder_attention_heads",
        "num_encoder_layers": "encoder_layers",
        "num_decoder_layers": "decoder_layers",
        "max_positions": "max_position_embeddings",
        "dropout_rate": "dropout",
        "attention_dropout_rate": "attention_dropout",
        "initializer_stddev": "init_std",
        "scale_embeddings": "scale_embedding",
        "tie_embeddings": "tie_word_embeddings",
        "decoder_start_id": "decoder_start_token_id",
    },
    also={"decoder_ffn_dim": "encoder_ffn_dim", "decoder_attention_heads": "encoder_attention_heads"},
    choices={
        "activation_function": ACTIVATIONS,
        "normalize_before": ONLY_FALSE,
        "add_final_layer_norm": ONLY_FALSE,
        "normalize_embedding": {True: {}},
        "static_position_embeddings": ONLY_FALSE,
        "is_encoder_decoder": {True: {}},
    },
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    },
    classes={"BartForConditionalGeneration": (), "BartModel": ()},
    modules={
        "token_embedding": "model.shared",
        "{s}/position_embedding": "model.{s}.embed_positions",
        "{s}/embedding_norm": "model.{s}.layernorm_embedding",
        **each("{s}/layers_{i}/self_attention", f"{_BART_LAYER}.self_attn.*_proj", **QKV_OUT),
        "{s}/layers_{i}/self_attention_norm": f"{_BART_LAYER}.self_attn_layer_norm",
        **each("decoder/layers_{i}/cross_attention", "model.decoder.layers.{i}.encoder_attn.*_proj", **QKV_OUT),
        "decoder/layers_{i}/cross_attention_norm": "model.decoder.layers.{i}.encoder_attn_layer_norm",
        "{s}/layers_{i}/mlp/wi": f"{_BART_LAYER}.fc1",
        "{s}/layers_{i}/mlp/wo": f"{_BART_LAYER}.fc2",
        "{s}/layers_{i}/mlp_norm": f"{_BART_LAYER}.final_layer_norm",
        "logits/bias": Key("final_logits_bias", leading=True),
        "logits/dense": "lm_head",
    },
    prefix="model.",
    tied={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    },
    ignored={r"model\.(encoder|decoder)\.version": "the number of fairseq's file format"},
    constants={
        "is_encoder_decoder": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
    },
)
