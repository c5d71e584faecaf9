"""GLUE's average as T5 reports it: the mean over the tasks, each at the step where it scores best."""

from collections.abc import Iterable, Mapping

# The metrics of each task, where that is not the accuracy.
METRICS = {
    "cola": ("matthews",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
}
# The tasks of the average; those of a group count as one. WNLI and AX are left out.
GROUPS = (("cola",), ("sst2",), ("mrpc",), ("stsb",), ("qqp",), ("mnli", "mnli_mismatched"), ("qnli",), ("rte",))


def average(steps: Iterable[Mapping[str, Mapping[str, float]]]) -> float | None:
    """The average over {task: {metric: value}} of each step (t5/evaluation/eval_utils.py).

    A group of tasks scores the mean of all its metrics, at the step where that mean is highest. Returns None where a
    group has no step with all its metrics.

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
