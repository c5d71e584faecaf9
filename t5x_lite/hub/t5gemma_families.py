"""Defines the family T5Gemma (Zhang et al. 2025): an encoder and a decoder, both with Gemma 2's parts."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from t5x_lite.hub.family import QKV_O, each, setting
from t5x_lite.hub.rotary_families import GEMMA2
from t5x_lite.hub.rotary_keys import write_layer_types
from t5x_lite.models import presets
from t5x_lite.models.config import ModelConfig

log = logging.getLogger(__name__)
_SIDES = ("encoder", "decoder")  # parts of config.json, each with Gemma 2's keys
_OUTSIDE = ("dropout_rate", "attention_dropout", "classifier_dropout_rate", "tie_word_embeddings")  # not in the parts
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")  # outside, or else in the decoder


def _stacks(settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Returns the config.json of the encoder and that of the decoder. Raises ValueError if one is missing, or is not an
    object.

    As in transformers, the keys of the parts have no effect outside of them, nor the other keys inside.
    """
    if not set(_SIDES) & settings.keys():
        return (settings,)
    for side in _SIDES:
        if settings.get(side) is None:
            raise ValueError(f"{side} is missing; T5Gemma's config.json has the parts {' and '.join(_SIDES)}")
    if ignored := sorted(key for key in settings if key in _INSIDE and key != "vocab_size"):
        log.warning("config.json has %s outside of encoder and decoder, where it is ignored", ", ".join(ignored))
    parts = [setting(settings, side, {}) for side in _SIDES]
    both = {key: value for key, value in settings.items() if key not in (*_SIDES, *_INSIDE)}
    both |= {key: settings.get(key, parts[1].get(key, T5GEMMA.constants.get(key))) for key in _TOKENS}
    return tuple({k: value for k, value in part.items() if k not in _OUTSIDE} | both for part in parts)


def _join(settings: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Returns config.json with the parts `encoder` and `decoder`, from that of the decoder."""
    inside = {key: value for key, value in settings.items() if key in (*_INSIDE, *_TOKENS)}
    counts = config.num_encoder_layers, config.num_decoder_layers
    parts = {
        side: inside | {"num_hidden_layers": count, "model_type": "t5_gemma_module"} | write_layer_types(config, count)
        for side, count in zip(_SIDES, counts, strict=True)
    }
    outside = {key: value for key, value in settings.items() if key not in _INSIDE}
    return outside | {"vocab_size": settings["vocab_size"]} | parts


_LAYER = "model.{s}.layers.{i}"
_CROSS = "model.decoder.layers.{i}"
T5GEMMA = dataclasses.replace(
    GEMMA2,
    model_type="t5gemma",
    base=presets.PRESETS["t5gemma_2b_2b"],
    settings={**GEMMA2.settings, "dropout_rate": "dropout_rate"},
    choices={
        **{key: table for key, table in GEMMA2.choices.items() if key != "use_bidirectional_attention"},
        "is_encoder_decoder": {True: {}},
    },
    write=lambda config: GEMMA2.write(dataclasses.replace(config, num_encoder_layers=0)),
    classes={"T5GemmaForConditionalGeneration": (), "T5GemmaModel": ()},
    modules={
        "token_embedding": "model.encoder.embed_tokens",
        "decoder_token_embedding": "model.decoder.embed_tokens",
        "{s}/final_norm": "model.{s}.norm",
        **each("{s}/layers_{i}/self_attention", f"{_LAYER}.self_attn.*_proj", **QKV_O),
        "{s}/layers_{i}/self_attention_norm": f"{_LAYER}.pre_self_attn_layernorm",
        "{s}/layers_{i}/self_attention_output_norm": f"{_LAYER}.post_self_attn_layernorm",
        **each("decoder/layers_{i}/cross_attention", f"{_CROSS}.cross_attn.*_proj", **QKV_O),
        "decoder/layers_{i}/cross_attention_norm": f"{_CROSS}.pre_cross_attn_layernorm",
        "decoder/layers_{i}/cross_attention_output_norm": f"{_CROSS}.post_cross_attn_layernorm",
        **each("{s}/layers_{i}/mlp", f"{_LAYER}.mlp.*_proj", wi_0="gate", wi_1="up", wo="down"),
        "{s}/layers_{i}/mlp_norm": f"{_LAYER}.pre_feedforward_layernorm",
        "{s}/layers_{i}/mlp_output_norm": f"{_LAYER}.post_feedforward_layernorm",
        "logits/dense": "lm_head.out_proj",
    },
    constants={**GEMMA2.constants, "is_encoder_decoder": True},
    stacks=_stacks,
    join=_join,
)
_INSIDE = T5GEMMA.keys - {*_OUTSIDE, *_TOKENS, "is_encoder_decoder"}
