"""Feature converters turn a task's texts into the features that a model reads. Each architecture has one.

All three converters accept every task. For a corpus (`{"text"}`) they apply the architecture's objective. By default
this is span corruption (text-to-text), the next token (decoder-only), or masked tokens with next sentence
(encoder-only, convert_encoder.py). A supervised example (`{"inputs", "targets"}`) becomes encoder inputs and decoder
targets (text-to-text), one concatenated sequence (decoder-only), or [CLS] … [SEP] with a label (encoder-only). A
decoder's inputs are its targets, shifted right by one. The shift takes place within each example, before packing, so an
example never sees the last token of its neighbour.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from t5x_lite.batch import ArraySpec, specs
from t5x_lite.data import packing, ragged
from t5x_lite.data.denoiser import Denoiser, chunks
from t5x_lite.data.fields import ids_of, text_of, vocabulary_of
from t5x_lite.data.packing import Examples
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.vocabulary import Vocabulary

TEXT, WHICH = "text", "which_denoiser"  # of a corpus's pieces before `denoise`: token ids, index of the denoiser


class Converter(Protocol):
    """Defines the methods of a converter. A converter is a frozen dataclass."""

    @property
    def on_long(self) -> str:
        """Says what happens to a supervised example that does not fit in a row: "truncate", "skip" or "error".

        Truncated and skipped examples are counted.
        """
        ...

    def specs(self) -> dict[str, ArraySpec]:
        """Returns the ArraySpec of each array of a batch, by name."""
        ...

    def sizes(self, pack: bool) -> dict[str, int]:
        """Returns {letter of a dimension: its size in a row}. pack: whether a row may hold several examples."""
        ...

    def corpus(self, texts: Sequence, vocabulary: Vocabulary, rng: np.random.Generator) -> Examples:
        """Makes training examples from a window of documents.

        The examples are either complete or pieces of text, which `denoise` then turns into complete examples. A piece
        of text has two features: TEXT (its token ids) and WHICH (the index of its denoiser).
        """
        ...

    def denoise(self, texts: Examples, vocabulary: Vocabulary, rng: np.random.Generator) -> Examples:
        """Applies the objective to the pieces of text that `corpus` made, and returns the complete examples.

        The pieces may come from any number of windows.
        """
        ...

    def lengths(self, examples: Examples, vocabulary: Vocabulary) -> np.ndarray:
        """Returns the length of each example in each dimension of a row, int64 [examples, dimensions].

        If `denoise` has not processed a piece of text yet, these are the expected lengths of the complete example.
        """
        ...

    def supervised(
        self, examples: Sequence[Mapping[str, Any]], task: Task, vocabulary: Vocabulary
    ) -> tuple[Examples, np.ndarray]:
        """Returns the features of supervised examples, in order, and which examples were truncated (bool [examples]).

        If a context does not fit in a row, the result has one example per window of the context.
        Raises DataError if an example has a missing or wrong field, ConfigError if the converter does not support the
        task.
        """
        ...

    def prompts(
        self, examples: Sequence[Mapping[str, Any]], task: Task, vocabulary: Vocabulary, max_new_tokens: int
    ) -> tuple[Examples, np.ndarray]:
        """Returns the features that a model reads to predict each example's target, and which examples were truncated
        (bool [examples])."""
        ...

    def prompt_sizes(self, max_new_tokens: int) -> dict[str, int]:
        """Returns {letter of a dimension: its size} for a row that holds one prompt and has room for `max_new_tokens`
        more tokens."""
        ...


@dataclasses.dataclass(frozen=True)
class TextToText:
    """Converts examples for encoder-decoders. `inputs` and `targets` end with EOS if the task's features have add_eos.

    Example 1 has inputs `7 8 5 1` and targets `3 9 1`; example 2 has inputs `8 4 9 3 1` and targets `4 1`. Packed into
    an encoder row of 10 and a decoder row of 7, they become:

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
    denoisers: tuple[Denoiser, ...] = (Denoiser(),)  # for a corpus; all are equally frequent
    on_long: str = "truncate"
    start_id: int = -1  # the first id that the decoder reads; -1: the vocabulary's pad
    fairseq_marks: bool = False  # inputs and targets begin with [CLS] (BART's <s>)
    prompt_tokens: int = 0  # pads at the start of the inputs; a trainable prompt replaces their embeddings
    join_documents: bool = dataclasses.field(default=True, repr=False)  # of a corpus: cuts them into examples together

    def specs(self) -> dict[str, ArraySpec]:
        return specs("text_to_text")

    def sizes(self, pack: bool) -> dict[str, int]:
        return {"S": self.length, "L": self.targets_length}

    def corpus(self, texts, vocabulary, rng):
        return _texts(texts, self._plan(vocabulary), self.join_documents, vocabulary, rng)

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
        return _plan(self.denoisers, vocabulary, self._room["S"], self._room["L"])

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
        prompts = {"encoder_input_tokens": self._prompted(self._marked(short, "inputs", vocabulary), vocabulary)}
        return prompts, short.lengths < inputs.lengths

    def prompt_sizes(self, max_new_tokens):
        return self.sizes(pack=False)

    @property
    def _room(self) -> dict[str, int]:
        """Returns {letter of a dimension: how many tokens of a row are left for a text and its EOS}."""
        prompt = {"S": self.prompt_tokens}
        return {k: n - self.fairseq_marks - prompt.get(k, 0) for k, n in self.sizes(pack=False).items()}

    def _marked(self, texts: Ragged, field: str, vocabulary: Vocabulary) -> Ragged:
        return ragged.join(ragged.constant(vocabulary.cls_id, len(texts)), texts) if self.fairseq_marks else texts

    def _examples(self, inputs: Ragged, targets: Ragged, vocabulary: Vocabulary) -> Examples:
        inputs = self._prompted(self._marked(inputs, "inputs", vocabulary), vocabulary)
        targets = self._marked(targets, "targets", vocabulary)
        return {"encoder_input_tokens": inputs, **_shifted(targets, 1.0, start(self.start_id, vocabulary))}

    def _prompted(self, inputs: Ragged, vocabulary: Vocabulary) -> Ragged:
        pads = np.full((len(inputs), self.prompt_tokens), vocabulary.pad_id, np.int32)
        return ragged.join(ragged.block(pads), inputs) if self.prompt_tokens else inputs


@dataclasses.dataclass(frozen=True)
class DecoderOnly:
    """Converts examples for language models.

    Without denoisers, it cuts a corpus into rows in which every token is a target. It joins the inputs and targets of a
    supervised example into one sequence, in which only the targets count in the loss. The EOS of the inputs separates
    the two.

    Example 1 has the inputs `7 8 1` and the targets `3 9 1`; example 2 has the inputs `5 1` and the targets `4 1`.
    Packed into a row of 12, they become:

        decoder_target_tokens  7 8 1 3 9 1 5 1 4 1 0 0
        decoder_input_tokens   0 7 8 1 3 9 0 5 1 4 0 0
        decoder_loss_weights   0 0 0 1 1 1 0 0 1 1 0 0
        decoder_segment_ids    1 1 1 1 1 1 2 2 2 2 0 0
        decoder_positions      0 1 2 3 4 5 0 1 2 3 0 0
    """

    length: int
    denoisers: tuple[Denoiser, ...] = ()  # for a corpus; all are equally frequent; (): every token is a target
    on_long: str = "truncate"
    start_id: int = -1  # the first id that the model reads; -1: the vocabulary's pad
    join_documents: bool = dataclasses.field(default=True, repr=False)  # of a corpus: cuts them into examples together

    def specs(self) -> dict[str, ArraySpec]:
        return specs("decoder_only")

    def sizes(self, pack: bool) -> dict[str, int]:
        return {"L": self.length}

    def corpus(self, texts, vocabulary, rng):
        if self.denoisers:
            return _texts(texts, self._plan(vocabulary), self.join_documents, vocabulary, rng)
        rows = _cut_up(self._documents(texts, vocabulary), [self.length], self.join_documents, rng)[0]
        return _shifted(rows, 1.0, start(self.start_id, vocabulary))

    def joined(self, texts: Sequence, vocabulary: Vocabulary) -> np.ndarray:
        """Returns the tokens of a corpus's texts, int32 [tokens], with an EOS behind each text that is not empty."""
        return self._documents(texts, vocabulary).values

    def _documents(self, texts: Sequence, vocabulary: Vocabulary) -> Ragged:
        return ragged.append(ragged.of([ids for ids in ids_of(texts, vocabulary) if len(ids)]), vocabulary.eos_id)

    def overlapping(self, rows: Sequence[np.ndarray], context: Sequence[int], vocabulary: Vocabulary) -> Examples:
        """Returns rows of a corpus as features in which only some tokens count in the loss.

        rows: int [at most `length`] each. context: for each row, how many of its first tokens do not count.
        """
        targets = ragged.of(rows)
        is_new = np.arange(len(targets.values)) >= np.repeat(targets.ends - targets.lengths + context, targets.lengths)
        return _shifted(targets, is_new.astype(np.float32), start(self.start_id, vocabulary))

    def denoise(self, texts, vocabulary, rng):
        inputs, targets = _corrupted(texts, self.denoisers, vocabulary, rng)
        short = ragged.cut(targets, self.length - 1 - inputs.lengths)
        return _continued(inputs, ragged.append(short, vocabulary.eos_id), start(self.start_id, vocabulary))

    def lengths(self, examples, vocabulary):
        return _lengths(examples, self, lambda: self._plan(vocabulary))

    def _plan(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        return _plan(self.denoisers, vocabulary, self.length, self.length, self.length)

    def supervised(self, examples, task, vocabulary):
        inputs = _encode(examples, "inputs", task, vocabulary)
        targets = _encode(examples, "targets", task, vocabulary)
        # If both inputs and targets are longer than half of the row, each gets half. If one is shorter, the other gets
        # the rest.
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
        else:  # the continuation of a text depends on its end
            short = ragged.tail(inputs, room - 1)
        first = ragged.constant(start(self.start_id, vocabulary), len(short))  # as in a shifted sequence
        return {"decoder_input_tokens": ragged.join(first, short)}, short.lengths < inputs.lengths

    def prompt_sizes(self, max_new_tokens):
        return {"L": max(self.length - max_new_tokens, self.length // 2)}


def fingerprint(converter: Converter) -> str:
    """Returns a text that changes whenever the converter makes other examples."""
    is_joined = getattr(converter, "join_documents", True)  # an encoder's examples never join documents
    return repr(converter) + ("" if is_joined else ", documents apart")


def _texts(
    texts: Sequence, plan: tuple[int, ...], join: bool, vocabulary: Vocabulary, rng: np.random.Generator
) -> Examples:
    """Cuts documents into pieces. For each piece, a denoiser is drawn at random; the piece has the length that `plan`
    gives for this denoiser. join: as in `_cut_up`."""
    pieces, which = _cut_up(ragged.of(ids_of(texts, vocabulary)), plan, join, rng)
    return {TEXT: pieces, WHICH: ragged.singles(which)}


def _cut_up(
    documents: Ragged, lengths: Sequence[int], join: bool, rng: np.random.Generator
) -> tuple[Ragged, np.ndarray]:
    """Cuts documents into pieces, as `chunks` does. join: whether a piece may run on into the next document."""
    if join or not len(documents):
        return chunks(documents.values, lengths, rng)
    pieces, which = zip(*(chunks(documents[n], lengths, rng) for n in range(len(documents))), strict=True)
    return ragged.concatenate(pieces), np.concatenate(which)


# Runs without a corpus do not need denoising.


def _plan(denoisers: tuple[Denoiser, ...], vocabulary: Vocabulary, *room: int) -> tuple[int, ...]:
    from t5x_lite.data.denoise import plan_lengths

    return plan_lengths(denoisers, vocabulary, *room)


def _corrupted(
    texts: Examples, denoisers: tuple[Denoiser, ...], vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[Ragged, Ragged]:
    from t5x_lite.data.denoise import corrupt_each

    return corrupt_each(texts[TEXT], texts[WHICH].values, denoisers, rng, vocabulary)


def _lengths(examples: Examples, converter: Converter, plan: Callable[[], tuple[int, ...]]) -> np.ndarray:
    sizes = converter.sizes(pack=True)
    if TEXT not in examples:
        return packing.lengths_of(examples, converter.specs(), "".join(sizes))
    # A text of the planned length fills a row, so a shorter one fills a proportional share of it.
    share = examples[TEXT].lengths / np.array(plan())[examples[WHICH].values]
    return np.ceil(share[:, None] * list(sizes.values())).astype(np.int64)


def _encode(examples, field: str, task: Task, vocabulary: Vocabulary) -> Ragged:
    ids = ragged.of(ids_of([text_of(e, field, task) for e in examples], vocabulary_of(field, vocabulary)))
    return ragged.append(ids, vocabulary.eos_id) if task.features[field].add_eos else ids


def _cut(ids: Ragged, limits: np.ndarray | int, vocabulary: Vocabulary, task: Task, field: str) -> Ragged:
    """Keeps at most the first `limits` ids of each text. A truncated text still ends with EOS if the field has
    add_eos."""
    short = ragged.cut(ids, limits)
    truncated = (short.lengths < ids.lengths) & (short.lengths > 0)
    if task.features[field].add_eos and truncated.any():
        short.values[short.ends[truncated] - 1] = vocabulary.eos_id
    return short


def text_task(architecture: str, segments: tuple[str, ...] = ("inputs",)) -> Task:
    """Returns a task without a source, for models that were not trained on a task.

    The inputs of a language model have no EOS, because the model continues them. For the other architectures the inputs
    have EOS, because the encoder of a text_to_text model has seen EOS after every text.
    """
    features = {"inputs": Feature(add_eos=architecture != "decoder_only"), "targets": Feature()}
    return Task("text", source=None, features=features, segments=segments)  # type: ignore[arg-type]  (nothing reads it)


def start(start_id: int, vocabulary: Vocabulary) -> int:
    """Returns the first id that a decoder reads: `start_id`, or the vocabulary's pad if `start_id` is negative. mBART's
    tokenizer has a start of its own: the mark of the target language."""
    first = start_id if start_id >= 0 else getattr(vocabulary, "decoder_start_id", -1)
    return first if first >= 0 else vocabulary.pad_id


def _shifted(targets: Ragged, weights: float | np.ndarray, start_id: int) -> Examples:
    """Returns the three features of a decoder: input tokens, target tokens and loss weights.

    weights: one loss weight for all target tokens, or one per target token (float [target tokens]).
    """
    weight_of = np.empty(len(targets.values), np.float32)
    weight_of[:] = weights
    return {
        "decoder_input_tokens": ragged.shift(targets, start_id),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": Ragged(weight_of, targets.lengths),
    }


def _continued(inputs: Ragged, targets: Ragged, start_id: int) -> Examples:
    """Joins the inputs and targets of each example into one sequence. Only the targets count in the loss."""
    parts = np.stack([inputs.lengths, targets.lengths], axis=1)
    weights = np.repeat(np.tile([0.0, 1.0], len(inputs)), parts.ravel())
    return _shifted(ragged.join(inputs, targets), weights, start_id)
