"""Feature converters, one per architecture: from a task's texts to the features a model reads.

The same task feeds all three. A corpus (`{"text"}`) gets the architecture's own objective: span corruption, next
token, or masked tokens with next sentence. A supervised example (`{"inputs", "targets"}`) becomes encoder and
decoder, one concatenated sequence, or [CLS] … [SEP] with a label. Targets are shifted right in each example,
before packing, so no example ever sees its neighbour's last token.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from t5x_lite.batch import ArraySpec, specs
from t5x_lite.data.denoise import (
    chunks,
    mask_tokens,
    mlm_capacity,
    noise_counts,
    span_corruption,
    span_corruption_lengths,
)
from t5x_lite.data.packing import Example
from t5x_lite.data.registry import Task
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import ConfigError, DataError


class Converter(Protocol):
    """What the pipeline asks of a converter; frozen, so that its repr fingerprints it."""

    def specs(self) -> dict[str, ArraySpec]:
        """The arrays of a batch."""
        ...

    def sizes(self, pack: bool) -> dict[str, int]:
        """The size of each row dimension, by letter."""
        ...

    def corpus(
        self, texts: Sequence[str], vocabulary: Vocabulary, rng: np.random.Generator
    ) -> tuple[list[Example], int]:
        """Training examples from a window of documents, and how many of them were truncated (always 0: cut up)."""
        ...

    def supervised(
        self, examples: Sequence[Mapping[str, Any]], task: Task, vocabulary: Vocabulary
    ) -> tuple[list[Example], int]:
        """An example for each supervised one, in order, and how many of them were truncated."""
        ...

    def prompts(
        self, examples: Sequence[Mapping[str, Any]], task: Task, vocabulary: Vocabulary, max_new_tokens: int
    ) -> list[Example]:
        """What a model reads to predict each example's target."""
        ...


@dataclasses.dataclass(frozen=True)
class TextToText:
    """Encoder-decoder. `inputs` and `targets` end with EOS where the task's features say so.

    Two examples, inputs `7 8 5 1` and `8 4 9 3 1`, targets `3 9 1` and `4 1`, packed in rows of 10 and 7:

        encoder_input_tokens   7 8 5 1 8 4 9 3 1 0
        encoder_segment_ids    1 1 1 1 2 2 2 2 2 0
        encoder_positions      0 1 2 3 0 1 2 3 4 0
        decoder_target_tokens  3 9 1 4 1 0 0
        decoder_input_tokens   0 3 9 0 4 0 0
        decoder_loss_weights   1 1 1 1 1 0 0
        decoder_segment_ids    1 1 1 2 2 0 0
        decoder_positions      0 1 2 0 1 0 0
    """

    length: int
    targets_length: int
    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0

    def specs(self) -> dict[str, ArraySpec]:
        return specs("text_to_text")

    def sizes(self, pack: bool) -> dict[str, int]:
        return {"S": self.length, "L": self.targets_length}

    def corpus(self, texts, vocabulary, rng):
        raw = raw_length(self.length, self.targets_length, self.noise_density, self.mean_noise_span_length)
        tokens = np.concatenate([*vocabulary.encode(texts), np.zeros(0, np.int32)])
        eos = np.array([vocabulary.eos_id], np.int32)
        out = []
        for chunk in chunks(tokens, raw):
            inputs, targets = span_corruption(chunk, rng, vocabulary, self.noise_density, self.mean_noise_span_length)
            out.append(self._example(np.append(inputs, eos), np.append(targets, eos), vocabulary))
        return out, 0

    def supervised(self, examples, task, vocabulary):
        inputs = _encode(examples, "inputs", task, vocabulary)
        targets = _encode(examples, "targets", task, vocabulary)
        out, truncated = [], 0
        for i, t in zip(inputs, targets, strict=True):
            short_i = _cut(i, self.length, vocabulary, task, "inputs")
            short_t = _cut(t, self.targets_length, vocabulary, task, "targets")
            truncated += len(short_i) < len(i) or len(short_t) < len(t)
            out.append(self._example(short_i, short_t, vocabulary))
        return out, truncated

    def prompts(self, examples, task, vocabulary, max_new_tokens):
        inputs = _encode(examples, "inputs", task, vocabulary)
        return [{"encoder_input_tokens": _cut(i, self.length, vocabulary, task, "inputs")} for i in inputs]

    def _example(self, inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> Example:
        return {"encoder_input_tokens": inputs, **_shifted(targets, np.ones(len(targets), np.float32), vocabulary)}


@dataclasses.dataclass(frozen=True)
class DecoderOnly:
    """Language model. A corpus is cut into rows, every token a target; a supervised example is its inputs and
    targets in one sequence, with the loss on the targets only (the EOS between them is the separator).

    Two examples, inputs `7 8 1` and `5 1`, targets `3 9 1` and `4 1`, packed in a row of 12:

        decoder_target_tokens  7 8 1 3 9 1 5 1 4 1 0 0
        decoder_input_tokens   0 7 8 1 3 9 0 5 1 4 0 0
        decoder_loss_weights   0 0 0 1 1 1 0 0 1 1 0 0
        decoder_segment_ids    1 1 1 1 1 1 2 2 2 2 0 0
        decoder_positions      0 1 2 3 4 5 0 1 2 3 0 0
    """

    length: int

    def specs(self) -> dict[str, ArraySpec]:
        return specs("decoder_only")

    def sizes(self, pack: bool) -> dict[str, int]:
        return {"L": self.length}

    def corpus(self, texts, vocabulary, rng):
        eos = np.array([vocabulary.eos_id], np.int32)
        parts = [part for ids in vocabulary.encode(texts) if len(ids) for part in (ids, eos)]
        tokens = np.concatenate([*parts, np.zeros(0, np.int32)])
        return [_shifted(c, np.ones(len(c), np.float32), vocabulary) for c in chunks(tokens, self.length)], 0

    def supervised(self, examples, task, vocabulary):
        inputs = _encode(examples, "inputs", task, vocabulary)
        targets = _encode(examples, "targets", task, vocabulary)
        out, truncated = [], 0
        for i, t in zip(inputs, targets, strict=True):
            # Where both are long each gets half of the row; a short one leaves its room to the other.
            room = max(self.length // 2, self.length - len(i))
            short_t = _cut(t, room, vocabulary, task, "targets")
            short_i = _cut(i, self.length - len(short_t), vocabulary, task, "inputs")
            truncated += len(short_i) < len(i) or len(short_t) < len(t)
            weights = np.repeat(np.array([0, 1], np.float32), [len(short_i), len(short_t)])
            out.append(_shifted(np.concatenate([short_i, short_t]), weights, vocabulary))
        return out, truncated

    def prompts(self, examples, task, vocabulary, max_new_tokens):
        room = max(self.length - max_new_tokens, self.length // 2)
        start = np.array([vocabulary.pad_id], np.int32)  # what a shifted sequence begins with
        return [
            {"decoder_input_tokens": np.append(start, _cut(i, room - 1, vocabulary, task, "inputs"))}
            for i in _encode(examples, "inputs", task, vocabulary)
        ]


@dataclasses.dataclass(frozen=True)
class EncoderOnly:
    """BERT. A corpus gives pairs of texts for masked tokens and next sentence (Devlin et al. 2019, §3.1): half of
    the second texts come from another document. A supervised example gives its segments and its label.

    Two examples with [CLS] = 3 and [SEP] = 4, segments `7 8` with `5`, label 2, and `9`, label 0, in a row of 10:

        encoder_input_tokens   3 7 8 4 5 4 3 9 4 0
        encoder_segment_ids    1 1 1 1 1 1 2 2 2 0
        encoder_positions      0 1 2 3 4 5 0 1 2 0
        token_type_ids         0 0 0 0 1 1 0 0 0 0
        pooled_positions       0 6 0 0
        class_targets          2 0 0 0
        class_weights          1 1 0 0
    """

    length: int
    heads: tuple[str, ...]
    mlm_rate: float = 0.15
    max_examples_per_row: int = 16

    def specs(self) -> dict[str, ArraySpec]:
        return specs("encoder_only", self.heads)

    def sizes(self, pack: bool) -> dict[str, int]:
        examples = self.max_examples_per_row if pack else 1
        return {"S": self.length, "P": mlm_capacity(self.length, self.mlm_rate, examples), "E": examples}

    def corpus(self, texts, vocabulary, rng):
        room = self.length - 3  # [CLS] and two [SEP]
        pieces = [
            (text, first, second)
            for text in texts
            for first, second in _pieces([ids for ids in vocabulary.encode(sentences(text)) if len(ids)], room)
        ]
        out = []
        for text, first, second in pieces:
            is_next = True
            if "nsp" in self.heads and rng.random() < 0.5:
                other = _other(pieces, text, rng)
                if other is not None:
                    second, is_next = other, False
            second = second[: room - len(first)]
            out.append(self._masked(first, second, is_next, vocabulary, rng))
        return out, 0

    def supervised(self, examples, task, vocabulary):
        head = "regression" if task.regression else "classification"
        if not task.labels and not task.regression:
            raise ConfigError(
                f"task {task.name!r} has neither labels nor regression; an encoder has nothing to predict"
            )
        if head not in self.heads:
            raise ConfigError(f"task {task.name!r} needs the head {head!r}; the encoder has {', '.join(self.heads)}")
        out, truncated = [], 0
        labels = [label(example, task) for example in examples]
        for arrays, value in zip(self._segments(examples, task, vocabulary), labels, strict=True):
            tokens, types, cut = arrays
            truncated += cut
            example = self._unlabelled(tokens, types)
            if task.regression:
                example |= {
                    "regression_targets": np.array([value], np.float32),
                    "regression_weights": np.ones(1, np.float32),
                }
            else:
                example |= {"class_targets": np.array([value], np.int32), "class_weights": np.ones(1, np.float32)}
            out.append(example)
        return out, truncated

    def prompts(self, examples, task, vocabulary, max_new_tokens):
        return [self._unlabelled(tokens, types) for tokens, types, _ in self._segments(examples, task, vocabulary)]

    def _segments(self, examples, task, vocabulary):
        columns = [vocabulary.encode([text_of(e, field, task) for e in examples]) for field in task.segments]
        cls, sep = np.array([vocabulary.cls_id], np.int32), np.array([vocabulary.sep_id], np.int32)
        for parts in zip(*columns, strict=True):
            kept = _longest_first([len(p) for p in parts], self.length - 1 - len(parts))
            pieces = [cls] + [x for part, n in zip(parts, kept, strict=True) for x in (part[:n], sep)]
            types = np.repeat(np.arange(len(parts)), [n + 1 + (k == 0) for k, n in enumerate(kept)])
            yield np.concatenate(pieces), types.astype(np.int32), sum(kept) < sum(len(p) for p in parts)

    def _masked(self, first, second, is_next, vocabulary, rng) -> Example:
        cls, sep = np.array([vocabulary.cls_id], np.int32), np.array([vocabulary.sep_id], np.int32)
        parts = [cls, first, sep] + ([second, sep] if len(second) else [])
        tokens = np.concatenate(parts)
        types = (np.arange(len(tokens)) >= len(first) + 2).astype(np.int32)
        maskable = np.ones(len(tokens), bool)
        maskable[[0, len(first) + 1, -1]] = False
        corrupted, positions = mask_tokens(tokens, maskable, rng, vocabulary, self.mlm_rate)
        example = self._unlabelled(corrupted, types)
        if "mlm" in self.heads:
            example["mlm_positions"] = positions.astype(np.int32)
            example["mlm_targets"] = tokens[positions]
            example["mlm_weights"] = np.ones(len(positions), np.float32)
        if "nsp" in self.heads:
            example["nsp_targets"] = np.array([0 if is_next else 1], np.int32)
            example["nsp_weights"] = np.array([1 if len(second) else 0], np.float32)
        return example

    def _unlabelled(self, tokens: np.ndarray, types: np.ndarray) -> Example:
        """All features of all heads; what an example has no label for weighs nothing."""
        example: Example = {"encoder_input_tokens": tokens, "token_type_ids": types}
        for name, spec in self.specs().items():
            if spec.dims == "BE":
                example[name] = np.zeros(1, spec.dtype)
            elif spec.dims == "BP":
                example[name] = np.zeros(0, spec.dtype)
        return example


@functools.cache
def raw_length(length: int, targets_length: int, noise_density: float, mean_noise_span_length: float) -> int:
    """The most tokens of text whose corrupted inputs and targets both fit, EOS included: with a short decoder, fewer
    than `span_corruption_lengths` says. ConfigError when not even two tokens fit."""
    raw, _ = span_corruption_lengths(length, noise_density, mean_noise_span_length)
    for tokens in range(raw, 1, -1):
        noise, spans = noise_counts(tokens, noise_density, mean_noise_span_length)
        if tokens - noise + spans + 1 <= length and noise + max(spans, 1) + 1 <= targets_length:
            return tokens
    raise ConfigError(
        f"data.length={length}, data.targets_length={targets_length}: no room for span corruption; both must be at "
        "least 3 (29 targets go with 128 inputs, 114 with 512)"
    )


def sentences(text: str) -> list[str]:
    """A text's sentences, cut after . ! ? before a space, and at blank lines.

    >>> sentences("One. Two?\\n\\nThree")
    ['One.', 'Two?', 'Three']
    """
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if s.strip()]


def _encode(examples, field: str, task: Task, vocabulary: Vocabulary) -> list[np.ndarray]:
    ids = vocabulary.encode([text_of(e, field, task) for e in examples])
    if not task.features[field].add_eos:
        return ids
    return [np.append(i, np.int32(vocabulary.eos_id)) for i in ids]


def _cut(ids: np.ndarray, length: int, vocabulary: Vocabulary, task: Task, field: str) -> np.ndarray:
    """At most `length` ids; a truncated sequence keeps its EOS."""
    if len(ids) <= length:
        return ids
    short = ids[:length].copy()
    if task.features[field].add_eos:
        short[-1] = vocabulary.eos_id
    return short


def _shifted(targets: np.ndarray, weights: np.ndarray, vocabulary: Vocabulary) -> Example:
    return {
        "decoder_input_tokens": np.concatenate([[vocabulary.pad_id], targets])[: len(targets)].astype(np.int32),
        "decoder_target_tokens": targets.astype(np.int32),
        "decoder_loss_weights": weights,
    }


def _longest_first(lengths: list[int], room: int) -> list[int]:
    """What is kept of each segment when tokens are taken from the longest until all fit, as BERT's truncate_seq_pair
    does (which takes from the second of equals, where this takes from the first).

    >>> _longest_first([9, 3, 9], 12)
    [4, 3, 5]
    """
    if sum(lengths) <= room:
        return lengths
    cap = next(c for c in range(room, -1, -1) if sum(min(n, c) for n in lengths) <= room)
    kept = [min(n, cap) for n in lengths]
    for i in reversed(range(len(lengths))):
        if lengths[i] > cap and sum(kept) < room:
            kept[i] += 1
    return kept


def _pieces(document: list[np.ndarray], room: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(first, second) texts that cover a document: runs of sentences that fill `room`, split in two at a sentence
    about the middle (in the middle of one where there is just one). A sentence longer than `room` is cut up."""
    out, run, length = [], [], 0

    def close() -> None:
        if not run:
            return
        whole = np.concatenate(run)
        ends = np.cumsum([len(s) for s in run])
        inner = ends[ends < len(whole)]
        cut = int(inner[np.abs(inner - len(whole) / 2).argmin()]) if len(inner) else len(whole) // 2
        out.append((whole[:cut], whole[cut:]) if cut else (whole, whole[:0]))

    for sentence in (s[i : i + room] for s in document for i in range(0, len(s), room)):
        if run and length + len(sentence) > room:
            close()
            run, length = [], 0
        run.append(sentence)
        length += len(sentence)
    close()
    return out


def _other(pieces, text: str, rng: np.random.Generator) -> np.ndarray | None:
    """The second text of a random piece of another document; None when eight draws find none. A small corpus comes
    several times in a window, so documents are told apart by their text."""
    for _ in range(8):
        other, _, second = pieces[int(rng.integers(len(pieces)))]
        if other != text and len(second):
            return second
    return None


def text_of(example: Mapping[str, Any], field: str, task: Task) -> str:
    """A field of an example as text; DataError when the task's preprocessors left none."""
    if field not in example:
        raise DataError(
            f"task {task.name!r} needs the field {field!r}; after its preprocessors an example has "
            f"{', '.join(map(str, example)) or 'none'}. Make it with preprocess.template({field}='…')"
        )
    if example[field] is None:
        raise DataError(
            f"task {task.name!r}: the field {field!r} of an example is null; correct the data, or drop such examples "
            "with preprocess.keep"
        )
    return str(example[field])


def label(example: Mapping[str, Any], task: Task) -> int | float:
    """The class index, or the number, that an example's target stands for; DataError when it is neither."""
    target = text_of(example, "targets", task).strip()
    where = ", ".join(f"{name} {str(example[name])[:80]!r}" for name in ("inputs", *task.segments) if name in example)
    if task.regression:
        try:
            number = float(target)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"task {task.name!r}: target {target!r} is not a finite number; correct it in the data ({where})"
            )
        return number
    if target not in task.labels:
        raise DataError(
            f"task {task.name!r}: label {target!r} is not one of {', '.join(task.labels)}; "
            f"correct it in the data or add it to the task's labels ({where})"
        )
    return task.labels.index(target)
