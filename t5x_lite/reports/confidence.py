"""How sure one can be: of a score (bootstrap intervals), and of a model's own probabilities (calibration)."""

from collections.abc import Callable, Sequence

import numpy as np

from t5x_lite.errors import DataError

LEVEL = 0.95


def bootstrap(
    metric: Callable[[Sequence, Sequence], dict[str, float]],
    targets: Sequence,
    predictions: Sequence,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """{name: (low, high)}: between them lie 95% of the scores of as many examples drawn with replacement (Efron 1979,
    percentiles). The same for the same examples and seed; a group of answers is not kept together."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = rng.integers(0, len(targets), len(targets))
        for name, value in metric([targets[i] for i in drawn], [predictions[i] for i in drawn]).items():
            found.setdefault(name, []).append(value)
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return {name: tuple(map(float, np.quantile(values, ends))) for name, values in found.items()}  # type: ignore[misc]


def calibration(confidences: Sequence[float], right: Sequence[bool], bins: int = 15) -> list[dict[str, float]]:
    """The reliability diagram: for each bin of equal width that holds an example its mean confidence, the share of
    its examples that are right (both from 0 to 1) and their number."""
    sure, true = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    if len(sure) != len(true) or not ((sure >= 0) & (sure <= 1)).all():
        raise DataError("calibration needs one probability from 0 to 1 for each answer")
    bin_of = np.clip(np.ceil(sure * bins) - 1, 0, bins - 1).astype(int)  # a bin holds its upper end
    return [
        {"confidence": float(sure[mine].mean()), "accuracy": float(true[mine].mean()), "examples": int(mine.sum())}
        for mine in (bin_of == b for b in range(bins))
        if mine.any()
    ]


def expected_calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 15) -> float:
    """ECE × 100 (Guo et al. 2017, §2): the distance of confidence and accuracy in a bin, averaged over the examples.

    >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]), 6)
    10.0
    """
    diagram = calibration(confidences, right, bins)
    total = sum(row["examples"] for row in diagram)
    return 100 * sum(row["examples"] * abs(row["confidence"] - row["accuracy"]) for row in diagram) / max(total, 1)
