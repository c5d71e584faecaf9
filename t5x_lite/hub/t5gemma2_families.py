"""Defines the family T5Gemma 2 (Zhang et al. 2025, "T5Gemma 2"): its text model, without the vision tower.

Import skips the tensors that only images need, and says so in its report. Export writes the text model, and in place of
the vision tower the smallest one that transformers can build: a tower of zeros without layers, for which every image is
empty. So transformers loads an exported model whole, and reads and writes texts with it.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t5x_lite.hub import config_keys
from t5x_lite.hub.family import each, setting
from t5x_lite.hub.rotary_families import GEMMA3
from t5x_lite.hub.t5gemma_families import (
    LAYER,
    SIDES,
    STACKS,
    Settings,
    completed,
    divided,
    inside,
    outside_of,
    sides_of,
)
from t5x_lite.models import rotary_presets
from t5x_lite.models.config import ModelConfig

log = logging.getLogger(__name__)
TEXT, VISION = "text_config", "vision_config"  # parts of the encoder's part of config.json
_ENCODER = "t5gemma2_encoder"
_OF_ENCODER = {
    TEXT, "image_token_id", "boi_token_id", "eoi_token_id", "initializer_range",
    *config_keys.NO_EFFECT, *config_keys.READ_ELSEWHERE,
}  # fmt: skip
_OF_GEMMA3 = "_sliding_window_pattern"  # an older name of a key, which T5Gemma 2 does not read


def _stacks(settings: Settings) -> tuple[Settings, ...]:
    """Returns the config.json of the text encoder and that of the decoder; see `Family.stacks`."""
    if not set(SIDES) & settings.keys():
        return (settings,)
    encoder, decoder = sides_of(settings, "T5Gemma 2")
    if encoder.get(TEXT) is None:
        raise ValueError(f"{TEXT} is missing; the encoder's part of T5Gemma 2's config.json has it")
    if (kind := encoder.get("model_type", _ENCODER)) != _ENCODER:
        raise ValueError(f"model_type={str(kind)[:80]!r} of encoder is not supported; allowed: {_ENCODER}")
    if encoder.get(VISION) is None:
        log.warning("config.json has no %s; transformers then assumes a tower, our models have none", VISION)
    of_parts, text = inside(T5GEMMA2), setting(encoder, TEXT, {})
    dtypes = None, settings.get("dtype"), settings.get("torch_dtype")
    for where, ignored in (
        ("outside of encoder and decoder", outside_of(settings, T5GEMMA2)),
        (f"in encoder, but outside of {TEXT}", [key for key in encoder if key in of_parts or key not in _OF_ENCODER]),
        (f"in {TEXT}", [key for key in ("dtype", "torch_dtype") if text.get(key) not in dtypes]),
    ):
        if ignored:
            log.warning("config.json has %s %s, where it is ignored", ", ".join(sorted(ignored)), where)
    return completed((text, decoder), settings, T5GEMMA2)


def _join(settings: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    outside, part = divided(settings, T5GEMMA2)
    encoder = {
        "model_type": _ENCODER,
        TEXT: part(config, config.num_encoder_layers, "t5gemma2_text"),
        VISION: NO_VISION,
        "mm_tokens_per_image": 1,
        "eoi_token_index": -1,  # no token has a vector for the end of an image in place of its row of the table
    }
    return outside | {"encoder": encoder, "decoder": part(config, config.num_decoder_layers, "t5gemma2_decoder")}


def _read(settings: Mapping[str, Any]) -> dict[str, Any]:
    return GEMMA3.read({key: value for key, value in settings.items() if key != _OF_GEMMA3})


def _write(config: ModelConfig) -> dict[str, Any]:
    written = GEMMA3.write(dataclasses.replace(config, num_encoder_layers=0))
    return {key: value for key, value in written.items() if key != _OF_GEMMA3}


# The vision tower of an exported model
NO_VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 0,
    "num_attention_heads": 1, "num_channels": 1, "image_size": 1, "patch_size": 1, "vision_use_head": False,
}  # fmt: skip
_IMAGES = "model.encoder.multi_modal_projector"
_TOWER = "model.encoder.vision_tower"


def _zeros(*shape: int) -> Callable[[ModelConfig], np.ndarray]:
    """Returns the function that makes a tensor of zeros. A size of 0 stands for the model's width."""
    return lambda config: np.zeros([size or config.d_model for size in shape], np.float32)


T5GEMMA2 = dataclasses.replace(
    GEMMA3,
    model_type="t5gemma2",
    base=rotary_presets.t5gemma2(
        2304, 8, 26, 9216, num_kv_heads=4, vocab_size=262208, local_window=4096, max_positions=131072
    ),
    settings={
        **{field: key for field, key in GEMMA3.settings.items() if field != "tie_embeddings"},
        "dropout_rate": "dropout_rate",
    },
    choices={
        **{key: table for key, table in GEMMA3.choices.items() if key != "use_bidirectional_attention"},
        "is_encoder_decoder": {True: {}},
        "tie_word_embeddings": {True: {"tie_embeddings": True}},
    },
    aliases={"image_token_id": "image_token_index", "eoi_token_id": "eoi_token_index"},
    read=_read,
    write=_write,
    classes={"T5Gemma2ForConditionalGeneration": (), "T5Gemma2Model": ()},
    modules={
        **STACKS,
        **each("{s}/layers_{i}/self_attention", f"{LAYER}.self_attn.*_norm", query_norm="q", key_norm="k"),
    },
    tied={"model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight"},
    computed={
        "model.encoder.embed_tokens.eoi_embedding": _zeros(0),
        f"{_IMAGES}.mm_input_projection_weight": _zeros(1, 0),
        f"{_IMAGES}.mm_soft_emb_norm.weight": _zeros(1),
        f"{_TOWER}.embeddings.patch_embedding.weight": _zeros(1, 1, 1, 1),
        f"{_TOWER}.embeddings.patch_embedding.bias": _zeros(1),
        f"{_TOWER}.embeddings.position_embedding.weight": _zeros(1, 1),
        f"{_TOWER}.post_layernorm.weight": _zeros(1),
        f"{_TOWER}.post_layernorm.bias": _zeros(1),
    },
    ignored={
        **GEMMA3.ignored,
        r"model\.encoder\.(vision_tower|multi_modal_projector)\..*": "of images, which our models do not read",
        r"model\.(encoder|decoder)\.embed_tokens\.eoi_embedding": "of the token behind an image; texts lack it",
    },
    constants={**GEMMA3.constants, "is_encoder_decoder": True},
    stacks=_stacks,
    join=_join,
)


def image_tokens(settings: Mapping[str, Any]) -> dict[int, str]:
    """Returns {id: key of config.json} of the tokens for which transformers reads an image, or vectors of images."""
    encoder = settings.get("encoder")
    inner = encoder if isinstance(encoder, Mapping) else {}
    return {
        setting(inner, "eoi_token_index", 256000): "eoi_token_index",
        setting(settings, "image_token_index", 256001): "image_token_index",
    }
