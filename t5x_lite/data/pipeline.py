"""From tasks to batches, in an order that is a pure function of (seed, mixture, step).

The rows of a global batch are cut into S streams, S fixed by the number of rows alone. Stream s takes the elements
s, s + S, s + 2S, … of each task's shuffled, endlessly repeated order, draws its examples from the tasks by their
rates, and packs them into its rows. A host computes only the streams of its rows, so any number of hosts up to S sees
the same global batch, row by row. The state of a stream is where it stands: a few integers per task. Restoring
works through one packing window again at most.
"""

import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite import batch as batches
from t5x_lite.batch import Batch
from t5x_lite.data import packing, preprocess, registry
from t5x_lite.data.convert import Converter, label, text_of
from t5x_lite.data.order import generator, key, shuffled
from t5x_lite.data.packing import Example
from t5x_lite.data.registry import Task
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import CheckpointError, ConfigError, DataError

MAX_STREAMS = 64  # at most so many hosts read data
DOCUMENTS_PER_WINDOW = 64  # of a corpus, joined before they are cut to length
EXAMPLES_PER_WINDOW = 64  # of a supervised task, encoded together
ROWS_PER_PACKING_WINDOW = 32  # the last row of a window may stay half empty: about 1.5% of it


@dataclasses.dataclass(frozen=True)
class Setting:
    """What turns a task's examples into model features: the same for all streams of a run."""

    converter: Converter
    vocabulary: Vocabulary
    seed: int
    streams: int
    pack: bool


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
        self._setting, self._batch_rows, self._prefetch = setting, batch_rows, prefetch_batches
        per_host = setting.streams // shard_count
        self._mine = range(shard_index * per_host, (shard_index + 1) * per_host)
        self._streams = {s: _Stream(rates, setting, s) for s in self._mine}
        self._rows_per_stream = batch_rows // setting.streams
        self._state = self._stream_states()
        self._worker: _Worker | None = None
        vocabulary = setting.vocabulary
        self._fingerprint = {
            "mixture": {name: round(rate, 9) for name, rate in rates.items()},
            "examples": {name: len(registry.REGISTRY[name].source.split("train")) for name in rates},  # type: ignore[union-attr]
            "converter": repr(setting.converter),
            "vocabulary": vocabulary.fingerprint,
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
        batch, self._state, self._counters = self._worker.next() if self._worker else self._produce()
        return batch

    def get_state(self) -> dict:
        """Where the batches handed out so far have led, as JSON-able data; of this host's streams only."""
        return {"fingerprint": self._fingerprint, "streams": self._state}

    def set_state(self, state: dict) -> None:
        """Goes on from `get_state()` of any host count (merged). CheckpointError when it was another pipeline's."""
        theirs = state.get("fingerprint", {})
        differing = [f"{k} {theirs.get(k)!r} → {v!r}" for k, v in self._fingerprint.items() if theirs.get(k) != v]
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
        self.close()
        for number, stream in self._streams.items():
            stream.set_state(state["streams"][str(number)])
        self._state = self._stream_states()

    def counters(self) -> dict[str, float]:
        """Totals of this host since step 0, over resumptions: examples (drawn for packing, so up to a window ahead of
        the rows handed out) and epochs per task, and the share of the converted examples that were truncated."""
        return dict(self._counters)

    def close(self) -> None:
        """Stops the background thread; batches it had prepared are dropped, and made again when asked for."""
        if self._worker:
            self._worker.close()
            self._worker = None
            for number, stream in self._streams.items():
                stream.set_state(self._state[str(number)])

    _counters: dict[str, float] = {}  # noqa: RUF012  (replaced, never changed)

    def _produce(self) -> tuple[Batch, dict, dict]:
        rows = [next(s) for s in self._streams.values() for _ in range(self._rows_per_stream)]
        batch = packing.stack(rows, len(rows))
        batches.check(batch, self._setting.converter.specs(), self._setting.vocabulary.size)
        return batch, self._stream_states(), self._count()

    def _stream_states(self) -> dict:
        return {str(number): stream.get_state() for number, stream in self._streams.items()}

    def _count(self) -> dict[str, float]:
        feeds = [feed for stream in self._streams.values() for feed in stream.feeds.values()]
        out: dict[str, float] = {}
        for feed in feeds:
            name = feed.task.name
            out[f"examples/{name}"] = out.get(f"examples/{name}", 0) + feed.produced
            out[f"epochs/{name}"] = out.get(f"epochs/{name}", 0) + feed.epochs / len(self._streams)
        total = sum(feed.converted for feed in feeds)
        out["truncated"] = sum(feed.truncated for feed in feeds) / max(total, 1)
        return out


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
) -> TrainBatches:
    """The training batches of a registered task or mixture.

    batch_rows: of the global batch; host `shard_index` of `shard_count` gets its batch_rows / shard_count of them.
    prefetch_batches: prepared ahead by a background thread; 0 for none.
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
    setting = Setting(converter, vocabulary, seed, streams, pack)
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
    """The states of all hosts as one."""
    states = list(states)
    return states[0] | {"streams": {k: v for state in states for k, v in state["streams"].items()}}


class _Feed:
    """The examples of one task in one stream: window after window of its elements, converted together."""

    def __init__(self, task: Task, setting: Setting, stream: int):
        self.task, self._setting, self._stream = task, setting, stream
        self._source = task.source.split("train")
        if not len(self._source):
            raise DataError(f"task {task.name!r} has no training example; check its source")
        self.window_size = DOCUMENTS_PER_WINDOW if task.is_corpus else EXAMPLES_PER_WINDOW
        self._seed = key(setting.seed, task.name, "order")
        self.window, self.offset = 0, 0  # the next example is number `offset` of window number `window`
        self._loaded: int | None = None
        self._examples: list[Example] = []
        self._survives = False
        self._truncated_here = 0
        self.produced, self.converted, self.truncated = 0, 0, 0

    def __len__(self) -> int:
        return len(self._source)

    def __next__(self) -> Example:
        for empty_windows in itertools.count():
            if empty_windows * self.window_size > len(self):
                self._require_survivor()
            if self._loaded != self.window:
                self._examples, self._truncated_here = self._convert(self.window)
                self._loaded = self.window
            if self.offset == 0:  # not when a restored state goes on in the middle: it was counted then
                self.converted += len(self._examples)
                self.truncated += self._truncated_here
            if self.offset < len(self._examples):
                self.offset += 1
                self.produced += 1
                return self._examples[self.offset - 1]
            self.window, self.offset = self.window + 1, 0
        raise AssertionError  # count() has no end

    def _require_survivor(self) -> None:
        """DataError unless an element of the source makes an example: a rare one may just not have come up yet."""
        if self._survives:
            return
        for group in _groups(text_examples(self.task, "train"), self.window_size):
            rng = generator(self._setting.seed, self.task.name, "survivor")
            if _converted([e for _, e in group], self.task, self._setting.converter, self._setting.vocabulary, rng)[0]:
                self._survives = True
                return
        raise DataError(
            f"task {self.task.name!r} has no example left of {len(self)} after its preprocessors; "
            "do they drop everything, or are all texts empty?"
        )

    @property
    def epochs(self) -> float:
        """How often this stream's share of the source has been read."""
        done = self.offset / max(len(self._examples), 1) if self._loaded == self.window else 0
        return (self.window + done) * self.window_size * self._setting.streams / len(self)

    def _convert(self, window: int) -> tuple[list[Example], int]:
        setting, task = self._setting, self.task
        examples = []
        places = np.arange(window * self.window_size, (window + 1) * self.window_size) * setting.streams + self._stream
        for place, index in zip(places.tolist(), shuffled(places, len(self), self._seed).tolist(), strict=True):
            example = preprocess.apply(
                task.preprocessors,
                self._source[index],
                lambda n=place: generator(setting.seed, task.name, "element", n),
            )
            if example is not None:
                examples.append(example)
        rng = generator(setting.seed, task.name, "window", self._stream, window)
        return _converted(examples, task, setting.converter, setting.vocabulary, rng)


class _Stream:
    """The rows of one stream: examples drawn from the tasks by their rates, packed window by window."""

    def __init__(self, rates: Mapping[str, float], setting: Setting, number: int):
        self._setting, self._number = setting, number
        self._names = sorted(rates)  # the order a mixture is written in does not matter
        self._shares = np.array([rates[name] for name in self._names])
        self.feeds = {name: _Feed(registry.REGISTRY[name], setting, number) for name in rates}  # type: ignore[arg-type]
        self._specs = setting.converter.specs()
        self._sizes = setting.converter.sizes(setting.pack)
        self._drawn = 0  # examples drawn so far, all tasks
        self._rows: list[list[Example]] | None = []  # of the window being handed out
        self._emitted = 0
        self._window_start = self._position()
        self._draws: tuple[int, np.ndarray] | None = None

    def __next__(self) -> Example:
        if self._rows is None:
            self._rows = self._fill_window()
        if self._emitted == len(self._rows):
            self._window_start = self._position()
            self._rows, self._emitted = self._fill_window(), 0
        self._emitted += 1
        return packing.row(self._rows[self._emitted - 1], self._specs, self._sizes)

    def get_state(self) -> dict:
        return {"window": self._window_start, "emitted": self._emitted}

    def set_state(self, state: dict) -> None:
        start = state["window"]
        self._drawn = start["drawn"]
        for name, feed in self.feeds.items():
            feed.window, feed.offset = start["tasks"][name]
            feed.produced, feed.converted, feed.truncated = start["counts"][name]
        self._window_start = self._position()
        self._rows = None if state["emitted"] else []  # made when asked for
        self._emitted = state["emitted"]

    def _position(self) -> dict:
        return {
            "drawn": self._drawn,
            "tasks": {name: [f.window, f.offset] for name, f in self.feeds.items()},
            "counts": {name: [f.produced, f.converted, f.truncated] for name, f in self.feeds.items()},
        }

    def _draw(self) -> Example:
        """The next example; which task it is from depends on how many were drawn before it, and nothing else."""
        block, index = divmod(self._drawn, 1024)
        if self._draws is None or self._draws[0] != block:
            rng = generator(self._setting.seed, "mixture", self._number, block)
            self._draws = block, rng.choice(len(self._names), size=1024, p=self._shares)
        self._drawn += 1
        return next(self.feeds[self._names[self._draws[1][index]]])

    def _fill_window(self) -> list[list[Example]]:
        if not self._setting.pack:
            return [[self._draw()]]
        letters = "".join(self._sizes)
        capacity = np.array([self._sizes[letter] for letter in letters])
        examples, lengths, total = [], [], np.zeros(len(letters))
        while (total / capacity).max() < ROWS_PER_PACKING_WINDOW:
            examples.append(self._draw())
            lengths.append(packing.example_lengths(examples[-1], self._specs, letters))
            total += lengths[-1]
        return [[examples[i] for i in row] for row in packing.assign(np.array(lengths), capacity)]


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
    source = task.source.split(split)
    if not len(source):
        raise DataError(f"task {task.name!r} has no example in split {split!r}")
    found = False
    for index in range(len(source)):
        rng = lambda n=index: generator(0, task.name, split, n)  # noqa: E731
        example = preprocess.apply(task.preprocessors, source[index], rng)
        if example is not None:
            found = True
            yield index, example
    if not found:
        raise DataError(
            f"task {task.name!r} has no example left of {len(source)} in split {split!r} after its preprocessors; "
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
    rows = _rows(_eval_examples(task, converter, vocabulary, split, limit), specs, sizes, pack)
    share = _share(batch_rows, shard_index, shard_count)
    empty = packing.row([], specs, sizes)
    group = []
    for group in _groups(rows, batch_rows):
        mine = group[share] or [empty]
        batch = packing.stack(mine, share.stop - share.start)
        batches.check(batch, specs, vocabulary.size)
        yield batch
    if not group:
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
        batch = prompt_batch(examples, task, converter, vocabulary, batch_rows=rows, max_new_tokens=max_new_tokens)
        yield batch, [index for index, _ in mine], examples


def prompt_batch(
    examples: Sequence[Mapping],
    task: Task,
    converter: Converter,
    vocabulary: Vocabulary,
    *,
    batch_rows: int,
    max_new_tokens: int,
) -> Batch:
    """The prompts of some text examples as one batch; missing rows are padding."""
    arrays = converter.prompts(examples, task, vocabulary, max_new_tokens) if examples else []
    return _one_per_row(arrays, converter, vocabulary, batch_rows)


def example_batch(
    examples: Sequence[Mapping], task: Task, converter: Converter, vocabulary: Vocabulary, *, batch_rows: int
) -> Batch:
    """Supervised text examples with their targets as one batch, one a row."""
    arrays = converter.supervised(examples, task, vocabulary)[0] if examples else []
    return _one_per_row(arrays, converter, vocabulary, batch_rows)


def _one_per_row(arrays: list[Example], converter: Converter, vocabulary: Vocabulary, batch_rows: int) -> Batch:
    specs, sizes = converter.specs(), converter.sizes(False)
    rows = [packing.row([a], specs, sizes) for a in arrays] or [packing.row([], specs, sizes)]
    batch = packing.stack(rows, batch_rows)
    batches.check(batch, specs, vocabulary.size)
    return batch


def _eval_examples(task: Task, converter: Converter, vocabulary: Vocabulary, split: str, limit: int):
    size = DOCUMENTS_PER_WINDOW if task.is_corpus else EXAMPLES_PER_WINDOW
    for window, group in enumerate(_groups(_limited(text_examples(task, split), limit), size)):
        rng = generator(0, task.name, split, "window", window)
        yield from _converted([e for _, e in group], task, converter, vocabulary, rng)[0]


def _rows(examples: Iterable[Example], specs, sizes, pack: bool) -> Iterator[Example]:
    if not pack:
        for example in examples:
            yield packing.row([example], specs, sizes)
        return
    letters = "".join(sizes)
    capacity = np.array([sizes[letter] for letter in letters])
    for group in _groups(examples, 1024):
        lengths = np.array([packing.example_lengths(e, specs, letters) for e in group])
        for indices in packing.assign(lengths, capacity):
            yield packing.row([group[i] for i in indices], specs, sizes)


def _converted(
    examples: Sequence[Mapping], task: Task, converter: Converter, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[list[Example], int]:
    """Text examples as model features; empty texts give none."""
    if task.is_corpus:
        return converter.corpus([text_of(e, "text", task) for e in examples], vocabulary, rng)
    if task.labels or task.regression:
        for example in examples:
            label(example, task)  # a wrong label is wrong for every architecture, also where it is just text
    return converter.supervised(examples, task, vocabulary) if examples else ([], 0)


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
