"""Checks the examples of tasks that compare texts: those with the target Match or Similarity."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.data.fields import beginnings, number, text_of
from t5x_lite.data.registry import Task
from t5x_lite.data.targets import Similarity
from t5x_lite.errors import DataError


def check(example: Mapping[str, Any], task: Task) -> None:
    """Raises DataError if a text of an example is missing or empty, or if its score is out of range."""
    for field in (*task.segments[:1], *task.target.fields):
        if not text_of(example, field, task).strip():
            raise DataError(
                f"task {task.name!r}: the field {field!r} of an example is empty, so its texts make no pair "
                f"({beginnings(example, task)}); correct the data, or drop such examples with preprocess.keep"
            )
    target = task.target
    if isinstance(target, Similarity) and not target.low <= number(example, task) <= target.high:
        raise DataError(
            f"task {task.name!r}: the score {number(example, task)} is not between low={target.low} and "
            f"high={target.high}; correct the data, or the task's Similarity ({beginnings(example, task)})"
        )
