"""From tasks to batches, in an order that is a pure function of (seed, mixture, step).

The rows of a global batch are cut into S streams, S fixed by the number of rows alone. Stream s takes the elements
s, s + S, s + 2S, … of each task's shuffled, endlessly repeated order, draws its examples from the tasks by their
rates, and packs them into its rows, window by window. A window of a single task ends where an epoch does: packed with
the next one's, an example would come twice in one epoch, or in one batch. A host computes only the streams of its
rows, so any number of hosts up to S sees the same global batch, row by row. The state of a stream is where it stands:
three integers per task, packed tightly. Restoring works through one packing window again at most.
"""

import base64
import binascii
import collections
import dataclasses
import itertools
import json
import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite import batch as batches
from t5x_lite.batch import ArraySpec, Batch
from t5x_lite.data import cache, packing, registry
from t5x_lite.data.cache import Cache
from t5x_lite.data.convert import TEXT, Converter
from t5x_lite.data.fields import text_of
from t5x_lite.data.order import generator, key, shuffled
from t5x_lite.data.packing import Examples
from t5x_lite.data.reader import Reader
from t5x_lite.data.registry import Task
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import CheckpointError, ConfigError, DataError

MAX_STREAMS = 64  # at most so many hosts read data
TEXTS_PER_WINDOW = 64  # of a task, encoded together; the documents of a corpus are joined before they are cut
FEWEST_TEXTS_PER_WINDOW = 8  # of a task with a small share of a mixture: every stream keeps a window of every task
ROWS_PER_WINDOW = 1024  # packed together, over all streams; of each at least FEWEST_ROWS_PER_WINDOW
FEWEST_ROWS_PER_WINDOW = 64  # the last may stay half empty: about 0.8% of them
FEWEST_ROWS_PER_EPOCH = 16  # of a single task in a stream: shorter epochs are packed together
ROWS_PER_UNPACKED_WINDOW = 16  # noised together: they wait for no others to fit beside them
MOST_EXAMPLES_PER_WINDOW = 1 << 14  # ends a window of examples that are next to empty
EXAMPLES_PER_EVAL_WINDOW = 1024
ORDERED_WINDOWS = 16  # whose places in the order are worked out together
COUNTED = ("tokens", "examples", "converted", "too long", "bad")  # by task
BRIEF = 40  # characters of a value in a state's fingerprint


@dataclasses.dataclass(frozen=True)
class Setting:
    """What turns a task's examples into model features: the same for all streams of a run."""

    converter: Converter
    vocabulary: Vocabulary
    seed: int
    streams: int
    pack: bool
    caches: Mapping[str, Cache] = dataclasses.field(default_factory=dict)  # by task; the others are read from sources
    task_ids: bool = False


# ------------------------------------------------------------------------------------------------------- training


class TrainBatches:
    """An endless iterator of this host's rows of the global batches, with a state that restores at once."""

    def __init__(
        self,
        rates: Mapping[str, float],
        setting: Setting,
        batch_rows: int,
        shard_index: int,
        shard_count: int,
        prefetch_batches: int,
    ):
        self._setting, self._prefetch = setting, prefetch_batches
        per_host = setting.streams // shard_count
        self._mine = range(shard_index * per_host, (shard_index + 1) * per_host)
        self.tasks = tuple(sorted(rates))  # task_ids are their numbers here, from 1
        readers = [Reader(registry.REGISTRY[name], "train") for name in self.tasks]  # type: ignore[arg-type]
        self._streams = {s: _Stream(readers, rates, setting, s) for s in self._mine}
        self._rows_per_stream = batch_rows // setting.streams
        self._before = np.zeros((len(COUNTED), len(rates)))  # counted before the state that was restored
        self._state = self._stream_states()
        self._counted: list[Callable[[], np.ndarray]] = []
        self._worker: _Worker | None = None
        vocabulary = setting.vocabulary
        self._fingerprint = {
            "mixture": {name: round(rate, 9) for name, rate in rates.items()},
            "tasks": {name: _brief(registry.identity(registry.REGISTRY[name])) for name in rates},  # type: ignore[arg-type]
            "converter": repr(setting.converter),
            "vocabulary": vocabulary.fingerprint,
            "format": 4,  # of this state, and of the order it stands for
            "seed": setting.seed,
            "batch_rows": batch_rows,
            "pack": setting.pack,
            "streams": setting.streams,
        }

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        if self._prefetch and self._worker is None:
            self._worker = _Worker(self._produce, self._prefetch)
        batch, self._state, self._counted = self._worker.next() if self._worker else self._produce()
        return batch

    def get_state(self) -> dict:
        """Where the batches handed out so far have led, as JSON-able data; of this host's streams only. 100 tasks in 64
        streams take less than 100 kB.

        streams: of each, the examples drawn when its packing window began (`drawn`), the rows of it that are out
        (`emitted`), and where its tasks stood (`_encoded`). counts: COUNTED by task, when these windows began.
        """
        streams = {
            str(number): {"drawn": start.drawn, "emitted": emitted, "tasks": _encoded(start.positions)}
            for number, (start, emitted) in self._state.items()
        }
        counts = self._before + sum(start.counts for start, _ in self._state.values())
        return {"fingerprint": self._fingerprint, "counts": counts.tolist(), "streams": streams}

    def set_state(self, state: dict) -> None:
        """Goes on from `get_state()` of any host count (merged). CheckpointError when it was another pipeline's."""
        differing = list(registry.differences(state.get("fingerprint", {}), self._fingerprint))
        if differing:
            raise CheckpointError(
                f"the data is not what this run was trained on: {'; '.join(differing)}. "
                "Restore the data, or start a new --workdir"
            )
        missing = [number for number in self._mine if str(number) not in state["streams"]]
        if missing:
            raise CheckpointError(
                f"the data state lacks streams {missing}; it is of some hosts only. Give merge_states() of all hosts"
            )
        zero = np.zeros_like(self._before)
        starts = {}
        for number in self._mine:
            stream = state["streams"][str(number)]
            positions = _decoded(stream["tasks"], len(self.tasks))
            starts[number] = _Start(stream["drawn"], positions, zero), stream["emitted"]
        self.close()
        self._before = np.array(state["counts"]) * (len(self._mine) / self._setting.streams)
        self._go_to(starts)

    def counters(self) -> dict[str, float]:
        """Totals of this host since step 0, over resumptions: examples and tokens in the batches handed out and epochs
        per task (read for packing, so up to a window ahead); of the converted examples the share that did not fit,
        as "truncated" or "skipped_long"; and where there were any, "bad" examples, which were left out.
        """
        if not self._counted:
            return {}
        found = np.sum([count() for count in self._counted], axis=0)
        tokens, examples, converted, too_long, bad = found[: len(COUNTED)] + self._before
        epochs = found[-1]
        out = {f"examples/{name}": float(n) for name, n in zip(self.tasks, examples, strict=True)}
        out |= {f"tokens/{name}": float(n) for name, n in zip(self.tasks, tokens, strict=True)}
        out |= {f"epochs/{name}": float(n) / len(self._counted) for name, n in zip(self.tasks, epochs, strict=True)}
        name = "skipped_long" if self._setting.converter.on_long == "skip" else "truncated"
        out[name] = float(too_long.sum() / max(converted.sum(), 1))
        return out | ({"bad": float(bad.sum())} if bad.any() else {})

    def epochs_per_example(self) -> dict[str, float]:
        """{"epochs_per_example/TASK": …}: how far an example gets in its source, by what was read up to now."""
        read = np.sum([stream.read for stream in self._streams.values()], axis=0)
        ratios = read[-1] / np.maximum(read[1], 1) / self._setting.streams
        return {f"epochs_per_example/{name}": float(ratio) for name, ratio in zip(self.tasks, ratios, strict=True)}

    def close(self) -> None:
        """Stops the background thread; batches it had prepared are dropped, and made again when asked for."""
        if self._worker:
            self._worker.close()
            self._worker = None
            self._go_to(self._state)

    def _go_to(self, state: "dict[int, tuple[_Start, int]]") -> None:
        for number, stream in self._streams.items():
            stream.set_state(*state[number])
        self._state = self._stream_states()

    def _produce(self) -> tuple[Batch, dict, list]:
        parts = [part for stream in self._streams.values() for part in stream.take(self._rows_per_stream)]
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        batches.check(batch, self._setting.converter.specs(), self._setting.vocabulary.size)
        return batch, self._stream_states(), [stream.counter() for stream in self._streams.values()]

    def _stream_states(self) -> "dict[int, tuple[_Start, int]]":
        return {number: stream.get_state() for number, stream in self._streams.items()}


def train_batches(
    mixture: str,
    converter: Converter,
    vocabulary: Vocabulary,
    *,
    batch_rows: int,
    seed: int,
    pack: bool = True,
    shard_index: int = 0,
    shard_count: int = 1,
    prefetch_batches: int = 2,
    cache_dir: str = "",
    task_ids: bool = False,
) -> TrainBatches:
    """The training batches of a registered task or mixture.

    batch_rows: of the global batch; host `shard_index` of `shard_count` gets its batch_rows / shard_count of them.
    prefetch_batches: prepared ahead by a background thread; 0 for none.
    cache_dir: what `t5x-lite cache` made of the tasks; the batches are the same, sooner.
    task_ids: adds decoder_task_ids [BL] (encoder-only: encoder_task_ids [BS]), 0 on padding and 1, 2, … for the tasks
        in the order of `TrainBatches.tasks`.
    Raises ConfigError where rows do not divide over hosts, DataError where there is nothing to train on.
    """
    streams = stream_count(batch_rows)
    if streams % shard_count:
        fitting = [rows for rows in range(batch_rows, 64 * MAX_STREAMS) if stream_count(rows) % shard_count == 0]
        raise ConfigError(
            f"data.batch_rows={batch_rows} has {streams} streams of rows, which do not split over {shard_count} input "
            + (f"processes; use batch_rows={fitting[0]}" if fitting else "processes")
            + f", or a number of processes that divides {streams}"
        )
    caches = cache.open_all(registry.tasks(mixture), converter, vocabulary, cache_dir) if cache_dir else {}
    setting = Setting(converter, vocabulary, seed, streams, pack, caches, task_ids)
    return TrainBatches(registry.rates(mixture), setting, batch_rows, shard_index, shard_count, prefetch_batches)


def stream_count(batch_rows: int) -> int:
    """Streams of a global batch: a power of two that divides its rows, and depends on nothing else, so that the
    order is the same on any number of hosts. Few for small batches, as each stream fills its own packing window.

    >>> [stream_count(rows) for rows in (1, 12, 32, 128, 512, 2048)]
    [1, 4, 8, 16, 64, 64]
    """
    divisor = batch_rows & -batch_rows
    wanted = min(max(8, batch_rows // 8), MAX_STREAMS)
    return min(divisor, 1 << (wanted.bit_length() - 1))


def merge_states(states: Iterable[dict]) -> dict:
    """The states of all hosts as one. Hosts that share rows, as the mesh may have it, count once."""
    states = list({tuple(sorted(state["streams"])): state for state in states}.values())
    counts = np.sum([state["counts"] for state in states], axis=0).tolist()
    return states[0] | {"counts": counts, "streams": {k: v for state in states for k, v in state["streams"].items()}}


def _brief(identity: Mapping[str, Any]) -> dict[str, Any]:
    """A task's identity without what is empty, long values by a digest: a hundred of them are part of every state."""
    texts = {name: json.dumps(value) for name, value in identity.items() if value}
    return {
        name: identity[name] if len(text) <= BRIEF else f"{text[: BRIEF // 2]}…{key(text):016x}"
        for name, text in texts.items()
    }


def _encoded(positions: np.ndarray) -> str:
    """Integers as text, in few characters: byte by byte of all of them, as the high ones are mostly alike.

    >>> _decoded(_encoded(np.array([[3, 10**9, 0], [1, 2, 3]])), 2).tolist()
    [[3, 1000000000, 0], [1, 2, 3]]
    """
    planes = np.ascontiguousarray(positions.T).astype("<u8").view(np.uint8).reshape(-1, 8).T
    return base64.b85encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


def _decoded(text: str, tasks: int) -> np.ndarray:
    """CheckpointError where it is not what `_encoded` wrote of so many tasks."""
    try:
        planes = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8).reshape(8, 3 * tasks)
    except (ValueError, zlib.error, binascii.Error) as error:
        raise CheckpointError(f"the data state is damaged ({error}); take an earlier checkpoint") from None
    return np.ascontiguousarray(planes.T).view("<u8").reshape(3, tasks).T.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class _Texts:
    """A window of a task's elements, converted."""

    examples: Examples
    lengths: np.ndarray  # int [examples, dimensions]
    counts: np.ndarray  # int [3]: converted, too long, bad
    epoch_ends: np.ndarray  # int: how many examples there are up to each end of an epoch


@dataclasses.dataclass(frozen=True)
class _Start:
    """Where a stream stood when its packing window began."""

    drawn: int  # examples
    positions: np.ndarray  # int [tasks, 3], of `_Feed.get_position`
    counts: np.ndarray  # float [COUNTED, tasks], since the state that was restored


class _Feed:
    """The examples of one task in one stream: window after window of its elements, converted together."""

    def __init__(self, reader: Reader, share: float, setting: Setting, stream: int):
        self.task, self._reader, self._setting, self._stream = reader.task, reader, setting, stream
        if not len(reader):
            raise DataError(f"task {self.task.name!r} has no training example; check its source")
        self._window_size = max(FEWEST_TEXTS_PER_WINDOW, round(TEXTS_PER_WINDOW * share))
        self._seed = key(setting.seed, self.task.name, "order")
        self._survives = False
        self._block = -1  # of windows whose elements are known
        self.counts = np.zeros(4, np.int64)  # produced, converted, too long, bad
        self.set_position([0, 0, 0])

    def get_position(self) -> list[int]:
        """[window, offset, size]: the next example is number `offset` of `window`, which has `size` (0 where the window
        has not been begun)."""
        return [self._window, self._offset, self._size]

    def set_position(self, position: Sequence[int]) -> None:
        self._window, self._offset, self._size = position
        self._loaded: collections.deque[_Texts] = collections.deque()  # windows from `_window` on

    def lengths(self, count: int) -> np.ndarray:
        """int [count, dimensions]: of the next examples, which stay where they are."""
        self._load(count)
        found = np.concatenate([texts.lengths for texts in self._loaded])
        return found[self._offset : self._offset + count]

    def begins_epoch(self) -> bool:
        """Whether this stream's next example is the first that it reads of an epoch of the source."""
        self._load(1)
        if self._offset:
            return self._offset in self._loaded[0].epoch_ends
        place, size = self._elements(self._window)[0][0], len(self._reader)
        return (place - self._setting.streams) // size < place // size

    def epoch_ends(self, count: int) -> np.ndarray:
        """int, ascending: after how many of the next `count` examples this stream has read all of the source."""
        self._load(count)
        begins = itertools.accumulate((len(texts.lengths) for texts in self._loaded), initial=-self._offset)
        ends = np.concatenate([texts.epoch_ends + begin for texts, begin in zip(self._loaded, begins, strict=False)])
        return ends[(ends > 0) & (ends <= count)]

    def take(self, count: int) -> list[Examples]:
        """The next `count` examples."""
        self._load(count)
        out = []
        while count:
            texts = self._loaded[0]
            size = len(texts.lengths)
            if self._offset == 0:  # not when a restored state goes on in the middle: it was counted then
                self.counts[1:] += texts.counts
            end = min(self._offset + count, size)
            if end > self._offset:
                out.append(packing.piece(texts.examples, self._offset, end))
            self.counts[0] += end - self._offset
            count -= end - self._offset
            self._offset, self._size = end, size
            if end == size:
                self._loaded.popleft()
                self._window, self._offset, self._size = self._window + 1, 0, 0
        return out

    @property
    def epochs(self) -> float:
        """How often this stream's share of the source has been read."""
        windows = self._window + self._offset / max(self._size, 1)
        return windows * self._window_size * self._setting.streams / len(self._reader)

    def _load(self, count: int) -> None:
        """Converts windows until the next `count` examples are there."""
        missing = count + self._offset - sum(len(texts.lengths) for texts in self._loaded)
        empty_windows = 0
        while missing > 0:
            texts = self._convert(self._window + len(self._loaded))
            self._loaded.append(texts)
            missing -= len(texts.lengths)
            empty_windows = 0 if len(texts.lengths) else empty_windows + 1
            if empty_windows * self._window_size > len(self._reader):
                self._require_survivor()

    def _require_survivor(self) -> None:
        """DataError unless an element of the source makes an example: a rare one may just not have come up yet."""
        if self._survives:
            return
        setting = self._setting
        for group in _groups(text_examples(self.task, "train"), self._window_size):
            rng = generator(setting.seed, self.task.name, "survivor")
            if packing.count(_converted(group, self._reader, setting.converter, setting.vocabulary, rng)[0]):
                self._survives = True
                return
        raise DataError(
            f"task {self.task.name!r} has no example left of {len(self._reader)} after its preprocessors; "
            "do they drop everything, or are all texts empty (or, with data.on_long=skip, all too long)?"
        )

    def _convert(self, window: int) -> _Texts:
        setting, task = self._setting, self.task
        places, indices = self._elements(window)
        bad = self._reader.bad
        if task.name in setting.caches:
            found = setting.caches[task.name].read(indices)
        else:
            found = self._reader.read_many(indices, lambda n: generator(setting.seed, task.name, "element", places[n]))
        rng = generator(setting.seed, task.name, "window", self._stream, window)
        pieces, too_long, ends = [], 0, self._epoch_ends(places)
        for begin, end in itertools.pairwise(sorted({0, *ends, len(places)})):
            numbered = zip(indices[begin:end], found[begin:end], strict=True)
            kept = [(index, example) for index, example in numbered if example is not None]
            piece, long = _converted(kept, self._reader, setting.converter, setting.vocabulary, rng)
            pieces.append(piece)
            too_long += long
        examples = packing.concatenate(pieces)
        lengths = setting.converter.lengths(examples, setting.vocabulary)
        skipped = too_long if setting.converter.on_long == "skip" else 0
        counts = np.array([len(lengths) + skipped, too_long, self._reader.bad - bad])
        return _Texts(examples, lengths, counts, np.cumsum([packing.count(piece) for piece in pieces])[: len(ends)])

    def _epoch_ends(self, places: Sequence[int]) -> list[int]:
        """After how many elements of a window its stream has read all of the source; none where it does so before there
        are rows enough to keep the epochs apart."""
        streams, size = self._setting.streams, len(self._reader)
        if size < FEWEST_ROWS_PER_EPOCH * streams:
            return []
        return (np.flatnonzero((np.array(places) + streams) // size > np.array(places) // size) + 1).tolist()

    def _elements(self, window: int) -> tuple[list[int], list[int]]:
        """The places in the task's order of a window's elements, and their numbers in the source. Those of several
        windows are found together, in hardly more time."""
        block, offset = window // ORDERED_WINDOWS, window % ORDERED_WINDOWS * self._window_size
        if block != self._block:
            count = ORDERED_WINDOWS * self._window_size
            places = np.arange(block * count, (block + 1) * count) * self._setting.streams + self._stream
            self._block, self._places = block, places.tolist()
            self._indices = shuffled(places, len(self._reader), self._seed).tolist()
        piece = slice(offset, offset + self._window_size)
        return self._places[piece], self._indices[piece]


class _Stream:
    """The rows of one stream: examples drawn from the tasks by their rates, packed window by window."""

    def __init__(self, readers: Sequence[Reader], rates: Mapping[str, float], setting: Setting, number: int):
        self._setting, self._number = setting, number
        self._shares = np.array([rates[reader.task.name] for reader in readers])
        self._feeds = [_Feed(reader, rates[reader.task.name], setting, number) for reader in readers]
        self._specs = setting.converter.specs()
        self._sizes = setting.converter.sizes(setting.pack)
        self._capacity = np.array(list(self._sizes.values()))
        self._window_rows = max(FEWEST_ROWS_PER_WINDOW, ROWS_PER_WINDOW // setting.streams)
        self._blocks: dict[int, np.ndarray] = {}  # of draws
        nothing = np.zeros((len(COUNTED), len(readers)))
        self.set_state(_Start(0, np.zeros((len(readers), 3), np.int64), nothing), 0)

    def get_state(self) -> tuple[_Start, int]:
        """Where the window that is being handed out began, and how many of its rows are out."""
        return self._start, self._emitted

    def set_state(self, start: _Start, emitted: int) -> None:
        self._start, self._emitted, self._drawn = start, emitted, start.drawn
        self._token_counts = start.counts[0]
        for feed, position, counts in zip(self._feeds, start.positions.tolist(), start.counts[1:].T, strict=True):
            feed.set_position(position)
            feed.counts = counts.copy()
        self._rows: Batch | None = None  # made when asked for
        self._count = 0

    def take(self, count: int) -> list[Batch]:
        """The next `count` rows, as pieces of windows."""
        out = []
        while count:
            if self._rows is None:
                self._fill_window()
            elif self._emitted == self._count:
                positions = np.array([feed.get_position() for feed in self._feeds])
                self._start, self._emitted = _Start(self._drawn, positions, self.read[: len(COUNTED)]), 0
                self._fill_window()
            end = min(self._emitted + count, self._count)
            out.append({name: array[self._emitted : end] for name, array in self._rows.items()})  # type: ignore[union-attr]
            count -= end - self._emitted
            self._emitted = end
        return out

    def counter(self) -> Callable[[], np.ndarray]:
        """A function for float [COUNTED and epochs, tasks], tokens and examples only of the rows handed out up to now.
        Counting waits until somebody asks."""
        read, tasks, row_of, emitted = self.read, self._tasks, self._row_of, self._emitted
        tokens = self._tokens

        def count() -> np.ndarray:
            out, coming = read.copy(), row_of >= emitted
            out[0] -= np.bincount(tasks[coming], tokens[coming], minlength=read.shape[1])
            out[1] -= np.bincount(tasks[coming], minlength=read.shape[1])
            return out

        return count

    def _fill_window(self) -> None:
        """The next window of rows: as many examples as fill it, packed."""
        pack = self._setting.pack
        tasks = self._draw() if pack else self._tasks_from(self._drawn, ROWS_PER_UNPACKED_WINDOW)
        rng = generator(self._setting.seed, "noise", self._number, self._drawn)
        self._drawn += len(tasks)
        counts = np.bincount(tasks, minlength=len(self._feeds)).tolist()
        pieces = [piece for feed, n in zip(self._feeds, counts, strict=True) if n for piece in feed.take(n)]
        examples = _finished(pieces, self._setting.converter, self._setting.vocabulary, rng)
        if len(self._feeds) > 1:
            examples = packing.take(examples, _ranks(tasks))
        # Packing puts the rows of many short examples first: in that order, a mixture's tasks would come in waves.
        self._rows, row_of = _packed(examples, self._specs, self._sizes, pack, shuffle=rng if pack else None)
        self._count = int(row_of.max()) + 1
        if self._setting.task_ids:
            parts = examples[packing.PARTS].lengths if packing.PARTS in examples else 1  # each has its own segment id
            self._rows |= _task_ids(np.repeat(tasks, parts), np.repeat(row_of, parts), self._rows)
        self._tasks, self._row_of, self._tokens = tasks, row_of, _tokens(examples, self._specs)
        self._token_counts = self._token_counts + np.bincount(tasks, self._tokens, minlength=len(self._feeds))
        counts = np.array([[*feed.counts, feed.epochs] for feed in self._feeds]).T
        self.read = np.vstack([self._token_counts, counts])

    def _draw(self) -> np.ndarray:
        """The tasks of the next examples, as many as make up the full rows of a window, or end an epoch."""
        wanted = self._window_rows
        begins_epoch, fewest = self._drawn == 0, FEWEST_ROWS_PER_WINDOW
        if len(self._feeds) == 1:  # the rest of an epoch whose beginning is packed stays alone, short as it may be
            begins_epoch = self._feeds[0].begins_epoch()
            fewest = FEWEST_ROWS_PER_EPOCH if begins_epoch else 0
        if begins_epoch:  # first windows of different sizes: later the streams do not all run dry in one batch
            wanted = -(-wanted * (self._number + 1) // self._setting.streams)
        count = wanted
        while True:
            tasks = self._tasks_from(self._drawn, count)
            counts = np.bincount(tasks, minlength=len(self._feeds)).tolist()
            lengths = np.concatenate([feed.lengths(n) for feed, n in zip(self._feeds, counts, strict=True) if n])
            filled = (np.cumsum(lengths[_ranks(tasks)], axis=0) / self._capacity).max(axis=1)
            if filled[-1] >= wanted or count >= MOST_EXAMPLES_PER_WINDOW:
                ends = [int(np.searchsorted(filled, wanted)) + 1]
                for task in np.flatnonzero(counts):
                    read = self._feeds[task].epoch_ends(counts[task])
                    ends += (np.flatnonzero(tasks == task)[read - 1] + 1).tolist()
                return tasks[: min(end for end in ends if end == ends[0] or filled[end - 1] >= fewest)]
            count = min(int(count * wanted / max(filled[-1], 1)) + 1, MOST_EXAMPLES_PER_WINDOW)

    def _tasks_from(self, first: int, count: int) -> np.ndarray:
        """Which task each of the examples number `first` and on is from: a function of their numbers alone."""
        blocks = range(first // 1024, (first + count - 1) // 1024 + 1)
        return np.concatenate([self._block(n) for n in blocks])[first - blocks[0] * 1024 :][:count]

    def _block(self, number: int) -> np.ndarray:
        if number not in self._blocks:
            rng = generator(self._setting.seed, "mixture", self._number, number)
            self._blocks = {k: v for k, v in self._blocks.items() if k == number - 1}
            self._blocks[number] = rng.choice(len(self._feeds), size=1024, p=self._shares)
        return self._blocks[number]


def _tokens(examples: Examples, specs: Mapping[str, ArraySpec]) -> np.ndarray:
    """int [examples]: tokens of encoder and decoder together."""
    return packing.lengths_of(examples, specs, "SL").sum(axis=1)


def _task_ids(tasks: np.ndarray, row_of: np.ndarray, rows: Batch) -> Batch:
    """The number of each token's task, from 1, and 0 on padding: of the decoder where there is one, as the loss is
    there. tasks, row_of: int [segments]."""
    side = "decoder" if "decoder_segment_ids" in rows else "encoder"
    segments = rows[f"{side}_segment_ids"]
    order = np.argsort(row_of, kind="stable")
    numbers = np.arange(len(order)) - np.searchsorted(row_of[order], row_of[order]) + 1
    task_of = np.zeros((len(segments), numbers.max() + 1), np.int32)
    task_of[row_of[order], numbers] = tasks[order] + 1
    return {f"{side}_task_ids": np.take_along_axis(task_of, segments, axis=1)}


def _ranks(tasks: np.ndarray) -> np.ndarray:
    """Where each example stands once they are sorted by task.

    >>> _ranks(np.array([1, 0, 1, 0])).tolist()
    [2, 0, 3, 1]
    """
    return np.argsort(np.argsort(tasks, kind="stable"))


class _Worker:
    """A background thread that keeps a few results of `produce` ready; its errors come out of `next`."""

    def __init__(self, produce: Callable[[], Any], depth: int):
        self._queue: queue.Queue = queue.Queue(depth)
        self._failed: tuple[str, Any] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(produce,), name="t5x_lite-data", daemon=True)
        self._thread.start()

    def next(self) -> Any:
        kind, value = self._failed or self._queue.get()
        if kind == "error":
            self._failed = kind, value  # every later call gets it again: the thread has ended, nothing more will come
            raise value
        return value

    def close(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _run(self, produce: Callable[[], Any]) -> None:
        while not self._stopped.is_set():
            try:
                item = ("value", produce())
            except BaseException as error:
                item = ("error", error)
            while not self._stopped.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[0] == "error":
                return


# ----------------------------------------------------------------------------------------------------- evaluation


def text_examples(task: Task, split: str) -> Iterator[tuple[int, registry.Example]]:
    """(index, preprocessed example) of a split, in the source's order; dropped ones are left out."""
    reader = Reader(task, split)
    if not len(reader):
        raise DataError(f"task {task.name!r} has no example in split {split!r}")
    found = False
    for index in range(len(reader)):
        example = reader.read(index, lambda n=index: generator(0, task.name, split, n))
        if example is not None:
            found = True
            yield index, example
    if not found:
        raise DataError(
            f"task {task.name!r} has no example left of {len(reader)} in split {split!r} after its preprocessors; "
            "do they drop everything?"
        )


def eval_batches(
    task: Task,
    converter: Converter,
    vocabulary: Vocabulary,
    *,
    batch_rows: int,
    split: str = "validation",
    pack: bool = False,
    limit: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Iterator[Batch]:
    """Every example of a split exactly once over all hosts, with the training features (targets and weights).

    All hosts get the same number of batches; rows that are missing at the end weigh nothing. `limit`: at most so
    many source examples, 0 for all. The noise of a corpus is the same at every evaluation.
    """
    specs, sizes = converter.specs(), converter.sizes(pack)
    share = _share(batch_rows, shard_index, shard_count)
    windows = _eval_windows(task, converter, vocabulary, split, limit, EXAMPLES_PER_EVAL_WINDOW if pack else 1)
    blocks = (_packed(examples, specs, sizes, pack)[0] for examples in windows)
    batch = None
    for whole in _of_rows(blocks, batch_rows):
        batches.check(whole, specs, vocabulary.size)  # all of it, so that all hosts refuse it together
        batch = {name: array[share] for name, array in whole.items()}
        yield batch
    if batch is None:
        raise DataError(f"task {task.name!r}: all texts of split {split!r} are empty; there is nothing to evaluate")


def prompt_batches(
    task: Task,
    converter: Converter,
    vocabulary: Vocabulary,
    *,
    batch_rows: int,
    max_new_tokens: int,
    split: str = "validation",
    limit: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Iterator[tuple[Batch, list[int], list[registry.Example]]]:
    """What a model reads to predict each target: (batch with one example a row, their indices, their texts)."""
    share = _share(batch_rows, shard_index, shard_count)
    for group in _groups(_limited(text_examples(task, split), limit), batch_rows):
        mine = group[share]
        examples = [example for _, example in mine]
        rows = share.stop - share.start
        batch, _ = prompt_batch(examples, task, converter, vocabulary, batch_rows=rows, max_new_tokens=max_new_tokens)
        yield batch, [index for index, _ in mine], examples


def prompt_batch(
    examples: Sequence[Mapping],
    task: Task,
    converter: Converter,
    vocabulary: Vocabulary,
    *,
    batch_rows: int,
    max_new_tokens: int,
) -> tuple[Batch, list[bool]]:
    """The prompts of some text examples as one batch, and which were truncated; missing rows are padding."""
    found, truncated = (
        converter.prompts(examples, task, vocabulary, max_new_tokens) if examples else ({}, np.zeros(0, bool))
    )
    batch = _one_per_row(found, converter, vocabulary, batch_rows, converter.prompt_sizes(max_new_tokens))
    return batch, truncated.tolist()


def example_batch(
    examples: Sequence[Mapping], task: Task, converter: Converter, vocabulary: Vocabulary, *, batch_rows: int
) -> Batch:
    """Supervised text examples with their targets as one batch, one a row; DataError for one that is longer than it."""
    found, truncated = converter.supervised(examples, task, vocabulary) if examples else ({}, ())
    if any(truncated):
        texts = " and ".join(repr(str(text)[:40]) for text in examples[list(truncated).index(True)].values())
        sizes = " and ".join(map(str, converter.sizes(pack=False).values()))
        raise DataError(f"{texts} do not fit in rows of {sizes} tokens; shorten them")
    return _one_per_row(found, converter, vocabulary, batch_rows, converter.sizes(pack=False))


def packed_examples(
    examples: Sequence[Mapping], task: Task, converter: Converter, vocabulary: Vocabulary, *, batch_rows: int
) -> Iterator[tuple[Batch, list[tuple[int, int, int]]]]:
    """Supervised text examples with their targets, several a row: batches, and for each example in one its number in
    `examples`, its row and its segment id there. For scoring: short pairs need a fraction of the batches."""
    found, _ = converter.supervised(examples, task, vocabulary)
    specs, sizes = converter.specs(), converter.sizes(pack=True)
    row_of = packing.assign(packing.lengths_of(found, specs, "".join(sizes)), np.array(list(sizes.values())))
    for first in range(0, int(row_of.max(initial=-1)) + 1, batch_rows):
        numbers = np.flatnonzero((row_of >= first) & (row_of < first + batch_rows))
        rows = row_of[numbers] - first
        batch = packing.fill(packing.take(found, numbers), rows, batch_rows, specs, sizes)
        batches.check(batch, specs, vocabulary.size)
        segments = [int((rows[: n + 1] == row).sum()) for n, row in enumerate(rows)]
        yield batch, list(zip(numbers.tolist(), rows.tolist(), segments, strict=True))


def _one_per_row(
    examples: Examples, converter: Converter, vocabulary: Vocabulary, batch_rows: int, sizes: Mapping[str, int]
) -> Batch:
    specs = converter.specs()
    number = packing.count(examples) if examples else 0
    batch = packing.fill(examples, np.arange(number), batch_rows, specs, sizes)
    batches.check(batch, specs, vocabulary.size)
    return batch


def _eval_windows(
    task: Task, converter: Converter, vocabulary: Vocabulary, split: str, limit: int, fewest: int
) -> Iterator[Examples]:
    """The examples of a split, at least `fewest` together except at its end."""
    ready: list[Examples] = []
    reader = Reader(task, split)
    for window, group in enumerate(_groups(_limited(text_examples(task, split), limit), TEXTS_PER_WINDOW)):
        rng = generator(0, task.name, split, "window", window)
        pieces = [_converted(group, reader, converter, vocabulary, rng)[0]]
        ready.append(_finished(pieces, converter, vocabulary, rng))
        if sum(map(packing.count, ready)) >= fewest:
            yield packing.concatenate(ready)
            ready = []
    if sum(map(packing.count, ready)):
        yield packing.concatenate(ready)


def _packed(
    examples: Examples,
    specs: Mapping[str, ArraySpec],
    sizes: Mapping[str, int],
    pack: bool,
    shuffle: np.random.Generator | None = None,
) -> tuple[Batch, np.ndarray]:
    """As many rows as the examples need, and the row of each."""
    row_of = np.arange(packing.count(examples))
    if pack:
        row_of = packing.assign(packing.lengths_of(examples, specs, "".join(sizes)), np.array(list(sizes.values())))
    count = int(row_of.max()) + 1
    if shuffle is not None:
        row_of = shuffle.permutation(count)[row_of]
    return packing.fill(examples, row_of, count, specs, sizes), row_of


def _of_rows(blocks: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """The same rows in batches of `rows`; the last is filled up with padding."""
    rest: Batch = {}
    for block in blocks:
        rest = {name: np.concatenate([rest[name], array]) for name, array in block.items()} if rest else block
        full = len(next(iter(rest.values()))) // rows
        for n in range(full):
            yield {name: array[n * rows : (n + 1) * rows] for name, array in rest.items()}
        rest = {name: array[full * rows :] for name, array in rest.items()}
    if rest and (missing := rows - len(next(iter(rest.values())))) < rows:
        yield {name: np.pad(array, [(0, missing), (0, 0)]) for name, array in rest.items()}


def _converted(
    numbered: Sequence[tuple[int, Mapping]],
    reader: Reader,
    converter: Converter,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> tuple[Examples, int]:
    """Text examples, with their numbers in the source, as model features, or as texts to denoise (empty texts give
    none); and how many did not fit in a row."""
    task, examples = reader.task, [example for _, example in numbered]
    if task.is_corpus:
        return converter.corpus([text_of(e, "text", task) for e in examples], vocabulary, rng), 0
    found, is_long = converter.supervised(examples, task, vocabulary)
    if converter.on_long == "error" and is_long.any():
        index = numbered[int(is_long.argmax())][0]
        raise DataError(
            f"{reader.where(index)}: the example does not fit in a row ({_sizes(converter)}). Raise data.length or "
            "data.targets_length, shorten it, or set data.on_long to truncate or skip"
        )
    if converter.on_long == "skip":
        found = packing.take(found, np.flatnonzero(~is_long))
    return found, int(is_long.sum())


def _sizes(converter: Converter) -> str:
    names = {"S": "encoder", "L": "decoder"}
    return ", ".join(f"{names[d]} {size} tokens" for d, size in converter.sizes(pack=False).items() if d in names)


def _finished(
    pieces: Sequence[Examples], converter: Converter, vocabulary: Vocabulary, rng: np.random.Generator
) -> Examples:
    """All pieces' examples as model features, texts denoised: those of all tasks at once, so that many small tasks
    cost no more than one."""
    texts = [piece for piece in pieces if TEXT in piece]
    if not texts:
        return packing.concatenate(pieces)
    denoised = converter.denoise(packing.concatenate(texts), vocabulary, rng)
    if len(texts) == len(pieces):
        return denoised
    ends = itertools.accumulate(map(packing.count, texts), initial=0)
    parts = (packing.piece(denoised, begin, end) for begin, end in itertools.pairwise(ends))
    return packing.concatenate([next(parts) if TEXT in piece else piece for piece in pieces])


def _share(batch_rows: int, shard_index: int, shard_count: int) -> slice:
    if batch_rows % shard_count:
        raise ConfigError(f"eval.batch_rows={batch_rows} does not split over {shard_count} processes; use a multiple")
    rows = batch_rows // shard_count
    return slice(shard_index * rows, (shard_index + 1) * rows)


def _limited(items: Iterable, limit: int) -> Iterable:
    return itertools.islice(items, limit) if limit else items


def _groups(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
