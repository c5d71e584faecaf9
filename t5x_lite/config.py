"""Every key a run has: `base()` is the reference, `validate` finds what cannot work before a device is touched.

An experiment is a Python file with `get_config()` that starts from `base()` and sets what differs. Keys are
locked and typed: a misspelt key or a wrong type is an error with "did you mean".
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

from t5x_lite import own_code
from t5x_lite.cluster.axes import AxisRules, axis_rules
from t5x_lite.errors import ConfigError
from t5x_lite.keys import AT_LEAST_ONE, FREE, INNER_SHARE, NOT_NEGATIVE, POSITIVE, REFUSE, SHARE, WARN, Key, Range
from t5x_lite.lookup import suggest
from t5x_lite.models.config import MODEL_KEYS

CODE = "code"  # in config.json, beside the keys
Config = Any  # an ml_collections.ConfigDict: it checks keys and types itself, when it runs

OPTIMIZERS = ("adamw", "adafactor")
LOSSES = ("cross_entropy",)
SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
_DENOISING = ("iid_denoising", "mass", "drop_tokens", "deshuffle", "sequential", "ul2")
OBJECTIVES = {  # their meaning: data/denoise.py
    "text_to_text": ("span_corruption", "prefix_lm", "full_lm", *_DENOISING),
    "decoder_only": ("full_lm", "prefix_lm", "span_corruption", *_DENOISING),
    "encoder_only": ("mlm", "mlm_sentence_order"),  # the head nsp judges the next sentence, or the order of two
}
ANY_OBJECTIVE = ("", *dict.fromkeys(name for names in OBJECTIVES.values() for name in names))
ON_LONG = ("truncate", "skip", "error")  # their meaning: data/convert.py
NEED_LABELS = ("constrained", "rank")  # answers that only tasks with labels have
ANSWERS = ("greedy", "beam", "sample", *NEED_LABELS)  # their meaning: evaluation/predict.py
WANDB_MODES = ("disabled", "offline", "online")
ON_NONFINITE = ("stop", "skip", "rollback")
ON_ERROR = ("raise", "record")
SEEDS = Range(at_least=0, below=2**32)
PROBABILITY = Range(above=0, at_most=1)
FRACTION = Range(at_least=0, at_most=1)

# Every key of a run: default, meaning, what a change means to a run that has a checkpoint, allowed values.
KEYS: dict[str, Key] = {
    "name": Key("", "of the run, in reports and wandb; '': the workdir's name", FREE),
    "seed": Key(0, "of everything random: initialization, dropout, order of the data", REFUSE, SEEDS),
    "model.preset": Key("t5_1_1_small", "a name of models/presets.py or an imported directory; other keys override it"),
    **{f"model.{name}": key for name, key in MODEL_KEYS.items()},
    # --- data
    "data.mixture": Key("", "the task or mixture to train on"),
    "data.dir": Key("", "directory with the files of published data sets (GLUE, …); '': they come from TFDS"),
    "data.files": Key("", "local files in place of the mixture: a.csv, train=a.jsonl,validation=b.jsonl, a directory"),
    "data.inputs": Key("", "of data.files: a template over their fields, '{title}: {body}'"),
    "data.targets": Key("", "of data.files: the same for the targets, '{label}'"),
    "data.text": Key("", "of data.files: in place of both, for a corpus, '{text}'"),
    "data.labels": Key(None, "of data.files: the classes; unset: found in the targets", kind=tuple),
    "data.max_bad_fraction": Key(0.0, "share of a task's records that may be bad: skipped and counted", FREE, SHARE),
    "data.vocabulary": Key("", "bytes, a .model, tokenizer.json or vocab.txt, or a directory with one; '': the tasks'"),
    "data.batch_rows": Key(32, "rows of the global batch", REFUSE, AT_LEAST_ONE),
    "data.length": Key(512, "tokens per row; text-to-text: of the encoder", REFUSE, AT_LEAST_ONE),
    "data.targets_length": Key(114, "tokens per row of the decoder; text-to-text only", REFUSE, AT_LEAST_ONE),
    "data.on_long": Key("truncate", "an example longer than its row, not of a corpus; counted", REFUSE, ON_LONG),
    "data.pack": Key(True, "several examples in a row"),
    "data.max_examples_per_row": Key(16, "capacity for packed encoder-only examples", REFUSE, AT_LEAST_ONE),
    "data.window_stride": Key(128, "tokens between windows of a long context; encoder-only", REFUSE, AT_LEAST_ONE),
    "data.objective": Key("", "of a corpus; '': the first of the model's architecture", REFUSE, ANY_OBJECTIVE),
    "data.noise_density": Key(0.15, "share of a corpus hidden; ul2 has its own", REFUSE, INNER_SHARE),
    "data.mean_noise_span_length": Key(3.0, "tokens; span_corruption", REFUSE, AT_LEAST_ONE),
    "data.random_roll": Key(False, "span_corruption: rotates each mask by a random distance, so it may end unhidden"),
    "data.final_sentinel": Key(False, "span_corruption: ends the targets with one more sentinel, as in T5's paper"),
    "data.mlm_rate": Key(0.15, "share of tokens selected for masked language modelling", REFUSE, INNER_SHARE),
    "data.mlm_whole_words": Key(False, "selects all tokens of a word or none"),
    "data.mlm_longest_ngram": Key(1, "words selected together: n of them with a chance of 1/n", REFUSE, AT_LEAST_ONE),
    "data.cache_dir": Key("", "output of `t5x-lite cache`; '': tasks are tokenized as they are read", FREE),
    "data.prefetch_batches": Key(2, "batches prepared ahead by a background thread; 0: none", FREE, NOT_NEGATIVE),
    # --- optimization
    "optimizer.name": Key("adafactor", "adamw, adafactor or your own", REFUSE, OPTIMIZERS, takes=("schedule",)),
    "optimizer.learning_rate": Key(0.01, "peak; adafactor: relative to each parameter's scale", WARN, NOT_NEGATIVE),
    "optimizer.b1": Key(0.9, "adamw: decay of the first moment", WARN, SHARE),
    "optimizer.b2": Key(0.999, "adamw: decay of the second moment", WARN, SHARE),
    "optimizer.epsilon": Key(1e-8, "adamw: added to the root of the second moment", WARN, POSITIVE),
    "optimizer.weight_decay": Key(0.0, "times the learning rate; never of biases and norms", WARN, NOT_NEGATIVE),
    "optimizer.clip_norm": Key(1.0, "of the global gradient; 0: no clipping", WARN, NOT_NEGATIVE),
    "optimizer.trained": Key("", "regular expression over the paths of trainable parameters; '': all, or those added"),
    "optimizer.unfreeze_every_steps": Key(0, "a layer starts so long after the one above it", REFUSE, NOT_NEGATIVE),
    "schedule.name": Key("rsqrt", "shape of the learning rate, 1 at its peak", WARN, SCHEDULES, takes=("updates",)),
    "schedule.warmup_steps": Key(1000, "linear from 0; rsqrt: the plateau before the decay (T5)", WARN, NOT_NEGATIVE),
    "schedule.final_fraction": Key(0.0, "linear and cosine: of the peak, at the last step", WARN, FRACTION),
    "loss.name": Key("cross_entropy", "what is minimized", REFUSE, LOSSES, takes=("outputs", "batch")),
    "loss.z_loss": Key(1e-4, "coefficient of log² Z; keeps logits from drifting; 0: off", WARN, NOT_NEGATIVE),
    "loss.label_smoothing": Key(0.0, "probability spread over the other classes", WARN, SHARE),
    # --- the run
    "train.total_steps": Key(1000, "updates", FREE, AT_LEAST_ONE),
    "train.microbatches": Key(1, "gradient accumulation: parts that the batch is split into", WARN, AT_LEAST_ONE),
    "train.log_every_steps": Key(10, "steps between log lines", FREE, AT_LEAST_ONE),
    "train.on_nonfinite": Key("stop", "if loss or gradient is not finite: stop, skip or roll back", WARN, ON_NONFINITE),
    "train.spike_sigmas": Key(0.0, "skips updates with a loss so far above the last; 0: off", REFUSE, NOT_NEGATIVE),
    "train.max_nonfinite": Key(10, "skipped updates in a row, or rollbacks, before the run stops", FREE, AT_LEAST_ONE),
    "train.hang_s": Key(1800.0, "without a step or evaluation batch: exits; 0: never", FREE, NOT_NEGATIVE),
    "train.grace_s": Key(60.0, "from Ctrl-C or SIGTERM until the process exits, saved or not", FREE, NOT_NEGATIVE),
    "eval.tasks": Key((), "to evaluate on; (): every task of the mixture that the architecture can predict", FREE),
    "eval.split": Key("validation", "of the tasks", FREE),
    "eval.every_steps": Key(1000, "0: evaluates only before the first step and after the last", FREE, NOT_NEGATIVE),
    "eval.untrained": Key(True, "evaluates before the first step, to show what training adds", FREE),
    "eval.batch_rows": Key(32, "rows of an evaluation batch", FREE, AT_LEAST_ONE),
    "eval.max_examples": Key(0, "per task; 0: all", FREE, NOT_NEGATIVE),
    "eval.max_decode_tokens": Key(64, "that a model may write", FREE, AT_LEAST_ONE),
    "eval.max_answer_tokens": Key(30, "that an encoder may mark in a context", FREE, AT_LEAST_ONE),
    "eval.min_decode_tokens": Key(0, "before the end of a text", FREE, NOT_NEGATIVE),
    "eval.answers": Key(("greedy",), "ways to answer; the first gives the scores", FREE, ANSWERS),
    "eval.beams": Key(4, "beam", FREE, AT_LEAST_ONE),
    "eval.length_penalty": Key(0.6, "beam: T5's alpha; 0: none", FREE, NOT_NEGATIVE),
    "eval.temperature": Key(1.0, "sample", FREE, NOT_NEGATIVE),
    "eval.top_k": Key(0, "sample: from the k most probable tokens; 0: from all", FREE, NOT_NEGATIVE),
    "eval.top_p": Key(1.0, "sample: from the fewest tokens that have this probability together", FREE, PROBABILITY),
    "eval.repetition_penalty": Key(1.0, "above 1: tokens written before become less likely", FREE, POSITIVE),
    "eval.no_repeat_ngram_size": Key(0, "no run of so many tokens is written twice; 0: any may be", FREE, NOT_NEGATIVE),
    "eval.on_error": Key("raise", "if a metric or postprocessor fails: raise, or record and go on", FREE, ON_ERROR),
    "eval.predictions_shown": Key(3, "per task, on the console and in the report", FREE, NOT_NEGATIVE),
    "checkpoint.every_steps": Key(1000, "between checkpoints; also at the end and on interruption", FREE, AT_LEAST_ONE),
    "checkpoint.keep_last": Key(3, "checkpoints kept", FREE, AT_LEAST_ONE),
    "checkpoint.mirror": Key("", "gs://bucket/run: a copy of every checkpoint; fetched into an empty workdir", FREE),
    "checkpoint.keep_best": Key("", "TASK/METRIC: also keeps the best step by it", FREE),
    "init.checkpoint": Key("", "a workdir, or DIR/checkpoints/STEP, whose parameters to start from", WARN),
    "mesh": Key("data=-1", "sizes of the mesh axes: data=2,fsdp=2,tensor=2; -1: the devices left", WARN),
    **{
        f"rules.{field.name}": Key(field.default, f"mesh axes that the logical axis {field.name} is split over", WARN)
        for field in dataclasses.fields(AxisRules)
    },
    "loggers": Key((), "experiment loggers of your own", WARN, (), takes=("workdir", "run_name", "config")),
    "profile.start_step": Key(0, "of the process: from here a trace for xprof is written; 0: none", FREE, NOT_NEGATIVE),
    "profile.steps": Key(5, "of the trace", FREE, AT_LEAST_ONE),
    "wandb.mode": Key("disabled", "online without a network records offline, it never fails", FREE, WANDB_MODES),
    "wandb.project": Key("t5x_lite", "in wandb", FREE),
    "wandb.entity": Key("", "in wandb: a user or team", FREE),
}


def base() -> Config:
    """All keys with their defaults. A key whose meaning says "unset" may stay None."""
    cfg: Config = ConfigDict()
    for name, key in KEYS.items():
        section, _, leaf = name.rpartition(".")
        if section and section not in cfg:
            cfg[section] = ConfigDict()
        holder: Any = cfg[section] if section else cfg
        if key.default is None:
            holder[leaf] = placeholder(key.kind)
        else:  # where an object may stand in place of a name, of any type
            holder[leaf] = FieldReference(key.default, field_type=key.kind)
    return cfg.lock()


def validate(cfg: Config) -> None:
    """Raises ConfigError on values and combinations that need no data and no device to be seen as wrong."""
    for name, value in flat(cfg).items():
        KEYS[name].check(name, value)
    if not cfg.eval.answers:
        raise ConfigError(f"eval.answers is empty; give one or more of {', '.join(ANSWERS)}")
    for answer, name, least in (("beam", "eval.beams", 2), ("sample", "eval.temperature", 1e-6)):
        if answer in cfg.eval.answers and cfg[name] < least:
            raise ConfigError(f"{name}={cfg[name]}; for the answer {answer!r} it must be at least {least}")
    if cfg.eval.min_decode_tokens >= cfg.eval.max_decode_tokens:
        raise ConfigError(
            f"eval.min_decode_tokens={cfg.eval.min_decode_tokens} is not below "
            f"eval.max_decode_tokens={cfg.eval.max_decode_tokens}"
        )
    if cfg.schedule.name in ("linear", "cosine") and cfg.schedule.warmup_steps >= cfg.train.total_steps:
        raise ConfigError(
            f"schedule.warmup_steps={cfg.schedule.warmup_steps} is not below "
            f"train.total_steps={cfg.train.total_steps}; "
            f"the {cfg.schedule.name} decay would never begin"
        )
    if cfg.data.batch_rows % cfg.train.microbatches:
        divisors = [m for m in range(1, cfg.data.batch_rows + 1) if cfg.data.batch_rows % m == 0]
        near = sorted(divisors, key=lambda m: abs(m - cfg.train.microbatches))[:2]
        raise ConfigError(
            f"data.batch_rows={cfg.data.batch_rows} is not divisible by train.microbatches={cfg.train.microbatches}; "
            f"use {' or '.join(map(str, sorted(near)))} microbatches"
        )
    axis_rules(**cfg.rules)  # checks their mesh axes
    if not cfg.data.mixture and not cfg.data.files:
        raise ConfigError(
            "data.mixture is empty; name a task or mixture (`t5x-lite tasks` lists them), or give data.files"
        )
    for name in ("data.inputs", "data.targets", "data.text", "data.labels"):
        if cfg[name] and not cfg.data.files:
            raise ConfigError(f"{name}={cfg[name]!r} is about data.files, which is empty; set it too")


def load(spec: str) -> Config:
    """The config of `FILE.py` or `FILE.py:ARGUMENT` (passed to its get_config). Running the file also registers
    the tasks it defines, after the built-in ones. The file is the user's own code; it is never fetched from anywhere.

    Raises ConfigError if there is no such file, or if it fails or returns no config.
    """
    from t5x_lite.tasks import builtin

    builtin.register()
    path, _, argument = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        near = suggest(file.stem, [p.stem for p in file.parent.glob("*.py")]) if file.parent.is_dir() else []
        hint = f"; did you mean {file.parent / (near[0] + '.py')}?" if near else "; give the path of a Python file"
        raise ConfigError(f"no config file {path!r}{hint}")
    loader_spec = importlib.util.spec_from_file_location(f"{own_code.CONFIG_MODULE}{file.stem}", file)
    if loader_spec is None or loader_spec.loader is None:
        raise ConfigError(f"config file {path!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(loader_spec)
    sys.modules[loader_spec.name] = module  # where the source of its classes is found
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
    except (AttributeError, KeyError) as error:  # what ml_collections raises for a key that base() lacks
        match = re.search(r'"([\w.]+)" does not exist', str(error))
        if match is None:
            raise ConfigError(f"config file {path!r} failed: {type(error).__name__}: {error}") from error
        raise ConfigError(f"config file {path!r}: " + _unknown_key(match[1])) from None
    except Exception as error:
        raise ConfigError(f"config file {path!r} failed: {type(error).__name__}: {error}") from error


def override(cfg: Config, key: str, text: str) -> None:
    """Sets `key` ("train.total_steps") from its command-line text, read as the key's type.

    Raises ConfigError for a key that does not exist (with the nearest that do) or a text of another type.
    """
    if key not in KEYS:
        raise ConfigError(_unknown_key(key))
    section, _, leaf = key.rpartition(".")
    holder: Any = cfg[section] if section else cfg
    wanted = holder.get_type(leaf)
    if text == "None" and holder.get_oneway_ref(leaf).get() is None:
        return
    try:
        holder[leaf] = _PARSERS[wanted](text)
    except ValueError:
        example = {int: "4", float: "0.1", bool: "true"}[wanted]
        raise ConfigError(
            f"config.{key}={text!r} is not of type {wanted.__name__}; write for example {example}"
        ) from None


def data(cfg: Config) -> dict[str, Any]:
    """The config as JSON-able data by section; objects by their `own_code.reference`."""
    return json.loads(to_json(cfg))


def to_json(cfg: Config, code: Mapping[str, str] | None = None) -> str:
    """The resolved config as data, as it stands in `config.json` of a workdir; objects by their `own_code.reference`.

    code: references of what else is of the user's own code.
    """
    return json.dumps(cfg.to_dict() | ({CODE: dict(code)} if code else {}), indent=2, default=own_code.reference)


def from_json(path: Path) -> Config:
    """The config that `to_json` wrote. Keys this version lacks are an error; keys added since keep their default."""
    cfg, stored = base(), _stored(path)
    stored.pop(CODE, None)
    for name, value in _flatten(stored).items():
        if name not in KEYS:
            raise ConfigError(f"{path}: " + _unknown_key(name))
        section, _, leaf = name.rpartition(".")
        try:
            (cfg[section] if section else cfg)[leaf] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {name}={value!r} is of the wrong type: {error}") from None
    return cfg


def code_in(path: Path) -> dict[str, str]:
    """The references to the user's own code, other than in keys, that `to_json` was given."""
    return dict(_stored(path).get(CODE, {}))


def take_objects(cfg: Config, loaded: Config) -> None:
    """Puts the objects of a config file that was loaded in the place of the references to them in a run's config.

    Raises ConfigError where the file has another object there, or the same one with other source.
    """
    for name, key in KEYS.items():
        if key.takes and cfg[name] != as_data(loaded[name]) and _has_reference(cfg[name]):
            raise ConfigError(
                f"the run was made with {name}={cfg[name]!r}; the config file has {as_data(loaded[name])!r}. Give the "
                "file as it was"
            )
        if key.takes and _has_reference(cfg[name]):
            section, _, leaf = name.rpartition(".")
            (cfg[section] if section else cfg)[leaf] = loaded[name]


def as_data(value: Any) -> Any:
    """A value of a key as it stands in config.json: objects by their reference."""
    if isinstance(value, tuple):
        return tuple(map(as_data, value))
    return own_code.reference(value) if callable(value) else value


def _has_reference(value: Any) -> bool:
    return any(map(own_code.is_reference, value if isinstance(value, tuple) else (value,)))


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}; is this the workdir of a run?") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"cannot read {path}: it holds no object; is this the workdir of a run?")
    return stored


def flat(cfg: Config) -> dict[str, Any]:
    """All keys by full name: {"seed": 0, "train.total_steps": 1000, …}."""
    return {name: cfg[name] for name in KEYS}


def changes(old: Config, new: Config) -> dict[str, list[str]]:
    """The keys whose values differ, as "KEY: OLD → NEW", by what that means on a resume."""
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


_PARSERS = {
    bool: _parse_bool,
    int: _parse_int,
    float: float,
    str: str,
    object: str,
    tuple: lambda text: tuple(part.strip(" '\"") for part in text.strip("()[]").split(",") if part.strip()),
}


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in tree.items():
        out |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _unknown_key(name: str) -> str:
    """The message for a key that does not exist: the nearest by full name, then by its last part."""
    last = {key.rpartition(".")[2]: key for key in reversed(KEYS)}
    near = suggest(name, KEYS) or [last[leaf] for leaf in suggest(name.rpartition(".")[2], last)]
    hint = f"; did you mean {' or '.join('config.' + key for key in near)}?" if near else "; config.py has them all"
    return f"unknown key config.{name}{hint}"
