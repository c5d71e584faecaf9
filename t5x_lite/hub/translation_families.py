"""Defines the families of text_to_text models with BART's tensors: Pegasus, Marian, mBART, M2M-100 and NLLB."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.hub.family import Family, setting
from t5x_lite.hub.text_to_text_families import BART
from t5x_lite.models import presets
from t5x_lite.models.config import ModelConfig


def _like_bart(
    model_type: str,
    preset: str,
    classes: Sequence[str],
    without: Collection[str] = (),
    final_norm: bool = True,
    **parts: Any,
) -> Family:
    """Returns the family of models with BART's tensors, but without some modules.

    preset: a model of the family.
    classes: the names of the family's classes in transformers.
    without: our modules that BART has, but not this family.
    final_norm: whether each stack ends with a norm.
    parts: fields of Family. `base` has the fields in which the model that transformers assumes differs from the preset.
    """
    modules = {key: row for key, row in BART.modules.items() if key not in without}
    if final_norm:
        modules["{s}/final_norm"] = "model.{s}.layer_norm"
    # transformers does not read these keys, which older files have. Our models refuse other values.
    was = {
        "normalize_before": presets.PRESETS[preset].norm_position == "pre",
        "add_final_layer_norm": final_norm,
        "normalize_embedding": "{s}/embedding_norm" in modules,
        "static_position_embeddings": "{s}/position_embedding" not in modules,
    }
    base = dataclasses.replace(presets.PRESETS[preset], **parts.pop("base"))
    choices = {**BART.choices, **{key: {value: {}} for key, value in was.items()}, **parts.pop("choices", {})}
    return dataclasses.replace(
        BART,
        model_type=model_type,
        base=base,
        classes=dict.fromkeys(classes, ()),
        modules=modules,
        choices=choices,
        **parts,
    )


def _halves(config: ModelConfig) -> np.ndarray:
    """Returns the table of `sinusoidal_halves`, float32 [max_positions, D], as transformers' files have it."""
    half = config.d_model // 2
    angles = np.arange(config.max_positions)[:, None] / np.power(10000, 2 * np.arange(half) / config.d_model)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


_TABLES = {f"model.{side}.embed_positions.weight": _halves for side in ("encoder", "decoder")}
_NEITHER = ("{s}/position_embedding", "{s}/embedding_norm")
_ASSUMED = {  # by transformers, for keys that config.json lacks
    **{"vocab_size": 50265, "d_model": 1024, "d_ff": 4096, "num_heads": 16, "head_dim": 64, "max_positions": 1024},
    **{"scale_embeddings": False, "activation": "gelu_erf"},
}

PEGASUS = _like_bart(
    "pegasus",
    "pegasus_large",
    ("PegasusForConditionalGeneration", "PegasusModel"),
    without=_NEITHER,
    base=_ASSUMED,
    computed=_TABLES,
    constants={"is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1},
)


def _read_marian(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns no fields. Raises ValueError if the decoder's vocabulary has a different size than the encoder's."""
    rows = settings["vocab_size"]
    if (others := setting(settings, "decoder_vocab_size", rows)) != rows:
        raise ValueError(
            f"decoder_vocab_size={others!r} and vocab_size={rows!r} differ; our encoder and decoder share one table"
        )
    return {}


MARIAN = _like_bart(
    "marian",
    "opus_mt_en_de",
    ("MarianMTModel", "MarianModel"),
    without=_NEITHER,
    final_norm=False,
    base=_ASSUMED | {"vocab_size": 58101},
    choices={"share_encoder_decoder_embeddings": {True: {}}},
    read=_read_marian,
    write=lambda config: {"decoder_vocab_size": config.vocab_size},
    computed=_TABLES,
    constants={"is_encoder_decoder": True, "pad_token_id": 58100, "eos_token_id": 0, "forced_eos_token_id": 0},
)
MBART = _like_bart("mbart", "mbart_large_cc25", ("MBartForConditionalGeneration", "MBartModel"), base=_ASSUMED)


def _read_m2m_100(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our fields for positions, of which pad_token_id + 1 is the first. Raises ValueError if it is below 0."""
    offset = setting(settings, "pad_token_id", 1) + 1
    if offset < 0:
        raise ValueError(f"pad_token_id={offset - 1}: the first position is pad_token_id + 1, which must be at least 0")
    return {"position_offset": offset}


M2M_100 = _like_bart(
    "m2m_100",
    "m2m_100_418m",
    ("M2M100ForConditionalGeneration", "M2M100Model"),
    without=(*_NEITHER, "logits/bias"),
    base={},
    read=_read_m2m_100,
    write=lambda config: {"pad_token_id": config.position_offset - 1},
    ignored={r"model\.(encoder|decoder)\.embed_positions\.weights": "sinusoids, which transformers computes, too"},
    constants={"is_encoder_decoder": True, "bos_token_id": 0, "eos_token_id": 2},
)
