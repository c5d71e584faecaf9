"""Measures how certain a score is (bootstrap intervals) and how right a model's probabilities are (calibration)."""

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
    """Returns {name: (low, high)}: the percentile bootstrap interval of each metric (Efron 1979).

    Draws `resamples` samples from the answers, with replacement. A sample is as large as the data. 95% of the samples'
    scores lie between low and high. The same examples and seed give the same result. Answers are drawn one by one, even
    if some of them belong together.
    """
    rng = np.random.default_rng(seed)
    scores_of: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = rng.integers(0, len(targets), len(targets))
        for name, value in metric([targets[i] for i in drawn], [predictions[i] for i in drawn]).items():
            scores_of.setdefault(name, []).append(value)
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return {name: tuple(map(float, np.quantile(values, ends))) for name, values in scores_of.items()}  # type: ignore[misc]


def calibration(confidences: Sequence[float], right: Sequence[bool], bins: int = 15) -> list[dict[str, float]]:
    """Returns the reliability diagram: one row per non-empty bin. All bins are equally wide.

    A row has the bin's mean confidence, its accuracy (both from 0 to 1) and its number of examples.
    confidences, right: one entry per answer. Raises DataError unless every confidence is from 0 to 1.
    """
    sure, true = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    if len(sure) != len(true) or not ((sure >= 0) & (sure <= 1)).all():
        raise DataError("calibration needs one probability from 0 to 1 for each answer")
    bin_of = np.clip(np.ceil(sure * bins) - 1, 0, bins - 1).astype(int)  # a bin includes its upper end
    return [
        {
            "confidence": float(sure[in_bin].mean()),
            "accuracy": float(true[in_bin].mean()),
            "examples": int(in_bin.sum()),
        }
        for in_bin in (bin_of == b for b in range(bins))
        if in_bin.any()
    ]


def expected_calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 15) -> float:
    """Returns ECE × 100 (Guo et al. 2017, §2): the mean of |confidence − accuracy| over the bins.

    A bin's weight in the mean is its number of examples.

    >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]), 6)
    10.0
    """
    diagram = calibration(confidences, right, bins)
    total = sum(row["examples"] for row in diagram)
    return 100 * sum(row["examples"] * abs(row["confidence"] - row["accuracy"]) for row in diagram) / max(total, 1)
