"""Says what becomes of the keys of config.json that a family's tables lack: each is skipped, refused or reported.

transformers skips keys that it does not know, and many files have keys of their authors. So a key that nothing lists is
skipped too, with a warning.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.errors import CheckpointError
from t5x_lite.hub import generation_keys
from t5x_lite.hub.family import Family
from t5x_lite.lookup import suggest

log = logging.getLogger(__name__)

# Keys that other modules read: parameters.py (heads and tied tensors), model.py (labels), generation.py.
READ_ELSEWHERE = (
    "model_type", "architectures", "problem_type", "tie_word_embeddings", "id2label", "num_labels",
    "task_specific_params", "prefix", *generation_keys.HONOURED, *generation_keys.UNSUPPORTED,
)  # fmt: skip

_ORIGIN = "says where the files come from"
_OUTPUT = "chooses which results a class of transformers returns"
_SPEED = "saves memory or time in transformers, with the same results"
_FIXED = "the same for all models of the family, or follows from other keys"
_TRAINING = "dropout in training, at a place where our models have none"
_OTHER_CLASS = "belongs to classes of transformers that import does not support"
_OLD = "left over from older code; transformers does not read it"

# Key -> why it has no effect in a family whose tables lack the key.
NO_EFFECT: Mapping[str, str] = {
    **generation_keys.NO_EFFECT,
    **dict.fromkeys(
        ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "tokenizer_class", "finetuning_task",
         "model_max_length"), _ORIGIN,
    ),
    "_num_labels": "the shape of the classifier's tensor says it",
    "label2id": "id2label has the same names",
    **dict.fromkeys(("dtype", "torch_dtype", "use_bfloat16"), "parameters are float32; model.dtype is of computation"),
    **dict.fromkeys(("return_dict", "use_return_dict", "output_past", "tie_last_hidden_states"), _OUTPUT),
    **dict.fromkeys(
        ("chunk_size_feed_forward", "gradient_checkpointing", "torchscript", "attn_implementation",
         "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset", "pretraining_tp",
         "deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "sparse_prediction",
         "sparse_pred_ignore_index",
         "experts_implementation", "_experts_implementation_internal", "reorder_and_upcast_attn", "xla_device"),
        _SPEED,
    ),
    **dict.fromkeys(
        ("sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id"), "the tokenizer's files have these ids"
    ),
    **dict.fromkeys(
        ("is_encoder_decoder", "is_decoder", "add_cross_attention", "cross_attention_hidden_size", "rotary"), _FIXED
    ),
    **dict.fromkeys(("dense_act_fn", "is_gated_act"), "T5's import checks that it agrees with feed_forward_proj"),
    "attention_layers": "GPT-Neo's import checks that it agrees with attention_types",
    **dict.fromkeys(
        ("qa_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "classif_dropout",
         "pooler_dropout"), _TRAINING,
    ),
    **dict.fromkeys(
        ("initializer_factor", "initializer_cutoff_factor"), "scales initial parameters; the files have trained ones"
    ),
    **dict.fromkeys(
        ("classifier_dropout", "classifier_dropout_rate", "summary_type", "summary_use_proj", "summary_activation",
         "summary_proj_to_labels", "summary_first_dropout", "summary_last_dropout", "summary_hidden_size"),
        _OTHER_CLASS,
    ),
    **dict.fromkeys(("num_decoder_layers", "decoder_start_token_id"), "of a decoder, which an encoder does not have"),
    **dict.fromkeys(
        ("image_token_index", "eoi_token_index", "boi_token_index", "mm_tokens_per_image", "vision_config"),
        "of images, which our models do not read",
    ),
    "auto_map": "names code in the directory; nothing runs it",
    **dict.fromkeys(
        ("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
         "pooler_size_per_head", "pooler_type", "n_ctx", "n_positions", "predict_special_tokens", "n_special",
         "net_structure_type", "gap_size", "num_memory_blocks", "down_scale_factor", "layers_to_keep", "tie_weights_",
         "add_bias_logits", "extra_pos_embeddings", "save_step", "scale_attn_weights", "position_embedding_type",
         "max_sequence_length"), _OLD,
    ),
}  # fmt: skip

# Key -> (values that have no effect, why another value is refused).
REFUSED: Mapping[str, tuple[tuple, str]] = {
    "quantization_config": (
        (None,), "quantized weights cannot be imported; dequantize the model with transformers and save it again",
    ),
    "compression_config": ((None,), "compressed weights cannot be imported; save the model uncompressed"),
    "pruned_heads": ((None, {}, []), "in our models all layers have the same number of heads"),
    "per_layer_config": ((None, {}), "in our models all layers have the same settings"),
}  # fmt: skip


# Logical axis -> the fields of ModelConfig that decide its size.
FIELDS_OF_AXIS = {
    "vocab": ("vocab_size",), "embed": ("d_model", "embedding_dim"), "mlp": ("d_ff",), "types": ("type_vocab_size",),
    "heads": ("num_heads", "num_kv_heads"), "kv": ("head_dim", "d_model", "num_heads"),
    "norm": ("d_model", "embedding_dim"), "positions": ("max_positions",), "relative_buckets": ("relative_buckets",),
    "classes": ("num_classes",),
}  # fmt: skip
# The fields that decide which parameters a model has.
FIELDS_OF_PARTS = (
    "num_encoder_layers", "num_decoder_layers", "norm", "attention_bias", "mlp_bias", "gated_mlp", "type_vocab_size",
    "embedding_dim", "num_classes",
)  # fmt: skip
# Tensors of heads that have one output for each label of config.json.
SIZED_BY_LABELS = (
    "classifier.weight", "classifier.out_proj.weight", "classification_head.out_proj.weight",
    "qa_outputs.weight", "sop_classifier.classifier.weight",
)  # fmt: skip
READ_BY_NAME = {
    "max_positions": ("max_position_embeddings",), "num_kv_heads": ("num_key_value_heads",),
    "num_classes": ("architectures",), "embedding_dim": ("embedding_size",),
    "relative_buckets": ("position_buckets", "max_relative_positions"),
}  # fmt: skip


def checked(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Returns the settings of a config.json with each alias renamed to the key that the family's tables have.

    Warns of keys that nothing lists. Raises ValueError, which names the key, if a key is refused, or if an alias and
    its key have different values.
    """
    out = dict(settings)
    for key, (neutral, reason) in REFUSED.items():
        if out.pop(key, None) not in neutral:
            raise ValueError(f"{key} is not supported: {reason}")
    for alias, key in family.aliases.items():
        value = out.pop(alias, None)
        if value is not None and out.setdefault(key, value) != value:
            raise ValueError(f"{alias}={value!r} and {key}={out[key]!r} differ, but are names of the same setting")
    strange = [key for key in out if key not in family.keys and key not in NO_EFFECT and key not in READ_ELSEWHERE]
    if strange:
        near = {key: suggest(key, family.keys - out.keys(), 1) for key in strange[:8]}
        names = [f"{key[:40]} (did you mean {keys[0]}?)" if keys else key[:40] for key, keys in near.items()]
        more = f" and {len(strange) - 8} more" if len(strange) > 8 else ""
        log.warning(
            "config.json has keys that %s does not have. They are ignored: %s",
            family.model_type,
            ", ".join(names) + more,
        )
    return out


def checked_class(settings: Mapping[str, Any], classes: Sequence[str], where: Path) -> str:
    """Returns the first of the `classes` that config.json names, or "" if it names no class of transformers.

    Warns if the class is from elsewhere, such as a user's own. Then the tensors alone show which heads the model has.

    classes: those of this model_type that we support.

    Raises CheckpointError if config.json names only other classes of transformers.
    """
    given = settings.get("architectures")
    names = [str(name) for name in given] if isinstance(given, list) else []
    if not names or any(name in classes for name in names):
        return next((name for name in names if name in classes), "")
    first_part = re.split("For|LMHead|MTModel", classes[0])[0]  # such as Bert
    if any(name.startswith(first_part) for name in names):
        raise CheckpointError(
            f"{where}: architectures={', '.join(names)[:80]} is not supported; allowed: {', '.join(classes)}. "
            "If the files have the tensors of one of these classes, write its name there"
        )
    text = ", ".join(names)[:80]
    log.warning("%s: architectures=%s is unknown; the tensors' names decide which heads the model has", where, text)
    return ""


def check_classes(settings: Mapping[str, Any], outputs: int, where: Path) -> None:
    """Raises CheckpointError if config.json has a different number of classes than its classifier has outputs.

    Warns if config.json has no names for other than two classes; transformers then assumes two.
    """
    names = settings.get("id2label")
    given = {"id2label": len(names) if isinstance(names, dict) else None, "num_labels": settings.get("num_labels")}
    for key, count in given.items():
        if count not in (None, outputs):
            raise CheckpointError(
                f"{where}: {key} of config.json is for {str(count)[:40]} classes; the classifier has {outputs} outputs "
                "(architectures says what it classifies)"
            )
    if outputs != 2 and set(given.values()) == {None}:
        log.warning("%s: id2label is missing; the %d classes have no names", where, outputs)


def fields_of(axes: Iterable[str | None]) -> list[str]:
    """Returns the fields of ModelConfig that decide the sizes of these logical axes."""
    return [field for axis in axes for field in FIELDS_OF_AXIS.get(axis or "", ())]


def that_give(fields: Iterable[str], settings: Mapping[str, Any], family: Family) -> str:
    """Returns the keys of config.json that decide these fields, with their values, such as `n_embd=64, n_head=3`."""
    keys: list[str] = []
    known = {*family.keys, "architectures"}
    for field in fields:
        keys += [key for key in (family.settings.get(field), *READ_BY_NAME.get(field, ())) if key in known]
        keys += [key for key, table in family.choices.items() if any(field in values for values in table.values())]
    values = {key: settings.get(key) for key in keys}  # each key once
    return ", ".join(f"{k} is missing" if v is None else f"{k}={str(v)[:40]}" for k, v in values.items())
