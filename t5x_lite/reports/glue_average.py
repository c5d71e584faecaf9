"""Computes GLUE's average in two ways: as its authors do (Wang et al. 2018), and as T5 reports it."""

import statistics
from collections.abc import Iterable, Mapping

Values = Mapping[str, Mapping[str, float]]  # {task: {metric: value}}

# {task: its metrics}. All other tasks have only the metric accuracy.
METRICS = {
    "cola": ("matthews",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
}
# The tasks in T5's average. The tasks of a group count as one task.
GROUPS = (("cola",), ("sst2",), ("mrpc",), ("stsb",), ("qqp",), ("mnli", "mnli_mismatched"), ("qnli",), ("rte",))
WNLI = ("wnli",)  # T5 and BERT leave it out; AX, the diagnostic set, is in no average


def average(steps: Iterable[Values]) -> float | None:
    """Returns GLUE's average (t5/evaluation/eval_utils.py), or None if a group has all its metrics at no step.

    steps: one {task: {metric: value}} per step. The score of a group is the mean of its metrics at the step where
    this mean is highest.

    >>> average([{"glue_cola": {"matthews": 50.0}}])
    """
    best: dict[tuple[str, ...], float] = {}
    for values in steps:
        for group in GROUPS:
            score = _score(group, values)
            if score is not None:
                best[group] = max(score, best.get(group, score))
    return statistics.fmean(best.values()) if len(best) == len(GROUPS) else None


def summary(runs: Iterable[Values]) -> str:
    """Returns a line with the average over GLUE's nine tasks (Wang et al. 2018, §3), and the average without WNLI.

    runs: one {task: {metric: value}} per run. If several runs have a task, their mean counts. The score of a task is
    the mean of its metrics; MNLI's is the mean of its two validation sets.

    If tasks are missing, the line names them. If the runs have fewer than two tasks of GLUE, returns "".
    """
    values_of: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for task, metrics in run.items():
            for metric, value in metrics.items():
                values_of.setdefault(task, {}).setdefault(metric, []).append(value)
    values = {task: {name: statistics.fmean(v) for name, v in metrics.items()} for task, metrics in values_of.items()}
    scores = {group: _score(group, values) for group in (*GROUPS, WNLI)}
    present = [score for score in scores.values() if score is not None]
    if len(present) < 2:
        return ""
    if missing := [f"glue_{name}" for group, score in scores.items() for name in group if score is None]:
        return f"GLUE average: none, because these runs lack {', '.join(missing)}"
    without = statistics.fmean(score for group, score in scores.items() if group != WNLI and score is not None)
    return f"GLUE average of the 9 tasks: {statistics.fmean(present):.2f}; without WNLI: {without:.2f}"


def _score(group: tuple[str, ...], values: Values) -> float | None:
    """Returns the mean of all metrics of a group's tasks, or None if one is missing."""
    metrics = [(f"glue_{name}", metric) for name in group for metric in METRICS.get(name, ("accuracy",))]
    if not all(metric in values.get(task, {}) for task, metric in metrics):
        return None
    return statistics.fmean(values[task][metric] for task, metric in metrics)
