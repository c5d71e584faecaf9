"""One stream of rows: examples drawn from the tasks by their rates, and packed window by window.

A packing window of a single task ends where an epoch does. Otherwise an example, packed with those of the next epoch,
could come twice in one epoch, or in one batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from t5x_lite.batch import ArraySpec, Batch
from t5x_lite.data import packing
from t5x_lite.data.order import generator
from t5x_lite.data.packing import Examples
from t5x_lite.data.reader import Reader
from t5x_lite.data.windows import FEWEST_ROWS_PER_EPOCH, Feed, Position, Setting, denoised

ROWS_PER_WINDOW = 1024  # packed together, over all streams; a stream has at least FEWEST_ROWS_PER_WINDOW of them
FEWEST_ROWS_PER_WINDOW = 64  # the last row may stay half empty: about 0.8% of them
ROWS_PER_UNPACKED_WINDOW = 16  # noised together; unpacked rows need not wait for examples that fit beside them
MOST_EXAMPLES_PER_WINDOW = 1 << 14  # ends a window of examples that are almost empty
DRAWS_PER_BLOCK = 1024  # tasks drawn by one random generator


class Counts(NamedTuple):
    """Totals of what has been read of each task, float [tasks] each."""

    tokens: np.ndarray  # in packed rows
    examples: np.ndarray  # in packed rows
    converted: np.ndarray  # examples that were converted
    too_long: np.ndarray  # converted examples that did not fit in a row
    bad: np.ndarray  # examples that were left out


def no_counts(tasks: int) -> Counts:
    return Counts(*np.zeros((len(Counts._fields), tasks)))


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of counts, field by field."""
    return Counts(*np.sum([*counts], axis=0))


class StreamState(NamedTuple):
    """Where a stream stands: how its packing window began, and how many of the window's rows have been taken."""

    drawn: int  # examples, before the window
    positions: np.ndarray  # int64 [tasks, 3]: the Position of each task's feed
    counts: Counts  # since the state that was restored
    taken: int  # rows


class Stream:
    """The rows of stream `number`; `readers` are those of the tasks, and `rates` their shares by name."""

    def __init__(self, readers: Sequence[Reader], rates: Mapping[str, float], setting: Setting, number: int):
        self._setting, self._number = setting, number
        self._shares = np.array([rates[reader.task.name] for reader in readers])
        self._feeds = [Feed(reader, rates[reader.task.name], setting, number) for reader in readers]
        self._specs = setting.converter.specs()
        self._sizes = setting.converter.sizes(setting.pack)
        self._capacity = np.array(list(self._sizes.values()))
        self._window_rows = max(FEWEST_ROWS_PER_WINDOW, ROWS_PER_WINDOW // setting.streams)
        self._blocks: dict[int, np.ndarray] = {}  # of drawn tasks
        positions = np.zeros((len(readers), len(Position._fields)), np.int64)
        self.set_state(StreamState(0, positions, no_counts(len(readers)), taken=0))

    def get_state(self) -> StreamState:
        return self._start._replace(taken=self._taken)

    def set_state(self, state: StreamState) -> None:
        """Goes on from there. The window is packed again when its rows are asked for."""
        self._start, self._drawn, self._taken = state, state.drawn, state.taken
        self._tokens = np.zeros(len(self._feeds))  # since the state, by task
        self._before = state.counts
        for feed, position in zip(self._feeds, state.positions.tolist(), strict=True):
            feed.set_position(Position(*position))
        self._rows: Batch | None = None
        self._count = 0

    def take(self, count: int) -> list[Batch]:
        """The next `count` rows, in pieces of windows."""
        pieces = []
        while count:
            if self._rows is None:
                self._fill_window()
            elif self._taken == self._count:
                positions = np.array([feed.get_position() for feed in self._feeds])
                self._start, self._taken = StreamState(self._drawn, positions, self.read, taken=0), 0
                self._fill_window()
            end = min(self._taken + count, self._count)
            pieces.append({name: array[self._taken : end] for name, array in self._rows.items()})  # type: ignore[union-attr]
            count -= end - self._taken
            self._taken = end
        return pieces

    def counter(self) -> Callable[[], tuple[Counts, np.ndarray]]:
        """A function for what has been read up to now: (Counts, epochs of each task, float [tasks]).

        Tokens and examples are only those of the rows that were taken. The function counts when it is called, so that
        counters which nobody asks for cost nothing.
        """
        read, epochs, taken = self.read, self.epochs, self._taken
        task_of, row_of, tokens_of = self._task_of, self._row_of, self._tokens_of

        def count() -> tuple[Counts, np.ndarray]:
            ahead, tasks = row_of >= taken, len(epochs)
            tokens_ahead = np.bincount(task_of[ahead], tokens_of[ahead], minlength=tasks)
            examples_ahead = np.bincount(task_of[ahead], minlength=tasks)
            counts = read._replace(tokens=read.tokens - tokens_ahead, examples=read.examples - examples_ahead)
            return counts, epochs

        return count

    def _fill_window(self) -> None:
        """Packs the next window: as many examples as fill its rows.

        Sets what has been read up to its end: `read` (Counts) and `epochs`, how often each task has been read.
        """
        pack, feeds = self._setting.pack, self._feeds
        task_of = self._draw() if pack else self._tasks_from(self._drawn, ROWS_PER_UNPACKED_WINDOW)
        rng = generator(self._setting.seed, "noise", self._number, self._drawn)
        self._drawn += len(task_of)
        counts = np.bincount(task_of, minlength=len(feeds)).tolist()
        pieces = [piece for feed, n in zip(feeds, counts, strict=True) if n for piece in feed.take(n)]
        examples = denoised(pieces, self._setting.converter, self._setting.vocabulary, rng)
        if len(feeds) > 1:
            examples = packing.take(examples, _ranks(task_of))
        # Packing puts the rows of many short examples first. Without the shuffle a mixture's tasks would come in waves.
        self._rows, row_of = packing.pack_rows(examples, self._specs, self._sizes, pack, shuffle=rng if pack else None)
        self._count = int(row_of.max()) + 1
        if self._setting.task_ids:
            parts = examples[packing.PARTS].lengths if packing.PARTS in examples else 1  # each has its own segment id
            self._rows |= _task_ids(np.repeat(task_of, parts), np.repeat(row_of, parts), self._rows)
        self._task_of, self._row_of, self._tokens_of = task_of, row_of, _tokens_of(examples, self._specs)
        self._tokens = self._tokens + np.bincount(task_of, self._tokens_of, minlength=len(feeds))
        since = Counts(
            tokens=self._tokens,
            examples=np.array([feed.examples for feed in feeds]),
            converted=np.array([feed.converted for feed in feeds]),
            too_long=np.array([feed.too_long for feed in feeds]),
            bad=np.array([feed.bad for feed in feeds]),
        )
        self.read = total([self._before, since])
        self.epochs = np.array([feed.epochs for feed in feeds])

    def _draw(self) -> np.ndarray:
        """int [examples]: the tasks of the next examples, as many as fill the rows of a window, or end an epoch."""
        wanted = self._window_rows
        begins_epoch, fewest = self._drawn == 0, FEWEST_ROWS_PER_WINDOW
        if len(self._feeds) == 1:  # once the beginning of an epoch is packed, its rest stays alone, however short
            begins_epoch = self._feeds[0].begins_epoch()
            fewest = FEWEST_ROWS_PER_EPOCH if begins_epoch else 0
        if begins_epoch:  # the streams' first windows differ in size, so that later not all of them end in one batch
            wanted = -(-wanted * (self._number + 1) // self._setting.streams)
        count = wanted
        while True:
            task_of = self._tasks_from(self._drawn, count)
            counts = np.bincount(task_of, minlength=len(self._feeds)).tolist()
            lengths = np.concatenate([feed.lengths(n) for feed, n in zip(self._feeds, counts, strict=True) if n])
            filled = (np.cumsum(lengths[_ranks(task_of)], axis=0) / self._capacity).max(axis=1)
            if filled[-1] >= wanted or count >= MOST_EXAMPLES_PER_WINDOW:
                ends = [int(np.searchsorted(filled, wanted)) + 1]
                for task in np.flatnonzero(counts):
                    epoch_ends = self._feeds[task].epoch_ends(counts[task])
                    ends += (np.flatnonzero(task_of == task)[epoch_ends - 1] + 1).tolist()
                return task_of[: min(end for end in ends if end == ends[0] or filled[end - 1] >= fewest)]
            count = min(int(count * wanted / max(filled[-1], 1)) + 1, MOST_EXAMPLES_PER_WINDOW)

    def _tasks_from(self, first: int, count: int) -> np.ndarray:
        """int [count]: the tasks of the examples from number `first` on: a function of their numbers alone."""
        blocks = range(first // DRAWS_PER_BLOCK, (first + count - 1) // DRAWS_PER_BLOCK + 1)
        return np.concatenate([self._block(n) for n in blocks])[first - blocks[0] * DRAWS_PER_BLOCK :][:count]

    def _block(self, number: int) -> np.ndarray:
        if number not in self._blocks:
            rng = generator(self._setting.seed, "mixture", self._number, number)
            self._blocks = {k: v for k, v in self._blocks.items() if k == number - 1}
            self._blocks[number] = rng.choice(len(self._feeds), size=DRAWS_PER_BLOCK, p=self._shares)
        return self._blocks[number]


def _tokens_of(examples: Examples, specs: Mapping[str, ArraySpec]) -> np.ndarray:
    """int64 [examples]: tokens of encoder and decoder together."""
    return packing.lengths_of(examples, specs, "SL").sum(axis=1)


def _task_ids(task_of: np.ndarray, row_of: np.ndarray, rows: Batch) -> Batch:
    """The number of each token's task, from 1, and 0 on padding. It is for the tokens of the decoder if there is one,
    because the loss is there. task_of, row_of: int [segments]."""
    side = "decoder" if "decoder_segment_ids" in rows else "encoder"
    segments = rows[f"{side}_segment_ids"]
    order = np.argsort(row_of, kind="stable")
    numbers = np.arange(len(order)) - np.searchsorted(row_of[order], row_of[order]) + 1
    ids = np.zeros((len(segments), numbers.max() + 1), np.int32)  # by row and segment
    ids[row_of[order], numbers] = task_of[order] + 1
    return {f"{side}_task_ids": np.take_along_axis(ids, segments, axis=1)}


def _ranks(task_of: np.ndarray) -> np.ndarray:
    """The place of each example once they are sorted by task.

    >>> _ranks(np.array([1, 0, 1, 0])).tolist()
    [2, 0, 3, 1]
    """
    return np.argsort(np.argsort(task_of, kind="stable"))
