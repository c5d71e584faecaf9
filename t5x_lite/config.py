"""Every key a run has: `base()` is the reference, `validate` finds what cannot work before a device is touched.

An experiment is a Python file with `get_config()` that starts from `base()` and sets what differs. Keys are
locked and typed: a misspelt key or a wrong type is an error with "did you mean".
"""

import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from t5x_lite.cluster.axes import AxisRules, axis_rules
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import suggest, unknown
from t5x_lite.models.config import HEADS, ModelConfig

Config = Any  # an ml_collections.ConfigDict: it checks keys and types itself, when it runs

OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
AT_LEAST_ONE = (
    "data.batch_rows",
    "data.length",
    "data.targets_length",
    "data.max_examples_per_row",
    "data.window_stride",
    "data.mlm_longest_ngram",
    "train.total_steps",
    "train.microbatches",
    "train.log_every_steps",
    "train.max_nonfinite",
    "profile.steps",
    "eval.batch_rows",
    "eval.max_decode_tokens",
    "eval.max_answer_tokens",
    "eval.beams",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
)
NOT_NEGATIVE = (
    "seed",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.unfreeze_every_steps",
    "schedule.warmup_steps",
    "loss.z_loss",
    "loss.label_smoothing",
    "eval.every_steps",
    "eval.max_examples",
    "eval.predictions_shown",
    "eval.min_decode_tokens",
    "eval.length_penalty",
    "eval.temperature",
    "eval.top_k",
    "data.prefetch_batches",
    "train.hang_s",
    "train.grace_s",
    "train.spike_sigmas",
    "profile.start_step",
)
_DENOISING = ("iid_denoising", "mass", "drop_tokens", "deshuffle", "sequential", "ul2")
OBJECTIVES = {  # their meaning: data/denoise.py
    "text_to_text": ("span_corruption", "prefix_lm", "full_lm", *_DENOISING),
    "decoder_only": ("full_lm", "prefix_lm", "span_corruption", *_DENOISING),
    "encoder_only": ("mlm", "mlm_sentence_order"),  # the head nsp judges the next sentence, or the order of two
}
ON_LONG = ("truncate", "skip", "error")  # their meaning: data/convert.py
NEED_LABELS = ("constrained", "rank")  # answers that only tasks with labels have
ANSWERS = ("greedy", "beam", "sample", *NEED_LABELS)  # their meaning: evaluation/predict.py
WANDB_MODES = ("disabled", "offline", "online")
ON_NONFINITE = ("stop", "skip", "rollback")
ON_ERROR = ("raise", "record")
# What another value of a key means to a run that has a checkpoint; of several prefixes that fit, the longest counts.
ON_RESUME = {
    "refuse": (
        "seed",
        "model.",
        "data.",
        "optimizer.name",
        "optimizer.trained",
        "optimizer.unfreeze_every_steps",
        "train.spike_sigmas",
    ),  # they decide what its steps are
    "warn": (  # it goes on, but no longer as an uninterrupted run would
        *("optimizer.", "schedule.", "loss.", "train.microbatches", "train.on_nonfinite", "init.", "mesh", "rules."),
        *("model.dropout_", "model.attention_dropout_rate", "model.classifier_dropout_rate", "model.dtype"),
    ),
    "free": (
        *("name", "train.", "eval.", "checkpoint.", "wandb.", "profile."),
        *("data.prefetch_batches", "data.max_bad_fraction", "data.cache_dir", "model.remat"),
    ),
}


def base() -> Config:
    """All keys with their defaults. A key whose comment says "unset" may stay None."""
    cfg: Config = ConfigDict()
    cfg.name = ""  # of the run, in the report and in wandb; "" takes the workdir's name
    cfg.seed = 0  # initialisation, dropout, order of the data: everything random follows from it

    cfg.model = ConfigDict()
    cfg.model.preset = "t5_1_1_small"  # a name of models/presets.py; the keys below override its fields
    for field in dataclasses.fields(ModelConfig):  # unset: the preset's value. Meanings: models/config.py
        if field.name not in ("architecture", "vocab_size", "heads", "num_classes"):
            cfg.model[field.name] = placeholder(field.type)
    cfg.model.vocab_size = placeholder(int)  # unset: the vocabulary's, rounded up to a multiple of 128
    cfg.model.heads = placeholder(tuple)  # encoder-only; unset: mlm and nsp for corpora, classification or regression

    cfg.data = ConfigDict()
    cfg.data.mixture = ""  # a task or mixture: what to train on
    cfg.data.dir = ""  # where the files of published data sets (GLUE, …) are; "": they come from TFDS
    cfg.data.files = ""  # or local files in its place: reviews.csv, "train=a.jsonl,validation=b.jsonl", a directory
    cfg.data.inputs = ""  # of data.files: a template over their fields, "{title}: {body}"
    cfg.data.targets = ""  # the same for the targets, "{label}"
    cfg.data.text = ""  # or instead of both for a corpus, "{text}"
    cfg.data.labels = placeholder(tuple)  # of data.files: the classes; unset: found by looking at the targets
    cfg.data.max_bad_fraction = 0.0  # of a task's records that may be bad: left out and counted; 0: an error
    cfg.data.vocabulary = ""  # "bytes", a .model, tokenizer.json or vocab.txt, or a directory with one; "": the tasks'
    cfg.data.batch_rows = 32  # rows of the global batch
    cfg.data.length = 512  # tokens per row; text-to-text: of the encoder
    cfg.data.targets_length = 114  # tokens per row of the decoder; text-to-text only
    cfg.data.on_long = "truncate"  # | skip | error: an example longer than its row (not of a corpus); counted
    cfg.data.pack = True  # several examples in a row
    cfg.data.max_examples_per_row = 16  # capacity for packed encoder-only examples
    cfg.data.window_stride = 128  # tokens between the windows of a context that is longer than its row; encoder-only
    cfg.data.objective = ""  # of a corpus, by OBJECTIVES; "": the first there of the model's architecture
    cfg.data.noise_density = 0.15  # share of a corpus hidden; ul2 has its own
    cfg.data.mean_noise_span_length = 3.0  # tokens; span_corruption
    cfg.data.random_roll = False  # span_corruption: turn each mask by a random distance, so that it may end unhidden
    cfg.data.final_sentinel = False  # span_corruption: close the targets with one more sentinel, as T5's paper has it
    cfg.data.mlm_rate = 0.15  # share of tokens selected for masked language modelling
    cfg.data.mlm_whole_words = False  # select a word with all its tokens or not at all
    cfg.data.mlm_longest_ngram = 1  # words (or tokens) selected together: n of them with a chance of 1/n
    cfg.data.cache_dir = ""  # what `t5x-lite cache` made of the tasks; "": they are tokenised as they are read
    cfg.data.prefetch_batches = 2  # prepared ahead by a background thread; 0: none

    cfg.optimizer = ConfigDict()
    cfg.optimizer.name = "adafactor"  # adafactor | adamw
    cfg.optimizer.learning_rate = 0.01  # peak (adafactor: relative to each parameter's own scale)
    cfg.optimizer.b1 = 0.9  # adamw
    cfg.optimizer.b2 = 0.999  # adamw
    cfg.optimizer.epsilon = 1e-8  # adamw
    cfg.optimizer.weight_decay = 0.0  # decoupled, times the learning rate; never on biases and norms
    cfg.optimizer.clip_norm = 1.0  # of the global gradient; 0: no clipping
    cfg.optimizer.trained = ""  # a regular expression over parameter paths: only these learn; "": all, or those added
    cfg.optimizer.unfreeze_every_steps = 0  # the last layers learn first, each one before so much later; 0: all at once

    cfg.schedule = ConfigDict()
    cfg.schedule.name = "rsqrt"  # constant | linear | cosine | rsqrt
    cfg.schedule.warmup_steps = 1000  # linear from 0; rsqrt: the plateau before the decay, as T5 has it
    cfg.schedule.final_fraction = 0.0  # linear and cosine: of the peak, at the last step

    cfg.loss = ConfigDict()
    cfg.loss.z_loss = 1e-4  # coefficient of log² Z; keeps logits from drifting (0: off)
    cfg.loss.label_smoothing = 0.0

    cfg.train = ConfigDict()
    cfg.train.total_steps = 1000
    cfg.train.microbatches = 1  # gradient accumulation: the batch is cut into this many parts
    cfg.train.log_every_steps = 10
    cfg.train.on_nonfinite = "stop"  # a loss or gradient that is not: stop | skip the update | rollback past its batch
    cfg.train.spike_sigmas = 0.0  # an update whose loss lies so far above the last ones is left out; 0: none
    cfg.train.max_nonfinite = 10  # updates left out in a row, or rollbacks, until the run stops after all
    cfg.train.hang_s = 1800.0  # without a step or a batch of an evaluation until a process ends itself; 0: never
    cfg.train.grace_s = 60.0  # from Ctrl-C or SIGTERM until it ends, saved or not

    cfg.eval = ConfigDict()
    cfg.eval.tasks = ()  # names; (): every task of the mixture that the architecture can be judged on
    cfg.eval.split = "validation"
    cfg.eval.every_steps = 1000  # also at step 0 (the untrained model) and at the end; 0: only those two
    cfg.eval.untrained = True  # evaluate before the first step, to see what training adds
    cfg.eval.batch_rows = 32
    cfg.eval.max_examples = 0  # per task; 0: all
    cfg.eval.max_decode_tokens = 64
    cfg.eval.max_answer_tokens = 30  # that an encoder marks in a context
    cfg.eval.min_decode_tokens = 0
    # How models that generate answer, by ANSWERS: the first that a task has gives its scores, the others stand beside.
    cfg.eval.answers = ("greedy",)
    cfg.eval.beams = 4  # beam
    cfg.eval.length_penalty = 0.6  # beam: T5's alpha; 0: none
    cfg.eval.temperature = 1.0  # sample
    cfg.eval.top_k = 0  # sample from the k most probable tokens; 0: from all
    cfg.eval.top_p = 1.0  # sample from the fewest tokens that are this probable together
    cfg.eval.repetition_penalty = 1.0  # above 1: tokens that were there before become less likely
    cfg.eval.no_repeat_ngram_size = 0  # no run of so many tokens is written twice; 0: any may be
    cfg.eval.on_error = "raise"  # a metric or postprocessor that fails: raise | record the error and go on training
    cfg.eval.predictions_shown = 3  # per task, on the console and in the report

    cfg.checkpoint = ConfigDict()
    cfg.checkpoint.every_steps = 1000  # also at the end and on interruption
    cfg.checkpoint.keep_last = 3
    cfg.checkpoint.mirror = ""  # "gs://bucket/run": each checkpoint is copied there, and fetched to an empty workdir
    cfg.checkpoint.keep_best = ""  # "task/metric": also keep the best step by it, higher is better

    cfg.init = ConfigDict()
    cfg.init.checkpoint = ""  # a workdir (or DIR/checkpoints/STEP) whose parameters to start from; steps count from 0

    cfg.mesh = "data=-1"  # e.g. "data=2,fsdp=2,tensor=2"; -1: the devices that are left

    cfg.rules = ConfigDict()  # which mesh axes each logical axis of an array is split over; meanings: cluster/axes.py
    for field in dataclasses.fields(AxisRules):
        cfg.rules[field.name] = field.default

    cfg.profile = ConfigDict()
    cfg.profile.start_step = 0  # a trace for xprof goes to WORKDIR/profile from this step of a process on; 0: none
    cfg.profile.steps = 5  # that it covers

    cfg.wandb = ConfigDict()
    cfg.wandb.mode = "disabled"  # disabled | offline | online (without a network: offline, never an error)
    cfg.wandb.project = "t5x_lite"
    cfg.wandb.entity = ""
    return cfg.lock()


def validate(cfg: Config) -> None:
    """Raises ConfigError on values and combinations that need no data and no device to be seen as wrong."""

    def choice(key: str, allowed: tuple[str, ...]) -> None:
        if cfg[key] not in allowed:
            raise ConfigError(unknown(key, cfg[key], allowed))

    def at_least(key: str, low: float) -> None:
        if cfg[key] < low:
            raise ConfigError(f"{key}={cfg[key]}; it must be at least {low}")

    def open_unit(key: str) -> None:
        if not 0 < cfg[key] < 1:
            raise ConfigError(f"{key}={cfg[key]}; it must lie between 0 and 1")

    choice("optimizer.name", OPTIMIZERS)
    choice("schedule.name", SCHEDULES)
    choice("wandb.mode", WANDB_MODES)
    choice("data.on_long", ON_LONG)
    choice("train.on_nonfinite", ON_NONFINITE)
    choice("eval.on_error", ON_ERROR)
    if cfg.data.objective:
        choice("data.objective", tuple(dict.fromkeys(name for names in OBJECTIVES.values() for name in names)))
    for key, value in flat(cfg).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value}; it must be a finite number")
    if cfg.seed >= 2**32:
        raise ConfigError(f"seed={cfg.seed}; it must be below 2**32")
    for key in ("optimizer.b1", "optimizer.b2"):
        if not 0 <= cfg[key] < 1:
            raise ConfigError(f"{key}={cfg[key]}; it must be at least 0 and below 1")
    if cfg.optimizer.epsilon <= 0:
        raise ConfigError(f"optimizer.epsilon={cfg.optimizer.epsilon}; it must be above 0")
    for answer in cfg.eval.answers or ("",):
        if answer not in ANSWERS:
            raise ConfigError(unknown("eval.answers entry", answer, ANSWERS))
    if not 0 < cfg.eval.top_p <= 1 or not cfg.eval.repetition_penalty > 0:
        raise ConfigError(
            f"eval.top_p={cfg.eval.top_p}, eval.repetition_penalty={cfg.eval.repetition_penalty}; top_p must be above "
            "0 and at most 1, the penalty above 0 (1: none)"
        )
    for answer, key, least in (("beam", "beams", 2), ("sample", "temperature", 1e-6)):
        if answer in cfg.eval.answers:
            at_least(f"eval.{key}", least)
    if cfg.eval.min_decode_tokens >= cfg.eval.max_decode_tokens:
        raise ConfigError(
            f"eval.min_decode_tokens={cfg.eval.min_decode_tokens} is not below "
            f"eval.max_decode_tokens={cfg.eval.max_decode_tokens}"
        )
    for key in AT_LEAST_ONE:
        at_least(key, 1)
    for key in NOT_NEGATIVE:
        at_least(key, 0)
    at_least("data.mean_noise_span_length", 1)
    for key in ("data.noise_density", "data.mlm_rate"):
        open_unit(key)
    if not 0 <= cfg.data.max_bad_fraction < 1:
        raise ConfigError(f"data.max_bad_fraction={cfg.data.max_bad_fraction}; it must be at least 0 and below 1")
    if cfg.loss.label_smoothing >= 1:
        raise ConfigError(f"loss.label_smoothing={cfg.loss.label_smoothing}; it must be below 1")
    if not 0 <= cfg.schedule.final_fraction <= 1:
        raise ConfigError(f"schedule.final_fraction={cfg.schedule.final_fraction}; it must lie between 0 and 1")
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
    for head in cfg.model.heads or ():
        if head not in HEADS:
            raise ConfigError(unknown("model.heads entry", head, HEADS))
    if not cfg.data.mixture and not cfg.data.files:
        raise ConfigError(
            "data.mixture is empty; name a task or mixture (`t5x-lite tasks` lists them), or give data.files"
        )
    for key in ("data.inputs", "data.targets", "data.text", "data.labels"):
        if cfg[key] and not cfg.data.files:
            raise ConfigError(f"{key}={cfg[key]!r} is about data.files, which is empty; set it too")


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
    loader_spec = importlib.util.spec_from_file_location(f"t5x_lite_config_{file.stem}", file)
    if loader_spec is None or loader_spec.loader is None:
        raise ConfigError(f"config file {path!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(loader_spec)
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
        raise ConfigError(f"config file {path!r}: " + _unknown_key(match[1], base())) from None
    except Exception as error:
        raise ConfigError(f"config file {path!r} failed: {type(error).__name__}: {error}") from error


def override(cfg: Config, key: str, text: str) -> None:
    """Sets `key` ("train.total_steps") from its command-line text, read as the key's type.

    Raises ConfigError for a key that does not exist (with the nearest that do) or a text of another type.
    """
    if key not in flat(cfg):
        raise ConfigError(_unknown_key(key, cfg))
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


def to_json(cfg: Config) -> str:
    """The resolved config as data, as it stands in `config.json` of a workdir."""
    return json.dumps(cfg.to_dict(), indent=2, default=list)


def from_json(path: Path) -> Config:
    """The config that `to_json` wrote. Keys this version lacks are an error; keys added since keep their default."""
    cfg = base()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}; is this the workdir of a run?") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"cannot read {path}: it holds no object; is this the workdir of a run?")
    keys = flat(cfg)
    for key, value in _flatten(stored).items():
        if key not in keys:
            raise ConfigError(f"{path}: " + _unknown_key(key, cfg))
        section, _, leaf = key.rpartition(".")
        try:
            (cfg[section] if section else cfg)[leaf] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {key}={value!r} is of the wrong type: {error}") from None
    return cfg


def flat(cfg: Config) -> dict[str, Any]:
    """All keys by full name: {"seed": 0, "train.total_steps": 1000, …}."""
    return _flatten(cfg.to_dict())


def on_resume(key: str) -> str:
    """What a change of `key` means to a run that has a checkpoint: "refuse", "warn" or "free".

    >>> [on_resume(key) for key in ("model.d_ff", "model.dropout_rate", "model.remat")]
    ['refuse', 'warn', 'free']
    """
    fitting = [
        (len(prefix), kind) for kind, prefixes in ON_RESUME.items() for prefix in prefixes if key.startswith(prefix)
    ]
    return max(fitting)[1]


def changes(old: Config, new: Config) -> dict[str, list[str]]:
    """The keys whose values differ, as "KEY: OLD → NEW", by what that means on a resume."""
    before, after = flat(old), flat(new)
    out: dict[str, list[str]] = {kind: [] for kind in ON_RESUME}
    for key in after:
        if before[key] != after[key]:
            out[on_resume(key)].append(f"{key}: {before[key]!r} → {after[key]!r}")
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
    tuple: lambda text: tuple(part.strip(" '\"") for part in text.strip("()[]").split(",") if part.strip()),
}


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        out |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def _unknown_key(key: str, cfg: Config) -> str:
    """The message for a key that is not there: the nearest by full name, then by its last part."""
    keys = list(flat(cfg))
    near = suggest(key, keys)
    last = {k.rpartition(".")[2]: k for k in reversed(keys)}
    near = near or [last[n] for n in suggest(key.rpartition(".")[2], last)]
    hint = f"; did you mean {' or '.join('config.' + n for n in near)}?" if near else "; config.py:base() has them all"
    return f"unknown key config.{key}{hint}"
