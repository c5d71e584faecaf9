"""Defines the family T5Gemma (Zhang et al. 2025): an encoder and a decoder, both with Gemma 2's parts.

Also holds what T5Gemma 2 shares with it: the parts of config.json for each stack, and names of tensors.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.hub.family import QKV_O, Family, Key, each, setting
from t5x_lite.hub.rotary_families import GEMMA2
from t5x_lite.hub.rotary_keys import write_layer_types
from t5x_lite.models import presets
from t5x_lite.models.config import ModelConfig

log = logging.getLogger(__name__)
SIDES = ("encoder", "decoder")  # parts of config.json, each with Gemma's keys
OUTSIDE = (  # keys that are not in the parts
    "dropout_rate", "attention_dropout", "classifier_dropout_rate", "tie_word_embeddings", "is_encoder_decoder",
)  # fmt: skip
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")  # outside, or else in the decoder
Settings = Mapping[str, Any]


def inside(family: Family) -> frozenset[str]:
    """Returns the keys that have an effect only in the parts."""
    return family.keys - {*OUTSIDE, *TOKENS}


def sides_of(settings: Settings, name: str) -> tuple[Settings, Settings]:
    """Returns the parts of the encoder and the decoder. Raises ValueError if one is missing, or is not an object.

    name: of the family, for messages.
    """
    for side in SIDES:
        if settings.get(side) is None:
            raise ValueError(f"{side} is missing; {name}'s config.json has the parts {' and '.join(SIDES)}")
    encoder, decoder = (setting(settings, side, {}) for side in SIDES)
    return encoder, decoder


def completed(parts: tuple[Settings, Settings], settings: Settings, family: Family) -> tuple[Settings, ...]:
    """Returns the parts, each as a whole config.json.

    As in transformers, the keys of the parts have no effect outside of them, nor the other keys inside.
    """
    both = {key: value for key, value in settings.items() if key not in (*SIDES, *inside(family))}
    both |= {key: settings.get(key, parts[1].get(key, family.constants.get(key))) for key in TOKENS}
    return tuple({k: value for k, value in part.items() if k not in OUTSIDE} | both for part in parts)


def outside_of(settings: Settings, family: Family) -> list[str]:
    """Returns the keys outside of the parts that have an effect only in them."""
    return sorted(key for key in settings if key in inside(family) and key != "vocab_size")


def divided(settings: Settings, family: Family) -> tuple[dict[str, Any], Callable[..., dict[str, Any]]]:
    """Returns (config.json without parts, a function that makes a part), from the config.json of a decoder.

    The function takes our ModelConfig, the number of the stack's layers, and the part's model_type.
    """
    of_parts = {key: value for key, value in settings.items() if key in (*inside(family), *TOKENS)}
    outside = {key: value for key, value in settings.items() if key not in of_parts or key in TOKENS}

    def part(config: ModelConfig, layers: int, kind: str) -> dict[str, Any]:
        return of_parts | {"num_hidden_layers": layers, "model_type": kind} | write_layer_types(config, layers)

    return outside | {"vocab_size": settings["vocab_size"]}, part


def _stacks(settings: Settings) -> tuple[Settings, ...]:
    if not set(SIDES) & settings.keys():
        return (settings,)
    parts = sides_of(settings, "T5Gemma")
    if ignored := outside_of(settings, T5GEMMA):
        log.warning("config.json has %s outside of encoder and decoder, where it is ignored", ", ".join(ignored))
    return completed(parts, settings, T5GEMMA)


def _join(settings: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    outside, part = divided(settings, T5GEMMA)
    counts = config.num_encoder_layers, config.num_decoder_layers
    kind = "t5_gemma_module"
    return outside | {side: part(config, count, kind) for side, count in zip(SIDES, counts, strict=True)}


LAYER = "model.{s}.layers.{i}"
_CROSS = "model.decoder.layers.{i}"
STACKS: dict[str, str | Key] = {
    "token_embedding": "model.encoder.embed_tokens",
    "{s}/final_norm": "model.{s}.norm",
    **each("{s}/layers_{i}/self_attention", f"{LAYER}.self_attn.*_proj", **QKV_O),
    "{s}/layers_{i}/self_attention_norm": f"{LAYER}.pre_self_attn_layernorm",
    "{s}/layers_{i}/self_attention_output_norm": f"{LAYER}.post_self_attn_layernorm",
    **each("{s}/layers_{i}/mlp", f"{LAYER}.mlp.*_proj", wi_0="gate", wi_1="up", wo="down"),
    "{s}/layers_{i}/mlp_norm": f"{LAYER}.pre_feedforward_layernorm",
    "{s}/layers_{i}/mlp_output_norm": f"{LAYER}.post_feedforward_layernorm",
    "logits/dense": "lm_head.out_proj",
}
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
        **STACKS,
        "decoder_token_embedding": "model.decoder.embed_tokens",
        **each("decoder/layers_{i}/cross_attention", f"{_CROSS}.cross_attn.*_proj", **QKV_O),
        "decoder/layers_{i}/cross_attention_norm": f"{_CROSS}.pre_cross_attn_layernorm",
        "decoder/layers_{i}/cross_attention_output_norm": f"{_CROSS}.post_cross_attn_layernorm",
    },
    constants={**GEMMA2.constants, "is_encoder_decoder": True},
    stacks=_stacks,
    join=_join,
)
