"""Defines the family DeBERTa-v2, to which DeBERTa-v3 belongs: BERT's layers with disentangled attention."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_lite.hub.encoder_families import BERT_SETTINGS, CLASSIFIER_MODULES, CLASSIFIERS, POSITION_IDS
from t5x_lite.hub.family import ACTIVATIONS, Family, each, setting
from t5x_lite.models import presets
from t5x_lite.models.config import ModelConfig

_POOLER_ACTIVATIONS = {name: {"pooler_activation": fields["activation"]} for name, fields in ACTIVATIONS.items()}
# relative_attention -> key -> the value that our models have. share_att_key has no effect without relative_attention.
_PARTS = {
    True: {"position_biased_input": False, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    False: {"position_biased_input": True, "norm_rel_ebd": "none"},
}
_DEFAULTS = {"position_biased_input": True, "norm_rel_ebd": "none", "share_att_key": False}


def _read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our fields for positions: disentangled, or learned as in transformers' default.

    Raises ValueError if the keys describe other parts than our models have.
    """
    width = setting(settings, "hidden_size", 1)
    head_dim = width // setting(settings, "num_attention_heads", 1)
    for key, size in {"embedding_size": width, "pooler_hidden_size": width, "attention_head_size": head_dim}.items():
        if (value := setting(settings, key, size)) != size:
            raise ValueError(f"{key}={value} is not supported: hidden_size and num_attention_heads make it {size}")
    if kernel_size := setting(settings, "conv_kernel_size", 0):
        raise ValueError(f"conv_kernel_size={kernel_size} is not supported: our layers have no convolution; allowed: 0")
    is_relative = setting(settings, "relative_attention", False)
    for key, wanted in _PARTS[is_relative].items():
        if (value := setting(settings, key, _DEFAULTS[key])) != wanted:
            raise ValueError(f"{key}={value} is not supported with relative_attention={is_relative}; allowed: {wanted}")
    given = settings.get("pos_att_type") or []
    kinds = [kind.strip() for kind in given.lower().split("|")] if isinstance(given, str) else given
    allowed = ["c2p", "p2c"] if is_relative else []
    if not isinstance(kinds, list) or sorted(map(str, kinds)) != allowed:
        wanted = "|".join(allowed) or "none"
        what = f"pos_att_type={str(given)[:40]!r} is not supported with relative_attention={is_relative}"
        raise ValueError(f"{what}; allowed: {wanted}")
    return _distances(settings) if is_relative else {"positions": "learned"}


def _distances(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our fields for the buckets of distances. Raises ValueError if transformers could not make them."""
    limit, buckets = setting(settings, "max_relative_positions", -1), setting(settings, "position_buckets", -1)
    if limit < 1:
        limit = setting(settings, "max_position_embeddings", 512)
    if buckets < 1:  # each distance has its own vector
        buckets = limit
    elif not 2 <= buckets < limit:
        raise ValueError(
            f"position_buckets={buckets} is not supported: it must be at least 2 and below max_relative_positions="
            f"{limit} (-1: max_position_embeddings), or -1 for a bucket for each distance"
        )
    if limit < 2:
        raise ValueError(f"max_relative_positions={limit} is not supported: it must be at least 2")
    return {"relative_buckets": 2 * buckets, "relative_max_distance": limit}


def _write(config: ModelConfig) -> dict[str, Any]:
    is_relative, buckets = config.positions == "disentangled", config.relative_buckets // 2
    return (
        _DEFAULTS
        | _PARTS[is_relative]
        | {
            "relative_attention": is_relative,
            "pos_att_type": "p2c|c2p" if is_relative else None,
            "position_buckets": buckets if buckets < config.relative_max_distance else -1,
            "max_relative_positions": config.relative_max_distance,
            "embedding_size": config.d_model,
            "pooler_hidden_size": config.d_model,
            "attention_head_size": config.head_dim,
            "conv_kernel_size": 0,
        }
    )


_LAYER = "deberta.encoder.layer.{i}"
DEBERTA_V2 = Family(
    model_type="deberta-v2",
    base=dataclasses.replace(presets.PRESETS["deberta_v3_large"], d_ff=6144),  # transformers' default
    settings=BERT_SETTINGS | {"classifier_dropout_rate": "cls_dropout"},
    choices={
        "hidden_act": ACTIVATIONS,
        "pooler_hidden_act": _POOLER_ACTIVATIONS | {"tanh": {"pooler_activation": "tanh"}},
        "legacy": {True: {}},
    },
    read=_read,
    write=_write,
    classes={
        "DebertaV2ForMaskedLM": ("mlm",),
        "DebertaV2ForSequenceClassification": ("classification",),
        "DebertaV2ForTokenClassification": ("token_classification",),
        "DebertaV2ForQuestionAnswering": ("span",),
        "DebertaV2ForMultipleChoice": ("multiple_choice",),
        "DebertaV2Model": (),
    },
    heads={"mlm": "cls.predictions.bias", **CLASSIFIERS},
    modules={
        "token_embedding": "deberta.embeddings.word_embeddings",
        "type_embedding": "deberta.embeddings.token_type_embeddings",
        "encoder/position_embedding": "deberta.embeddings.position_embeddings",
        "encoder/embedding_norm": "deberta.embeddings.LayerNorm",
        "encoder/distances": "deberta.encoder.rel_embeddings",
        "encoder/distances/norm": "deberta.encoder.LayerNorm",
        **each(
            "encoder/layers_{i}/self_attention",
            f"{_LAYER}.attention.self.*_proj",
            query="query",
            key="key",
            value="value",
        ),
        "encoder/layers_{i}/self_attention/out": f"{_LAYER}.attention.output.dense",
        "encoder/layers_{i}/self_attention_norm": f"{_LAYER}.attention.output.LayerNorm",
        "encoder/layers_{i}/mlp/wi": f"{_LAYER}.intermediate.dense",
        "encoder/layers_{i}/mlp/wo": f"{_LAYER}.output.dense",
        "encoder/layers_{i}/mlp_norm": f"{_LAYER}.output.LayerNorm",
        "pooler": "pooler.dense",
        "mlm": "cls.predictions",
        "mlm/transform": "cls.predictions.transform.dense",
        "mlm/norm": "cls.predictions.transform.LayerNorm",
        **CLASSIFIER_MODULES,
    },
    prefix="deberta.",
    tied={
        "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored={
        **POSITION_IDS,
        r"deberta\.embeddings\.position_embeddings\.weight": "not used with position_biased_input=false",
        r"lm_predictions\..*": "transformers reads this head with legacy=false, which is not supported",
        r"mask_predictions\..*": "no class of transformers has this head",
    },
    constants={"pad_token_id": 0},
)
