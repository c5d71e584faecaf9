"""`load(path)`: any model of ours, or one in Hugging Face format, as an object that takes texts."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite import config as configs
from t5x_lite import models, saved_run
from t5x_lite.batch import Batch
from t5x_lite.checkpoints import checkpoint
from t5x_lite.data import convert, vocabularies
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.eval_batches import example_batch, prompt_batch
from t5x_lite.data.fields import Encoded
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.decoding import generate
from t5x_lite.decoding.buckets import bucket, power_of_two
from t5x_lite.errors import CheckpointError, ConfigError, DataError
from t5x_lite.hub import mapping, parameters
from t5x_lite.hub.checks import require_text
from t5x_lite.models import intermediates, presets
from t5x_lite.models.config import ModelConfig
from t5x_lite.reports.attention_page import QUERIES_AND_KEYS, AttentionMaps
from t5x_lite.reports.results import best_step, read_metrics
from t5x_lite.training.losses import token_losses

BATCH_ROWS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model with its parameters and vocabulary. Texts have the form that the model was trained on.

    labels: names of its classes, if it was trained on one task with classes.  origin: the directory that it started
    from, imported or in Hugging Face format.  features: of the task it was trained on, if any. Without them, a language
    model continues texts that have no end-of-sequence id.
    """

    config: ModelConfig
    params: Any
    vocabulary: Vocabulary
    labels: tuple[str, ...] = ()
    origin: Path | None = None
    features: Mapping[str, Feature] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The outputs of the model for a batch (t5x_lite/batch.py), {head: float32 array}."""
        return self._forward(self.params, batch)

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Batch:
        """A batch as the model reads it, one text per row. pairs: an encoder's second text of each row."""
        examples: list[dict[str, str]] = _inputs(texts)
        if pairs is not None:
            if len(texts) != len(pairs):
                raise DataError(f"{len(texts)} texts and {len(pairs)} second ones; give as many of both")
            examples = [{"inputs": a, "pair": require_text(b)} for a, b in zip(texts, pairs, strict=True)]
        return self.prompts(examples, len(examples))

    def generate(self, texts: Sequence[str], max_tokens: int = 64) -> list[str]:
        """The continuation of each text, or the answer to it, by greedy decoding."""
        self._require("text_to_text", "decoder_only")

        def work(examples: list[dict[str, str]]) -> list[str]:
            out = generate.greedy(
                self.module,
                self.params,
                self.prompts(examples, power_of_two(len(examples)), max_tokens),
                max_tokens=max_tokens,
                eos_id=self.vocabulary.eos_id,
                start_id=self.start_id,
            )
            tokens, lengths = np.asarray(out["tokens"]), np.asarray(out["lengths"])
            return [self.vocabulary.decode(t[:n]) for t, n in zip(tokens, lengths, strict=True)]

        return _in_batches(work, _inputs(texts))

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The natural log-probability of the targets and their end, given the inputs, for each pair (inputs, targets).
        Raises DataError for a pair that is longer than the model can read."""
        self._require("text_to_text", "decoder_only")

        def work(examples: list[dict[str, str]]) -> list[float]:
            converter, task = self._converter(examples, ("inputs", "targets")), self._task(("inputs",))
            batch = example_batch(examples, task, converter, self.vocabulary, batch_rows=power_of_two(len(examples)))
            return [float(x) for x in self._score(self.params, batch)]

        examples = []
        for pair in pairs:
            if isinstance(pair, str) or len(pair) != 2:
                raise DataError(f"{str(pair)[:80]!r} is no pair of texts; give (inputs, targets)")
            examples.append({"inputs": require_text(pair[0]), "targets": require_text(pair[1])})
        return _in_batches(work, examples)

    def embed(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        """One vector per text, float32 [texts, D]: the mean of the encoder's hidden states, scaled to length 1."""
        self._require("text_to_text", "encoder_only")

        def work(examples: list[dict[str, str]]) -> list[np.ndarray]:
            return list(np.asarray(self._embed(self.params, self.prompts(examples, power_of_two(len(examples))))))

        vectors = np.array(_in_batches(work, _inputs(texts)), np.float32).reshape(len(texts), self.config.d_model)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors

    def hidden(self, batch: Mapping[str, Any]) -> jax.Array:
        """The encoder's hidden state at every position of a batch, [B, S, D]."""
        self._require("text_to_text", "encoder_only")
        return self._hidden(self.params, batch)

    def classify(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, float]]:
        """The probability of each class for each text, or pair of texts. They sum to 1, unless a text may have several
        classes."""
        head = next((name for name in ("classification", "multi_label") if name in self.config.heads), None)
        if head is None:
            raise ConfigError(f"this model has the heads {self.config.heads}; classifying needs `classification`")
        if not len(texts):
            return []
        logits_BC = np.asarray(self(self.tokenize(texts, pairs))[head])[:, 0].astype(np.float64)
        one_BC = np.logaddexp.reduce(logits_BC, axis=1, keepdims=True)
        probabilities_BC = np.exp(logits_BC - (one_BC if head == "classification" else np.logaddexp(0, logits_BC)))
        return [dict(zip(self.labels, map(float, row), strict=True)) for row in probabilities_BC]

    def attention(self, text: str, second: str = "") -> AttentionMaps:
        """The attention of every head of every layer for one text. second: an encoder's second text; of a text-to-text
        model the targets, "": those that the model generates."""
        fields = {"inputs": text}
        if self.config.architecture == "text_to_text":
            fields["targets"] = second or self.generate([text])[0]
            converter = self._converter([fields], tuple(fields))
            batch = example_batch([fields], self._task(("inputs",)), converter, self.vocabulary, batch_rows=1)
        else:
            batch = self.tokenize([text], [second] if second else None)
        found = self._look(self.params, batch)
        length = {k.removesuffix("_segment_ids"): int((v > 0).sum()) for k, v in batch.items() if "segment_ids" in k}
        tokens = {
            side: [self.vocabulary.show([i]) for i in batch[f"{side}_input_tokens"][0, :count].tolist()]
            for side, count in length.items()
        }
        maps = {}
        for name in (name for name in QUERIES_AND_KEYS if name in found):
            queries, keys = (length[side] for side in QUERIES_AND_KEYS[name])
            maps[name] = np.asarray(found[name])[:, 0, :, :queries, :keys]
        return AttentionMaps(tokens, maps)

    @functools.cached_property
    def _look(self) -> Callable:
        return jax.jit(lambda params, batch: intermediates.apply(self.module, params, batch)[1].attention)

    @functools.cached_property
    def module(self) -> Any:
        return models.build(self.config)

    @functools.cached_property
    def _forward(self) -> Callable:
        return jax.jit(lambda params, batch: self.module.apply({"params": params}, batch))

    @functools.cached_property
    def _score(self) -> Callable:
        def score(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            logits_BLV = self.module.apply({"params": params}, batch)["lm"]  # type: ignore[index]
            losses_BL, _ = token_losses(logits_BLV, batch["decoder_target_tokens"])
            return -jnp.sum(losses_BL * batch["decoder_loss_weights"], axis=1)

        return jax.jit(score)

    @functools.cached_property
    def _hidden(self) -> Callable:
        def hidden(params: Any, batch: Mapping[str, jax.Array]) -> Any:
            if self.config.architecture == "text_to_text":
                return self.module.apply({"params": params}, batch, method="encode")
            headless = models.build(dataclasses.replace(self.config, heads=(), num_classes=0))
            return headless.apply({"params": params}, batch)["hidden"]  # type: ignore[index]

        return jax.jit(hidden)

    @functools.cached_property
    def _embed(self) -> Callable:
        def embed(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            hidden_BSD = self._hidden(params, batch)
            real_BS1 = (batch["encoder_segment_ids"] > 0)[..., None]
            return jnp.sum(hidden_BSD * real_BS1, axis=1) / jnp.maximum(jnp.sum(real_BS1, axis=1), 1)

        return jax.jit(embed)

    @property
    def start_id(self) -> int:
        """The first id that the decoder reads."""
        return convert.start(self.config.decoder_start_id, self.vocabulary)

    def _require(self, *architectures: str) -> None:
        if self.config.architecture not in architectures:
            allowed = " or ".join(architectures)
            raise ConfigError(f"this needs a model of {allowed}; it is {self.config.architecture}")

    def _task(self, segments: tuple[str, ...]) -> Task:
        task = convert.text_task(self.config.architecture, segments)
        return task if self.features is None else dataclasses.replace(task, features=self.features)

    def prompts(self, examples: Sequence[Mapping[str, Any]], batch_rows: int, max_new_tokens: int = 1) -> Batch:
        """A batch of prompts, one per row, of the examples' texts or ids (Encoded). Rows without an example are
        padding. Warns of a text that is cut because the model cannot read all of it."""
        fields = tuple(examples[0]) if examples else ("inputs",)
        ids = zip(*(self._ids([e[f] for e in examples]) for f in fields), strict=True)
        encoded = [Encoded(zip(fields, of_one, strict=True)) for of_one in ids]
        converter, task = self._converter(encoded, fields, max_new_tokens), self._task(fields)
        # New tokens need no room in the converter's rows: the cache has room for them.
        batch, truncated = prompt_batch(
            encoded, task, converter, self.vocabulary, batch_rows=batch_rows, max_new_tokens=0
        )
        if any(truncated):
            goes_on = self.config.architecture == "decoder_only" and not task.features["inputs"].add_eos
            text = f"{sum(truncated)} of {len(examples)} inputs do not fit in {converter.length:,} tokens"
            warnings.warn(f"{text}: the {'beginning' if goes_on else 'end'} is cut off", stacklevel=2)
        return batch

    def _ids(self, texts: list) -> list[np.ndarray]:
        return self.vocabulary.encode(texts) if texts and isinstance(texts[0], str) else texts

    def _converter(
        self, examples: Sequence[Mapping[str, Any]], fields: tuple[str, ...], max_new_tokens: int = 1
    ) -> Any:
        """The converter. Row length: that of the longest example, capped so that `max_new_tokens` still fit in the
        model's positions. (The model does not read the last of them.)"""
        counts = {f: list(map(len, self._ids([e[f] for e in examples]))) for f in fields}
        more = self.config.fairseq_marks
        marks = 1 + len(fields) + more + self.config.prompt_tokens
        longest = max(map(sum, zip(*counts.values(), strict=True)), default=0) + marks
        read = bucket(longest)
        if self.config.positions == "learned":
            read = min(read, self.config.max_positions)
        if self.config.architecture == "encoder_only":
            classes = self.config.num_classes
            return EncoderOnly(length=read, heads=self.config.heads, fairseq_marks=more, num_classes=classes)
        if self.config.architecture == "text_to_text":
            targets = bucket(max(counts.get("targets", [0]), default=0) + 1 + more)
            if self.config.positions == "learned":
                targets = min(targets, self.config.max_positions)
            prompt = self.config.prompt_tokens
            return convert.TextToText(read, targets, start_id=self.start_id, fairseq_marks=more, prompt_tokens=prompt)
        if self.config.positions == "learned":
            read = max(1, min(read, self.config.max_positions - (max_new_tokens - 1)))
        return convert.DecoderOnly(length=read, start_id=self.start_id)


def load(path: str | Path, which: str | int = "latest") -> Model:
    """The model of a workdir or its `checkpoints/STEP`, of an imported directory, or of one in Hugging Face format.

    which: of a workdir: latest, best or a step. The parameters are split over all devices where they divide.
    Raises CheckpointError or ConfigError where the path has no model, or one that cannot be used.
    """
    path, which = Path(path), str(which)
    if (path / "params").is_dir():
        path, which = path.absolute().parent.parent, path.name
    if (path / presets.STORED).is_file():
        return _stored(path)
    settings = mapping.read_json(path / "config.json")
    return _downloaded(path) if "model_type" in settings else _trained(path, which)


def _stored(path: Path) -> Model:
    config = presets.stored(path)
    return Model(config, _restored(path, 0, config), vocabularies.load(str(path)), _labels(path, config), path)


def _downloaded(path: Path) -> Model:
    found = parameters.open_directory(path)
    vocabulary = vocabularies.load(str(path))
    params, _ = parameters.load(found, found.config, parameters.layout_for(found.config))
    return Model(found.config, params, vocabulary, _class_names(found.settings, found.config), path)


def _trained(path: Path, which: str) -> Model:
    cfg = configs.from_json(path / "config.json")
    resolved = saved_run.resolve(cfg, path)
    best = best_step(read_metrics(path), cfg.checkpoint.keep_best, checkpoint.saved_steps(path))
    step = checkpoint.choose(path, which, best)[-1]
    classes = list(dict.fromkeys(task.classes for task in resolved.tasks if task.classes))
    writes_several = len(classes) > 1 and resolved.model.architecture != "encoder_only"
    labels = classes[0] if classes and not writes_several else ()
    features = next((task.features for task in resolved.tasks if not task.is_corpus), None)
    origins = (saved_run.directory_of(path), Path(cfg.model.preset))
    origin = next((o for o in origins if o and (o / "huggingface.json").is_file()), None)
    params = _restored(path, step, resolved.model)
    return Model(resolved.model, params, resolved.vocabulary, labels, origin, features)


def _restored(path: Path, step: int, config: ModelConfig) -> Any:
    layout = parameters.layout_for(config)
    return checkpoint.load_model(path, step, parameters.targets(config, layout))


def _labels(path: Path, config: ModelConfig) -> tuple[str, ...]:
    try:
        return _class_names(mapping.read_json(path / "huggingface.json"), config)
    except CheckpointError:
        return tuple(f"LABEL_{i}" for i in range(config.num_classes))


def _class_names(settings: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """The names of the classes in a config.json, or LABEL_0, LABEL_1, … as in transformers. A single output is a class,
    unless config.json says that it is a regression."""
    names = settings.get("id2label")
    if "regression" in config.heads and settings.get("problem_type") != "regression":
        return (names["0"] if isinstance(names, dict) and isinstance(names.get("0"), str) else "LABEL_0",)
    if isinstance(names, dict) and all(isinstance(names.get(str(i)), str) for i in range(config.num_classes)):
        return tuple(names[str(i)] for i in range(config.num_classes))
    return tuple(f"LABEL_{i}" for i in range(config.num_classes))


def _inputs(texts: Sequence[str]) -> list[dict[str, str]]:
    if isinstance(texts, str):  # it would be taken for a list of its letters
        raise ConfigError(f"give a list of texts, [{texts[:40]!r}], not one alone")
    return [{"inputs": require_text(text)} for text in texts]


def in_batches(work: Callable[[list[int]], list], sizes: Sequence[int]) -> list:
    """The results of `work` for examples of these sizes, in the examples' order.

    work: takes the numbers of at most BATCH_ROWS examples of similar sizes, and returns their results in that order.
    """
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    out: list = [None] * len(sizes)
    for begin in range(0, len(order), BATCH_ROWS):
        chosen = order[begin : begin + BATCH_ROWS]
        for i, result in zip(chosen, work(chosen), strict=False):
            out[i] = result
    return out


def _in_batches(work: Callable[[list], list], examples: list[dict[str, str]]) -> list:
    return in_batches(lambda chosen: work([examples[i] for i in chosen]), [sum(map(len, e.values())) for e in examples])
