"""Finds the config key that a user means by an unknown name: ours with a typing error, or another framework's."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.lookup import suggest

# The names that other frameworks give to our keys, without section.
NAMES = {
    **dict.fromkeys(("lr", "peak_lr", "base_lr"), "optimizer.learning_rate"),
    **dict.fromkeys(("batch_size", "train_batch_size", "per_device_train_batch_size"), "data.batch_rows"),
    **dict.fromkeys(("max_steps", "num_steps"), "train.total_steps"),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "max_epochs"), "train.epochs"),
    **dict.fromkeys(("warmup", "warmup_ratio", "num_warmup_steps"), "schedule.warmup_steps"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), "schedule.name"),
    **dict.fromkeys(("eval_steps", "eval_every", "eval_interval"), "eval.every_steps"),
    **dict.fromkeys(("save_steps", "save_every", "save_interval"), "checkpoint.every_steps"),
    **dict.fromkeys(("save_total_limit", "max_to_keep"), "checkpoint.keep_last"),
    **dict.fromkeys(("logging_steps", "log_every", "log_interval"), "train.log_every_steps"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches"), "train.microbatches"),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "gradient_clip_val"), "optimizer.clip_norm"),
    **dict.fromkeys(("beta1", "adam_beta1"), "optimizer.b1"),
    **dict.fromkeys(("beta2", "adam_beta2"), "optimizer.b2"),
    **dict.fromkeys(("eps", "adam_epsilon"), "optimizer.epsilon"),
    **dict.fromkeys(("max_length", "max_seq_length", "seq_length", "seq_len", "block_size"), "data.length"),
    **dict.fromkeys(("max_target_length", "target_length"), "data.targets_length"),
    **dict.fromkeys(("train_file", "data_files"), "data.files"),
    **dict.fromkeys(("dataset", "dataset_name", "task"), "data.mixture"),
    **dict.fromkeys(("tokenizer", "tokenizer_name"), "data.vocabulary"),
    **dict.fromkeys(("model_name", "model_name_or_path"), "model.preset"),
    **dict.fromkeys(("fp16", "bf16", "precision", "mixed_precision"), "model.dtype"),
    **dict.fromkeys(("dropout", "hidden_dropout_prob"), "model.dropout_rate"),
    **dict.fromkeys(("gradient_checkpointing", "checkpointing"), "model.remat"),
    **dict.fromkeys(("num_beams", "beam_size"), "eval.beams"),
    **dict.fromkeys(("max_new_tokens", "generation_max_length"), "eval.max_decode_tokens"),
    **dict.fromkeys(("report_to", "use_wandb"), "wandb.mode"),
}


def key_for(name: str, keys: Mapping[str, Any]) -> str:
    """Returns the only key with this last part, or the key that a different framework calls so; "" if there is none.

    keys: all config keys, by full name.

    >>> keys = {"train.total_steps": 1, "optimizer.learning_rate": 2}
    >>> key_for("lr", keys), key_for("training.total_steps", keys), key_for("colour", keys)
    ('optimizer.learning_rate', 'train.total_steps', '')
    """
    leaf = name.rpartition(".")[2].lower()
    same = [key for key in keys if key.rpartition(".")[2] == leaf]
    return NAMES.get(leaf) or (same[0] if len(same) == 1 else "")


def message(name: str, keys: Mapping[str, Any]) -> str:
    """Returns the message for an unknown key. It suggests the key that `key_for` finds, or else similar ones."""
    if key := key_for(name, keys):
        return f"unknown key config.{name}; use config.{key}: {keys[key].meaning}"
    last = {key.rpartition(".")[2]: key for key in reversed(list(keys))}
    near = suggest(name, keys) or [last[leaf] for leaf in suggest(name.rpartition(".")[2], last)]
    hint = (
        f"; did you mean {' or '.join('config.' + key for key in near)}?"
        if near
        else "; t5x_lite/config.py lists all keys"
    )
    return f"unknown key config.{name}{hint}"
