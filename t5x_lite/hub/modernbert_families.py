"""Defines the families ModernBERT (Warner et al. 2024) and its decoder twin (Ettin, Weller et al. 2025)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_lite.hub.family import ACTIVATIONS, Family, Key, each
from t5x_lite.hub.rotary_keys import (
    BIASES,
    Fields,
    Settings,
    count,
    layer_types,
    ropes_of,
    write_layer_types,
    write_ropes,
)
from t5x_lite.models import presets
from t5x_lite.models.config import GLOBAL, LOCAL, ModelConfig

_BASES = {"global_base": "global_rope_theta", "local_base": "local_rope_theta"}


def _read(settings: Settings, base: ModelConfig, own_slot: int) -> Fields:
    """Returns our fields for layers and positions.

    own_slot: what is added to half of local_attention. Our window counts the token itself. ModernBERT's does not; its
        decoder's does.

    Raises ValueError if a setting is not supported.
    """
    every = count(settings, "global_attn_every_n_layers", 3)
    half = count(settings, "local_attention", 128, least=2) // 2
    window = count(settings, "sliding_window", half) + own_slot  # transformers lets this key win
    activation = settings.get("hidden_activation") or "gelu"
    if (head := settings.get("classifier_activation") or "gelu") != activation:
        raise ValueError(
            f"classifier_activation={str(head)[:40]!r} and hidden_activation={str(activation)[:40]!r} differ; our "
            "models have one value for both"
        )
    if settings.get("rope_scaling") is not None:
        raise ValueError("rope_scaling is not supported: it would stretch the wavelengths of all layers")

    def assumed(layers: int) -> str:
        return "".join(LOCAL if i % every else GLOBAL for i in range(layers))

    return layer_types(settings, assumed, window) | ropes_of(settings, base, **_BASES)


def _write(config: ModelConfig, own_slot: int) -> dict[str, Any]:
    activation = next(name for name, fields in ACTIVATIONS.items() if fields["activation"] == config.activation)
    half = config.local_window - own_slot if config.local_window else 64
    return write_ropes(config, **_BASES) | {
        "layer_types": write_layer_types(config)["layer_types"],
        "local_attention": 2 * half,
        "sliding_window": half,
        "global_attn_every_n_layers": 3,
        "classifier_activation": activation,
    }


_LAYER = "model.layers.{i}"


def _family(
    model_type: str,
    base: ModelConfig,
    side: str,
    own_slot: int,
    modules: Mapping[str, str | Key],
    settings: Mapping[str, str],
    choices: Mapping[str, Any],
    **parts: Any,
) -> Family:
    """Returns the family of the encoder or the decoder. side: the name of our stack.  own_slot: as in `_read`.

    modules, settings, choices, parts: what the other family does not have.
    """
    common: dict[str, str | Key] = {
        "token_embedding": "model.embeddings.tok_embeddings",
        f"{side}/embedding_norm": "model.embeddings.norm",
        f"{side}/final_norm": "model.final_norm",
        f"{side}/layers_{{i}}/self_attention/out": f"{_LAYER}.attn.Wo",
        f"{side}/layers_{{i}}/self_attention_norm": f"{_LAYER}.attn_norm",
        f"{side}/layers_{{i}}/mlp/wi_0": Key(f"{_LAYER}.mlp.Wi", part=(0, 2)),
        f"{side}/layers_{{i}}/mlp/wi_1": Key(f"{_LAYER}.mlp.Wi", part=(1, 2)),
        f"{side}/layers_{{i}}/mlp/wo": f"{_LAYER}.mlp.Wo",
        f"{side}/layers_{{i}}/mlp_norm": f"{_LAYER}.mlp_norm",
    }
    return Family(
        model_type=model_type,
        base=base,
        settings={
            "vocab_size": "vocab_size",
            "d_model": "hidden_size",
            "d_ff": "intermediate_size",
            "num_heads": "num_attention_heads",
            f"num_{side}_layers": "num_hidden_layers",
            "max_positions": "max_position_embeddings",
            "norm_epsilon": "norm_eps",
            "mlp_bias": "mlp_bias",
            "dropout_rate": "embedding_dropout",
            "attention_dropout_rate": "attention_dropout",
            "classifier_dropout_rate": "classifier_dropout",
            "initializer_stddev": "initializer_range",
            **settings,
        },
        also={"mlp_dropout": "embedding_dropout"},
        choices={
            "hidden_activation": ACTIVATIONS,
            "norm_bias": {False: {"norm": "layer_no_bias"}, True: {"norm": "layer"}},
            "decoder_bias": {True: {}},
            "classifier_bias": {False: {}},
            **BIASES,
            **choices,
        },
        read=lambda settings: _read(settings, base, own_slot),
        write=lambda config: _write(config, own_slot),
        modules={**common, **modules},
        prefix="model.",
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        constants={
            "pad_token_id": 50283, "eos_token_id": 50282, "bos_token_id": 50281, "cls_token_id": 50281,
            "sep_token_id": 50282,
        },
        **parts,
    )  # fmt: skip


MODERNBERT = _family(
    "modernbert",
    dataclasses.replace(presets.PRESETS["modernbert_base"], pooling="first"),
    "encoder",
    own_slot=1,
    settings={},
    choices={"classifier_pooling": {"cls": {"pooling": "first"}, "mean": {"pooling": "mean"}}},
    classes={
        "ModernBertForMaskedLM": ("mlm",),
        "ModernBertForSequenceClassification": ("classification",),
        "ModernBertForTokenClassification": ("token_classification",),
        "ModernBertForQuestionAnswering": ("span",),
        "ModernBertForMultipleChoice": ("multiple_choice",),
        "ModernBertModel": (),
    },
    heads={
        "mlm": "decoder.bias",
        **dict.fromkeys(
            ("classification", "multi_label", "token_classification", "span", "multiple_choice"), "classifier.weight"
        ),
    },
    modules={
        **{
            f"encoder/layers_{{i}}/self_attention/{name}": Key(f"{_LAYER}.attn.Wqkv", part=(place, 3))
            for place, name in enumerate(("query", "key", "value"))
        },
        "prediction_head/dense": "head.dense",
        "prediction_head/norm": "head.norm",
        "mlm/bias": "decoder.bias",
        **dict.fromkeys(
            ("classification", "multi_label", "regression", "token_classification", "span", "multiple_choice"),
            "classifier",
        ),
    },
)
MODERNBERT_DECODER = _family(
    "modernbert-decoder",
    dataclasses.replace(presets.PRESETS["ettin_decoder_150m"], decoder_start_id=50281),
    "decoder",
    own_slot=0,
    settings={"tie_embeddings": "tie_word_embeddings", "decoder_start_id": "bos_token_id"},
    choices={},
    classes={"ModernBertDecoderForCausalLM": (), "ModernBertDecoderModel": ()},
    modules={
        **each(
            "decoder/layers_{i}/self_attention", f"{_LAYER}.attn.*_proj", query="q", key="k", value="v"
        ),
        "logits/prediction_head/dense": "lm_head.dense",
        "logits/prediction_head/norm": "lm_head.norm",
        "logits/bias": "decoder.bias",
        "logits/dense": "decoder",
    },
)  # fmt: skip
