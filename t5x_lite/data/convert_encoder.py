"""Converts examples for encoder-only models: [CLS] … [SEP] with masked tokens, labels, tags, spans or choices."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.batch import ArraySpec, specs
from t5x_lite.data import packing, ragged, words
from t5x_lite.data.fields import ids_of, label, label_set, number, tag_ids, text_of, words_of
from t5x_lite.data.masked_lm import mask_tokens, mlm_capacity
from t5x_lite.data.packing import Examples
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.registry import Task
from t5x_lite.data.sentence_pairs import other_second, pairs_of, sentence_ids
from t5x_lite.data.targets import Choices, Classes, Match, Number, Similarity, Span, Tags, Target
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.heads import MATCH, NEGATIVE, QUERY


@dataclasses.dataclass(frozen=True)
class Window:
    """Describes a window: the tokens `begin` to `end` − 1 of a context. They are in a row, from column `first` on.

    example: the index of the example that the context belongs to.
    places: int64 [tokens of the context, 2]. Row t is the place of token t's word in the context: (begin, end) in
        characters.
    """

    example: int
    first: int
    begin: int
    end: int
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class EncoderOnly:
    """Converts examples for encoders such as BERT.

    A corpus becomes pairs of texts with some masked tokens. A second objective is about the pair. Next sentence asks
    whether the second text follows the first: half of the second texts come from a different document (Devlin et al.
    2019, §3.1). Sentence order asks whether the two texts are in order: half of the pairs are swapped (Lan et al. 2020,
    §3.1). A supervised example becomes its segments and its label.

    Let [CLS] be 3 and [SEP] be 4. Example 1 has the segments `7 8` and `5` and the label 2; example 2 has the segment
    `9` and the label 0. Packed into a row of 10, they become:

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
    whole_words: bool = False  # mask all tokens of a word or none
    longest_ngram: int = 1  # mask up to this many consecutive words (or tokens) together
    sentence_order: bool = False  # ALBERT's objective instead of next sentence: is the pair in order, or swapped?
    on_long: str = "truncate"
    fairseq_marks: bool = False  # two [SEP] between the segments (RoBERTa's </s></s>)
    window_stride: int = 128  # tokens from the start of one window of a long context to the start of the next
    choices: int = 1  # the largest number of texts of an example that do not attend to each other (choices, a pair)
    num_classes: int = 0  # classes of the head multi_label
    # Whether a text must begin with [CLS]; False: it does if the vocabulary has one (T5's does not). It is not in the
    # repr, the fingerprint of data: with one vocabulary, both values give the same examples, or True gives an error.
    needs_cls: bool = dataclasses.field(default=True, repr=False)

    def specs(self) -> dict[str, ArraySpec]:
        return specs("encoder_only", self.heads)

    def sizes(self, pack: bool) -> dict[str, int]:
        examples = self.max_examples_per_row if pack else 1
        capacity = mlm_capacity(self.length, self.mlm_rate, examples)
        slots = max(examples, self.choices)
        labels = {"Y": slots * self.num_classes} if any(spec.dims == "BY" for spec in self.specs().values()) else {}
        return {"S": self.length, "P": capacity, "E": slots, **labels}

    def corpus(self, texts, vocabulary, rng):
        room = self.length - 3 - self.fairseq_marks  # [CLS] and two or three [SEP]
        documents = [[ids for ids in sentence_ids(text, vocabulary) if len(ids)] for text in texts]
        pieces = [
            (b"".join(ids.tobytes() for ids in document), first, second)
            for document in documents
            for first, second in pairs_of(document, room)
        ]
        pairs, is_wrong = [], []
        for document, first, second in pieces:
            wrong = None
            if "nsp" in self.heads and rng.random() < 0.5:
                wrong = (second, first) if self.sentence_order and len(second) else None
                if not self.sentence_order and (random := other_second(pieces, document, rng)) is not None:
                    wrong = (first, random[: room - len(first)])
            is_wrong.append(wrong is not None)
            pairs.append(wrong or (first, second[: room - len(first)]))
        firsts, seconds = (ragged.of([pair[n] for pair in pairs]) for n in (0, 1))
        return self._masked(firsts, seconds, np.array(is_wrong, bool), vocabulary, rng)

    def denoise(self, texts, vocabulary, rng):
        raise AssertionError("`corpus` has already masked an encoder's examples")

    def lengths(self, examples, vocabulary):
        return packing.lengths_of(examples, self.specs(), "".join(self.sizes(pack=True)))

    def supervised(self, examples, task, vocabulary):
        head = task.target.head
        if not head:
            raise ConfigError(
                f"task {task.name!r} has free text as targets, and no head of an encoder predicts it; give the task a "
                "target such as Classes, or use text_to_text or decoder_only"
            )
        if head not in self.heads:
            raise ConfigError(f"task {task.name!r} needs the head {head!r}; the encoder has {', '.join(self.heads)}")
        return BY_TARGET[type(task.target)](self, examples, task, vocabulary, labelled=True)

    def prompts(self, examples, task, vocabulary, max_new_tokens):
        """Converts examples as in training, but without labels. If a context needs several windows, returns only the
        first window. (`windows` returns all of them.)"""
        if type(task.target) in BY_TARGET:
            return BY_TARGET[type(task.target)](self, examples, task, vocabulary, labelled=False)
        return self._plain(examples, task, vocabulary)

    def prompt_sizes(self, max_new_tokens):
        return self.sizes(pack=False)

    def windows(
        self,
        examples: Sequence[Mapping[str, Any]],
        task: Task,
        vocabulary: Vocabulary,
        overlap: Callable[[int], int] | None = None,
    ) -> tuple[Examples, list[Window]]:
        """Makes [CLS] question [SEP] window [SEP] for every window of every example's context, in the order of the
        examples.

        If a context does not fit in a row, each window begins `window_stride` tokens after the previous one.
        overlap: a function that replaces `window_stride`. It maps the number of tokens in a window to the number of
            tokens that two consecutive windows share.
        Raises ConfigError if a row has no room for a context, or if `overlap` returns a number that is negative or not
        less than its argument.
        """
        question, context = task.segments
        questions = ragged.of(ids_of([text_of(e, question, task) for e in examples], vocabulary))
        questions = ragged.cut(questions, self.length // 2)
        windows, parts = [], []
        for index, text in enumerate(text_of(e, context, task) for e in examples):
            ids, places_T2 = vocabulary.places(text)
            words_T2 = words.around(text, places_T2)
            first = 1 + len(self._marks(vocabulary)[0]) + int(questions.lengths[index]) + self.fairseq_marks
            room = self.length - first - 1
            if room < 1:
                raise ConfigError(
                    f"data.length={self.length} leaves no room for a context after a question of "
                    f"{int(questions.lengths[index])} tokens; raise data.length"
                )
            step = min(self.window_stride, room) if overlap is None else room - overlap(room)
            if not 0 < step <= room and len(ids) > room:
                raise ConfigError(
                    f"windows of {room} tokens cannot share {room - step}; the overlap must be 0 to {room - 1}"
                )
            for begin in range(0, len(ids) - room + step, step) if len(ids) > room else (0,):
                end = min(begin + room, len(ids))
                windows.append(Window(index, first, begin, end, words_T2))
                parts.append(ids[begin:end])
        pair = [ragged.take(questions, np.array([w.example for w in windows], np.int64)), ragged.of(parts)]
        filled, types, _ = self._with_marks(pair, [np.ones(len(windows), bool)] * 2, vocabulary)
        return self._unlabelled(filled, types), windows

    def _plain(self, examples, task, vocabulary) -> tuple[Examples, np.ndarray]:
        tokens, types, truncated = self._segments(examples, task, task.segments, self.length, vocabulary)
        return self._unlabelled(tokens, types), truncated

    def _with_classes(self, examples, task, vocabulary, labelled: bool) -> tuple[Examples, np.ndarray]:
        out, truncated = self._plain(examples, task, vocabulary)
        if labelled and task.target.several:
            targets = np.array([label_set(example, task) for example in examples], np.float32)
            out["label_targets"] = ragged.block(targets.reshape(len(examples), self.num_classes))
            out["label_weights"] = ragged.singles(np.ones(len(examples), np.float32))
        elif labelled:
            out["class_targets"] = ragged.singles(np.array([label(e, task) for e in examples], np.int32))
            out["class_weights"] = ragged.singles(np.ones(len(examples), np.float32))
        return out, truncated

    def _with_numbers(self, examples, task, vocabulary, labelled: bool) -> tuple[Examples, np.ndarray]:
        out, truncated = self._plain(examples, task, vocabulary)
        if labelled:
            out["regression_targets"] = ragged.singles(np.array([number(e, task) for e in examples], np.float32))
            out["regression_weights"] = ragged.singles(np.ones(len(examples), np.float32))
        return out, truncated

    def _with_tags(self, examples, task, vocabulary, labelled: bool) -> tuple[Examples, np.ndarray]:
        out, word_of, truncated = self._words(examples, task, vocabulary)
        if labelled:
            tags = ragged.of([tag_ids(example, task) for example in examples])
            begins = out["token_weights"].values > 0
            of_row = np.repeat(tags.starts, word_of.lengths)
            out["token_targets"].values[begins] = tags.values[(of_row + word_of.values)[begins]]
        return out, truncated

    def _with_spans(self, examples, task, vocabulary, labelled: bool) -> tuple[Examples, np.ndarray]:
        out, windows = self.windows(examples, task, vocabulary)
        if not labelled:
            first = packing.take(out, np.unique([w.example for w in windows], return_index=True)[1])
            return first, np.zeros(len(examples), bool)
        answers_N2 = np.array([_answer(examples[w.example], w) for w in windows], np.int32).reshape(-1, 2)
        out["span_starts"], out["span_ends"] = (ragged.singles(column_N) for column_N in answers_N2.T)
        out["span_weights"] = ragged.singles(np.ones(len(windows), np.float32))
        return out, np.zeros(len(windows), bool)

    def _with_choices(self, examples, task, vocabulary, labelled: bool) -> tuple[Examples, np.ndarray]:
        """Makes [CLS] segments [SEP] choice [SEP] for every choice of an example, side by side in one row. The choices
        do not attend to each other."""
        texts = [(*task.segments, field) for field in task.target.fields]
        out, truncated = self._side_by_side(examples, task, texts, vocabulary)
        if labelled:
            right = np.array([label(example, task) for example in examples], np.int64)
            out["choice_weights"] = ragged.block(np.eye(len(texts), dtype=np.float32)[right])
        return out, truncated

    def _with_match(self, examples, task, vocabulary, labelled: bool) -> tuple[Examples, np.ndarray]:
        """Makes [CLS] text [SEP] of an example's query, match and negatives, side by side in one row."""
        out, truncated = self._pair(examples, task, vocabulary)
        if labelled:
            roles = np.array([QUERY, MATCH, *[NEGATIVE] * (len(task.target.fields) - 1)], np.int32)
            out["contrastive_roles"] = ragged.block(np.tile(roles, (len(examples), 1)))
            out["contrastive_weights"] = ragged.block(np.tile((roles == QUERY).astype(np.float32), (len(examples), 1)))
        return out, truncated

    def _with_similarity(self, examples, task, vocabulary, labelled: bool) -> tuple[Examples, np.ndarray]:
        """Makes [CLS] text [SEP] of both texts of an example, side by side in one row."""
        out, truncated = self._pair(examples, task, vocabulary)
        if labelled:
            cosines = np.array([task.target.cosine(number(example, task)) for example in examples], np.float32)
            out["similarity_targets"] = ragged.block(np.stack([cosines, np.zeros_like(cosines)], axis=1))
            out["similarity_weights"] = ragged.block(np.tile(np.array([1, 0], np.float32), (len(examples), 1)))
        return out, truncated

    def _pair(self, examples, task, vocabulary) -> tuple[Examples, np.ndarray]:
        texts = [(field,) for field in (*task.segments[:1], *task.target.fields)]
        return self._side_by_side(examples, task, texts, vocabulary)

    def _side_by_side(self, examples, task, texts: Sequence[Sequence[str]], vocabulary) -> tuple[Examples, np.ndarray]:
        """Makes [CLS] segments [SEP] for each of an example's texts. The texts do not attend to each other.

        texts: the fields that are the segments of each text.
        """
        if (room := self.length // len(texts)) < 8:
            raise ConfigError(
                f"data.length={self.length} leaves {room} tokens for each of the {len(texts)} texts of an example of "
                f"task {task.name!r}; set at least {8 * len(texts)}"
            )
        each = [self._segments(examples, task, fields, room, vocabulary) for fields in texts]
        tokens = ragged.join(*(tokens for tokens, _, _ in each))
        types = ragged.join(*(Ragged(types, tokens.lengths) for tokens, types, _ in each))
        lengths = np.stack([tokens.lengths for tokens, _, _ in each], axis=1)
        out = self._unlabelled(tokens, types.values, parts=ragged.block(lengths))
        return out, np.any([truncated for _, _, truncated in each], axis=0)

    def _words(self, examples, task, vocabulary) -> tuple[Examples, Ragged, np.ndarray]:
        """Makes [CLS] words [SEP] of each example.

        Returns three values: the features, in which the first token of each word has a weight of 1; the index of each
        token's word (0 for [CLS] and [SEP]); and which examples were truncated (bool [examples]).
        """
        spaced = [[" " * (n > 0) + word for n, word in enumerate(words_of(e, task))] for e in examples]
        tokens, word_of = words.encoded(spaced, vocabulary)
        begins = np.diff(word_of.values, prepend=-1) != 0
        begins[tokens.starts[tokens.lengths > 0]] = True
        weights = Ragged(begins.astype(np.float32), tokens.lengths)
        short = [ragged.cut(column, self.length - 2) for column in (tokens, word_of, weights)]
        filled, types, _ = self._with_marks(short[:1], [np.ones(len(examples), bool)], vocabulary)
        word_of, weights = (
            ragged.join(*[mark] * len(self._marks(vocabulary)[0]), column, mark)
            for column in short[1:]
            for mark in [ragged.singles(np.zeros(len(examples), column.values.dtype))]
        )
        out = self._unlabelled(filled, types) | {"token_weights": weights}
        return out, word_of, short[0].lengths < tokens.lengths

    def _segments(
        self, examples, task, fields: Sequence[str], length: int, vocabulary
    ) -> tuple[Ragged, np.ndarray, np.ndarray]:
        """Makes [CLS] first [SEP] second [SEP] of each example, with at most `length` tokens.

        Returns the tokens, the type of each token, and which examples were truncated (bool [examples]).
        """
        parts = [ragged.of(ids_of([text_of(e, field, task) for e in examples], vocabulary)) for field in fields]
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
        if "rtd" in self.heads:
            out["rtd_weights"] = Ragged(np.ones(len(tokens.values), np.float32), tokens.lengths)
        if "nsp" in self.heads:
            out["nsp_targets"] = ragged.singles(wrong.astype(np.int32))
            out["nsp_weights"] = ragged.singles(paired.astype(np.float32))
        return out

    def _with_marks(
        self, parts: Sequence[Ragged], closed: Sequence[np.ndarray], vocabulary: Vocabulary
    ) -> tuple[Ragged, np.ndarray, np.ndarray]:
        """Makes [CLS] first [SEP] second [SEP] …

        closed: one array per part, bool [rows]: True in the rows in which a [SEP] follows the part.
        Returns the tokens; the type of each token; and whether each token is [CLS] or [SEP].
        """
        rows, (begin, end) = len(parts[0]), self._marks(vocabulary)
        pieces, type_of_piece = [ragged.constant(mark, rows) for mark in begin], [0] * len(begin)
        is_mark = [True] * len(begin)
        for place, (part, close) in enumerate(zip(parts, closed, strict=True)):
            mark = Ragged(np.full(int(close.sum()), end, np.int32), close.astype(np.int64))
            added = [part, mark]
            if self.fairseq_marks and place:
                added = [mark, part, mark]
            pieces += added
            type_of_piece += [0 if self.fairseq_marks else place] * len(added)  # RoBERTa's tokens are all of one type
            is_mark += [piece is mark for piece in added]
        lengths = np.stack([piece.lengths for piece in pieces], axis=1).ravel()
        types = np.repeat(np.tile(np.array(type_of_piece, np.int32), rows), lengths)
        marks = np.repeat(np.tile(np.array(is_mark), rows), lengths)
        return ragged.join(*pieces), types, marks

    def _marks(self, vocabulary: Vocabulary) -> tuple[list[int], int]:
        """Returns the marks before a text and the mark behind it: ([CLS], [SEP]), or ([], EOS) as in T5.

        Raises ConfigError if the vocabulary has no [CLS], but `needs_cls`.
        """
        try:
            return [vocabulary.cls_id], vocabulary.sep_id
        except ConfigError:
            if self.needs_cls:
                raise
            return [], vocabulary.eos_id

    def _unlabelled(self, tokens: Ragged, types: np.ndarray, parts: Ragged | None = None) -> Examples:
        """Returns the features of all heads, with a weight of 0 for every label.

        parts: the lengths of each example's parts, which do not attend to each other. None: one part per example.
        """
        parts = ragged.singles(tokens.lengths) if parts is None else parts
        begins = np.cumsum(parts.values) - parts.values - np.repeat(tokens.starts, parts.lengths)
        out = {"encoder_input_tokens": tokens, "token_type_ids": Ragged(types, tokens.lengths)}
        if self.choices > 1:
            out[packing.PARTS] = parts
        for name, spec in self.specs().items():
            if name == "pooled_positions":
                out[name] = Ragged(begins.astype(np.int32), parts.lengths)
            elif spec.dims == "BE":
                first = name == "choice_questions"  # 1 + the column where the example begins; before packing that is 0
                out[name] = Ragged(np.full(len(parts.values), first, spec.dtype), parts.lengths)
            elif spec.dims == "BS" and name.startswith(("token_", "rtd_")) and name not in out:
                out[name] = Ragged(np.zeros(len(tokens.values), spec.dtype), tokens.lengths)
            elif spec.dims == "BY":
                lengths = self.num_classes * parts.lengths
                out[name] = Ragged(np.zeros(lengths.sum(), spec.dtype), lengths)
            elif spec.dims == "BP":
                out[name] = Ragged(np.zeros(0, spec.dtype), np.zeros(len(tokens), np.int64))
        return out


# The functions map (converter, examples, task, vocabulary, labelled) to (features, which examples were truncated). If
# `labelled`, the features include the targets.
BY_TARGET: dict[type[Target], Callable[..., tuple[Examples, np.ndarray]]] = {
    Classes: EncoderOnly._with_classes,
    Number: EncoderOnly._with_numbers,
    Tags: EncoderOnly._with_tags,
    Span: EncoderOnly._with_spans,
    Choices: EncoderOnly._with_choices,
    Match: EncoderOnly._with_match,
    Similarity: EncoderOnly._with_similarity,
}


def _longest_first(lengths: list[int], room: int) -> list[int]:
    """Returns how many tokens each segment keeps. Tokens are removed from the longest segment until all segments
    together fit in `room`.

    If two segments are equally long, it shortens the first. (BERT's truncate_seq_pair shortens the second.)

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


def _answer(example: Mapping[str, Any], window: Window) -> tuple[int, int]:
    """Returns the columns of the first and the last token of an example's answer. Returns (0, 0), the column of [CLS],
    if the answer is not entirely in the window."""
    begin, end = example.get("answer_span") or (0, 0)
    tokens = np.flatnonzero((window.places[:, 1] > begin) & (window.places[:, 0] < end))
    if not len(tokens) or tokens[0] < window.begin or tokens[-1] >= window.end:
        return 0, 0
    first = window.first - window.begin
    return first + int(tokens[0]), first + int(tokens[-1])
