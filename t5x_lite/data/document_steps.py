"""Makes rows so that the documents of a training step are a function of (seed, step) alone (data.documents_per_step).

Runs of different architectures then read the same documents in the same steps, however many rows their converters make
of the documents. All steps of a run have data.batch_rows rows. If the documents of a step need fewer rows, the other
rows are padding. If they need more, the examples that do not fit are left out and counted.

After a rollback that skips the batches of bad steps, the later steps read later documents, as in every run.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.batch import Batch
from t5x_lite.data import packing
from t5x_lite.data.order import generator, key, mixed
from t5x_lite.data.reader import Reader
from t5x_lite.data.streams import Counts, StreamState, no_counts, total
from t5x_lite.data.windows import Feed, Position, Setting, denoised
from t5x_lite.errors import ConfigError

MODULUS = 2**48  # of sums of hashes, so that they are exact in JSON's numbers
FEWEST_ROWS_PER_STREAM = 16  # with fewer, the documents of a stream fill its rows too unevenly


class DocumentStream:
    """Makes the rows of stream `number`: those of the documents number, number + S, … of each step, for S streams.

    reader: of the run's only task.  identity: of the task, as in registry.py.
    documents: {"count": documents of the last step, "hash": the sum of their hashes modulo MODULUS, "left_out": tokens
        that did not fit}. For "count" and "hash", the sum over all streams does not depend on the number of streams.
    """

    def __init__(self, reader: Reader, setting: Setting, number: int, identity: Mapping[str, Any]):
        self._setting, self._number, self._source_size = setting, number, len(reader)
        self._feed = Feed(reader, 1.0, setting, number)
        self._source = np.uint64(key(identity["source"]))
        self._specs = setting.converter.specs()
        self._sizes = setting.converter.sizes(setting.pack)
        self.documents: dict[str, int] = {}
        self._has_warned = False
        self.set_state(StreamState(0, np.zeros((1, len(Position._fields)), np.int64), no_counts(1), taken=0))

    def get_state(self) -> StreamState:
        positions = np.array([Position(self._step, 0, 0)], np.int64)
        return StreamState(self._step * self._setting.documents, positions, self.read, taken=0)

    def set_state(self, state: StreamState) -> None:
        self._step, self.read = int(state.positions[0][0]), state.counts

    @property
    def epochs(self) -> np.ndarray:
        """Returns how many times the steps so far have read the source, float [1]."""
        return np.array([self._step * self._setting.documents * self._setting.streams / self._source_size])

    def take(self, count: int) -> list[Batch]:
        """Returns the next step's rows, `count` in all, as one piece."""
        setting, window = self._setting, self._feed.convert(self._step)
        rng = generator(setting.seed, "noise", self._number, self._step)
        if not len(window.lengths):
            self._feed.require_survivor()  # a step may be empty, but not all steps
        examples = denoised([window.examples], setting.converter, setting.vocabulary, rng)
        tokens_of = packing.lengths_of(examples, self._specs, "SL").sum(axis=1)
        row_of = packing.rows_of(examples, self._specs, self._sizes, setting.pack)
        kept = row_of < count
        examples = packing.take(examples, np.flatnonzero(kept))
        rows = packing.fill(examples, row_of[kept], count, self._specs, self._sizes)
        if setting.task_ids:
            side = "decoder" if "decoder_segment_ids" in rows else "encoder"
            rows[f"{side}_task_ids"] = (rows[f"{side}_segment_ids"] > 0).astype(np.int32)
        left_out = int(tokens_of[~kept].sum())
        if left_out and not self._has_warned:
            self._warn(count, int(row_of.max()) + 1)
        indices = np.array(self._feed.elements(self._step)[1], np.uint64)
        hashes = mixed(indices + self._source) % np.uint64(MODULUS)
        self.documents = {"count": len(indices), "hash": sum(hashes.tolist()) % MODULUS, "left_out": left_out}
        self._step += 1
        found = (tokens_of[kept].sum(), kept.sum(), window.converted, window.too_long, window.bad)
        self.read = total([self.read, Counts(*(np.array([float(number)]) for number in found))])
        return [rows]

    def counter(self) -> Callable[[], tuple[Counts, np.ndarray]]:
        """Returns a function that returns (Counts, epochs of the task: float [1]) of the steps so far."""
        read, epochs = self.read, self.epochs
        return lambda: (read, epochs)

    def _warn(self, has: int, needs: int) -> None:
        self._has_warned = True
        logging.getLogger(__name__).warning(
            "step %d: the documents of stream %d need %d rows, but it has only %d; the rest is left out, also in "
            "later steps (documents/left_out counts its tokens); raise data.batch_rows or data.length",
            self._step + 1, self._number, needs, has,
        )  # fmt: skip


def stream_count(batch_rows: int, documents: int, tasks: Sequence[Any]) -> int:
    """Returns the number of streams of a global batch.

    It is the largest power of two that divides the rows and the documents and leaves each stream at least
    FEWEST_ROWS_PER_STREAM rows, or 1 if there is none.

    documents: the documents of a step.  tasks: the tasks of the run.
    Raises ConfigError if the run has several tasks.
    """
    if len(tasks) > 1:
        names = ", ".join(rated.task.name for rated in tasks)
        raise ConfigError(
            f"data.documents_per_step={documents}: the run has {len(tasks)} tasks, {names}; the documents of a step "
            "are those of one task. Set data.mixture to one task, or data.documents_per_step=0"
        )
    divisor, wanted = math.gcd(batch_rows, documents), max(1, batch_rows // FEWEST_ROWS_PER_STREAM)
    return min(divisor & -divisor, 1 << (wanted.bit_length() - 1))


def summed(hosts: Sequence[Mapping[int, Mapping[str, int]]]) -> dict[str, int]:
    """Returns the sum of the `documents` of all hosts' streams. A stream that several hosts read, as on some meshes,
    counts once.

    hosts: for each host, {number of a stream: its documents}.
    """
    streams = {number: documents for host in hosts for number, documents in host.items()}.values()
    sums = {name: sum(documents[name] for documents in streams) for name in ("count", "hash", "left_out")}
    return sums | {"hash": sums["hash"] % MODULUS}
