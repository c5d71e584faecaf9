"""Resolves the names in a config to tasks, a vocabulary, a model and a feature converter. Does not import jax.

Raises the errors for combinations that cannot work, before any device is touched.
"""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5x_lite import lengths, own_code
from t5x_lite.config import OBJECTIVES, Config
from t5x_lite.data import convert, denoise, pipeline, registry, vocabularies
from t5x_lite.data.convert_translation import marked
from t5x_lite.data.fields import vocabulary_of
from t5x_lite.data.languages import languages_of
from t5x_lite.data.pipeline import TrainBatches
from t5x_lite.data.registry import Rated, Task
from t5x_lite.data.targets import Match
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.heads import EMBEDDINGS, ENCODER_HEADS
from t5x_lite.lookup import lookup, unknown
from t5x_lite.models import presets, stored
from t5x_lite.models.config import ModelConfig

VOCABULARY_MULTIPLE = 128  # tables are padded to a multiple of it, as in T5 (32 100 → 32 128), to split evenly


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config and what its names stand for."""

    cfg: Config
    mixture: tuple[Rated, ...]  # the tasks that the run trains on, with their rates
    eval_tasks: tuple[Task, ...]
    vocabulary: Vocabulary
    model: ModelConfig
    converter: convert.Converter

    def code(self) -> dict[str, str]:
        """Returns {description: reference} for the tasks' sources and metrics that are the user's own code."""
        parts: dict[str, Any] = {}
        for task in {task.name: task for task in (*self.tasks, *self.eval_tasks)}.values():
            parts[f"source of {task.name}"] = task.source
            parts |= {f"metric {own_code.name_of(metric)} of {task.name}": metric for metric in task.metrics}
        return {what: own_code.reference(part) for what, part in parts.items() if own_code.is_own(part)}

    def train_batches(self, **how: Any) -> TrainBatches:
        """Returns the batches to train on, from step 0. how: arguments of `pipeline.train_batches` (shards, …)."""
        data = self.cfg.data
        settings = {
            "batch_rows": data.batch_rows,
            "seed": self.cfg.seed,
            "pack": data.pack,
            "prefetch_batches": 0,
            "cache_dir": data.cache_dir,
            "task_ids": len(self.tasks) > 1,
            "documents_per_step": data.documents_per_step,
        }
        return pipeline.train_batches(self.mixture, self.converter, self.vocabulary, **settings | how)

    def steps_per_epoch(self) -> float:
        """Returns the steps in which the run reads as many examples as its tasks have, estimated from many rows."""
        sizes = {task.name: len(task.source.split("train")) for task in self.tasks}
        return lengths.steps_per_epoch(self.train_batches(task_ids=True), self.cfg.data.batch_rows, sizes)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that the run trains on."""
        return tuple(rated.task for rated in self.mixture)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the first task that has any, in the order of a head's outputs; () if no task has any."""
        return next((task.classes for task in self.tasks if task.classes), ())


def resolve(cfg: Config) -> Experiment:
    """Returns the experiment of a config. Does not change the config: what is read from local files goes into a copy.

    Raises ConfigError for unknown names and for combinations that cannot work.
    """
    from t5x_lite.tasks import builtin, published

    builtin.register()
    if cfg.data.dir:
        published.use_directory(cfg.data.dir)
    if cfg.data.files:
        cfg = _with_files(cfg)
    if cfg.data.max_bad_fraction:
        for name in (cfg.data.mixture, *cfg.eval.tasks):
            registry.tolerate(name, cfg.data.max_bad_fraction)
    mixture = registry.mixture(cfg.data.mixture)
    tasks = tuple(rated.task for rated in mixture)
    eval_tasks = tuple(lookup("evaluation task", name, _all_tasks()) for name in cfg.eval.tasks)
    eval_tasks = eval_tasks or registry.evaluated(cfg.data.mixture)
    vocabulary = _vocabulary(cfg, (*tasks, *eval_tasks))
    model = _model(cfg, tasks, eval_tasks, vocabulary)
    _check_positions(cfg, model, tasks)
    for task in (*tasks, *eval_tasks):
        _check_trainable(task, model, tasks)
        if model.architecture != "encoder_only":
            _check_labels_fit(task, cfg, model, vocabulary)
    best_task, _, best_metric = cfg.checkpoint.keep_best.partition("/")
    if cfg.checkpoint.keep_best and not best_metric:
        raise ConfigError(
            f"checkpoint.keep_best={cfg.checkpoint.keep_best!r}: must be TASK/METRIC, for example "
            f"{eval_tasks[0].name}/{cfg.checkpoint.keep_best}"
        )
    if cfg.checkpoint.keep_best:
        lookup("task of checkpoint.keep_best=TASK/METRIC", best_task, {task.name: task for task in eval_tasks})
    converter = _converter(cfg, model, (*tasks, *eval_tasks), vocabulary)
    if cfg.eval.stride:
        _check_stride(cfg, converter, eval_tasks)
    experiment = Experiment(cfg, mixture, eval_tasks, vocabulary, model, converter)
    return dataclasses.replace(experiment, cfg=lengths.in_steps(cfg, experiment.steps_per_epoch))


def of_parts(cfg: Config, mixture: tuple[Rated, ...], vocabulary: Vocabulary, model: ModelConfig) -> Experiment:
    """Returns an experiment from its parts, without resolving names in the config. It has no tasks to evaluate.

    Raises ConfigError if the lengths in the config do not fit the model.
    """
    tasks = tuple(rated.task for rated in mixture)
    _check_positions(cfg, model, tasks)
    return Experiment(cfg, mixture, (), vocabulary, model, _converter(cfg, model, tasks, vocabulary))


def resolve_again(cfg: Config) -> Experiment:
    """Resolves the config of an earlier run, like `resolve`.

    Raises ConfigError if the mixture is defined in the run's config file and that file has not been loaded.
    """
    from t5x_lite.tasks import builtin

    builtin.register()
    if not cfg.data.files and cfg.data.mixture not in registry.REGISTRY:
        raise ConfigError(
            f"the run trained on {cfg.data.mixture!r}, which its config file defines: give --config=FILE.py; in "
            'Python, call t5x_lite.config.load("FILE.py") first'
        )
    return resolve(cfg)


def _with_files(cfg: Config) -> Config:
    """Makes a task from `data.files`, registers it, and returns a copy of the config with this task as its mixture.

    Logs the choices it makes. If the config names no vocabulary, the copy names the vocabulary of the imported model
    that the run starts from. If there is none, the task's vocabulary is bytes.
    """
    from t5x_lite.tasks import files

    cfg = copy.deepcopy(cfg)
    data, log = cfg.data, logging.getLogger(__name__)
    data.vocabulary = data.vocabulary or _vocabulary_of_model(cfg)
    vocabulary = None if data.vocabulary else vocabularies.ByteVocabulary()
    labels = tuple(data.labels) if data.labels is not None else None
    task = files.task_from_files(
        data.files,
        inputs=data.inputs,
        targets=data.targets,
        text=data.text,
        labels=labels,
        vocabulary=vocabulary,
        max_bad_fraction=data.max_bad_fraction,
        reading=files.Reading(data.header, data.delimiter, data.text_record, data.line_pattern, data.split),
        metrics=data.metrics,
    )
    if not data.vocabulary:
        log.info("vocabulary: bytes; set config.data.vocabulary to use a different one")
    if task.labels:
        cfg.data.labels = task.labels  # stored, so that the run's classes do not change
    registry.add(task)
    if data.mixture not in ("", task.name):
        log.info("training on data.files in place of the mixture %r", data.mixture)
    cfg.data.mixture = task.name
    if cfg.checkpoint.keep_best and cfg.checkpoint.keep_best.rpartition("/")[0] != task.name:
        log.info("checkpoint.keep_best=%r is ignored: it names a different task", cfg.checkpoint.keep_best)
        cfg.checkpoint.keep_best = ""
    return cfg


def _all_tasks() -> dict[str, Task]:
    return {name: entry for name, entry in registry.REGISTRY.items() if isinstance(entry, Task)}


def _vocabulary_of_model(cfg: Config) -> str:
    """Returns the imported directory that the run's model or its parameters come from, if it has a vocabulary; else "".

    Logs the directory.
    """
    for name in (cfg.model.preset, cfg.init.checkpoint):
        if name and (Path(name) / stored.FILE).is_file() and vocabularies.has_vocabulary(Path(name)):
            logging.getLogger(__name__).info("vocabulary: that of %s; config.data.vocabulary overrides it", name)
            return name
    return ""


def _vocabulary(cfg: Config, tasks: tuple[Task, ...]) -> Vocabulary:
    """Returns the vocabulary that the config names. If it names none, returns the one that the tasks' features share,
    or else the one of the imported model that the run starts from.

    Raises ConfigError if there is none, or if the features have different ones.
    """
    if cfg.data.vocabulary:
        try:
            return vocabularies.load(cfg.data.vocabulary)
        except ConfigError as error:
            _require_data(tasks)
            raise ConfigError(f"data.vocabulary: {error}") from error
    own = {f.vocabulary for task in tasks for f in task.features.values() if f.vocabulary is not None}
    if not own and (directory := _vocabulary_of_model(cfg)):
        return vocabularies.load(directory)
    if len(own) != 1:
        _require_data(tasks)
        count = "none" if not own else f"{len(own)} different ones"
        raise ConfigError(
            f"a run needs one vocabulary; the tasks {', '.join(dict.fromkeys(t.name for t in tasks))} have {count}: "
            'set config.data.vocabulary to "bytes" or a SentencePiece model (`t5x-lite vocab` makes one)'
        )
    return own.pop()


def _require_data(tasks: tuple[Task, ...]) -> None:
    """Raises DataError if the training data of a task cannot be found, so that a user first hears of the data.

    Leaves all other errors for later.
    """
    for task in tasks:
        try:
            task.source.split("train")
        except DataError:
            raise
        except Exception:  # for example a task without this split, or a source of the user's own
            continue


def _model(cfg: Config, tasks: tuple[Task, ...], eval_tasks: tuple[Task, ...], vocabulary: Vocabulary) -> ModelConfig:
    overrides = {k: v for k, v in cfg.model.items() if k != "preset" and v is not None}
    config = presets.find(cfg.model.preset)
    if "vocab_size" not in overrides:
        padded = -(-vocabulary.size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        imported = cfg.model.preset not in presets.PRESETS
        if imported and config.vocab_size < vocabulary.size:
            raise ConfigError(
                f"the vocabulary has {vocabulary.size} ids, but {cfg.model.preset} was imported with only "
                f"{config.vocab_size}; import it again with --vocab-size={padded}, or set config.data.vocabulary to "
                "the imported directory"
            )
        fits = vocabulary.size <= config.vocab_size and (imported or config.vocab_size <= padded)
        overrides["vocab_size"] = config.vocab_size if fits else padded
    if overrides["vocab_size"] < vocabulary.size:
        raise ConfigError(
            f"model.vocab_size={overrides['vocab_size']} is below the vocabulary's {vocabulary.size} ids; "
            "leave it unset to use the vocabulary's size"
        )
    if config.architecture == "encoder_only":
        overrides.setdefault("heads", _heads(tasks, eval_tasks, cfg.data.objective))
        if any(ENCODER_HEADS[head].has_classes for head in overrides["heads"]):
            overrides["num_classes"] = len(_classes(tasks))
    if own_code.is_reference(overrides.get("module")):
        raise ConfigError(
            f"the run's config file defines its model, model.module={overrides['module']!r}: give --config=FILE.py"
        )
    model = presets.preset(cfg.model.preset, **overrides)
    _check_generator(cfg, model, tasks)
    return model


def _check_positions(cfg: Config, model: ModelConfig, tasks: Sequence[Task]) -> None:
    """Raises ConfigError if rows or generated texts are longer than the model's table of learned positions."""
    longest = max(cfg.data.length, cfg.data.targets_length if model.architecture == "text_to_text" else 0)
    if model.positions == "learned" and longest > model.max_positions:
        raise ConfigError(
            f"rows of {longest} tokens exceed model.max_positions={model.max_positions}, the size of the table of "
            "learned positions; lower data.length and data.targets_length, or raise model.max_positions"
        )
    new_tokens = cfg.eval.max_decode_tokens
    if model.positions == "learned" and model.architecture != "encoder_only" and not all(t.is_corpus for t in tasks):
        read = max(longest - new_tokens, longest // 2) if model.architecture == "decoder_only" else 1
        if read + new_tokens - 1 > model.max_positions:
            raise ConfigError(
                f"eval.max_decode_tokens={new_tokens} after prompts of up to {read} tokens exceeds "
                f"model.max_positions={model.max_positions}; lower eval.max_decode_tokens or data.length"
            )


def _check_stride(cfg: Config, converter: convert.Converter, eval_tasks: Sequence[Task]) -> None:
    """Raises ConfigError unless the perplexity over overlapping rows is defined and would be computed."""
    problem = ""
    if not isinstance(converter, convert.DecoderOnly) or converter.denoisers:
        problem = "needs a decoder-only model with data.objective=full_lm, which predicts each token from all before it"
    elif cfg.eval.stride > converter.length:
        problem = f"must be at most data.length={converter.length}; otherwise tokens between two rows are not scored"
    elif not converter.join_documents:
        problem = "is for documents that are joined to one stream: set data.join_documents=True"
    elif not any(task.is_corpus for task in eval_tasks):
        problem = f"is for corpora, but the run evaluates {', '.join(task.name for task in eval_tasks)}"
    if problem:
        raise ConfigError(f"eval.stride={cfg.eval.stride}: {problem}; 0 turns it off")


def _heads(tasks: tuple[Task, ...], eval_tasks: tuple[Task, ...], objective: str) -> tuple[str, ...]:
    """Returns the heads that the tasks need. A model that embeds texts can be evaluated on any task for embeddings."""
    needed = {task.head for task in tasks}
    if {EMBEDDINGS} & {ENCODER_HEADS[head].reads for head in needed if head}:
        needed |= {task.head for task in eval_tasks if task.head and ENCODER_HEADS[task.head].reads == EMBEDDINGS}
    if "mlm" in needed:
        needed.add("rtd" if objective == "rtd" else "nsp")
    return tuple(head for head in ENCODER_HEADS if head in needed)


def _check_generator(cfg: Config, model: ModelConfig, tasks: tuple[Task, ...]) -> None:
    """Raises ConfigError if the objective, the heads and the generator of an encoder do not belong together."""
    is_rtd, layers = cfg.data.objective == "rtd", model.generator_layers
    if model.architecture != "encoder_only" or not any(task.is_corpus for task in tasks):
        return
    if is_rtd and not layers:
        third = max(1, model.num_encoder_layers // 3)
        raise ConfigError(
            f"data.objective=rtd with model.generator_layers=0: a generator replaces tokens; set "
            f"model.generator_layers, for example {third}, and model.generator_width={model.generator_width}"
        )
    if is_rtd and not model.has_generator:
        raise ConfigError(f"model.heads={model.heads}; data.objective=rtd needs mlm and rtd: add them, or unset it")
    if layers and not is_rtd:
        raise ConfigError(
            f"model.generator_layers={layers} is for data.objective=rtd, not {cfg.data.objective or 'mlm'}; set one to "
            "fit the other"
        )


def _classes(tasks: tuple[Task, ...]) -> tuple[str, ...]:
    """Returns the model's classes (labels, or tags of words). Raises ConfigError unless all tasks share them."""
    labelled = [task for task in tasks if task.classes]
    if len({(task.head, task.classes) for task in labelled}) != 1:
        raise ConfigError(
            "a classification head needs one label set, but the mixture's tasks with labels are: "
            f"{', '.join(t.name for t in labelled) or 'none'}. Train on one such task at a time"
        )
    return labelled[0].classes


def _check_trainable(task: Task, model: ModelConfig, trained: tuple[Task, ...]) -> None:
    if isinstance(task.target, Match) and model.architecture != "encoder_only":
        raise ConfigError(
            f"task {task.name!r} has the target Match, for encoders; a {model.architecture} model generates texts. Use "
            "an encoder-only preset, or a task with the target Text"
        )
    if model.architecture != "encoder_only":
        return
    if not task.head:
        raise ConfigError(
            f"task {task.name!r} has free text as its target; an encoder-only model cannot generate text. "
            "Leave the task out of the mixture, or use a text-to-text or decoder-only preset; if its targets are "
            "classes, list them (data.labels)"
        )
    if task.head not in model.heads:
        raise ConfigError(f"task {task.name!r} needs the head {task.head!r}; add it to model.heads={model.heads}")
    if task.classes and task.classes != _classes(trained):
        raise ConfigError(
            f"task {task.name!r} has the labels {', '.join(task.classes)}, but the model is trained on the labels "
            f"{', '.join(_classes(trained))}. Evaluate only on tasks with the same labels"
        )


def _check_labels_fit(task: Task, cfg: Config, model: ModelConfig, vocabulary: Vocabulary) -> None:
    """Raises ConfigError if a label has more tokens than targets or predictions may have, because it would be cut."""
    if not task.labels or task.target.several:
        return
    tokens, label = max(
        (len(ids), label)
        for ids, label in zip(vocabulary_of("targets", vocabulary).encode(task.labels), task.labels, strict=True)
    )
    languages = languages_of(vocabulary)
    marks = task.features["targets"].add_eos + model.fairseq_marks + (languages is not None)
    before = model.fairseq_marks or (languages is not None and not languages.mark_follows)
    written = tokens + (before and model.architecture == "text_to_text")
    limits = {"eval.max_decode_tokens": (written, cfg.eval.max_decode_tokens)}
    if model.architecture == "text_to_text":
        limits["data.targets_length"] = (tokens + marks, cfg.data.targets_length)
    for key, (needed, limit) in limits.items():
        if needed > limit:
            raise ConfigError(
                f"{key}={limit}: the label {label!r} of task {task.name!r} has {tokens} tokens, so it would be cut; "
                f"set at least {needed}"
            )


def _converter(cfg: Config, model: ModelConfig, tasks: Sequence[Task], vocabulary: Vocabulary) -> convert.Converter:
    data, texts = cfg.data, max(task.target.texts for task in tasks)
    noise = {
        "noise_density": data.noise_density,
        "mean_noise_span_length": data.mean_noise_span_length,
        "random_roll": data.random_roll,
        "final_sentinel": data.final_sentinel,
    }
    objectives = OBJECTIVES[model.architecture]
    objective = data.objective or objectives[0]
    if objective not in objectives:
        raise ConfigError(f"{model.architecture} models: " + unknown("data.objective", objective, objectives))
    if model.architecture == "text_to_text":
        denoisers = denoise.denoisers(objective, **noise)
        plain = convert.TextToText(
            data.length,
            data.targets_length,
            denoisers,
            data.on_long,
            start_id=model.decoder_start_id,
            fairseq_marks=model.fairseq_marks,
            prompt_tokens=model.prompt_tokens,
            join_documents=data.join_documents,
        )
        return marked(plain, vocabulary)
    if model.architecture == "decoder_only":
        denoisers = denoise.denoisers(objective, **noise) if objective != "full_lm" else ()
        return convert.DecoderOnly(
            data.length, denoisers, data.on_long, model.decoder_start_id, join_documents=data.join_documents
        )
    from t5x_lite.data.convert_encoder import EncoderOnly

    return EncoderOnly(
        length=data.length,
        heads=model.heads,
        mlm_rate=data.mlm_rate,
        max_examples_per_row=data.max_examples_per_row,
        whole_words=data.mlm_whole_words,
        longest_ngram=data.mlm_longest_ngram,
        sentence_order=objective == "mlm_sentence_order",
        on_long=data.on_long,
        window_stride=data.window_stride,
        choices=texts,
        num_classes=model.num_classes,
        fairseq_marks=model.fairseq_marks,
        needs_cls=model.pooling == "first",
    )
