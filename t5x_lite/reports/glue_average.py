"""Computes GLUE's average as T5 reports it: the mean over tasks of a task's score at its best step."""

from collections.abc import Iterable, Mapping

# {task: its metrics}. All other tasks have only the metric accuracy.
METRICS = {
    "cola": ("matthews",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
}
# The tasks in the average. The tasks of a group count as one task. WNLI and AX are left out.
GROUPS = (("cola",), ("sst2",), ("mrpc",), ("stsb",), ("qqp",), ("mnli", "mnli_mismatched"), ("qnli",), ("rte",))


def average(steps: Iterable[Mapping[str, Mapping[str, float]]]) -> float | None:
    """Returns GLUE's average (t5/evaluation/eval_utils.py), or None if a group has all its metrics at no step.

    steps: one {task: {metric: value}} per step. The score of a group is the mean of its metrics at the step where
    this mean is highest.

    >>> average([{"glue_cola": {"matthews": 50.0}}])
    """
    best: dict[tuple[str, ...], float] = {}
    for values in steps:
        for group in GROUPS:
            metrics = [(f"glue_{name}", metric) for name in group for metric in METRICS.get(name, ("accuracy",))]
            if all(metric in values.get(task, {}) for task, metric in metrics):
                mean = sum(values[task][metric] for task, metric in metrics) / len(metrics)
                best[group] = max(mean, best.get(group, mean))
    return sum(best.values()) / len(GROUPS) if len(best) == len(GROUPS) else None
