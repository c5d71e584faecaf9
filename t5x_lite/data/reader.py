"""Reads, preprocesses and checks the examples of a task. Errors name the file and line of a bad example."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from t5x_lite.data import preprocess
from t5x_lite.data.fields import check_target
from t5x_lite.data.order import generator, key, shuffled
from t5x_lite.data.registry import UNLABELLED, Example, Task
from t5x_lite.errors import DataError

SAMPLED = 10_000  # examples to check after the first bad one, to estimate the share of bad examples


class Reader:
    """Reads the examples of a task's split.

    If an example is bad, `read` raises DataError. But if the task tolerates bad examples (`max_bad_fraction`), `read`
    returns None and counts the example in `bad`. `read` also returns None if a preprocessor drops the example.
    """

    def __init__(self, task: Task, split: str):
        self.task, self.split = task, split
        self.source = task.source.split(split)
        self.bad = 0

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int, rng: Callable[[], np.random.Generator]) -> Example | None:
        """Returns the preprocessed example at an index of the source. Returns None if a preprocessor drops the example,
        or if the example is bad and tolerated.

        rng: makes the generator for random preprocessors.
        Raises DataError if the example is bad and not tolerated.
        """
        return self._tolerantly(index, lambda: self._record(index), rng)

    def read_many(self, indices: Sequence[int], rng: Callable[[int], np.random.Generator]) -> list[Example | None]:
        """Returns what `read` returns for each of several examples. This is faster if the source has `read_many`.

        rng: `rng(n)` makes the generator for the n-th of these examples.
        Raises DataError as `read` does.
        """
        together = getattr(self.source, "read_many", None)
        try:
            records = together(indices) if together else None
        except (DataError, OSError):  # reading the records one by one shows which one is bad
            records = None
        if records is None:
            return [self.read(index, functools.partial(rng, n)) for n, index in enumerate(indices)]
        return [
            self._tolerantly(index, lambda record=record: record, functools.partial(rng, n))
            for n, (index, record) in enumerate(zip(indices, records, strict=True))
        ]

    def where(self, index: int) -> str:
        """Returns the place of an example, for messages: its file and line if the source knows them."""
        where = getattr(self.source, "where", None)
        return where(index) if where else f"task {self.task.name!r}, example {index} of {self.split!r}"

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
            return self.source[index]  # a DataError from the source already names the place
        except OSError as error:
            raise DataError(f"{self.where(index)}: cannot read the example: {error}") from error

    def _prepared(self, index: int, record: Example, rng: Callable[[], np.random.Generator]) -> Example | None:
        try:
            if not isinstance(record, Mapping):
                raise DataError(
                    f"task {self.task.name!r}: its source returned a {type(record).__name__} for an example; return a "
                    "dict"
                )
            example = preprocess.apply(self.task.preprocessors, record, rng)
            if example is not None and not self._is_unlabelled(example):
                check_target(example, self.task)  # for every architecture, even if it reads targets as text
            return example
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from error.__cause__

    def _is_unlabelled(self, example: Example) -> bool:
        return self.split == "test" and example.get("targets") == UNLABELLED

    def _require_few(self, first: str) -> None:
        """At the first bad example, estimates the share of bad examples from a sample of the split (if the split is
        small, from all of it).

        Raises DataError if the share is more than max_bad_fraction; otherwise logs a warning with the number of bad
        examples.
        """
        if self.bad:
            return
        places = np.arange(min(len(self), SAMPLED))
        sample = shuffled(places, len(self), key(self.task.name, "bad")).tolist()
        bad, task = sum(map(self._is_bad, sample)), self.task
        if bad > task.max_bad_fraction * len(sample):
            raise DataError(
                f"task {task.name!r}: {bad:,} of {len(sample):,} examples are bad, more than "
                f"max_bad_fraction={task.max_bad_fraction:g}; correct the data or raise max_bad_fraction. The first: "
                f"{first}"
            )
        note = f"{bad:,} of {len(sample):,} checked are bad; the first: {first}"
        logging.getLogger(__name__).warning("task %r: skipping bad examples, %s", task.name, note)

    def _is_bad(self, index: int) -> bool:
        try:
            self._prepared(index, self._record(index), lambda: generator(0, self.task.name, self.split, index))
        except DataError:
            return True
        return False


def text_examples(task: Task, split: str) -> Iterator[tuple[int, Example]]:
    """Yields (index, preprocessed example) for every example of a split that the preprocessors keep, in the source's
    order.

    Raises DataError if the split has no example, if the preprocessors keep none, or as `Reader.read` does.
    """
    reader = Reader(task, split)
    if not len(reader):
        raise DataError(f"task {task.name!r} has no example in split {split!r}; check its source")
    any_kept = False
    for index in range(len(reader)):
        example = reader.read(index, lambda n=index: generator(0, task.name, split, n))
        if example is not None:
            any_kept = True
            yield index, example
    if not any_kept:
        raise DataError(
            f"task {task.name!r} has no example left of {len(reader)} in split {split!r} after its preprocessors; "
            "check that they do not drop all"
        )
