"""Loads a model of ours, or one in Hugging Face format, as a `Model`. The methods of `Model` take texts."""

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
from t5x_lite import models, saved_run, side_files
from t5x_lite.batch import Batch
from t5x_lite.checkpoints import checkpoint
from t5x_lite.checkpoints.loading import check_layers, load_model
from t5x_lite.data import convert, vocabularies
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.convert_translation import marked
from t5x_lite.data.eval_batches import example_batch, prompt_batch
from t5x_lite.data.fields import Encoded, ids_of, vocabulary_of
from t5x_lite.data.languages import languages_of
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.vocabularies import TokenizerVocabulary, Vocabulary
from t5x_lite.decoding import generate
from t5x_lite.decoding.buckets import bounded, bucket, power_of_two
from t5x_lite.errors import CheckpointError, ConfigError, DataError
from t5x_lite.heads import EMBEDDINGS
from t5x_lite.hub import mapping, parameters
from t5x_lite.hub.checks import refuse_images, require_text
from t5x_lite.models import intermediates, stored
from t5x_lite.models.config import MERGED, ModelConfig
from t5x_lite.models.encoder_only import pooled_states
from t5x_lite.reports.attention_page import QUERIES_AND_KEYS, AttentionMaps
from t5x_lite.reports.results import best_step, read_metrics
from t5x_lite.training.losses import token_losses

BATCH_ROWS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Holds a model with its parameters and vocabulary. Texts must have the form that the model was trained on.

    labels: names of the classes; () if there are none. Also () if the model generates text and its tasks have several
        different sets of classes.
    origin: the directory that the model started from. It is an imported directory, or one in Hugging Face format. None
        if the model started from neither.
    features: the features of the task that the model was trained on. If None, a decoder_only model reads its inputs
        without an end-of-sequence id, and so continues them.
    """

    config: ModelConfig
    params: Any
    vocabulary: Vocabulary
    labels: tuple[str, ...] = ()
    origin: Path | None = None
    features: Mapping[str, Feature] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns {head: float32 array}, the model's outputs for a batch (see t5x_lite/batch.py)."""
        return self._forward(self.params, batch)

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Batch:
        """Returns a batch for the model, with one text in each row. `load` says how it reads special tokens in texts.

        pairs: the second text of each row, if the model is an encoder that reads two.

        Raises DataError if an input is not text, or if there are more or fewer pairs than texts.
        """
        examples: list[dict[str, str]] = _inputs(texts)
        if pairs is not None:
            if len(texts) != len(pairs):
                raise DataError(f"{len(texts)} texts and {len(pairs)} pairs: the numbers must be equal")
            examples = [{"inputs": a, "pair": require_text(b)} for a, b in zip(texts, pairs, strict=True)]
        return self.prompts(examples, len(examples))

    def generate(self, texts: Sequence[str], max_tokens: int = 64) -> list[str]:
        """Returns one generated text per input text. Decoding is greedy. `load` says how special tokens are read.

        max_tokens: the maximum number of new tokens in a generated text.

        Raises ConfigError if the model is an encoder; DataError if an input is not text.
        """
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
        """Returns one natural log-probability per pair: that of the targets and the end token, given the inputs.

        pairs: each is (inputs, targets), two texts.

        Raises DataError if a pair is longer than the model can read; ConfigError if the model is an encoder.
        """
        self._require("text_to_text", "decoder_only")

        def work(examples: list) -> list[float]:
            examples = self._encoded(examples, ("inputs", "targets")) if self._begins_with_bos else examples
            converter, task = self._converter(examples, ("inputs", "targets")), self._task(("inputs",))
            batch = example_batch(examples, task, converter, self.vocabulary, batch_rows=power_of_two(len(examples)))
            return [float(x) for x in self._score(self.params, batch)]

        examples = []
        for pair in pairs:
            if isinstance(pair, str) or len(pair) != 2:
                raise DataError(f"{str(pair)[:80]!r} is not a pair of texts; pass (inputs, targets)")
            examples.append({"inputs": require_text(pair[0]), "targets": require_text(pair[1])})
        return _in_batches(work, examples)

    def embed(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        """Returns one vector per text, float32 [texts, D]: the mean of the encoder's hidden states over the tokens, or
        the pooled state of a model that was trained to embed texts.

        normalize: if true, scales each vector to length 1. Raises ConfigError if the model has no encoder.
        """
        self._require("text_to_text", "encoder_only")

        def work(examples: list[dict[str, str]]) -> list[np.ndarray]:
            return list(np.asarray(self._embed(self.params, self.prompts(examples, power_of_two(len(examples))))))

        vectors = np.array(_in_batches(work, _inputs(texts)), np.float32).reshape(len(texts), self.config.d_model)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors

    def hidden(self, batch: Mapping[str, Any]) -> jax.Array:
        """Returns the encoder's hidden states at all positions of a batch, [B, S, D].

        Raises ConfigError if the model has no encoder.
        """
        self._require("text_to_text", "encoder_only")
        return self._hidden(self.params, batch)

    def classify(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, float]]:
        """Returns {label: probability} for each text or pair of texts.

        The probabilities sum to 1, unless a text may have several classes. Raises ConfigError if the model has neither
        the head `classification` nor `multi_label`, or if two classes have the same name.
        """
        head = next((name for name in ("classification", "multi_label") if name in self.config.heads), None)
        if head is None:
            raise ConfigError(f"classifying needs the head `classification`; this model's heads: {self.config.heads}")
        if twice := next((name for name in self.labels if self.labels.count(name) > 1), None):
            raise ConfigError(f"several classes have the name {twice!r}; give them different names in id2label")
        if not len(texts):
            return []
        logits_BC = np.asarray(self(self.tokenize(texts, pairs))[head])[:, 0].astype(np.float64)
        one_BC = np.logaddexp.reduce(logits_BC, axis=1, keepdims=True)
        probabilities_BC = np.exp(logits_BC - (one_BC if head == "classification" else np.logaddexp(0, logits_BC)))
        return [dict(zip(self.labels, map(float, row), strict=True)) for row in probabilities_BC]

    def attention(self, text: str, second: str = "") -> AttentionMaps:
        """Returns the attention probabilities of all heads in all layers for one text.

        second: for an encoder, the second text of a pair, or "" if there is only one text. For a text_to_text model,
            the targets, or "" to let the model generate the targets.
        """
        fields = {"inputs": text}
        if self.config.architecture == "text_to_text":
            fields["targets"] = second or self.generate([text])[0]
            converter = self._converter([fields], tuple(fields))
            examples = self._encoded([fields], tuple(fields)) if self._begins_with_bos else [fields]
            batch = example_batch(examples, self._task(("inputs",)), converter, self.vocabulary, batch_rows=1)
        else:
            batch = self.tokenize([text], [second] if second else None)
        attention = self._look(self.params, batch)
        length = {k.removesuffix("_segment_ids"): int((v > 0).sum()) for k, v in batch.items() if "segment_ids" in k}
        tokens = {
            side: [self.vocabulary.show([i]) for i in batch[f"{side}_input_tokens"][0, :count].tolist()]
            for side, count in length.items()
        }
        maps = {}
        for name, sides in QUERIES_AND_KEYS.items():
            if name in attention and length.keys() >= {*sides}:  # the decoder of a classifier has no tokens of its own
                queries, keys = (length[side] for side in sides)
                maps[name] = np.asarray(attention[name])[:, 0, :, :queries, :keys]
        return AttentionMaps(tokens, maps)

    @functools.cached_property
    def _look(self) -> Callable:
        return bounded(jax.jit(lambda params, batch: intermediates.apply(self.module, params, batch)[1].attention))

    @functools.cached_property
    def module(self) -> Any:
        return models.build(self.config)

    @functools.cached_property
    def _forward(self) -> Callable:
        return bounded(jax.jit(lambda params, batch: self.module.apply({"params": params}, batch)))

    @functools.cached_property
    def _score(self) -> Callable:
        def score(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            logits_BLV = self.module.apply({"params": params}, batch)["lm"]  # type: ignore[index]
            losses_BL, _ = token_losses(logits_BLV, batch["decoder_target_tokens"])
            return -jnp.sum(losses_BL * batch["decoder_loss_weights"], axis=1)

        return bounded(jax.jit(score))

    @functools.cached_property
    def _hidden(self) -> Callable:
        def hidden(params: Any, batch: Mapping[str, jax.Array]) -> Any:
            if self.config.architecture == "text_to_text":
                return self.module.apply({"params": params}, batch, method="encode")
            headless = models.build(dataclasses.replace(self.config, heads=(), num_classes=0))
            return headless.apply({"params": params}, batch)["hidden"]  # type: ignore[index]

        return bounded(jax.jit(hidden))

    @functools.cached_property
    def _embed(self) -> Callable:
        def embed(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            hidden_BSD = self._hidden(params, batch)
            pooling = self.config.pooling if self.config.heads_that_read(EMBEDDINGS) else "mean"
            segment_ids_BS = batch["encoder_segment_ids"]
            return pooled_states(pooling, hidden_BSD, segment_ids_BS, jnp.zeros_like(segment_ids_BS[:, :1]))[:, 0]

        return bounded(jax.jit(embed))

    @property
    def start_id(self) -> int:
        """The first token id that the decoder reads."""
        return convert.start(self.config.decoder_start_id, self.vocabulary)

    def _require(self, *architectures: str) -> None:
        if self.config.architecture not in architectures:
            allowed = " or ".join(architectures)
            raise ConfigError(f"this needs a model of type {allowed}; this one is {self.config.architecture}")

    def _task(self, segments: tuple[str, ...]) -> Task:
        task = convert.text_task(self.config.architecture, segments)
        bare = {"inputs": Feature(add_eos=False), "targets": Feature()} if self._begins_with_bos else task.features
        return dataclasses.replace(task, features=self.features or bare)

    @property
    def _begins_with_bos(self) -> bool:
        """Returns whether an encoder-decoder's inputs begin with BOS and have no EOS, as T5Gemma's tokenizer has them.

        A model that was trained here reads its inputs as in training, and BART's begin with [CLS] (fairseq_marks).
        """
        is_bare = self.config.architecture == "text_to_text" and not self.config.fairseq_marks and self.features is None
        return is_bare and isinstance(self.vocabulary, TokenizerVocabulary) and self.vocabulary.begins_with_bos

    def _encoded(self, examples: Sequence[Mapping[str, Any]], fields: tuple[str, ...]) -> list[Encoded]:
        """Returns the examples with token ids in place of texts, and BOS before the inputs if `_begins_with_bos`."""
        ids = zip(*(self._ids(f, [e[f] for e in examples]) for f in fields), strict=True)
        encoded = [Encoded(zip(fields, of_one, strict=True)) for of_one in ids]
        for example in encoded if self._begins_with_bos else ():
            example["inputs"] = np.concatenate([[self.vocabulary.bos_id], example["inputs"]]).astype(np.int32)  # type: ignore[attr-defined]
        return encoded

    def prompts(
        self, examples: Sequence[Mapping[str, Any]], batch_rows: int, max_new_tokens: int = 1, source: str = ""
    ) -> Batch:
        """Returns a batch with one prompt per row. If there are more rows than examples, the other rows are padding.

        examples: each is {field: text} or {field: token ids} (an Encoded).
        batch_rows: B, the number of rows.
        max_new_tokens: the number of tokens that a decoder_only model can generate after the prompt. A prompt is cut if
            the model's positions do not suffice for both.
        source: the code of the texts' language, if the vocabulary marks languages; "": as the tokenizer's files say.

        Warns if a text is cut because it is too long for the model.
        """
        fields = tuple(examples[0]) if examples else ("inputs",)
        encoded = self._encoded(examples, fields)
        converter, task = self._converter(encoded, fields, max_new_tokens, source), self._task(fields)
        # The rows need no room for new tokens, because those go to the decoder's cache.
        batch, truncated = prompt_batch(
            encoded, task, converter, self.vocabulary, batch_rows=batch_rows, max_new_tokens=0
        )
        if any(truncated):
            goes_on = self.config.architecture == "decoder_only" and not task.features["inputs"].add_eos
            text = f"{sum(truncated)} of {len(examples)} inputs do not fit in {converter.length:,} tokens"
            warnings.warn(f"{text}: the {'beginning' if goes_on else 'end'} is cut off", stacklevel=2)
        return batch

    def _ids(self, field: str, texts: list) -> list[np.ndarray]:
        ids = ids_of(texts, vocabulary_of(field, self.vocabulary))
        if self.config.body == MERGED:  # T5Gemma 2
            refuse_images(ids, self.origin)
        return ids

    def _converter(
        self, examples: Sequence[Mapping[str, Any]], fields: tuple[str, ...], max_new_tokens: int = 1, source: str = ""
    ) -> Any:
        """Returns the converter for these examples.

        The row length is that of the longest example, rounded up to a bucket. If positions are learned, it is at most
        max_positions. In a decoder_only model, the new tokens also need positions, except the last new token, which the
        model never reads.
        """
        counts = {f: list(map(len, self._ids(f, [e[f] for e in examples]))) for f in fields}
        more, has_languages = self.config.fairseq_marks, languages_of(self.vocabulary) is not None
        marks = 1 + len(fields) + more + self.config.prompt_tokens
        longest = max(map(sum, zip(*counts.values(), strict=True)), default=0) + marks
        read = bucket(longest)
        if self.config.positions == "learned":
            read = min(read, self.config.max_positions)
        if self.config.architecture == "encoder_only":
            classes, first = self.config.num_classes, self.config.pooling == "first"
            return EncoderOnly(read, self.config.heads, fairseq_marks=more, num_classes=classes, needs_cls=first)
        if self.config.architecture == "text_to_text":
            targets = bucket(max(counts.get("targets", [0]), default=0) + 1 + more + has_languages)
            if self.config.positions == "learned":
                targets = min(targets, self.config.max_positions)
            prompt = self.config.prompt_tokens
            plain = convert.TextToText(read, targets, start_id=self.start_id, fairseq_marks=more, prompt_tokens=prompt)
            return marked(plain, self.vocabulary, source)
        if self.config.positions == "learned":
            read = max(1, min(read, self.config.max_positions - (max_new_tokens - 1)))
        return convert.DecoderOnly(length=read, start_id=self.start_id)


def load(path: str | Path, which: str | int = "latest", special_tokens: bool | None = None) -> Model:
    """Loads the model in a directory.

    A special token typed in a text, such as "<extra_id_0>", "[MASK]" or "</s>", can be read in two ways. As a special
    token, it becomes the token's id, which lets T5 fill a gap: `load("t5").generate(["A <extra_id_0> walks."])`. As
    text, it is spelled with ordinary tokens, so whoever writes the text cannot end it or write the marks of a chat.

    Shards the parameters over all devices if the number of devices divides the model's widths. Otherwise every device
    holds all parameters.

    path: a workdir, a directory `checkpoints/STEP` in a workdir, an imported directory, or a directory in Hugging Face
        format.
    which: for a workdir, the checkpoint to load: latest, best or a step; with +average or +mean:K, averaged weights.
    special_tokens: whether texts are read with special tokens. By default, they are read as the model was trained:
        with special tokens for an imported directory or one in Hugging Face format, as in transformers; without for a
        workdir, because training never reads a special token in a text. The verb `infer` reads as a workdir does.

    Raises CheckpointError or ConfigError if the path has no model, or if the model cannot be used.
    """
    path, which = Path(path), str(which)
    if (path / "params").is_dir():
        path, which = path.absolute().parent.parent, path.name
    if side_files.is_there(path / stored.FILE):
        return _stored(path, special_tokens is not False)
    mapping.refuse_adapter(path)
    if path.is_dir() and not (path / "config.json").exists():
        raise CheckpointError(
            f"{path.absolute()} holds no model, because it has no config.json; give the workdir of a run, a directory "
            "that `t5x-lite import` made, or a directory in Hugging Face format"
        )
    settings = mapping.read_json(path / "config.json")
    if "model_type" in settings:
        return _downloaded(path, special_tokens is not False)
    return _trained(path, which, special_tokens is True)


def _stored(path: Path, special_tokens: bool) -> Model:
    config, vocabulary = stored.read(path), vocabularies.load(str(path), special_tokens)
    parameters.require_rows(config, vocabulary, path)
    return Model(config, _restored(path, 0, config), vocabulary, _labels(path, config), path)


def _downloaded(path: Path, special_tokens: bool) -> Model:
    opened = parameters.open_directory(path)
    vocabulary = vocabularies.load(str(path), special_tokens)
    parameters.require_rows(opened.config, vocabulary, path)
    config = parameters.with_marks_of(opened.config, vocabulary)
    params, _ = parameters.load(opened, config, parameters.layout_for(config))
    return Model(config, params, vocabulary, _class_names(opened.settings, config), path)


def _trained(path: Path, which: str, special_tokens: bool) -> Model:
    cfg, saved = configs.from_json(path / "config.json"), checkpoint.saved_steps(path)
    resolved = saved_run.resolve(cfg, path)
    which, _, weights = which.partition("+")
    best = best_step(read_metrics(path), cfg.checkpoint.keep_best, saved) if which == "best" else None
    step = checkpoint.choose(path, which, best)[-1]
    classes = list(dict.fromkeys(task.classes for task in resolved.tasks if task.classes))
    writes_several = len(classes) > 1 and resolved.model.architecture != "encoder_only"
    labels = classes[0] if classes and not writes_several else ()
    features = next((task.features for task in resolved.tasks if not task.is_corpus), None)
    origins = (saved_run.directory_of(path), Path(cfg.model.preset))
    origin = next((o for o in origins if o and side_files.is_there(o / stored.SETTINGS)), None)
    params, vocabulary = _restored(path, step, resolved.model, weights), resolved.vocabulary
    if special_tokens:
        if not hasattr(vocabulary, "special_tokens"):
            raise ConfigError(f"special_tokens=True: {type(vocabulary).__name__} lacks that field; set it to None")
        vocabulary = dataclasses.replace(vocabulary, special_tokens=True)  # type: ignore[type-var]
    from t5x_lite.hub import detector  # which imports this module

    model = Model(resolved.model, params, vocabulary, labels, origin, features)
    return detector.split(model) if resolved.model.has_generator else model


def _restored(path: Path, step: int, config: ModelConfig, weights: str = "") -> Any:
    check_layers(path, step, config)
    layout = parameters.layout_for(config)
    return load_model(path, step, parameters.targets(config, layout), weights)


def _labels(path: Path, config: ModelConfig) -> tuple[str, ...]:
    # Only models imported from T5X have no settings. They have no classes.
    has_settings = config.has_classes or side_files.is_there(path / stored.SETTINGS)
    return _class_names(mapping.read_json(path / stored.SETTINGS) if has_settings else {}, config)


def _class_names(settings: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """Returns the class names in a config.json. If it has none, returns LABEL_0, LABEL_1, … as transformers does.

    A single output is a class, unless config.json says that the problem is a regression.
    """
    names = settings.get("id2label")
    if "regression" in config.heads and settings.get("problem_type") != "regression":
        return (names["0"] if isinstance(names, dict) and isinstance(names.get("0"), str) else "LABEL_0",)
    if isinstance(names, dict) and all(isinstance(names.get(str(i)), str) for i in range(config.num_classes)):
        return tuple(names[str(i)] for i in range(config.num_classes))
    return tuple(f"LABEL_{i}" for i in range(config.num_classes))


def _inputs(texts: Sequence[str]) -> list[dict[str, str]]:
    if isinstance(texts, str):  # otherwise each letter would count as a text
        raise ConfigError(f"pass a list of texts, [{texts[:40]!r}], not a single string")
    return [{"inputs": require_text(text)} for text in texts]


def in_batches(work: Callable[[list[int]], list], sizes: Sequence[int]) -> list:
    """Groups examples of similar sizes into batches and calls `work` for each batch. Returns one result per example.

    work: a function that takes the indices of the examples in a batch, at most BATCH_ROWS. It returns their results in
        the same order.
    sizes: the size of each example. The returned results have the order of `sizes`.
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
