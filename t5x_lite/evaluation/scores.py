"""Computes the values of a task's metrics on predictions, and their confidence intervals."""

import itertools
import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5x_lite import own_code
from t5x_lite.data.reader import text_examples
from t5x_lite.data.registry import Task, label_names
from t5x_lite.data.targets import Number
from t5x_lite.errors import ConfigError
from t5x_lite.reports import confidence
from t5x_lite.tasks.metrics import is_lower_better, percent


def reference(task: Task, example: Mapping) -> Any:
    """Returns an example's reference, with which metrics compare the prediction. Raises ConfigError if the task's own
    function fails."""
    if task.reference is None:
        return postprocessed(task, example["targets"])
    return own_code.called(f"task {task.name!r}: reference={own_code.name_of(task.reference)}", task.reference, example)


def postprocessed(task: Task, text: str) -> Any:
    """Returns the value of a target or predicted text that the task's metrics compare. Raises ConfigError, which names
    the function, if the task's `postprocess` fails."""
    what = f"task {task.name!r}: postprocess={own_code.name_of(task.postprocess)}"
    return own_code.called(what, task.postprocess, text)


class Scores(NamedTuple):
    """A task's scores. values: {metric: value}. lower: names of the metrics for which lower is better."""

    values: dict[str, float]
    lower: set[str]


def scores_of(task: Task, rows: Sequence[Mapping], references: Sequence, field: str = "prediction") -> Scores:
    """Returns the values of the task's metrics on the predictions. The field `field` of a row is its prediction.

    If the targets are labels or numbers, adds `invalid`, the percentage of invalid predictions. If each example has one
    label, also adds `ece`, the expected calibration error of the labels' probabilities, × 100. Raises ConfigError as
    `measured` does.
    """
    predictions = [postprocessed(task, row[field]) for row in rows]
    scores, lower = {}, set()
    for metric in task.metrics:
        values = measured(task, metric, references, predictions)
        scores |= values
        lower |= values.keys() if is_lower_better(metric) else set()
    if isinstance(task.target, Number):
        scores["invalid"] = percent([predicted is None for predicted in predictions])
    if task.target.several:
        scores["invalid"] = percent([not set(label_names(row[field])) <= set(task.labels) for row in rows])
    elif task.labels:
        scores["invalid"] = percent([row[field].strip() not in task.labels for row in rows])
        confidences = [min(math.exp(row[field.replace("prediction", "score")]), 1.0) for row in rows]
        right = [row[field].strip() == row["target"].strip() for row in rows]
        scores["ece"] = confidence.expected_calibration_error(confidences, right)
    return Scores(scores, lower | {name for name in ("invalid", "ece") if name in scores})


def of_guesses(task: Task, examples: Sequence[Mapping], guesses: Sequence[str]) -> dict[str, float]:
    """Returns the values of the task's metrics on `guesses` (one per example). Raises ConfigError like `measured`."""
    references, answers = [reference(task, e) for e in examples], [postprocessed(task, guess) for guess in guesses]
    values: dict[str, float] = {}
    for metric in task.metrics:
        values |= measured(task, metric, references, answers)
    return values


def measured(task: Task, metric: Callable, references: Sequence, predictions: Sequence) -> Mapping[str, float]:
    """Returns the result of a task's metric, {name: number}.

    Raises ConfigError, which names the metric, if the metric fails or its result is not such a mapping.
    """
    what = f"task {task.name!r}: metrics={own_code.name_of(metric)}"
    values = own_code.called(what, metric, references, predictions)
    if not isinstance(values, Mapping) or not all(isinstance(value, numbers.Real) for value in values.values()):
        raise ConfigError(f"{what} returns {values!r:.80}; it must return {{name: number}}")
    return values


def intervals(tasks: Sequence[Task], split: str, predictions: Path) -> dict[str, float]:
    """Returns {"low/TASK/METRIC": value, "high/TASK/METRIC": value}: a 95% confidence interval for each metric.

    The intervals are computed by bootstrap. predictions: an evaluation's directory, which has the files TASK.jsonl.
    """
    values: dict[str, float] = {}
    for task in tasks:
        path = predictions / f"{task.name}.jsonl"
        if task.is_corpus or not path.exists():
            continue
        with path.open(encoding="utf-8") as lines:
            answers = [postprocessed(task, json.loads(line)["prediction"]) for line in lines]
        examples = itertools.islice(text_examples(task, split), len(answers))
        references = [reference(task, example) for _, example in examples]
        for metric in task.metrics:
            for name, ends in confidence.bootstrap(metric, references, answers).items():
                for end, value in zip(("low", "high"), ends, strict=True):
                    values[f"{end}/{task.name}/{name}"] = value
    return values
