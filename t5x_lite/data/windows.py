"""Converts the elements of a task's source to examples, window by window.

A window is a group of elements that are encoded together. For a corpus, the documents of a window are joined, and the
result is cut into examples. A `Feed` serves one task in one stream of rows: it returns the task's examples for this
stream, in the task's shuffled order.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from t5x_lite.data import packing
from t5x_lite.data.convert import TEXT, Converter
from t5x_lite.data.fields import text_of
from t5x_lite.data.order import generator, key, shuffled
from t5x_lite.data.packing import Examples
from t5x_lite.data.reader import Reader, text_examples
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import DataError

if TYPE_CHECKING:
    from t5x_lite.data.cache import Cache

TEXTS_PER_WINDOW = 64
FEWEST_TEXTS_PER_WINDOW = 8  # tasks with a small share get smaller windows, as each stream holds one per task
FEWEST_ROWS_PER_EPOCH = 16  # of a single task in one stream; shorter epochs are packed together
ORDERED_WINDOWS = 16  # windows whose shuffled indices are computed together


@dataclasses.dataclass(frozen=True)
class Setting:
    """Holds the settings for turning examples into model features. All streams of a run have the same settings."""

    converter: Converter
    vocabulary: Vocabulary
    seed: int
    streams: int
    pack: bool
    caches: Mapping[str, "Cache"] = dataclasses.field(default_factory=dict)  # by task; other tasks are read from source
    task_ids: bool = False
    documents: int = 0  # of a step, in each stream (document_steps.py); 0: as many as fill the rows


class Position(NamedTuple):
    """The position of a feed: its next example is number `offset` (from 0) of the window number `window`."""

    window: int
    offset: int
    size: int  # examples in the window; 0 before the first is taken


@dataclasses.dataclass(frozen=True)
class ConvertedWindow:
    """Holds the result of converting one window of a task's elements."""

    examples: Examples
    lengths: np.ndarray  # int64 [examples, dimensions]
    epoch_ends: np.ndarray  # int64 [ends of epochs]: the number of examples before each end
    converted: int  # examples, including those that were skipped as too long
    too_long: int
    bad: int


class Feed:
    """Returns the examples of one task in one stream of rows, in order.

    Attributes, all counted since the position was set:
    examples: the examples taken.
    converted, too_long, bad: sums of these fields of ConvertedWindow, over the windows that were begun.

    Raises DataError if the task has no training example, or if none is left after its preprocessors.
    """

    def __init__(self, reader: Reader, share: float, setting: Setting, stream: int):
        self.task, self._reader, self._setting, self._stream = reader.task, reader, setting, stream
        if not len(reader):
            raise DataError(f"task {self.task.name!r} has no training example; check the train split of its source")
        self._window_size = setting.documents or max(FEWEST_TEXTS_PER_WINDOW, round(TEXTS_PER_WINDOW * share))
        self._seed = key(setting.seed, self.task.name, "order")
        self._survives = False
        self._ordered = -1  # the block of windows whose `_places` and `_indices` are computed
        self.set_position(Position(0, 0, 0))

    def get_position(self) -> Position:
        return Position(self._window, self._offset, self._size)

    def set_position(self, position: Position) -> None:
        self._window, self._offset, self._size = position
        self._loaded: collections.deque[ConvertedWindow] = collections.deque()  # windows from `_window` on
        self.examples = self.converted = self.too_long = self.bad = 0

    def lengths(self, count: int) -> np.ndarray:
        """Returns the lengths of the next `count` examples, int64 [count, dimensions], without taking them."""
        self._load(count)
        lengths = np.concatenate([window.lengths for window in self._loaded])
        return lengths[self._offset : self._offset + count]

    def begins_epoch(self) -> bool:
        """Returns whether the next example is the first one that this stream takes from an epoch of the source."""
        self._load(1)
        if self._offset:
            return self._offset in self._loaded[0].epoch_ends
        place, size = self.elements(self._window)[0][0], len(self._reader)
        return (place - self._setting.streams) // size < place // size

    def epoch_ends(self, count: int) -> np.ndarray:
        """Returns where, among the next `count` examples, this stream ends an epoch of the source.

        int64 [ends], ascending. A number n means that an epoch ends after the next n examples.
        """
        self._load(count)
        begins = itertools.accumulate((len(window.lengths) for window in self._loaded), initial=-self._offset)
        ends = np.concatenate([window.epoch_ends + begin for window, begin in zip(self._loaded, begins, strict=False)])
        return ends[(ends > 0) & (ends <= count)]

    def take(self, count: int) -> list[Examples]:
        """Takes and returns the next `count` examples, in pieces. A piece comes from a single window."""
        self._load(count)
        pieces = []
        while count:
            window = self._loaded[0]
            size = len(window.lengths)
            if self._offset == 0:  # a state restored in the middle of a window already includes the window's counts
                self.converted += window.converted
                self.too_long += window.too_long
                self.bad += window.bad
            end = min(self._offset + count, size)
            if end > self._offset:
                pieces.append(packing.piece(window.examples, self._offset, end))
            self.examples += end - self._offset
            count -= end - self._offset
            self._offset, self._size = end, size
            if end == size:
                self._loaded.popleft()
                self._window, self._offset, self._size = self._window + 1, 0, 0
        return pieces

    @property
    def epochs(self) -> float:
        """Returns how many times this stream has read its share of the source."""
        windows = self._window + self._offset / max(self._size, 1)
        return windows * self._window_size * self._setting.streams / len(self._reader)

    def convert(self, window: int) -> ConvertedWindow:
        """Converts a window of elements to examples. The examples depend only on the window's number, not on earlier
        windows.

        Raises DataError if an example is bad and the task does not tolerate it, or if an example is too long and
        on_long is "error".
        """
        setting, task = self._setting, self.task
        places, indices = self.elements(window)
        bad = self._reader.bad
        if task.name in setting.caches:
            examples = setting.caches[task.name].read(indices)
        else:
            examples = self._reader.read_many(
                indices, lambda n: generator(setting.seed, task.name, "element", places[n])
            )
        rng = generator(setting.seed, task.name, "window", self._stream, window)
        pieces, too_long, ends = [], 0, self._epoch_ends(places)
        for begin, end in itertools.pairwise(sorted({0, *ends, len(places)})):
            numbered = zip(indices[begin:end], examples[begin:end], strict=True)
            kept = [(index, example) for index, example in numbered if example is not None]
            piece, long = converted(kept, self._reader, setting.converter, setting.vocabulary, rng)
            pieces.append(piece)
            too_long += long
        features = packing.concatenate(pieces)
        lengths = setting.converter.lengths(features, setting.vocabulary)
        return ConvertedWindow(
            examples=features,
            lengths=lengths,
            epoch_ends=np.cumsum([packing.count(piece) for piece in pieces])[: len(ends)],
            converted=len(lengths) + (too_long if setting.converter.on_long == "skip" else 0),
            too_long=too_long,
            bad=self._reader.bad - bad,
        )

    def _load(self, count: int) -> None:
        """Converts windows until the next `count` examples are loaded."""
        missing = count + self._offset - sum(len(window.lengths) for window in self._loaded)
        empty_windows = 0
        while missing > 0:
            window = self.convert(self._window + len(self._loaded))
            self._loaded.append(window)
            missing -= len(window.lengths)
            empty_windows = 0 if len(window.lengths) else empty_windows + 1
            if empty_windows * self._window_size > len(self._reader):
                self.require_survivor()

    def require_survivor(self) -> None:
        """Raises DataError if no element of the whole source becomes an example. (This stream itself may not have
        reached such an element yet.)"""
        if self._survives:
            return
        setting = self._setting
        for group in groups(text_examples(self.task, "train"), self._window_size):
            rng = generator(setting.seed, self.task.name, "survivor")
            if packing.count(converted(group, self._reader, setting.converter, setting.vocabulary, rng)[0]):
                self._survives = True
                return
        raise DataError(
            f"task {self.task.name!r} has no example left of {len(self._reader)} after its preprocessors; "
            "make sure that they keep some, and that the texts are not all empty (or, with data.on_long=skip, all too "
            "long)"
        )

    def _epoch_ends(self, places: Sequence[int]) -> list[int]:
        """Returns where, among a window's elements, the stream ends an epoch of the source. A number n means that an
        epoch ends after the window's first n elements. Returns [] if the stream has too few elements per epoch to keep
        epochs apart."""
        streams, size = self._setting.streams, len(self._reader)
        if size < FEWEST_ROWS_PER_EPOCH * streams:
            return []
        return (np.flatnonzero((np.array(places) + streams) // size > np.array(places) // size) + 1).tolist()

    def elements(self, window: int) -> tuple[list[int], list[int]]:
        """Returns the places of a window's elements in the task's order, and their indices in the source.

        It computes ORDERED_WINDOWS windows at once, which takes hardly more time than one.
        """
        block, offset = window // ORDERED_WINDOWS, window % ORDERED_WINDOWS * self._window_size
        if block != self._ordered:
            count = ORDERED_WINDOWS * self._window_size
            places = np.arange(block * count, (block + 1) * count) * self._setting.streams + self._stream
            self._ordered, self._places = block, places.tolist()
            self._indices = shuffled(places, len(self._reader), self._seed).tolist()
        piece = slice(offset, offset + self._window_size)
        return self._places[piece], self._indices[piece]


def converted(
    numbered: Sequence[tuple[int, Mapping]],
    reader: Reader,
    converter: Converter,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> tuple[Examples, int]:
    """Converts text examples and returns (the converted examples, how many did not fit in a row).

    Converted examples are model features, or pieces of a corpus that `denoised` still has to process. Empty texts of a
    corpus give no examples.
    numbered: (index in the source, text example) pairs.
    Raises DataError if an example does not fit in a row and the converter's `on_long` is "error".
    """
    task, examples = reader.task, [example for _, example in numbered]
    if task.is_corpus:
        return converter.corpus([text_of(e, "text", task) for e in examples], vocabulary, rng), 0
    features, is_long = converter.supervised(examples, task, vocabulary)
    if converter.on_long == "error" and is_long.any():
        index = numbered[int(is_long.argmax())][0]
        raise DataError(
            f"{reader.where(index)}: the example does not fit in a row ({_row_size(converter)}). Raise data.length or "
            "data.targets_length, shorten the example, or set data.on_long to truncate or skip"
        )
    if converter.on_long == "skip":
        features = packing.take(features, np.flatnonzero(~is_long))
    return features, int(is_long.sum())


def denoised(
    pieces: Sequence[Examples], converter: Converter, vocabulary: Vocabulary, rng: np.random.Generator
) -> Examples:
    """Applies the objective to the pieces that hold texts, and returns the examples of all pieces as model features.

    It denoises the texts of all tasks at once. So a mixture of many small tasks takes no longer than one large task.
    """
    texts = [piece for piece in pieces if TEXT in piece]
    if not texts:
        return packing.concatenate(pieces)
    features = converter.denoise(packing.concatenate(texts), vocabulary, rng)
    if len(texts) == len(pieces):
        return features
    ends = itertools.accumulate(map(packing.count, texts), initial=0)
    parts = (packing.piece(features, begin, end) for begin, end in itertools.pairwise(ends))
    return packing.concatenate([next(parts) if TEXT in piece else piece for piece in pieces])


def groups(items: Iterable, size: int) -> Iterator[list]:
    """Yields the items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _row_size(converter: Converter) -> str:
    names = {"S": "encoder", "L": "decoder"}
    return ", ".join(f"{names[d]} {size} tokens" for d, size in converter.sizes(pack=False).items() if d in names)
