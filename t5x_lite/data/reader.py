"""A task's examples: read, preprocessed, checked; and what is wrong with one, with its file and line."""

import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np

from t5x_lite.data import preprocess
from t5x_lite.data.fields import label, label_set
from t5x_lite.data.order import generator, key, shuffled
from t5x_lite.data.registry import UNLABELLED, Example, Task
from t5x_lite.errors import DataError

SAMPLED = 10_000  # examples that tell how many are bad, once one is


class Reader:
    """A split of a task. Of an example that is bad `read` raises DataError, or where some may be (the task's
    `max_bad_fraction`) returns None as for one that a preprocessor drops, and counts it in `bad`."""

    def __init__(self, task: Task, split: str):
        self.task, self.split = task, split
        self.source = task.source.split(split)
        self.bad = 0

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int, rng: Callable[[], np.random.Generator]) -> Example | None:
        """The example of this number in the source, preprocessed; `rng()` makes what a random one draws from."""
        return self._tolerantly(index, lambda: self._record(index), rng)

    def read_many(self, indices: Sequence[int], rng: Callable[[int], np.random.Generator]) -> list[Example | None]:
        """`read` of several, sooner where the source reads them together; rng(n) makes what the n-th draws from."""
        together = getattr(self.source, "read_many", None)
        try:
            records = together(indices) if together else None
        except (DataError, OSError):  # read one by one, it is said which one is bad, or that one is left out
            records = None
        if records is None:
            return [self.read(index, functools.partial(rng, n)) for n, index in enumerate(indices)]
        return [
            self._tolerantly(index, lambda record=record: record, functools.partial(rng, n))
            for n, (index, record) in enumerate(zip(indices, records, strict=True))
        ]

    def where(self, index: int) -> str:
        """The place of an example, for messages: file and line where the source knows them."""
        known = getattr(self.source, "where", None)
        return known(index) if known else f"task {self.task.name!r}, example {index} of {self.split!r}"

    def _tolerantly(
        self, index: int, record: Callable[[], Example], rng: Callable[[], np.random.Generator]
    ) -> Example | None:
        try:
            return self._prepared(index, record(), rng)
        except DataError as error:
            if not self.task.max_bad_fraction:
                raise
            self._require_few(str(error))
            self.bad += 1
            return None

    def _record(self, index: int) -> Example:
        try:
            return self.source[index]  # what is wrong in a file names its place itself
        except OSError as error:
            raise DataError(f"{self.where(index)} cannot be read: {error}") from error

    def _prepared(self, index: int, record: Example, rng: Callable[[], np.random.Generator]) -> Example | None:
        try:
            example = preprocess.apply(self.task.preprocessors, record, rng)
            if example is not None and (self.task.labels or self.task.regression) and not self._is_unlabelled(example):
                # A wrong one is wrong for every architecture, also where it is just text.
                (label_set if self.task.multi_label else label)(example, self.task)
            return example
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from error.__cause__

    def _is_unlabelled(self, example: Example) -> bool:
        return self.split == "test" and example.get("targets") == UNLABELLED

    def _require_few(self, first: str) -> None:
        """Says how many are bad of the split, or of a sample of it, when the first is met."""
        if self.bad:
            return
        places = np.arange(min(len(self), SAMPLED))
        sample = shuffled(places, len(self), key(self.task.name, "bad")).tolist()
        bad, task = sum(map(self._is_bad, sample)), self.task
        if bad > task.max_bad_fraction * len(sample):
            raise DataError(
                f"task {task.name!r}: {bad:,} of {len(sample):,} examples are bad, more than "
                f"max_bad_fraction={task.max_bad_fraction:g}; the first: {first}"
            )
        found = f"{bad:,} of the {len(sample):,} looked at; the first: {first}"
        logging.getLogger(__name__).warning("task %r: bad examples are left out, %s", task.name, found)

    def _is_bad(self, index: int) -> bool:
        try:
            self._prepared(index, self._record(index), lambda: generator(0, self.task.name, self.split, index))
        except DataError:
            return True
        return False
