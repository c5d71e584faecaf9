"""What a task is scored by: functions (targets, predictions) -> {name: value}, on the host, values × 100. Here
classes and numbers; texts in text_metrics.py, entities in span_metrics.py, and how sure of it one can be in
reports/confidence.py.

A prediction that is no valid answer (a string that is no label, `None`, a class id of -1, a number that is not
finite) counts as wrong and is never dropped. Names and conventions are those of T5 (t5/evaluation/metrics.py).
scikit-learn and scipy are imported where used: they take seconds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from t5x_lite.errors import DataError

Metric = Callable[[Sequence, Sequence], dict[str, float]]
AnyMetric = TypeVar("AnyMetric", bound=Metric)


def lower_is_better(metric: AnyMetric) -> AnyMetric:
    """Decorates a metric whose values are better the lower they are, such as an error rate.

    >>> @lower_is_better
    ... def error_rate(targets, predictions):
    ...     return {"error_rate": 100 - accuracy(targets, predictions)["accuracy"]}
    """
    metric.lower_is_better = True  # type: ignore[attr-defined]
    return metric


def accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Share of predictions equal to their target.

    >>> accuracy(["cat", "dog"], ["cat", "a cat"])
    {'accuracy': 50.0}
    """
    return {"accuracy": percent([t == p for t, p in pairs(targets, predictions)])}


def exact_match(targets: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
    """Share of texts equal to their target, but for white space around and within them."""
    same = [p is not None and t.split() == p.split() for t, p in pairs(targets, predictions)]
    return {"exact_match": percent(same)}


def grouped(targets: Sequence[tuple[Any, Any]], predictions: Sequence) -> dict[str, float]:
    """Share of groups all of whose answers are right; a target is (group, answer). MultiRC's exact match: a question
    is answered where each of its candidates is judged correctly (Khashabi et al. 2018, §5)."""
    right: dict[Any, bool] = {}
    for (group, target), predicted in pairs(targets, predictions):
        right[group] = right.get(group, True) and target == predicted
    return {"exact_match": percent(list(right.values()))}


def of_groups(metric: Metric) -> Metric:
    """`metric` over the answers alone of targets that are (group, answer)."""
    return functools.partial(_of_groups, metric)


def _of_groups(metric: Metric, targets: Sequence[tuple[Any, Any]], predictions: Sequence) -> dict[str, float]:
    return metric([answer for _, answer in targets], predictions)


def f1(positive: Any = 1, negative: Any = 0) -> Metric:
    """The metric F1 of the positive class. An invalid prediction counts as the class its target is not.

    >>> f1("yes", "no")(["yes", "no", "yes"], ["yes", "no", "perhaps"])
    {'f1': 66.66666666666667}
    """
    return functools.partial(_f1, positive, negative)


def _f1(positive: Any, negative: Any, targets: Sequence, predictions: Sequence) -> dict[str, float]:
    hits = wrong = missed = 0
    for target, predicted in pairs(targets, predictions):
        if target not in (positive, negative):
            raise DataError(
                f"F1: target {target!r} is neither {positive!r} nor {negative!r}; give f1() the two classes"
            )
        valid = predicted in (positive, negative)
        said_positive = predicted == positive if valid else target == negative
        hits += target == positive and said_positive
        missed += target == positive and not said_positive
        wrong += target == negative and said_positive
    return {"f1": 100.0 * 2 * hits / (2 * hits + wrong + missed) if hits else 0.0}


def macro_f1(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """The mean of the F1 of each class that occurs among the targets."""
    return _macro_f1((), targets, predictions)


def macro_f1_of(*classes: Any) -> Metric:
    """The metric macro_f1 over these classes, whether they occur or not (CommitmentBank's first, T5's
    mean_multiclass_f1)."""
    return functools.partial(_macro_f1, classes)


def _macro_f1(classes: Sequence, targets: Sequence, predictions: Sequence) -> dict[str, float]:
    from sklearn.metrics import f1_score

    classes, ids = _class_ids(targets, predictions, classes)
    score = f1_score(*ids, labels=range(len(classes)), average="macro", zero_division=0)  # type: ignore[arg-type]
    return {"macro_f1": 100.0 * float(score)}


def label_f1(targets: Sequence[tuple[str, ...]], predictions: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """Of examples with any number of labels (registry.label_names): F1 over all labels of all examples, and the mean of
    the F1 of each label that occurs among the targets. 0 where there is none to find.

    >>> label_f1([("joy",), ("fear", "joy")], [("joy",), ("joy",)])
    {'micro_f1': 80.0, 'macro_f1': 50.0}
    """
    both = [(set(wanted), set(found)) for wanted, found in pairs(targets, predictions)]

    def f1_of(hits: int, given: int) -> float:
        return 100.0 * 2 * hits / given if given else 0.0

    names = sorted(set().union(*(wanted for wanted, _ in both)))
    counts = [
        (sum(n in wanted and n in found for wanted, found in both), sum((n in w) + (n in f) for w, f in both))
        for n in names
    ]
    micro = f1_of(sum(len(wanted & found) for wanted, found in both), sum(len(w) + len(f) for w, f in both))
    return {"micro_f1": micro, "macro_f1": sum(f1_of(*count) for count in counts) / max(1, len(names))}


def matthews(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Matthews' correlation coefficient; an invalid prediction is a class of its own. 0 where all targets are one."""
    from sklearn.metrics import matthews_corrcoef

    classes, ids = _class_ids(targets, predictions)
    return {"matthews": 100.0 * float(matthews_corrcoef(*ids)) if len(classes) > 1 else 0.0}


def pearson(targets: Sequence[float], predictions: Sequence[float | None]) -> dict[str, float]:
    """Pearson's linear correlation; 0 where targets or predictions are constant."""
    return {"pearson": _correlation("pearsonr", targets, predictions)}


def spearman(targets: Sequence[float], predictions: Sequence[float | None]) -> dict[str, float]:
    """Spearman's rank correlation; 0 where targets or predictions are constant."""
    return {"spearman": _correlation("spearmanr", targets, predictions)}


def pairs(targets: Sequence, predictions: Sequence) -> list[tuple[Any, Any]]:
    """Each target with its prediction; DataError where one lacks the other, or there is none."""
    if len(targets) != len(predictions) or not len(targets):
        raise DataError(
            f"{len(targets)} targets and {len(predictions)} predictions; a metric needs one for each, and some"
        )
    return list(zip(targets, predictions, strict=True))


def percent(right: Sequence[bool]) -> float:
    """The share that is true, × 100."""
    return 100.0 * sum(map(bool, right)) / len(right)


def _class_ids(
    targets: Sequence, predictions: Sequence, classes: Sequence = ()
) -> tuple[list, tuple[list[int], list[int]]]:
    """The classes given and among the targets, and both sequences as indices into them; -1 for a prediction that is
    none."""
    both = pairs(targets, predictions)
    id_of = {name: i for i, name in enumerate(dict.fromkeys([*classes, *(t for t, _ in both)]))}
    return list(id_of), ([id_of[t] for t, _ in both], [id_of.get(p, -1) for _, p in both])


def _correlation(name: str, targets: Sequence[float], predictions: Sequence[float | None]) -> float:
    """An invalid prediction is −1, as in T5 (t5/data/postprocessors.py: string_to_float)."""
    from scipy import stats

    both = pairs(targets, predictions)
    wanted = np.array([t for t, _ in both], np.float64)
    got = np.array([np.nan if p is None else p for _, p in both], np.float64)
    got = np.where(np.isfinite(got), got, -1.0)
    if wanted.min() == wanted.max() or got.min() == got.max():
        return 0.0
    return 100.0 * float(getattr(stats, name)(wanted, got)[0])
