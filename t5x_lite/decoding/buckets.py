"""Rounds the sizes of batches and texts up to a few values, so that few programs are compiled."""

import functools
from collections.abc import Callable
from typing import Any

from t5x_lite import batch as batches
from t5x_lite.batch import Batch
from t5x_lite.cluster import processes
from t5x_lite.heads import ENCODER_HEADS

MOST_PROGRAMS = 32  # of one function; with the sizes rounded up, a model of 1,024 positions has about 15 lengths


def bucket(number: int) -> int:
    """Returns the smallest of 8, 12, 16, 24, 32, 48, … that is at least `number`.

    If `number` is above 8, the result is at most 1.5 times as large.

    >>> [bucket(n) for n in (1, 8, 9, 17, 32, 33, 100)]
    [8, 8, 12, 24, 32, 48, 128]
    """
    power = 1 << max(number - 1, 7).bit_length()
    return power * 3 // 4 if number <= power * 3 // 4 and power > 8 else power


def power_of_two(number: int) -> int:
    """Returns the smallest power of two that is at least `number`.

    >>> [power_of_two(n) for n in (0, 1, 2, 3, 5)]
    [1, 1, 2, 4, 8]
    """
    return 1 << max(number - 1, 0).bit_length()


def bounded(jitted: Callable) -> Callable:
    """Returns a jitted function that drops its compiled programs when it has MOST_PROGRAMS of them.

    A process that answers requests of all sizes and settings would otherwise collect programs without end.
    """

    @functools.wraps(jitted)
    def call(*arguments: Any) -> Any:
        if jitted._cache_size() >= MOST_PROGRAMS:  # type: ignore[attr-defined]
            jitted.clear_cache()  # type: ignore[attr-defined]
        return jitted(*arguments)

    return call


def cut_to_bucket(batch: Batch, architecture: str) -> Batch:
    """Returns the batch with its arrays [B, S] and [B, L] cut to `bucket(n)` columns.

    n is the length of the longest row in any process. So only columns that are padding in every row are cut off. All
    processes must call this function the same number of times, because they exchange the lengths of their rows.
    """
    cut = dict(batch)
    for side, letter in (("encoder", "S"), ("decoder", "L")):
        if f"{side}_segment_ids" not in batch:
            continue
        segment_ids = batch[f"{side}_segment_ids"]
        used = processes.largest(int((segment_ids > 0).sum(axis=1).max(initial=1)))
        columns = min(bucket(used), segment_ids.shape[1])
        heads = tuple(ENCODER_HEADS) if architecture == "encoder_only" else ()
        for name, spec in batches.specs(architecture, heads).items():
            if name in cut and spec.dims == f"B{letter}":
                cut[name] = cut[name][:, :columns]
    return cut
