"""Defines metrics of classes and numbers. A metric is a function (targets, predictions) -> {name: value}, which runs on
the host; values are × 100. text_metrics.py scores texts, span_metrics.py scores entities, and reports/confidence.py
computes confidence intervals.

An invalid prediction (a string that is not a label, `None`, a class id of -1, a number that is not finite) counts as
wrong and is never dropped. Names and conventions follow T5 (t5/evaluation/metrics.py). scikit-learn and scipy are
imported where used, because importing them takes seconds. Metrics raise DataError as `pairs` does.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from t5x_lite.errors import DataError

Metric = Callable[[Sequence, Sequence], dict[str, float]]
AnyMetric = TypeVar("AnyMetric", bound=Metric)


def lower_is_better(metric: AnyMetric) -> AnyMetric:
    """Marks a metric whose lower values are better, such as an error rate. Use it as a decorator.

    >>> @lower_is_better
    ... def error_rate(targets, predictions):
    ...     return {"error_rate": 100 - accuracy(targets, predictions)["accuracy"]}
    """
    metric.lower_is_better = True  # type: ignore[attr-defined]
    return metric


def is_lower_better(metric: Callable) -> bool:
    """Returns whether `lower_is_better` marks the metric, or the metric that a functools.partial or of_groups wraps."""
    if isinstance(metric, functools.partial) and not hasattr(metric, "lower_is_better"):
        return is_lower_better(metric.args[0] if metric.func is _of_groups else metric.func)
    return getattr(metric, "lower_is_better", False)


def accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Returns the share of predictions equal to their target.

    >>> accuracy(["cat", "dog"], ["cat", "a cat"])
    {'accuracy': 50.0}
    """
    return {"accuracy": percent([t == p for t, p in pairs(targets, predictions)])}


def exact_match(targets: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
    """Returns the share of texts equal to their target, ignoring differences in white space."""
    same = [p is not None and t.split() == p.split() for t, p in pairs(targets, predictions)]
    return {"exact_match": percent(same)}


def retrieval(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Returns how well matches are found, for a task with the target Match. A prediction is the rank of a match.

    recall@k is the share of queries whose match is among the first k; mrr@10 is the mean of 1/rank, or 0 for ranks
    above 10 (as in MS MARCO; Bajaj et al. 2016). The targets are not used.

    >>> retrieval(["a", "b"], ["2", "20"])
    {'recall@1': 0.0, 'recall@10': 50.0, 'mrr@10': 25.0}
    """
    ranks = [int(rank) for _, rank in pairs(targets, predictions)]
    shares = {f"recall@{k}": percent([rank <= k for rank in ranks]) for k in (1, 10)}
    return shares | {"mrr@10": 100 * float(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]))}


def grouped(targets: Sequence[tuple[Any, Any]], predictions: Sequence) -> dict[str, float]:
    """Returns the share of groups in which all answers are right. A target is (group, answer).

    This is MultiRC's exact match: all candidates of a question must be judged correctly (Khashabi et al. 2018, §5).
    """
    right: dict[Any, bool] = {}
    for (group, target), predicted in pairs(targets, predictions):
        right[group] = right.get(group, True) and target == predicted
    return {"exact_match": percent(list(right.values()))}


def of_groups(metric: Metric) -> Metric:
    """Returns a metric for targets that are pairs (group, answer). It applies `metric` to the answers and ignores the
    groups."""
    return functools.partial(_of_groups, metric)


def _of_groups(metric: Metric, targets: Sequence[tuple[Any, Any]], predictions: Sequence) -> dict[str, float]:
    return metric([answer for _, answer in targets], predictions)


def f1(positive: Any = 1, negative: Any = 0) -> Metric:
    """Returns the metric F1 of the positive class, 2·hits / (2·hits + wrong + missed).

    An invalid prediction counts as the opposite of its target. The metric raises DataError if a target is neither
    class.

    >>> f1("yes", "no")(["yes", "no", "yes"], ["yes", "no", "perhaps"])
    {'f1': 66.66666666666667}
    """
    return functools.partial(_f1, positive, negative)


def _f1(positive: Any, negative: Any, targets: Sequence, predictions: Sequence) -> dict[str, float]:
    hits = wrong = missed = 0
    for target, predicted in pairs(targets, predictions):
        if target not in (positive, negative):
            raise DataError(
                f"F1: target {target!r} is neither {positive!r} nor {negative!r}; pass both classes to f1()"
            )
        valid = predicted in (positive, negative)
        predicted_positive = predicted == positive if valid else target == negative
        hits += target == positive and predicted_positive
        missed += target == positive and not predicted_positive
        wrong += target == negative and predicted_positive
    return {"f1": 100.0 * 2 * hits / (2 * hits + wrong + missed) if hits else 0.0}


def macro_f1(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Returns the mean F1 over the classes that occur among the targets."""
    return _macro_f1((), targets, predictions)


def macro_f1_of(*classes: Any) -> Metric:
    """Returns the metric macro_f1 over these classes, whether or not they occur among the targets. (It is
    CommitmentBank's first metric; T5 calls it mean_multiclass_f1.)"""
    return functools.partial(_macro_f1, classes)


def _macro_f1(classes: Sequence, targets: Sequence, predictions: Sequence) -> dict[str, float]:
    from sklearn.metrics import f1_score

    classes, ids = _class_ids(targets, predictions, classes)
    score = f1_score(*ids, labels=range(len(classes)), average="macro", zero_division=0)  # type: ignore[arg-type]
    return {"macro_f1": 100.0 * float(score)}


def label_f1(targets: Sequence[tuple[str, ...]], predictions: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """Scores examples with any number of labels (registry.label_names). Returns micro F1, over all labels of all
    examples, and macro F1, the mean over the labels that occur among the targets. Both are 0 if no target has a label.

    >>> label_f1([("joy",), ("fear", "joy")], [("joy",), ("joy",)])
    {'micro_f1': 80.0, 'macro_f1': 50.0}
    """
    both = [(set(target), set(predicted)) for target, predicted in pairs(targets, predictions)]

    def f1_of(hits: int, total: int) -> float:
        return 100.0 * 2 * hits / total if total else 0.0

    names = sorted(set().union(*(target for target, _ in both)))
    counts = [(sum(n in t and n in p for t, p in both), sum((n in t) + (n in p) for t, p in both)) for n in names]
    micro = f1_of(sum(len(t & p) for t, p in both), sum(len(t) + len(p) for t, p in both))
    return {"micro_f1": micro, "macro_f1": sum(f1_of(*count) for count in counts) / max(1, len(names))}


def matthews(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Returns Matthews' correlation coefficient; 0 if all targets are equal. Invalid predictions are an extra class."""
    from sklearn.metrics import matthews_corrcoef

    classes, ids = _class_ids(targets, predictions)
    return {"matthews": 100.0 * float(matthews_corrcoef(*ids)) if len(classes) > 1 else 0.0}


def pearson(targets: Sequence[float], predictions: Sequence[float | None]) -> dict[str, float]:
    """Returns Pearson's linear correlation; 0 if targets or predictions are constant."""
    return {"pearson": _correlation("pearsonr", targets, predictions)}


def spearman(targets: Sequence[float], predictions: Sequence[float | None]) -> dict[str, float]:
    """Returns Spearman's rank correlation; 0 if targets or predictions are constant."""
    return {"spearman": _correlation("spearmanr", targets, predictions)}


def pairs(targets: Sequence, predictions: Sequence) -> list[tuple[Any, Any]]:
    """Returns (target, prediction) pairs. Raises DataError if the number of predictions differs from the number of
    targets, or if both are 0."""
    if len(targets) != len(predictions) or not len(targets):
        raise DataError(
            f"{len(targets)} targets and {len(predictions)} predictions; a metric needs equally many, at least 1"
        )
    return list(zip(targets, predictions, strict=True))


def percent(right: Sequence[bool]) -> float:
    """Returns the share of true values, × 100."""
    return 100.0 * sum(map(bool, right)) / len(right)


def _class_ids(
    targets: Sequence, predictions: Sequence, classes: Sequence = ()
) -> tuple[list, tuple[list[int], list[int]]]:
    """Returns (classes, (target ids, prediction ids)). The returned classes are those in `classes` and those that occur
    among the targets; an id is an index into the returned classes. A prediction that is not a class gets -1."""
    both = pairs(targets, predictions)
    id_of = {name: i for i, name in enumerate(dict.fromkeys([*classes, *(t for t, _ in both)]))}
    return list(id_of), ([id_of[t] for t, _ in both], [id_of.get(p, -1) for _, p in both])


def _correlation(name: str, targets: Sequence[float], predictions: Sequence[float | None]) -> float:
    """Returns the correlation × 100. An invalid prediction counts as −1, as in T5 (t5/data/postprocessors.py:
    string_to_float)."""
    from scipy import stats

    both = pairs(targets, predictions)
    target_values = np.array([t for t, _ in both], np.float64)
    predicted_values = np.array([np.nan if p is None else p for _, p in both], np.float64)
    predicted_values = np.where(np.isfinite(predicted_values), predicted_values, -1.0)
    if target_values.min() == target_values.max() or predicted_values.min() == predicted_values.max():
        return 0.0
    return 100.0 * float(getattr(stats, name)(target_values, predicted_values)[0])
