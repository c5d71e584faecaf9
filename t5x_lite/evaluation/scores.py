"""A task's metrics over predictions: their values, and how sure they are."""

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
from t5x_lite.tasks.metrics import percent


def reference(task: Task, example: Mapping) -> Any:
    """What the metrics compare a prediction of the example with."""
    return task.reference(example) if task.reference else task.postprocess(example["targets"])


class Scores(NamedTuple):
    """values: by the metric's name. lower: the names of those that are better the lower they are."""

    values: dict[str, float]
    lower: set[str]


def scores_of(task: Task, rows: Sequence[Mapping], references: Sequence, field: str = "prediction") -> Scores:
    """The task's metrics of the predictions in `field`; of labels and numbers also the share that is `invalid`, and
    of labels the calibration error `ece` of their probabilities. Both × 100."""
    predictions = [task.postprocess(row[field]) for row in rows]
    scores, lower = {}, set()
    for metric in task.metrics:
        values = measured(task, metric, references, predictions)
        scores |= values
        lower |= values.keys() if getattr(metric, "lower_is_better", False) else set()
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
    """The task's metrics of texts that are guessed for its examples."""
    references, answers = [reference(task, e) for e in examples], [task.postprocess(guess) for guess in guesses]
    values: dict[str, float] = {}
    for metric in task.metrics:
        values |= measured(task, metric, references, answers)
    return values


def measured(task: Task, metric: Callable, references: Sequence, predictions: Sequence) -> Mapping[str, float]:
    """What a metric of the task returns; ConfigError, which names it, when it fails or returns something else than
    {name: number}."""
    what = f"task {task.name!r}: metrics={own_code.name_of(metric)}"
    values = own_code.called(what, metric, references, predictions)
    if not isinstance(values, Mapping) or not all(isinstance(value, numbers.Real) for value in values.values()):
        raise ConfigError(f"{what} returns {values!r:.80}; it must return {{name: number}}")
    return values


def intervals(tasks: Sequence[Task], split: str, predictions: Path) -> dict[str, float]:
    """{"low/TASK/METRIC", "high/TASK/METRIC"}: a score lies between them with 95%, by bootstrap over the files of an
    evaluation, which `predictions` is the directory of."""
    values: dict[str, float] = {}
    for task in tasks:
        path = predictions / f"{task.name}.jsonl"
        if task.is_corpus or not path.exists():
            continue
        with path.open(encoding="utf-8") as lines:
            answers = [task.postprocess(json.loads(line)["prediction"]) for line in lines]
        examples = itertools.islice(text_examples(task, split), len(answers))
        references = [reference(task, example) for _, example in examples]
        for metric in task.metrics:
            for name, ends in confidence.bootstrap(metric, references, answers).items():
                for end, value in zip(("low", "high"), ends, strict=True):
                    values[f"{end}/{task.name}/{name}"] = value
    return values
