"""What a run's evaluations show: the saved step that did best."""

from collections.abc import Collection

from t5x_lite.reports import run_page
from t5x_lite.training import step_metrics


def best_step(rows: list[dict], key: str, saved: Collection[int]) -> int | None:
    """The step of `saved` with the best `eval/KEY`, the earliest where several are equal.

    rows: of metrics.jsonl (writers.read_metrics).  None where `key` is empty, or no saved step has a number for it.
    """
    points = run_page.curves(rows, f"eval/{key}").get(f"eval/{key}", ())
    best = step_metrics.best(key, [(step, value) for step, value in points if step in saved])
    return None if best is None else best[0]
