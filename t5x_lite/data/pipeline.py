"""Makes training batches from tasks, in an order that is a pure function of (seed, mixture, step).

The rows of a global batch are divided among S streams. S depends only on the number of rows. Each stream has its own
part of the data: stream s reads the elements s, s + S, s + 2S, … of each task's shuffled, endlessly repeated order
(windows.py). It draws examples from the tasks by their rates, and packs them into its rows, window by window
(streams.py). A host computes only the streams of its rows. So the global batch is the same, row by row, on any number
of hosts up to S.

The state of a stream is its position in each task, three integers per task. After a restore, a stream packs at most one
window again.
"""

import base64
import binascii
import functools
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite import batch as batches
from t5x_lite.batch import Batch
from t5x_lite.data import registry
from t5x_lite.data.convert import Converter, fingerprint
from t5x_lite.data.order import key
from t5x_lite.data.prefetch import Prefetcher
from t5x_lite.data.reader import Reader
from t5x_lite.data.registry import Rated
from t5x_lite.data.streams import Counts, Stream, StreamState, no_counts, total
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.data.windows import Position, Setting
from t5x_lite.errors import CheckpointError, ConfigError

MAX_STREAMS = 64  # at most this many hosts can read data
BRIEF = 40  # the most characters of a value in a state's fingerprint; longer values are shortened


class TrainBatches:
    """Iterates endlessly over this host's rows of the global batches. Restoring its state replays no earlier batches.

    tasks: the sorted names of the tasks. A task's id is its number in this order, from 1.
    """

    def __init__(
        self,
        mixture: Sequence[Rated],
        setting: Setting,
        batch_rows: int,
        shard_index: int,
        shard_count: int,
        prefetch_batches: int,
    ):
        self._setting, self._prefetch_batches = setting, prefetch_batches
        rates = {rated.task.name: rated.rate for rated in mixture}
        per_host = setting.streams // shard_count
        self._numbers = range(shard_index * per_host, (shard_index + 1) * per_host)
        self.tasks = tuple(sorted(rates))
        readers = [Reader(rated.task, "train") for rated in sorted(mixture, key=lambda rated: rated.task.name)]
        identities = {rated.task.name: registry.identity(rated.task) for rated in mixture}
        self._streams: dict[int, Any] = {}  # of Stream or of DocumentStream
        for number in self._numbers:
            if setting.documents:
                from t5x_lite.data.document_steps import DocumentStream  # few runs read whole documents

                self._streams[number] = DocumentStream(readers[0], setting, number, identities[self.tasks[0]])
            else:
                self._streams[number] = Stream(readers, rates, setting, number)
        self.documents: dict[int, dict[str, int]] = {}  # of the last batch, by stream, with data.documents_per_step
        self._rows_per_stream = batch_rows // setting.streams
        self._before = no_counts(len(rates))  # this host's share of the counts in the restored state
        self._state = self._stream_states()
        self._counters: list[Callable[[], tuple[Counts, np.ndarray]]] = []
        self._prefetcher: Prefetcher | None = None
        self._fingerprint = {
            "mixture": {name: round(rate, 9) for name, rate in rates.items()},
            "tasks": {name: _brief(identity) for name, identity in identities.items()},
            "converter": fingerprint(setting.converter),
            "vocabulary": setting.vocabulary.fingerprint,
            "format": 4,  # version of the state and of the order of the data
            "seed": setting.seed,
            "batch_rows": batch_rows,
            "pack": setting.pack,
            "streams": setting.streams,
            **({"documents": setting.documents} if setting.documents else {}),
        }

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        if self._prefetch_batches and self._prefetcher is None:
            self._prefetcher = Prefetcher(self._produce, self._prefetch_batches)
        produced = self._prefetcher.next() if self._prefetcher else self._produce()
        batch, self._state, self._counters, self.documents = produced
        return batch

    def get_state(self) -> dict:
        """Returns the state of this host's streams after the batches returned so far, as JSON-able data. 100 tasks in
        64 streams take less than 100 kB.

        streams: for each stream, how many examples it drew before its present packing window (`drawn`), how many rows
            of that window were returned so far (`emitted`), and the positions of the tasks when the window began
            (`tasks`, see `encode_positions`).
        counts: one list per field of `Counts`, with one number per task: what had been counted when these windows
            began.
        """
        streams = {
            str(number): {"drawn": state.drawn, "emitted": state.taken, "tasks": encode_positions(state.positions)}
            for number, state in self._state.items()
        }
        counts = total([self._before, *(state.counts for state in self._state.values())])
        return {"fingerprint": self._fingerprint, "counts": np.array(counts).tolist(), "streams": streams}

    def set_state(self, state: dict) -> None:
        """Continues from a state: the `get_state()` of any number of hosts, merged with `merge_states`.

        Raises CheckpointError if the state is corrupted, is from a different pipeline, or lacks a stream of this host.
        """
        differing = list(registry.differences(state.get("fingerprint", {}), self._fingerprint))
        if differing:
            raise CheckpointError(
                f"the data differs from the data this run was trained on: {'; '.join(differing)}. "
                "Restore the data, or start a new --workdir"
            )
        missing = [number for number in self._numbers if str(number) not in state["streams"]]
        if missing:
            raise CheckpointError(
                f"the data state lacks streams {missing}, because it is from only some hosts; give merge_states() of "
                "all hosts' states"
            )
        restored = {}
        for number in self._numbers:
            stream = state["streams"][str(number)]
            positions = decode_positions(stream["tasks"], len(self.tasks))
            restored[number] = StreamState(
                stream["drawn"], positions, no_counts(len(self.tasks)), taken=stream["emitted"]
            )
        self.close()
        share = len(self._numbers) / self._setting.streams
        self._before = Counts(*(np.array(state["counts"]) * share))
        self._go_to(restored)

    def counters(self) -> dict[str, float]:
        """Returns this host's totals since step 0, also across resumes.

        examples/TASK, tokens/TASK: the numbers of examples and tokens in the returned batches.
        epochs/TASK: how many times the source was read. Packing reads up to a window ahead of the returned batches.
        truncated (or skipped_long): the share of the converted examples that did not fit in a row.
        bad: the number of examples that were skipped as bad, if any.
        """
        if not self._counters:
            return {}
        counts_of, epochs_of = zip(*(counter() for counter in self._counters), strict=True)
        counts, epochs = total([*counts_of, self._before]), sum(epochs_of, start=np.zeros(len(self.tasks)))
        out = {f"examples/{name}": float(n) for name, n in zip(self.tasks, counts.examples, strict=True)}
        out |= {f"tokens/{name}": float(n) for name, n in zip(self.tasks, counts.tokens, strict=True)}
        out |= {f"epochs/{name}": float(n) / len(epochs_of) for name, n in zip(self.tasks, epochs, strict=True)}
        name = "skipped_long" if self._setting.converter.on_long == "skip" else "truncated"
        out[name] = float(counts.too_long.sum() / max(counts.converted.sum(), 1))
        return out | ({"bad": float(counts.bad.sum())} if counts.bad.any() else {})

    def epochs_per_example(self) -> dict[str, float]:
        """Returns {"epochs_per_example/TASK": …}: the fraction of an epoch of the task's source that one example uses
        up, averaged over the examples read so far."""
        zero = np.zeros(len(self.tasks))
        examples = sum((stream.read.examples for stream in self._streams.values()), start=zero)
        epochs = sum((stream.epochs for stream in self._streams.values()), start=zero)
        ratios = epochs / np.maximum(examples, 1) / self._setting.streams
        return {f"epochs_per_example/{name}": float(ratio) for name, ratio in zip(self.tasks, ratios, strict=True)}

    def close(self) -> None:
        """Stops the background thread and drops the batches it prepared. If iteration continues, it makes them
        again."""
        if self._prefetcher:
            self._prefetcher.close()
            self._prefetcher = None
            self._go_to(self._state)

    def _go_to(self, states: Mapping[int, StreamState]) -> None:
        for number, stream in self._streams.items():
            stream.set_state(states[number])
        self._state = self._stream_states()

    def _produce(self) -> tuple[Batch, dict[int, StreamState], list, dict[int, dict[str, int]]]:
        """Makes the next batch and returns it with the state and the counters after it, and with its documents."""
        pieces = [piece for stream in self._streams.values() for piece in stream.take(self._rows_per_stream)]
        batch = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        batches.check(batch, self._setting.converter.specs(), self._setting.vocabulary.size)
        documents = {n: stream.documents for n, stream in self._streams.items()} if self._setting.documents else {}
        return batch, self._stream_states(), [stream.counter() for stream in self._streams.values()], documents

    def _stream_states(self) -> dict[int, StreamState]:
        return {number: stream.get_state() for number, stream in self._streams.items()}


def train_batches(
    mixture: Sequence[Rated],
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
    documents_per_step: int = 0,
) -> TrainBatches:
    """Returns an iterator over the training batches of a mixture.

    mixture: the tasks with their shares of the examples, as `registry.mixture(NAME)` returns them.
    batch_rows: rows of the global batch. Host `shard_index` of `shard_count` gets batch_rows / shard_count of them.
    prefetch_batches: the number of batches that a background thread keeps ready; 0 for no thread.
    cache_dir: the directory to which `t5x-lite cache` wrote the tasks' caches; "" for none. With caches, the batches
        are the same but are made faster.
    task_ids: adds the feature decoder_task_ids [BL] (encoder-only: encoder_task_ids [BS]). It is 0 on padding and 1, 2,
        … for the tasks in the order of `TrainBatches.tasks`.
    documents_per_step: if above 0, each global batch holds the next so many documents of the only task, however many
        rows they fill (document_steps.py).
    Raises ConfigError if the streams cannot be divided evenly among the hosts, DataError if a task has no training
    example.
    """
    streams_of, what = stream_count, ""
    if documents_per_step:
        from t5x_lite.data import document_steps

        what = f" for data.documents_per_step={documents_per_step}"
        streams_of = functools.partial(document_steps.stream_count, documents=documents_per_step, tasks=mixture)
    streams = streams_of(batch_rows)
    if streams % shard_count:
        fitting = [rows for rows in range(batch_rows, 64 * MAX_STREAMS) if streams_of(rows) % shard_count == 0]
        raise ConfigError(
            f"data.batch_rows={batch_rows} has {streams} streams of rows{what}, and {streams} is not divisible by the "
            f"{shard_count} input processes; use "
            + (f"data.batch_rows={fitting[0]}, or " if fitting else "")
            + f"a number of processes that divides {streams}"
        )
    caches = {}
    if cache_dir:
        from t5x_lite.data import cache

        caches = cache.open_all([rated.task for rated in mixture], converter, vocabulary, cache_dir)
    setting = Setting(converter, vocabulary, seed, streams, pack, caches, task_ids, documents_per_step // streams)
    return TrainBatches(mixture, setting, batch_rows, shard_index, shard_count, prefetch_batches)


def stream_count(batch_rows: int) -> int:
    """Returns the number of streams of a global batch: a power of two that divides `batch_rows`, at most MAX_STREAMS.

    It depends only on `batch_rows`, so the order of the data is the same on any number of hosts. Small batches have few
    streams, because each stream fills its own packing window.

    >>> [stream_count(rows) for rows in (1, 12, 32, 128, 512, 2048)]
    [1, 4, 8, 16, 64, 64]
    """
    divisor = batch_rows & -batch_rows
    wanted = min(max(8, batch_rows // 8), MAX_STREAMS)
    return min(divisor, 1 << (wanted.bit_length() - 1))


# ---------------------------------------------------------------------------------------------------------- its state


def merge_states(states: Iterable[dict]) -> dict:
    """Merges the states of all hosts. If several hosts read the same rows, as on some meshes, only one of them
    counts."""
    states = list({tuple(sorted(state["streams"])): state for state in states}.values())
    counts = np.sum([state["counts"] for state in states], axis=0).tolist()
    return states[0] | {"counts": counts, "streams": {k: v for state in states for k, v in state["streams"].items()}}


def encode_positions(positions: np.ndarray) -> str:
    """Encodes the positions of tasks, int64 [tasks, 3], as a short text. Before compression, bytes of equal
    significance are put side by side, because the high bytes are mostly equal.

    >>> decode_positions(encode_positions(np.array([[3, 10**9, 0], [1, 2, 3]])), 2).tolist()
    [[3, 1000000000, 0], [1, 2, 3]]
    """
    planes = np.ascontiguousarray(positions.T).astype("<u8").view(np.uint8).reshape(-1, 8).T
    return base64.b85encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


def decode_positions(text: str, tasks: int) -> np.ndarray:
    """Decodes a text that `encode_positions` wrote, and returns the positions of the tasks, int64 [tasks, 3].

    Raises CheckpointError if the text is corrupted, or was written for a different number of tasks.
    """
    fields = len(Position._fields)
    try:
        planes = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8).reshape(8, fields * tasks)
    except (ValueError, zlib.error, binascii.Error) as error:
        raise CheckpointError(f"the data state is corrupted ({error}); use an earlier checkpoint") from None
    return np.ascontiguousarray(planes.T).view("<u8").reshape(fields, tasks).T.astype(np.int64)


def _brief(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a shortened identity of a task: empty values are left out, and the end of each long value is replaced by
    a digest. A state holds the identities of all tasks; with a hundred tasks, they must be short."""
    texts = {name: json.dumps(value) for name, value in identity.items() if value}
    return {
        name: identity[name] if len(text) <= BRIEF else f"{text[: BRIEF // 2]}…{key(text):016x}"
        for name, text in texts.items()
    }
