"""Reads a run's `metrics.jsonl` and computes the run's curves, best steps and table of results."""

import contextlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from t5x_lite import side_files
from t5x_lite.errors import CheckpointError

METRICS_FILE = "metrics.jsonl"
LOWER = "lower_is_better/"  # a run's rows have the key LOWER + TASK/METRIC if lower values of the metric are better
LARGEST_METRICS = 1_000_000_000  # bytes
STRIDED = "perplexity_stride_"  # with the stride behind it: the name of the perplexity over rows that overlap
# Runs of version 0.1.0 lack such keys. There, lower is better for metrics whose names end like this.
LOWER_BY_NAME = ("loss", "perplexity", "bits_per_byte", "invalid", "ece")


def read_metrics(workdir: Path) -> list[dict]:
    """Returns the rows of `metrics.jsonl`: objects with an integer "step" and numbers.

    Leaves out all other lines: a crash may cut the last line, and a bad disk may damage any line.
    """
    return read_lines(workdir)[0]


def read_lines(workdir: Path) -> tuple[list[dict], int]:
    """Returns (the rows, the number of corrupted lines). Does not count an unfinished last line.

    Raises CheckpointError if the file cannot be read.
    """
    path = Path(workdir) / METRICS_FILE
    if not path.is_file():
        return [], 0
    try:
        lines = side_files.read(path, LARGEST_METRICS).split(b"\n")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {side_files.why(error)}; move it away") from error
    rows = [_row(line) for line in lines]
    corrupted = sum(row is None and line.strip() != b"" for line, row in zip(lines[:-1], rows, strict=False))
    return [row for row in rows if row is not None], corrupted


def read_predictions(file: Path, count: int | None = None) -> list[dict]:
    """Returns the rows in the first `count` lines of a file of predictions (None: all).

    Leaves out corrupted lines, and returns no rows if the file cannot be read. Warns of both.
    """
    try:
        with side_files.opened(file) as opened:
            lines = list(itertools.islice(opened, count))
    except OSError as error:
        logging.getLogger(__name__).warning("%s cannot be read: %s", file, side_files.why(error))
        return []
    rows: list[Any] = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    rows = [row for row in rows if isinstance(row, dict) and _is_prediction(row)]
    if len(rows) < len(lines):
        logging.getLogger(__name__).warning("%s: left out %d corrupted lines", file, len(lines) - len(rows))
    return rows


def _is_prediction(row: dict) -> bool:
    texts = all(isinstance(row.get(name), str) for name in ("inputs", "target", "prediction"))
    return texts and type(row.get("score")) in (int, float)


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if all(type(value) in (int, float) for value in row.values()) else None


def title(config: dict, workdir: Path) -> str:
    """Returns the name of a run: the config's `name`, or the workdir's name if `name` is empty."""
    return config["name"] or Path(workdir).absolute().name


def curves(rows: list[dict], prefix: str) -> dict[str, list[tuple[int, float]]]:
    """Returns {metric: [(step, value), …]} for the metrics whose names begin with `prefix`. Points are in step order.

    If a step has several values, the last one counts.
    """
    values_of: dict[str, dict[int, float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith(prefix):
                values_of.setdefault(key, {})[row["step"]] = value
    return {key: sorted(values.items()) for key, values in values_of.items()}


def lower_is_better(rows: list[dict]) -> Callable[[str], bool]:
    """Returns a function: name of a metric ("task/loss") -> whether lower values of this metric are better."""
    names = {key.removeprefix(LOWER) for row in rows for key in row if key.startswith(LOWER)}
    return names.__contains__ if names else lambda name: name.endswith(LOWER_BY_NAME)


def best(rows: list[dict], key: str, lower: bool, saved: Collection[int] | None = None) -> tuple[int, float] | None:
    """Returns the best (step, value) of `eval/KEY`, or None if no value is finite. Of equal values, the first is best.

    Steps where all answers of the task are invalid count only if there are no others. There, many metrics are at an
    extreme that means nothing: an untrained model that never writes a label has a perfect calibration error (ece).
    lower: whether lower values are better.  saved: only these steps count; None: all steps.
    """
    points = [(s, v) for s, v in _points(rows, f"eval/{key}") if math.isfinite(v) and (saved is None or s in saved)]
    invalid = dict(_points(rows, f"eval/{key.rpartition('/')[0]}/invalid"))
    valid = [point for point in points if invalid.get(point[0], 0.0) < 100]
    return (min if lower else max)(valid or points, key=lambda point: point[1], default=None)


def best_step(rows: list[dict], key: str, saved: Collection[int]) -> int | None:
    """Returns the step in `saved` that is best by the metric `key` ("task/loss"), as `best` chooses it."""
    point = best(rows, key, lower_is_better(rows)(key), saved)
    return None if point is None else point[0]


def _points(rows: list[dict], key: str) -> list[tuple[int, float]]:
    """Returns the (step, value) pairs of `key` in step order. If a step has several values, the last one counts."""
    return sorted({row["step"]: row[key] for row in rows if key in row}.items())


def was_evaluated(rows: list[dict], step: int, tasks: Iterable[str]) -> bool:
    """Returns whether every task has a loss at `step`. tasks: their names."""
    keys = {key for row in rows if row["step"] == step for key in row}
    return all(f"eval/{task}/loss" in keys for task in tasks)


def results(rows: list[dict]) -> list[dict]:
    """Returns one row per task and metric.

    A row has the values of the baseline and of the untrained model, the last value, the best value, and the step of the
    best value. After `t5x-lite eval`, rows also have `words`, the score of logistic regression on words, and `low` and
    `high`, the 95% interval of the last value.
    """
    prefixes = {"baseline": "baseline/", "words": "words/", "low": "low/", "high": "high/"}
    columns = {
        column: {key.removeprefix(prefix): v for row in rows for key, v in row.items() if key.startswith(prefix)}
        for column, prefix in prefixes.items()
    }
    table, lower = [], lower_is_better(rows)
    for key, points in sorted(curves(rows, "eval/").items()):
        name = key.removeprefix("eval/")
        untrained = next((value for step, value in points if step == 0), None)
        step_of_best, best_value = best(rows, name, lower(name)) or points[-1]
        task, _, metric = name.rpartition("/")
        line = {"task": task, "metric": metric, "baseline": columns["baseline"].get(name)}
        line |= {"words": columns["words"].get(name)} if columns["words"] else {}
        line |= {"untrained": untrained, "last": points[-1][1]}
        line |= {end: columns[end].get(name) for end in ("low", "high") if columns[end]}
        table.append(line | {"best": best_value, "best step": step_of_best})
    return table


def values_of_steps(rows: list[dict]) -> dict[int, dict[str, dict[str, float]]]:
    """Returns {step: {task: {metric: value}}} of a run's evaluations."""
    steps: dict[int, dict[str, dict[str, float]]] = {}
    for name, points in curves(rows, "eval/").items():
        task, _, metric = name.removeprefix("eval/").rpartition("/")
        for step, value in points:
            steps.setdefault(step, {}).setdefault(task, {})[metric] = value
    return steps


def averages(rows: list[dict]) -> list[str]:
    """Returns one line: GLUE's average over the tasks' best steps. Returns no line unless all tasks were evaluated."""
    from t5x_lite.reports import glue_average  # only pages need it

    average = glue_average.average(values_of_steps(rows).values())
    return [] if average is None else [f"GLUE average, each task at its best step: {average:.2f}"]


def perplexities(rows: list[dict]) -> list[str]:
    """Returns a line for each kind of perplexity of a language model, which says how its rows are cut."""
    metrics = {name.rpartition("/")[2] for name in curves(rows, "eval/")}
    if "bits_per_byte" not in metrics:
        return []
    lines = ["perplexity: rows do not overlap, so the first tokens of a row have little context"]
    strides = sorted(int(name.removeprefix(STRIDED)) for name in metrics if name.startswith(STRIDED))
    return lines + [
        f"{STRIDED}{stride}: rows begin {stride} tokens apart, and each scores only the tokens not scored before"
        for stride in strides
    ]


def results_table(rows: list[dict], step: int) -> Table:
    """Returns a table for the console. It has one row per metric: its value at `step`, baseline, untrained and best.

    Below it, `perplexities`.
    """
    caption = "\n".join(perplexities(rows)) or None
    table = Table(title=f"evaluation at step {step}", title_justify="left", caption=caption, caption_justify="left")
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("baseline", "untrained", "now", "best"):
        table.add_column(column, justify="right")
    now = {key: value for row in rows if row["step"] == step for key, value in row.items()}
    for row in results(rows):
        name = f"eval/{row['task']}/{row['metric']}"
        cells = [row["baseline"], row["untrained"], now.get(name), row["best"]]
        table.add_row(row["task"], row["metric"], *("–" if v is None else f"{v:.2f}" for v in cells))
    return table


def sample_lines(workdir: Path, step: int, count: int) -> list[str]:
    """Returns the first `count` predictions of each task at `step`, as lines for the console."""
    lines = []
    for file in sorted((workdir / "predictions" / f"step_{step}").glob("*.jsonl")):
        for row in read_predictions(file, count):
            inputs = " ".join(row["inputs"].split())
            lines += [
                f"{file.stem}  {inputs[:100]}{'…' if len(inputs) > 100 else ''}",
                f"    target      {row['target']}",
                f"    prediction  {row['prediction']}",
            ]
    return lines
