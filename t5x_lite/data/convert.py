"""Feature converters, one per architecture: from a task's texts to the features a model reads.

The same task feeds all three. A corpus (`{"text"}`) gets the architecture's own objective: span corruption, next
token, or masked tokens with next sentence. A supervised example (`{"inputs", "targets"}`) becomes encoder and
decoder, one concatenated sequence, or [CLS] … [SEP] with a label. Targets are shifted right in each example,
before packing, so no example ever sees its neighbour's last token.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from t5x_lite.batch import ArraySpec, specs
from t5x_lite.data import packing, ragged, words
from t5x_lite.data.denoise import (
    Denoiser,
    chunks,
    corrupt_each,
    mask_tokens,
    mlm_capacity,
    plan_lengths,
)
from t5x_lite.data.packing import Examples
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.registry import Feature, Task, label_names
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import ConfigError, DataError

TEXT, WHICH = "text", "which_denoiser"  # features of a piece of a corpus before its objective is applied


class Converter(Protocol):
    """What the pipeline asks of a converter; frozen, so that its repr fingerprints it."""

    @property
    def on_long(self) -> str:
        """What becomes of a supervised example that does not fit in a row: "truncate" or "skip" (counted), "error"."""
        ...

    def specs(self) -> dict[str, ArraySpec]:
        """The arrays of a batch."""
        ...

    def sizes(self, pack: bool) -> dict[str, int]:
        """The size of each row dimension, by letter."""
        ...

    def corpus(self, texts: Sequence, vocabulary: Vocabulary, rng: np.random.Generator) -> Examples:
        """Training examples from a window of documents: finished, or the features TEXT and WHICH, to be denoised."""
        ...

    def denoise(self, texts: Examples, vocabulary: Vocabulary, rng: np.random.Generator) -> Examples:
        """Finished examples from those with TEXT, any number of windows of them at once."""
        ...

    def lengths(self, examples: Examples, vocabulary: Vocabulary) -> np.ndarray:
        """int [examples, dimensions]: each one's length in each row dimension, as planned where it is still a text."""
        ...

    def supervised(
        self, examples: Sequence[Mapping[str, Any]], task: Task, vocabulary: Vocabulary
    ) -> tuple[Examples, np.ndarray]:
        """An example for each supervised one, in order, and which of them had to be truncated (bool [examples]). Of a
        context that is longer than its row, one for each window."""
        ...

    def prompts(
        self, examples: Sequence[Mapping[str, Any]], task: Task, vocabulary: Vocabulary, max_new_tokens: int
    ) -> tuple[Examples, np.ndarray]:
        """What a model reads to predict each example's target, and which were truncated (bool [examples])."""
        ...

    def prompt_sizes(self, max_new_tokens: int) -> dict[str, int]:
        """The size of each dimension of a row that holds one prompt, with room for so many more tokens."""
        ...


class Encoded(dict[str, Any]):
    """An example out of a cache: ids in place of each text (of a corpus that an encoder reads, those of each
    sentence), and what its `targets` stand for where the task has labels."""

    label: float = 0


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` of a context, in a row of their own from column `first` on. example: the number of its
    example. places: (begin, end) in the context of the word of each of its tokens, in characters, [tokens, 2]."""

    example: int
    first: int
    begin: int
    end: int
    places: np.ndarray


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
    denoisers: tuple[Denoiser, ...] = (Denoiser(),)  # of a corpus, equally often
    on_long: str = "truncate"
    start_id: int = -1  # what the decoder reads first; -1: the vocabulary's pad
    fairseq_marks: bool = False  # inputs and targets begin with [CLS] (BART's <s>)
    prompt_tokens: int = 0  # that the inputs begin with, for a learned prompt to take their place

    def specs(self) -> dict[str, ArraySpec]:
        return specs("text_to_text")

    def sizes(self, pack: bool) -> dict[str, int]:
        return {"S": self.length, "L": self.targets_length}

    def corpus(self, texts, vocabulary, rng):
        return _texts(texts, self._plan(vocabulary), vocabulary, rng)

    def denoise(self, texts, vocabulary, rng):
        inputs, targets = _corrupted(texts, self.denoisers, vocabulary, rng)
        return self._examples(
            ragged.append(ragged.cut(inputs, self._room["S"] - 1), vocabulary.eos_id),
            ragged.append(ragged.cut(targets, self._room["L"] - 1), vocabulary.eos_id),
            vocabulary,
        )

    def lengths(self, examples, vocabulary):
        return _lengths(examples, self, lambda: self._plan(vocabulary))

    def _plan(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        return plan_lengths(self.denoisers, vocabulary, self._room["S"], self._room["L"])

    def supervised(self, examples, task, vocabulary):
        inputs = _encode(examples, "inputs", task, vocabulary)
        targets = _encode(examples, "targets", task, vocabulary)
        short_inputs = _cut(inputs, self._room["S"], vocabulary, task, "inputs")
        short_targets = _cut(targets, self._room["L"], vocabulary, task, "targets")
        truncated = (short_inputs.lengths < inputs.lengths) | (short_targets.lengths < targets.lengths)
        return self._examples(short_inputs, short_targets, vocabulary), truncated

    def prompts(self, examples, task, vocabulary, max_new_tokens):
        inputs = _encode(examples, "inputs", task, vocabulary)
        short = _cut(inputs, self._room["S"], vocabulary, task, "inputs")
        prompts = {"encoder_input_tokens": self._prompted(self._begun(short, vocabulary), vocabulary)}
        return prompts, short.lengths < inputs.lengths

    def prompt_sizes(self, max_new_tokens):
        return self.sizes(pack=False)

    @property
    def _room(self) -> dict[str, int]:
        """Of a row for text and its end."""
        prompt = {"S": self.prompt_tokens}
        return {k: n - self.fairseq_marks - prompt.get(k, 0) for k, n in self.sizes(pack=False).items()}

    def _begun(self, texts: Ragged, vocabulary: Vocabulary) -> Ragged:
        return ragged.join(ragged.constant(vocabulary.cls_id, len(texts)), texts) if self.fairseq_marks else texts

    def _examples(self, inputs: Ragged, targets: Ragged, vocabulary: Vocabulary) -> Examples:
        inputs, targets = self._begun(inputs, vocabulary), self._begun(targets, vocabulary)
        inputs = self._prompted(inputs, vocabulary)
        return {"encoder_input_tokens": inputs, **_shifted(targets, 1.0, start(self.start_id, vocabulary))}

    def _prompted(self, inputs: Ragged, vocabulary: Vocabulary) -> Ragged:
        nothing = np.full((len(inputs), self.prompt_tokens), vocabulary.pad_id, np.int32)
        return ragged.join(ragged.block(nothing), inputs) if self.prompt_tokens else inputs


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
    denoisers: tuple[Denoiser, ...] = ()  # of a corpus, equally often; none: every token is a target
    on_long: str = "truncate"
    start_id: int = -1  # what is read first; -1: the vocabulary's pad

    def specs(self) -> dict[str, ArraySpec]:
        return specs("decoder_only")

    def sizes(self, pack: bool) -> dict[str, int]:
        return {"L": self.length}

    def corpus(self, texts, vocabulary, rng):
        if self.denoisers:
            return _texts(texts, self._plan(vocabulary), vocabulary, rng)
        documents = ragged.of([ids for ids in _ids(texts, vocabulary) if len(ids)])
        tokens = ragged.append(documents, vocabulary.eos_id).values
        return _shifted(chunks(tokens, [self.length], rng)[0], 1.0, start(self.start_id, vocabulary))

    def denoise(self, texts, vocabulary, rng):
        inputs, targets = _corrupted(texts, self.denoisers, vocabulary, rng)
        short = ragged.cut(targets, self.length - 1 - inputs.lengths)
        return _continued(inputs, ragged.append(short, vocabulary.eos_id), start(self.start_id, vocabulary))

    def lengths(self, examples, vocabulary):
        return _lengths(examples, self, lambda: self._plan(vocabulary))

    def _plan(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        return plan_lengths(self.denoisers, vocabulary, self.length, self.length, self.length)

    def supervised(self, examples, task, vocabulary):
        inputs = _encode(examples, "inputs", task, vocabulary)
        targets = _encode(examples, "targets", task, vocabulary)
        # Where both are long each gets half of the row; a short one leaves its room to the other.
        room = np.maximum(self.length // 2, self.length - inputs.lengths)
        short_targets = _cut(targets, room, vocabulary, task, "targets")
        short_inputs = _cut(inputs, self.length - short_targets.lengths, vocabulary, task, "inputs")
        truncated = (short_inputs.lengths < inputs.lengths) | (short_targets.lengths < targets.lengths)
        out = _continued(short_inputs, short_targets, start(self.start_id, vocabulary))
        return out, truncated

    def prompts(self, examples, task, vocabulary, max_new_tokens):
        room = self.prompt_sizes(max_new_tokens)["L"]
        inputs = _encode(examples, "inputs", task, vocabulary)
        if task.features["inputs"].add_eos:
            short = _cut(inputs, room - 1, vocabulary, task, "inputs")
        else:  # what comes next follows from the end of a text
            short = ragged.tail(inputs, room - 1)
        first = ragged.constant(start(self.start_id, vocabulary), len(short))  # what a shifted sequence begins with
        return {"decoder_input_tokens": ragged.join(first, short)}, short.lengths < inputs.lengths

    def prompt_sizes(self, max_new_tokens):
        return {"L": max(self.length - max_new_tokens, self.length // 2)}


@dataclasses.dataclass(frozen=True)
class EncoderOnly:
    """BERT. A corpus gives pairs of texts for masked tokens and next sentence (Devlin et al. 2019, §3.1): half of
    the second texts come from another document; or for sentence order (Lan et al. 2020, §3.1): half of the pairs are
    exchanged. A supervised example gives its segments and its label.

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
    whole_words: bool = False  # masked with all their tokens or not at all
    longest_ngram: int = 1  # words, or tokens, masked together
    sentence_order: bool = False  # instead of next sentence: is the pair in order, or exchanged (ALBERT)?
    on_long: str = "truncate"
    fairseq_marks: bool = False  # two [SEP] between the segments (RoBERTa's </s></s>)
    window_stride: int = 128  # tokens from one window of a long context to the next
    choices: int = 1  # the most that an example has
    num_classes: int = 0  # of the head multi_label

    def specs(self) -> dict[str, ArraySpec]:
        return specs("encoder_only", self.heads)

    def sizes(self, pack: bool) -> dict[str, int]:
        examples = self.max_examples_per_row if pack else 1
        capacity = mlm_capacity(self.length, self.mlm_rate, examples)
        slots = max(examples, self.choices)
        labels = {"Y": slots * self.num_classes} if "multi_label" in self.heads else {}
        return {"S": self.length, "P": capacity, "E": slots, **labels}

    def corpus(self, texts, vocabulary, rng):
        room = self.length - 3 - self.fairseq_marks  # [CLS] and two or three [SEP]
        documents = [[ids for ids in _sentence_ids(text, vocabulary) if len(ids)] for text in texts]
        pieces = [
            (b"".join(ids.tobytes() for ids in document), first, second)
            for document in documents
            for first, second in _pieces(document, room)
        ]
        pairs, wrong = [], []
        for document, first, second in pieces:
            other = None
            if "nsp" in self.heads and rng.random() < 0.5:
                other = (second, first) if self.sentence_order and len(second) else None
                if not self.sentence_order and (random := _other(pieces, document, rng)) is not None:
                    other = (first, random[: room - len(first)])
            wrong.append(other is not None)
            pairs.append(other or (first, second[: room - len(first)]))
        firsts, seconds = (ragged.of([pair[n] for pair in pairs]) for n in (0, 1))
        return self._masked(firsts, seconds, np.array(wrong, bool), vocabulary, rng)

    def denoise(self, texts, vocabulary, rng):
        raise AssertionError("an encoder's corpus has no texts left to denoise")

    def lengths(self, examples, vocabulary):
        return _lengths(examples, self, tuple)

    def supervised(self, examples, task, vocabulary):
        if not task.head:
            raise ConfigError(f"task {task.name!r} has nothing that an encoder's head could predict")
        if task.head not in self.heads:
            raise ConfigError(
                f"task {task.name!r} needs the head {task.head!r}; the encoder has {', '.join(self.heads)}"
            )
        if task.head == "span":
            out, windows = self.windows(examples, task, vocabulary)
            answers_N2 = np.array([_answer(examples[w.example], w) for w in windows], np.int32).reshape(-1, 2)
            out["span_starts"], out["span_ends"] = (_one_each(column_N) for column_N in answers_N2.T)
            out["span_weights"] = _one_each(np.ones(len(windows), np.float32))
            return out, np.zeros(len(windows), bool)
        if task.head == "token_classification":
            out, word_of, truncated = self._words(examples, task, vocabulary)
            tags = ragged.of([_tags(example, task) for example in examples])
            begins = out["token_weights"].values > 0
            of_row = np.repeat(tags.starts, word_of.lengths)
            out["token_targets"].values[begins] = tags.values[(of_row + word_of.values)[begins]]
            return out, truncated
        if task.head == "multi_label":
            tokens, types, truncated = self._segments(examples, task, task.segments, self.length, vocabulary)
            out = self._unlabelled(tokens, types)
            found = np.array([label_set(example, task) for example in examples], np.float32)
            out["label_targets"] = ragged.block(found.reshape(len(examples), self.num_classes))
            out["label_weights"] = _one_each(np.ones(len(examples), np.float32))
            return out, truncated
        labels = [label(example, task) for example in examples]
        if task.head == "multiple_choice":
            out, truncated = self._choices(examples, task, vocabulary)
            out["choice_weights"] = ragged.block(
                np.eye(len(task.choices), dtype=np.float32)[np.array(labels, np.int64)]
            )
            return out, truncated
        tokens, types, truncated = self._segments(examples, task, task.segments, self.length, vocabulary)
        out = self._unlabelled(tokens, types)
        name, dtype = ("regression", np.float32) if task.regression else ("class", np.int32)
        out[f"{name}_targets"] = _one_each(np.array(labels, dtype))
        out[f"{name}_weights"] = _one_each(np.ones(len(labels), np.float32))
        return out, truncated

    def prompts(self, examples, task, vocabulary, max_new_tokens):
        """As in training; of a long context the first window (all of them: `windows`)."""
        if task.head == "span":
            out, windows = self.windows(examples, task, vocabulary)
            first = packing.take(out, np.unique([w.example for w in windows], return_index=True)[1])
            return first, np.zeros(len(examples), bool)
        if task.head == "token_classification":
            out, _, truncated = self._words(examples, task, vocabulary)
            return out, truncated
        if task.head == "multiple_choice":
            return self._choices(examples, task, vocabulary)
        tokens, types, truncated = self._segments(examples, task, task.segments, self.length, vocabulary)
        return self._unlabelled(tokens, types), truncated

    def prompt_sizes(self, max_new_tokens):
        return self.sizes(pack=False)

    def windows(
        self,
        examples: Sequence[Mapping[str, Any]],
        task: Task,
        vocabulary: Vocabulary,
        overlap: Callable[[int], int] | None = None,
    ) -> tuple[Examples, list[Window]]:
        """[CLS] question [SEP] a window of the context [SEP], as often as each context needs: of what does not fit in a
        row, every window begins `window_stride` tokens after the one before.

        overlap: in place of that stride, how many tokens a window shares with the one before, by its size.
        """
        question, context = task.segments
        asked = ragged.of(_ids([text_of(e, question, task) for e in examples], vocabulary))
        asked = ragged.cut(asked, self.length // 2)
        windows, parts = [], []
        for number, text in enumerate(text_of(e, context, task) for e in examples):
            ids, places_T2 = vocabulary.places(text)
            of_token = words.around(text, places_T2)
            first = 2 + int(asked.lengths[number]) + self.fairseq_marks
            room = self.length - first - 1
            if room < 1:
                raise ConfigError(f"data.length={self.length} leaves no room for a context behind a question")
            step = min(self.window_stride, room) if overlap is None else room - overlap(room)
            if not 0 < step <= room and len(ids) > room:
                raise ConfigError(
                    f"windows of {room} tokens cannot share {room - step}; let them share 0 to {room - 1}"
                )
            for begin in range(0, len(ids) - room + step, step) if len(ids) > room else (0,):
                end = min(begin + room, len(ids))
                windows.append(Window(number, first, begin, end, of_token))
                parts.append(ids[begin:end])
        questions = ragged.take(asked, np.array([w.example for w in windows], np.int64))
        pair = [questions, ragged.of(parts)]
        filled, types, _ = self._with_marks(pair, [np.ones(len(windows), bool)] * 2, vocabulary)
        return self._unlabelled(filled, types), windows

    def _words(self, examples, task, vocabulary) -> tuple[Examples, Ragged, np.ndarray]:
        """[CLS] the words of each example [SEP], with a weight of 1 where each begins; the word of each token (0 of the
        marks); and which were truncated."""
        spaced = [[" " * (n > 0) + word for n, word in enumerate(words_of(e, task))] for e in examples]
        tokens, word_of = words.encoded(spaced, vocabulary)
        begins = np.diff(word_of.values, prepend=-1) != 0
        begins[tokens.starts[tokens.lengths > 0]] = True
        weights = Ragged(begins.astype(np.float32), tokens.lengths)
        short = [ragged.cut(column, self.length - 2) for column in (tokens, word_of, weights)]
        filled, types, _ = self._with_marks(short[:1], [np.ones(len(examples), bool)], vocabulary)
        word_of, weights = (
            ragged.join(mark, column, mark)
            for column in short[1:]
            for mark in [_one_each(np.zeros(len(examples), column.values.dtype))]
        )
        out = self._unlabelled(filled, types) | {"token_weights": weights}
        return out, word_of, short[0].lengths < tokens.lengths

    def _choices(self, examples, task, vocabulary) -> tuple[Examples, np.ndarray]:
        """[CLS] segments [SEP] choice [SEP] of every choice of each example, side by side, which see not each other."""
        each = [
            self._segments(examples, task, (*task.segments, choice), self.length // len(task.choices), vocabulary)
            for choice in task.choices
        ]
        tokens = ragged.join(*(tokens for tokens, _, _ in each))
        types = ragged.join(*(Ragged(types, tokens.lengths) for tokens, types, _ in each))
        lengths = np.stack([tokens.lengths for tokens, _, _ in each], axis=1)
        out = self._unlabelled(tokens, types.values, parts=ragged.block(lengths))
        return out, np.any([truncated for _, _, truncated in each], axis=0)

    def _segments(
        self, examples, task, fields: Sequence[str], length: int, vocabulary
    ) -> tuple[Ragged, np.ndarray, np.ndarray]:
        """[CLS] first [SEP] second [SEP] of each example, its token types, and which were truncated."""
        parts = [ragged.of(_ids([text_of(e, field, task) for e in examples], vocabulary)) for field in fields]
        lengths = np.stack([part.lengths for part in parts], axis=1)
        room = length - 1 - len(parts) - self.fairseq_marks * (len(parts) - 1)
        over = lengths.sum(axis=1) > room
        kept = lengths.copy()
        for row in np.flatnonzero(over):
            kept[row] = _longest_first(lengths[row].tolist(), room)
        short = [ragged.cut(part, n) for part, n in zip(parts, kept.T, strict=True)]
        tokens, types, _ = self._with_marks(short, [np.ones(len(examples), bool)] * len(short), vocabulary)
        return tokens, types, over

    def _masked(
        self, first: Ragged, second: Ragged, wrong: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator
    ) -> Examples:
        paired = second.lengths > 0
        tokens, types, special = self._with_marks([first, second], [np.ones_like(paired), paired], vocabulary)
        corrupted, positions = mask_tokens(
            tokens, ~special, rng, vocabulary, self.mlm_rate, self.whole_words, self.longest_ngram
        )
        out = self._unlabelled(Ragged(corrupted, tokens.lengths), types)
        if "mlm" in self.heads:
            hidden = tokens.values[positions.values + np.repeat(tokens.starts, positions.lengths)]
            out["mlm_positions"] = Ragged(positions.values.astype(np.int32), positions.lengths)
            out["mlm_targets"] = Ragged(hidden, positions.lengths)
            out["mlm_weights"] = Ragged(np.ones(len(hidden), np.float32), positions.lengths)
        if "nsp" in self.heads:
            out["nsp_targets"] = _one_each(wrong.astype(np.int32))
            out["nsp_weights"] = _one_each(paired.astype(np.float32))
        return out

    def _with_marks(
        self, parts: Sequence[Ragged], closed: Sequence[np.ndarray], vocabulary: Vocabulary
    ) -> tuple[Ragged, np.ndarray, np.ndarray]:
        """[CLS] first [SEP] second [SEP] …; the token type of each value; and whether it is such a mark.

        closed: for each part a bool for each row, whether a [SEP] follows it.
        """
        rows = len(parts[0])
        pieces, type_of_piece, is_mark = [ragged.constant(vocabulary.cls_id, rows)], [0], [True]
        for number, (part, close) in enumerate(zip(parts, closed, strict=True)):
            mark = Ragged(np.full(int(close.sum()), vocabulary.sep_id, np.int32), close.astype(np.int64))
            added = [part, mark]
            if self.fairseq_marks and number:
                added = [mark, part, mark]
            pieces += added
            type_of_piece += [number] * len(added)
            is_mark += [piece is mark for piece in added]
        lengths = np.stack([piece.lengths for piece in pieces], axis=1).ravel()
        types = np.repeat(np.tile(np.array(type_of_piece, np.int32), rows), lengths)
        marks = np.repeat(np.tile(np.array(is_mark), rows), lengths)
        return ragged.join(*pieces), types, marks

    def _unlabelled(self, tokens: Ragged, types: np.ndarray, parts: Ragged | None = None) -> Examples:
        """All features of all heads; what an example has no label for weighs nothing. parts: the lengths of each
        example's parts; None: it is one."""
        parts = _one_each(tokens.lengths) if parts is None else parts
        begins = np.cumsum(parts.values) - parts.values - np.repeat(tokens.starts, parts.lengths)
        out = {"encoder_input_tokens": tokens, "token_type_ids": Ragged(types, tokens.lengths)}
        if "multiple_choice" in self.heads:
            out[packing.PARTS] = parts
        for name, spec in self.specs().items():
            if name == "pooled_positions":
                out[name] = Ragged(begins.astype(np.int32), parts.lengths)
            elif spec.dims == "BE":
                first = name == "choice_questions"  # 1 + the column where it begins, 0 for now
                out[name] = Ragged(np.full(len(parts.values), first, spec.dtype), parts.lengths)
            elif spec.dims == "BS" and name.startswith("token_") and name not in out:
                out[name] = Ragged(np.zeros(len(tokens.values), spec.dtype), tokens.lengths)
            elif spec.dims == "BY":
                lengths = self.num_classes * parts.lengths
                out[name] = Ragged(np.zeros(lengths.sum(), spec.dtype), lengths)
            elif spec.dims == "BP":
                out[name] = Ragged(np.zeros(0, spec.dtype), np.zeros(len(tokens), np.int64))
        return out


def sentences(text: str) -> list[str]:
    """A text's sentences, cut after . ! ? before a space, and at blank lines.

    >>> sentences("One. Two?\\n\\nThree")
    ['One.', 'Two?', 'Three']
    """
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if s.strip()]


def _texts(texts: Sequence[str], plan: tuple[int, ...], vocabulary: Vocabulary, rng: np.random.Generator) -> Examples:
    """Documents end to end, cut to the planned lengths of the denoisers."""
    pieces, which = chunks(ragged.of(_ids(texts, vocabulary)).values, plan, rng)
    return {TEXT: pieces, WHICH: _one_each(which)}


def _corrupted(
    texts: Examples, denoisers: tuple[Denoiser, ...], vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[Ragged, Ragged]:
    return corrupt_each(texts[TEXT], texts[WHICH].values, denoisers, rng, vocabulary)


def _lengths(examples: Examples, converter: Converter, plan: Callable[[], tuple[int, ...]]) -> np.ndarray:
    sizes = converter.sizes(pack=True)
    if TEXT not in examples:
        return packing.lengths_of(examples, converter.specs(), "".join(sizes))
    # A text of its planned length fills a row.
    share = examples[TEXT].lengths / np.array(plan())[examples[WHICH].values]
    return np.ceil(share[:, None] * list(sizes.values())).astype(np.int64)


def _encode(examples, field: str, task: Task, vocabulary: Vocabulary) -> Ragged:
    ids = ragged.of(_ids([text_of(e, field, task) for e in examples], vocabulary))
    return ragged.append(ids, vocabulary.eos_id) if task.features[field].add_eos else ids


def _cut(ids: Ragged, limits: np.ndarray | int, vocabulary: Vocabulary, task: Task, field: str) -> Ragged:
    """At most `limits` ids of each row; a truncated row keeps its EOS."""
    short = ragged.cut(ids, limits)
    truncated = (short.lengths < ids.lengths) & (short.lengths > 0)
    if task.features[field].add_eos and truncated.any():
        short.values[short.ends[truncated] - 1] = vocabulary.eos_id
    return short


def text_task(architecture: str, segments: tuple[str, ...] = ("inputs",)) -> Task:
    """A task that is nothing but its texts, for models that no task has trained: a language model goes on from its
    inputs, so there they have no end; an encoder of a text_to_text model has read one behind every text."""
    features = {"inputs": Feature(add_eos=architecture != "decoder_only"), "targets": Feature()}
    return Task("text", source=None, features=features, segments=segments)  # type: ignore[arg-type]  (nothing is read)


def start(start_id: int, vocabulary: Vocabulary) -> int:
    """What a decoder reads first: the id that its model was trained with, or else the vocabulary's pad."""
    return start_id if start_id >= 0 else vocabulary.pad_id


def _shifted(targets: Ragged, weights: float | np.ndarray, start_id: int) -> Examples:
    """A decoder's three features; weights: one for all, or one a target."""
    weight_of = np.empty(len(targets.values), np.float32)
    weight_of[:] = weights
    return {
        "decoder_input_tokens": ragged.shift(targets, start_id),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": Ragged(weight_of, targets.lengths),
    }


def _continued(inputs: Ragged, targets: Ragged, start_id: int) -> Examples:
    """Inputs and targets in one sequence, with the loss on the targets only."""
    parts = np.stack([inputs.lengths, targets.lengths], axis=1)
    weights = np.repeat(np.tile([0.0, 1.0], len(inputs)), parts.ravel())
    return _shifted(ragged.join(inputs, targets), weights, start_id)


def _one_each(values: np.ndarray) -> Ragged:
    return Ragged(values, np.ones(len(values), np.int64))


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


def _other(pieces, document: bytes, rng: np.random.Generator) -> np.ndarray | None:
    """The second text of a random piece of another document; None when eight draws find none. A small corpus comes
    several times in a window, so documents are told apart by their ids."""
    for _ in range(8):
        other, _, second = pieces[int(rng.integers(len(pieces)))]
        if other != document and len(second):
            return second
    return None


def _ids(texts: Sequence, vocabulary: Vocabulary) -> list[np.ndarray]:
    """The ids of each text; what comes out of a cache is ids already."""
    return vocabulary.encode(texts) if not len(texts) or isinstance(texts[0], str) else list(texts)


def _sentence_ids(text, vocabulary: Vocabulary) -> list[np.ndarray]:
    return vocabulary.encode(sentences(text)) if isinstance(text, str) else text


def text_of(example: Mapping[str, Any], field: str, task: Task) -> Any:
    """A field of an example as text, or the ids that a cache has for it; DataError when there is none."""
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
    if isinstance(example[field], bytes):
        raise DataError(f"task {task.name!r}: the field {field!r} of an example holds bytes that are not UTF-8")
    return example[field] if isinstance(example, Encoded) else str(example[field])


def words_of(example: Mapping[str, Any], task: Task) -> list[str]:
    """The words of an example whose words have tags: its `tokens`, a list, or a text with spaces between them."""
    tokens = example.get("tokens")
    if isinstance(tokens, list | tuple):
        return [str(token) for token in tokens]
    return text_of(example, "tokens", task).split()


def _tags(example: Mapping[str, Any], task: Task) -> np.ndarray:
    """The class of each word's tag; DataError where a word has none, or an unknown one."""
    tags, count = list(example.get("tags") or ()), len(words_of(example, task))
    unknown = [tag for tag in tags if tag not in task.tags]
    if unknown or len(tags) != count:
        problem = f"tag {unknown[0]!r} is not one of {', '.join(task.tags)}" if unknown else f"{len(tags)} tags"
        raise DataError(
            f"task {task.name!r}: {problem}, of the {count} words {' '.join(words_of(example, task))[:80]!r}; correct "
            "the data, or add it to the task's tags"
        )
    return np.array([task.tags.index(tag) for tag in tags], np.int32)


def _answer(example: Mapping[str, Any], window: Window) -> tuple[int, int]:
    """The columns of an answer's first and last token; those of [CLS] where it is not in the window."""
    begin, end = example.get("answer_span") or (0, 0)
    tokens = np.flatnonzero((window.places[:, 1] > begin) & (window.places[:, 0] < end))
    if not len(tokens) or tokens[0] < window.begin or tokens[-1] >= window.end:
        return 0, 0
    first = window.first - window.begin
    return first + int(tokens[0]), first + int(tokens[-1])


def label_set(example: Mapping[str, Any], task: Task) -> list[bool]:
    """Of each class, whether an example's target names it; DataError where it names another."""
    named = label_names(text_of(example, "targets", task))
    for name in named:
        _require_label(name, example, task)
    return [label in named for label in task.labels]


def label(example: Mapping[str, Any], task: Task) -> int | float:
    """The class index, or the number, that an example's target stands for; DataError when it is neither."""
    if isinstance(example, Encoded):
        return example.label
    field = "number" if task.regression and "number" in example else "targets"
    target = text_of(example, field, task).strip()
    if task.regression:
        try:
            number = float(target)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"task {task.name!r}: target {target!r} is not a finite number; correct it in the data "
                f"({_told(example, task)})"
            )
        return number
    _require_label(target, example, task)
    return task.labels.index(target)


def _require_label(name: str, example: Mapping[str, Any], task: Task) -> None:
    if name not in task.labels:
        raise DataError(
            f"task {task.name!r}: label {name!r} is not one of {', '.join(task.labels)}; "
            f"correct it in the data or add it to the task's labels ({_told(example, task)})"
        )


def _told(example: Mapping[str, Any], task: Task) -> str:
    """The beginnings of an example's texts, to find it by."""
    fields = dict.fromkeys(("inputs", *task.segments))
    return ", ".join(f"{name} {str(example[name])[:80]!r}" for name in fields if name in example)
