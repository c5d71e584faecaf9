"""Defines every config key of a run. Before any device is touched, `validate` rejects configs that cannot work.

An experiment is a Python file whose `get_config()` starts from `base()` and changes keys. Keys are locked and typed: a
misspelt key or a value of the wrong type raises an error. The error for a misspelt key suggests the right one.
"""

import dataclasses
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from t5x_lite import own_code, side_files
from t5x_lite.cluster.axes import AxisRules, axis_rules
from t5x_lite.errors import ConfigError
from t5x_lite.keys import (
    AT_LEAST_ONE,
    FRACTION,
    FREE,
    INNER_SHARE,
    LENGTH,
    NOT_NEGATIVE,
    POSITIVE,
    REFUSE,
    SHARE,
    WARN,
    Key,
    Range,
)
from t5x_lite.models.config import MODEL_KEYS, upgraded
from t5x_lite.recipe_keys import DISTILLATION, HYPER_PARAMETERS, OPTIMIZERS, SCHEDULES, SHAPE_PARAMETERS

CODE = "code"  # entry of config.json that is not a config key
Config = Any  # an ml_collections.ConfigDict, which checks keys and types at run time

LOSSES = ("cross_entropy",)
_DENOISING = ("iid_denoising", "mass", "drop_tokens", "deshuffle", "sequential", "ul2")
OBJECTIVES = {  # explained in data/denoise.py
    "text_to_text": ("span_corruption", "prefix_lm", "full_lm", *_DENOISING),
    "decoder_only": ("full_lm", "prefix_lm", "span_corruption", *_DENOISING),
    "encoder_only": ("mlm", "mlm_sentence_order", "rtd"),  # mlm with the head nsp (next sentence, order) or rtd
}
ANY_OBJECTIVE = ("", *dict.fromkeys(name for names in OBJECTIVES.values() for name in names))
# Keys below data. that say how data.files are read and used.
READING = ("header", "delimiter", "text_record", "line_pattern", "split")
OF_FILES = ("inputs", "targets", "text", "labels", *READING, "metrics")
TEXT_RECORDS = ("", "line", "paragraph", "file")  # explained in data/guessed_format.py
ON_LONG = ("truncate", "skip", "error")  # explained in data/convert.py
NEED_LABELS = ("constrained", "rank")  # answers that work only for tasks with labels
ANSWERS = ("greedy", "beam", "sample", *NEED_LABELS)  # explained in evaluation/predict.py
WANDB_MODES = ("disabled", "offline", "online")
ON_NONFINITE = ("stop", "skip", "rollback")
ON_ERROR = ("raise", "record")
SEEDS = Range(at_least=0, below=2**32)
PROBABILITY = Range(above=0, at_most=1)


# Every key of a run: its default, its meaning, what happens if it changed when a run resumes, and its allowed values.
KEYS: dict[str, Key] = {
    "name": Key("", "name of the run in reports and wandb; '': the workdir's name", FREE),
    "seed": Key(0, "seed of everything random: initialization, dropout, order of the data", REFUSE, SEEDS),
    "model.preset": Key("t5_1_1_small", "a preset of models/presets.py or an imported directory; model.* override it"),
    **{f"model.{name}": key for name, key in MODEL_KEYS.items()},
    # --- data
    "data.mixture": Key("", "the task or mixture to train on"),
    "data.dir": Key("", "directory with published data sets (GLUE, …) as files; '': TFDS provides them"),
    "data.files": Key("", "local files in place of the mixture: a.csv, train=a.jsonl,validation=b.jsonl, a directory"),
    "data.inputs": Key("", "data.files: template of the inputs over the files' fields: '{title}: {body}'"),
    "data.targets": Key("", "data.files: template of the targets: '{label}'"),
    "data.text": Key("", "data.files: template of a corpus ('{text}'), in place of inputs and targets"),
    "data.labels": Key(None, "data.files: the classes; unset: detected from the targets", kind=tuple),
    "data.header": Key(None, "data.files: whether tables begin with column names; unset: detected", kind=bool),
    "data.delimiter": Key("", "data.files: character between the cells of tables; '': detected"),
    "data.text_record": Key("", "data.files: what a record of a text file is; '': detected", REFUSE, TEXT_RECORDS),
    "data.line_pattern": Key("", "data.files: regex that splits a text line into named groups: '(?P<a>.*);(?P<b>.*)'"),
    "data.split": Key("", "data.files: 'validation=1000,test=5%' or a field that names the split; '': by hash"),
    "data.metrics": Key((), "data.files: metrics, such as accuracy,matthews; (): those usual for the targets", FREE),
    "data.max_bad_fraction": Key(0.0, "share of a task's records that may be bad; skips and counts them", FREE, SHARE),
    "data.vocabulary": Key("", "bytes, a .model, tokenizer.json, vocab.txt or directory; '': the tasks' or model's"),
    "data.batch_rows": Key(32, "rows of the global batch", REFUSE, AT_LEAST_ONE),
    "data.length": Key(512, "tokens per row; text-to-text: per row of the encoder", REFUSE, AT_LEAST_ONE),
    "data.targets_length": Key(114, "tokens per row of the decoder; text-to-text only", REFUSE, AT_LEAST_ONE),
    "data.on_long": Key("truncate", "action on examples (not corpora) that exceed a row; counted", REFUSE, ON_LONG),
    "data.pack": Key(True, "puts several examples in a row"),
    "data.join_documents": Key(True, "a segment may continue with the next document of a corpus; not in encoders"),
    "data.documents_per_step": Key(0, "documents in each step; 0: as many as fill its rows", REFUSE, NOT_NEGATIVE),
    "data.max_examples_per_row": Key(16, "most examples packed in a row; encoder-only", REFUSE, AT_LEAST_ONE),
    "data.window_stride": Key(128, "tokens from one window's start to the next's; encoder-only", REFUSE, AT_LEAST_ONE),
    "data.objective": Key("", "objective for corpora; '': the architecture's first one above", REFUSE, ANY_OBJECTIVE),
    "data.noise_density": Key(0.15, "share of a corpus to hide; ul2 has its own shares", REFUSE, INNER_SHARE),
    "data.mean_noise_span_length": Key(3.0, "span_corruption: mean tokens in a hidden span", REFUSE, AT_LEAST_ONE),
    "data.random_roll": Key(False, "span_corruption: rotates each mask by a random distance; texts may end unhidden"),
    "data.final_sentinel": Key(False, "span_corruption: ends the targets with one more sentinel, as in T5's paper"),
    "data.mlm_rate": Key(0.15, "share of tokens selected for masked language modelling", REFUSE, INNER_SHARE),
    "data.mlm_whole_words": Key(False, "masked language modelling: selects all tokens of a word or none"),
    "data.mlm_longest_ngram": Key(1, "selects up to this many words together; n has weight 1/n", REFUSE, AT_LEAST_ONE),
    "data.cache_dir": Key("", "output of `t5x-lite cache`; '': tokenizes examples as they are read", FREE),
    "data.prefetch_batches": Key(2, "batches that a background thread prepares ahead; 0: none", FREE, NOT_NEGATIVE),
    # --- optimization
    "optimizer.name": Key("adafactor", "an optimizer or your own function", REFUSE, OPTIMIZERS, takes=("schedule",)),
    "optimizer.learning_rate": Key(0.01, "peak; adafactor: relative to each parameter's scale", WARN, NOT_NEGATIVE),
    **{f"optimizer.{name}": key for name, key in HYPER_PARAMETERS.items()},
    "optimizer.weight_decay": Key(0.0, "times the learning rate; biases and norms do not decay", WARN, NOT_NEGATIVE),
    "optimizer.clip_norm": Key(1.0, "largest norm of the global gradient; 0: no clipping", WARN, NOT_NEGATIVE),
    "optimizer.groups": Key((), "'REGEX rate=0.1', 'REGEX weight_decay=0', 'REGEX frozen': by parameters' paths", WARN),
    "optimizer.layer_decay": Key(
        1.0, "factor of the learning rate from layer to layer below; 1: none", WARN, PROBABILITY
    ),
    "optimizer.trained": Key("", "regex over the paths of trainable parameters; '': all, or only added ones (LoRA, …)"),
    "optimizer.unfreeze_every_steps": Key(0, "steps until the layer below trains, too; 0: off", REFUSE, NOT_NEGATIVE),
    "schedule.name": Key("rsqrt", "shape of the learning rate, 1 at its peak", WARN, SCHEDULES, takes=("updates",)),
    "schedule.warmup_steps": Key(1000, "linear from 0; rsqrt: a plateau; also '5%', '2 epochs'", WARN, LENGTH),
    "schedule.final_fraction": Key(0.0, "of decays to the run's end: share of the peak there", WARN, FRACTION),
    **{f"schedule.{name}": key for name, key in SHAPE_PARAMETERS.items()},
    "average.decay": Key(0.0, "decay per step of a moving average of the weights; 0: no average", WARN, SHARE),
    "average.every_steps": Key(1, "steps from one update of the average to the next", WARN, AT_LEAST_ONE),
    "loss.name": Key("cross_entropy", "cross_entropy or your own", REFUSE, LOSSES, takes=("outputs", "batch")),
    "loss.z_loss": Key(1e-4, "coefficient of log² Z, which keeps logits from drifting; 0: off", WARN, NOT_NEGATIVE),
    "loss.chunk_logits": Key(2**27, "logits over the vocabulary per device at a time; 0: all", WARN, NOT_NEGATIVE),
    "loss.label_smoothing": Key(0.0, "probability spread over the other classes", WARN, SHARE),
    "loss.task_weights": Key((), "TASK=WEIGHT: as if a task's examples were there WEIGHT times", WARN),
    "loss.class_weights": Key((), "LABEL=WEIGHT, encoder-only: as if a class's examples were there so often", WARN),
    "loss.embedding_sizes": Key((), "contrastive: also trains the first N dimensions alone (Matryoshka): 384,96", WARN),
    "loss.symmetric": Key(False, "contrastive: also finds the query of each match", WARN),
    "loss.focal_gamma": Key(0.0, "classes, encoder-only: exponent of the focal loss; 0: off", WARN, NOT_NEGATIVE),
    "loss.rtd_weight": Key(50.0, "data.objective=rtd: weight of detection beside the generator's", WARN, NOT_NEGATIVE),
    **{f"distill.{name}": key for name, key in DISTILLATION.items()},
    # --- the run
    "train.total_steps": Key(1000, "updates to train for", FREE, AT_LEAST_ONE),
    "train.epochs": Key(0.0, "passes through the tasks' examples, in place of total_steps; 0: off", FREE, NOT_NEGATIVE),
    "train.max_hours": Key(0.0, "hours after which the run ends, with all restarts; 0: no limit", FREE, NOT_NEGATIVE),
    "train.patience": Key(
        0, "evaluations without a better checkpoint.keep_best to end after; 0: off", FREE, NOT_NEGATIVE
    ),
    "train.microbatches": Key(1, "gradient accumulation: parts of a batch", WARN, AT_LEAST_ONE),
    "train.log_every_steps": Key(10, "steps between log lines", FREE, AT_LEAST_ONE),
    "train.log_layer_norms": Key(False, "logs the norm of the gradient by layer, too", FREE),
    "train.on_nonfinite": Key("stop", "if loss or gradient is not finite: stop, skip or roll back", WARN, ON_NONFINITE),
    "train.spike_sigmas": Key(0.0, "sigmas above recent losses that skip an update; 0: off", REFUSE, NOT_NEGATIVE),
    "train.max_nonfinite": Key(10, "skipped updates in a row, or rollbacks, before the run stops", FREE, AT_LEAST_ONE),
    "train.hang_s": Key(1800.0, "time without a step or evaluation batch until exit; 0: never", FREE, NOT_NEGATIVE),
    "train.grace_s": Key(60.0, "time from Ctrl-C or SIGTERM until the process exits, saved or not", FREE, NOT_NEGATIVE),
    "eval.tasks": Key((), "tasks to evaluate; (): every task of the mixture that the architecture can predict", FREE),
    "eval.split": Key("validation", "split to evaluate on", FREE),
    "eval.every_steps": Key(1000, "interval in steps; 0: only before the first and after the last", FREE, NOT_NEGATIVE),
    "eval.untrained": Key(True, "evaluates before the first step, to show what training adds", FREE),
    "eval.batch_rows": Key(32, "rows of an evaluation batch", FREE, AT_LEAST_ONE),
    "eval.max_examples": Key(0, "examples per task; 0: all", FREE, NOT_NEGATIVE),
    "eval.stride": Key(0, "decoder-only: tokens from row to row in a second perplexity; 0: none", FREE, NOT_NEGATIVE),
    "eval.max_decode_tokens": Key(64, "most tokens to generate", FREE, AT_LEAST_ONE),
    "eval.max_answer_tokens": Key(30, "most tokens in a span that an encoder answers with", FREE, AT_LEAST_ONE),
    "eval.min_decode_tokens": Key(0, "fewest tokens to generate before the end token", FREE, NOT_NEGATIVE),
    "eval.answers": Key(("greedy",), "ways to answer; the first gives the scores", FREE, ANSWERS),
    "eval.beams": Key(4, "beam: number of beams", FREE, AT_LEAST_ONE),
    "eval.length_penalty": Key(0.6, "beam: T5's alpha; 0: none", FREE, NOT_NEGATIVE),
    "eval.temperature": Key(1.0, "sample: divides the logits", FREE, NOT_NEGATIVE),
    "eval.top_k": Key(0, "sample: from the k most probable tokens; 0: from all", FREE, NOT_NEGATIVE),
    "eval.top_p": Key(1.0, "sample: from the fewest tokens with this total probability", FREE, PROBABILITY),
    "eval.repetition_penalty": Key(1.0, "above 1: makes tokens written before less likely", FREE, POSITIVE),
    "eval.no_repeat_ngram_size": Key(0, "n-grams of this size are not repeated; 0: they may be", FREE, NOT_NEGATIVE),
    "eval.on_error": Key("raise", "if a metric or postprocessor fails: raise, or record and go on", FREE, ON_ERROR),
    "eval.predictions_shown": Key(3, "predictions to show per task, on the console and in reports", FREE, NOT_NEGATIVE),
    "checkpoint.every_steps": Key(1000, "interval in steps; also saves at the end and on a stop", FREE, AT_LEAST_ONE),
    "checkpoint.keep_last": Key(3, "newest checkpoints to keep", FREE, AT_LEAST_ONE),
    "checkpoint.mirror": Key("", "gs://bucket/run: copy of every checkpoint; an empty workdir resumes from it", FREE),
    "checkpoint.keep_best": Key("", "TASK/METRIC: also keeps the checkpoint that is best by this metric", FREE),
    "init.checkpoint": Key("", "workdir or DIR/checkpoints/STEP (+average) whose parameters the run starts from", WARN),
    "init.adapt": Key(False, "init.checkpoint may be of another architecture or depth (adapted_params.py)", WARN),
    "mesh": Key("data=-1", "sizes of the mesh axes: data=2,fsdp=2,tensor=2; -1: all remaining devices", WARN),
    **{
        f"rules.{field.name}": Key(field.default, f"mesh axes that the logical axis {field.name} is sharded over", WARN)
        for field in dataclasses.fields(AxisRules)
    },
    "loggers": Key((), "experiment loggers of your own", WARN, (), takes=("workdir", "run_name", "config")),
    "profile.start_step": Key(0, "starts an xprof trace this many steps into the process; 0: none", FREE, NOT_NEGATIVE),
    "profile.steps": Key(5, "steps to trace", FREE, AT_LEAST_ONE),
    "wandb.mode": Key("disabled", "online records offline where there is no network", FREE, WANDB_MODES),
    "wandb.project": Key("t5x_lite", "project in wandb", FREE),
    "wandb.entity": Key("", "user or team in wandb", FREE),
}


def base() -> Config:
    """Returns a config with all keys at their defaults. A key may stay None if its meaning mentions "unset"."""
    cfg: Config = ConfigDict()
    for name, key in KEYS.items():
        section, _, leaf = name.rpartition(".")
        if section and section not in cfg:
            cfg[section] = ConfigDict()
        holder: Any = cfg[section] if section else cfg
        if key.default is None:
            holder[leaf] = placeholder(key.kind)
        else:  # the kind is `object` where a function or class may replace a name
            holder[leaf] = FieldReference(key.default, field_type=key.kind)
    return cfg.lock()


def validate(cfg: Config) -> None:
    """Raises ConfigError for values and combinations that cannot work with any data or devices."""
    for name, value in flat(cfg).items():
        KEYS[name].check(name, value)
    if not cfg.eval.answers:
        raise ConfigError(f"eval.answers is empty; set one or more of {', '.join(ANSWERS)}")
    for answer, name, least in (("beam", "eval.beams", 2), ("sample", "eval.temperature", 1e-6)):
        if answer in cfg.eval.answers and cfg[name] < least:
            raise ConfigError(f"{name}={cfg[name]}: must be at least {least} for the answer {answer!r}")
    if cfg.eval.min_decode_tokens >= cfg.eval.max_decode_tokens:
        raise ConfigError(
            f"eval.min_decode_tokens={cfg.eval.min_decode_tokens}: must be below "
            f"eval.max_decode_tokens={cfg.eval.max_decode_tokens}"
        )
    steps, warmup_steps = cfg.train.total_steps, cfg.schedule.warmup_steps
    is_known = isinstance(warmup_steps, int) and not cfg.train.epochs  # else: lengths.in_steps validates again
    if (
        is_known
        and cfg.schedule.name in ("linear", "cosine", "polynomial", "one_cycle", "restarts")
        and warmup_steps >= steps
    ):
        limit = f"must be below train.total_steps={steps} (for example {steps // 10}), or the decay never begins"
        raise ConfigError(f"schedule.warmup_steps={warmup_steps}: {limit}")
    if cfg.optimizer.name == "schedule_free" and (cfg.schedule.name != "constant" or cfg.average.decay):
        raise ConfigError(
            "optimizer.name=schedule_free has an average of its own, in place of a decay; set schedule.name=constant "
            "(schedule.warmup_steps may be above 0) and average.decay=0"
        )
    if cfg.train.patience and not (cfg.checkpoint.keep_best and cfg.eval.every_steps):
        raise ConfigError(
            f"train.patience={cfg.train.patience} needs a metric; set checkpoint.keep_best=TASK/METRIC, and "
            "eval.every_steps above 0"
        )
    if cfg.optimizer.name == "sophia" and cfg.model.attention == "pallas":
        raise ConfigError(
            "model.attention=pallas: sophia differentiates twice, which Pallas cannot; use auto, reference or blockwise"
        )
    if cfg.optimizer.name == "schedule_free" and (steps := cfg.optimizer.unfreeze_every_steps):
        raise ConfigError(
            f"optimizer.unfreeze_every_steps={steps}: must be 0 with schedule_free, whose average of a frozen layer "
            "would decay"
        )
    if cfg.data.batch_rows % cfg.train.microbatches:
        divisors = [m for m in range(1, cfg.data.batch_rows + 1) if cfg.data.batch_rows % m == 0]
        near = sorted(divisors, key=lambda m: abs(m - cfg.train.microbatches))[:2]
        raise ConfigError(
            f"data.batch_rows={cfg.data.batch_rows} is not divisible by train.microbatches={cfg.train.microbatches}; "
            f"use {' or '.join(map(str, sorted(near)))} microbatches"
        )
    axis_rules(**cfg.rules)  # raises ConfigError for an unknown mesh axis
    if not cfg.data.mixture and not cfg.data.files:
        raise ConfigError(
            "data.mixture is empty; set it to a task or mixture (`t5x-lite tasks` lists them), or set data.files"
        )
    for name in (f"data.{name}" for name in OF_FILES):
        if cfg[name] not in (None, "", ()) and not cfg.data.files:
            raise ConfigError(f"{name}={cfg[name]!r} needs data.files, which is empty; set data.files, too")


def load(spec: str) -> Config:
    """Returns what get_config() of a config file returns. spec: `FILE.py`, or `FILE.py:ARGUMENT` to pass an argument.

    First registers the built-in tasks, then the tasks that the file defines. The file is the user's own code and always
    local. Raises ConfigError if the file does not exist, fails, or does not return a config.
    """
    from t5x_lite import config_file_errors as errors  # only for messages
    from t5x_lite.tasks import builtin

    builtin.register()
    path, _, argument = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no config file {path!r}; {errors.config_files(file)}")
    loader_spec = importlib.util.spec_from_file_location(f"{own_code.CONFIG_MODULE}{file.stem}", file)
    if loader_spec is None or loader_spec.loader is None:
        raise ConfigError(f"config file {path!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(loader_spec)
    sys.modules[loader_spec.name] = module  # inspect.getsource looks up classes here
    try:
        loader_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(
                f"config file {path!r} has no get_config(); it must return a config made from config.base()"
            )
        cfg = module.get_config(argument) if argument else module.get_config()
        if not isinstance(cfg, ConfigDict):
            raise ConfigError(f"get_config() of {path!r} returned {cfg!r}; it must return a config from config.base()")
        return cfg
    except ConfigError:
        raise
    except (AttributeError, KeyError) as error:  # ml_collections raises these for an unknown key
        match = re.search(r'"([\w.]+)" does not exist', str(error))
        if match is None:
            raise errors.failed(path, error) from error
        name, number = errors.key_in_source(match[1], file, error)
        raise ConfigError(f"config file {path!r}, line {number}: " + unknown_key(name)) from None
    except Exception as error:
        raise errors.failed(path, error) from error


def override(cfg: Config, key: str, text: str) -> None:
    """Sets `key` ("train.total_steps") to `text`, which comes from the command line and is parsed as the key's type.

    Raises ConfigError if the key is unknown (the error suggests similar keys), or if `text` is not of the key's type.
    """
    if key not in KEYS:
        raise ConfigError(unknown_key(key))
    section, _, leaf = key.rpartition(".")
    holder: Any = cfg[section] if section else cfg
    wanted = int if KEYS[key].allowed is LENGTH and text.isdecimal() else holder.get_type(leaf)
    if text == "None" and holder.get_oneway_ref(leaf).get() is None:
        return
    try:
        holder[leaf] = _PARSERS[wanted](text)
    except ValueError:
        example = {int: "4", float: "0.1", bool: "true"}[wanted]
        raise ConfigError(
            f"config.{key}={text!r} is not of type {wanted.__name__}; for example, write {example}"
        ) from None


def data(cfg: Config) -> dict[str, Any]:
    """Returns the config as JSON-able data by section. Each function or class becomes its `own_code.reference`."""
    return json.loads(to_json(cfg))


def to_json(cfg: Config, code: Mapping[str, str] | None = None) -> str:
    """Returns the resolved config as the text of a workdir's `config.json`.

    Each function or class becomes its `own_code.reference`. code: {description: reference} of the user's own code that
    the run uses although no key holds it, such as a task's metrics.
    """
    return json.dumps(cfg.to_dict() | ({CODE: dict(code)} if code else {}), indent=2, default=own_code.reference)


def from_json(path: Path) -> Config:
    """Returns the config that `to_json` wrote. A key that is newer than the file has its default.

    Raises ConfigError for an unreadable file, an unknown key, or a value of the wrong type.
    """
    cfg, stored = base(), _stored(path)
    stored.pop(CODE, None)
    if isinstance(stored.get("model"), dict):
        stored["model"] = upgraded(stored["model"])
    optimizer = stored.get("optimizer")
    if isinstance(optimizer, dict) and "groups" not in optimizer:
        # Before 0.2, every config had these; only AdamW read them.
        for name, default in (("b1", 0.9), ("b2", 0.999), ("epsilon", 1e-8)):
            if optimizer.get("name") != "adamw" or optimizer.get(name) == default:
                optimizer.pop(name, None)
    if isinstance(stored.get("rules"), dict):
        stored["rules"].pop("keys", None)  # before 0.2, an axis of keys, which no mesh axis split by default
    for name, value in _flatten(stored).items():
        if name not in KEYS:
            raise ConfigError(f"{path}: " + unknown_key(name))
        section, _, leaf = name.rpartition(".")
        try:
            (cfg[section] if section else cfg)[leaf] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {name}={value!r} is of the wrong type: {error}") from None
    return cfg


def code_in(path: Path) -> dict[str, str]:
    """Returns the `code` that `to_json` stored in the file."""
    return dict(_stored(path).get(CODE, {}))


def as_data(value: Any) -> Any:
    """Returns a key's value as config.json stores it: a function or class becomes its reference."""
    if isinstance(value, tuple):
        return tuple(map(as_data, value))
    return own_code.reference(value) if callable(value) else value


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = side_files.read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {side_files.why(error)}; is this the workdir of a run?") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"cannot read {path}: not a JSON object; is this the workdir of a run?")
    return stored


def flat(cfg: Config) -> dict[str, Any]:
    """Returns {full name of a key: its value} for all keys: {"seed": 0, "train.total_steps": 1000, …}."""
    return {name: cfg[name] for name in KEYS}


def changes(old: Config, new: Config) -> dict[str, list[str]]:
    """Returns {REFUSE, WARN or FREE: ["KEY: OLD → NEW", …]} for the keys whose values differ (see keys.py)."""
    before, after = flat(old), flat(new)
    out: dict[str, list[str]] = {REFUSE: [], WARN: [], FREE: []}
    for name in after:
        old_value, new_value = as_data(before[name]), as_data(after[name])
        if old_value != new_value:
            out[KEYS[name].resume].append(f"{name}: {old_value!r} → {new_value!r}")
    return out


def _parse_bool(text: str) -> bool:
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _parse_int(text: str) -> int:
    number = float(text) if re.fullmatch(r"\d+(\.\d+)?e\d+", text) else int(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)


def _parse_tuple(text: str) -> tuple[str, ...]:
    """Returns the parts between commas. The whole may be in brackets; other brackets belong to regular expressions.

    >>> _parse_tuple("['a', 'b']"), _parse_tuple("(a|b)/.* frozen")
    (('a', 'b'), ('(a|b)/.* frozen',))
    """
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    return tuple(part.strip(" '\"") for part in inner.split(",") if part.strip())


_PARSERS = {
    bool: _parse_bool,
    int: _parse_int,
    float: float,
    str: str,
    object: str,
    tuple: _parse_tuple,
}


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in tree.items():
        out |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def unknown_key(name: str) -> str:
    """Returns the message for an unknown key, which suggests the right one."""
    from t5x_lite import unknown_keys  # only for messages

    return unknown_keys.message(name, KEYS)
