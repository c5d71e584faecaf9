"""Makes one stream of rows: draws examples from the tasks by their rates, and packs them window by window.

If a run has a single task, a packing window ends at the end of an epoch. If a window held examples of two epochs,
packing could put an example twice into one epoch, or twice into one batch.
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

ROWS_PER_WINDOW = 1024  # rows packed together, over all streams; a stream packs FEWEST_ROWS_PER_WINDOW or more
FEWEST_ROWS_PER_WINDOW = 64  # the last row may stay half empty, which wastes about 0.8% of 64 rows
ROWS_PER_UNPACKED_WINDOW = 16  # rows denoised together; few, because an unpacked row waits for no other examples
MOST_EXAMPLES_PER_WINDOW = 1 << 14  # ends a window whose examples are almost empty
DRAWS_PER_BLOCK = 1024  # how many draws of a task share a random generator


class Counts(NamedTuple):
    """Totals of what has been read of each task; each field is float [tasks]."""

    tokens: np.ndarray  # in packed rows
    examples: np.ndarray  # in packed rows
    converted: np.ndarray  # examples that were converted
    too_long: np.ndarray  # converted examples that did not fit in a row
    bad: np.ndarray  # examples that were skipped as bad


def no_counts(tasks: int) -> Counts:
    """Returns counts of 0 for `tasks` tasks."""
    return Counts(*np.zeros((len(Counts._fields), tasks)))


def total(counts: Iterable[Counts]) -> Counts:
    """Sums counts field by field."""
    return Counts(*np.sum([*counts], axis=0))


class StreamState(NamedTuple):
    """The state of a stream: its position at the start of a packing window, and the rows taken from that window."""

    drawn: int  # examples drawn before the window
    positions: np.ndarray  # int64 [tasks, 3]: the Position of each task's feed when the window began
    counts: Counts  # from the restored state to the beginning of the window
    taken: int  # rows of the window


class Stream:
    """Makes the rows of stream `number`.

    readers: one per task. All arrays [tasks] are in the order of the readers.
    rates: {name of a task: its share of the examples}.
    """

    def __init__(self, readers: Sequence[Reader], rates: Mapping[str, float], setting: Setting, number: int):
        self._setting, self._number = setting, number
        self._shares = np.array([rates[reader.task.name] for reader in readers])
        self._feeds = [Feed(reader, rates[reader.task.name], setting, number) for reader in readers]
        self._specs = setting.converter.specs()
        self._sizes = setting.converter.sizes(setting.pack)
        self._capacity = np.array(list(self._sizes.values()))
        self._window_rows = max(FEWEST_ROWS_PER_WINDOW, ROWS_PER_WINDOW // setting.streams)
        self._blocks: dict[int, np.ndarray] = {}  # blocks of drawn tasks, by number
        positions = np.zeros((len(readers), len(Position._fields)), np.int64)
        self.set_state(StreamState(0, positions, no_counts(len(readers)), taken=0))

    def get_state(self) -> StreamState:
        return self._start._replace(taken=self._taken)

    def set_state(self, state: StreamState) -> None:
        """Continues from a state. The next `take` packs the state's window again."""
        self._start, self._drawn, self._taken = state, state.drawn, state.taken
        self._tokens = np.zeros(len(self._feeds))  # packed since the state was set, by task
        self._before = state.counts
        for feed, position in zip(self._feeds, state.positions.tolist(), strict=True):
            feed.set_position(Position(*position))
        self._rows: Batch | None = None
        self._count = 0

    def take(self, count: int) -> list[Batch]:
        """Returns the next `count` rows, in pieces. A piece comes from a single window."""
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
        """Returns a function that counts what has been read so far: (Counts, epochs of each task: float [tasks]).

        Tokens and examples include only the rows that were taken. The function counts only when it is called, so a
        counter that is never called costs nothing.
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
        """Packs the next window, with as many examples as fill its rows.

        Sets `read` (Counts) and `epochs` (how many times each task has been read), both up to the end of the window.
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
        # Packing puts rows with many short examples first. Without a shuffle a mixture's tasks would come in waves.
        self._rows, row_of = packing.pack_rows(examples, self._specs, self._sizes, pack, shuffle=rng if pack else None)
        self._count = int(row_of.max()) + 1
        if self._setting.task_ids:
            parts = examples[packing.PARTS].lengths if packing.PARTS in examples else 1  # each part has a segment id
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
        """Draws the tasks of the next examples, int [examples]: as many as fill a window's rows, or fewer if an epoch
        ends earlier."""
        wanted = self._window_rows
        begins_epoch, fewest = self._drawn == 0, FEWEST_ROWS_PER_WINDOW
        if len(self._feeds) == 1:  # if an epoch's beginning was packed, its rest is packed alone, however short
            begins_epoch = self._feeds[0].begins_epoch()
            fewest = FEWEST_ROWS_PER_EPOCH if begins_epoch else 0
        if begins_epoch:  # the streams' first windows differ in size, so that they end in different batches
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
        """Returns the tasks of `count` examples from number `first` on, int [count]. The tasks depend only on the
        numbers of the examples."""
        blocks = range(first // DRAWS_PER_BLOCK, (first + count - 1) // DRAWS_PER_BLOCK + 1)
        return np.concatenate([self._block(n) for n in blocks])[first - blocks[0] * DRAWS_PER_BLOCK :][:count]

    def _block(self, number: int) -> np.ndarray:
        if number not in self._blocks:
            rng = generator(self._setting.seed, "mixture", self._number, number)
            self._blocks = {k: v for k, v in self._blocks.items() if k == number - 1}
            self._blocks[number] = rng.choice(len(self._feeds), size=DRAWS_PER_BLOCK, p=self._shares)
        return self._blocks[number]


def _tokens_of(examples: Examples, specs: Mapping[str, ArraySpec]) -> np.ndarray:
    """Returns the number of tokens of each example, int64 [examples], in the encoder and the decoder together."""
    return packing.lengths_of(examples, specs, "SL").sum(axis=1)


def _task_ids(task_of: np.ndarray, row_of: np.ndarray, rows: Batch) -> Batch:
    """Returns the number of each token's task, from 1, and 0 on padding (int32 [BL] or [BS]).

    If there is a decoder, its tokens have task ids, because the loss is there. Otherwise the encoder's tokens have
    them.
    task_of, row_of: int [segments].
    """
    side = "decoder" if "decoder_segment_ids" in rows else "encoder"
    segments = rows[f"{side}_segment_ids"]
    order = np.argsort(row_of, kind="stable")
    numbers = np.arange(len(order)) - np.searchsorted(row_of[order], row_of[order]) + 1
    ids = np.zeros((len(segments), numbers.max() + 1), np.int32)  # by row and segment
    ids[row_of[order], numbers] = task_of[order] + 1
    return {f"{side}_task_ids": np.take_along_axis(ids, segments, axis=1)}


def _ranks(task_of: np.ndarray) -> np.ndarray:
    """Returns the place of each example after sorting by task, int64 [examples].

    >>> _ranks(np.array([1, 0, 1, 0])).tolist()
    [2, 0, 3, 1]
    """
    return np.argsort(np.argsort(task_of, kind="stable"))
