"""Measures how much of a run's wall time goes into training steps, and how much into everything else."""

import contextlib
import time
from collections.abc import Iterator, Sequence

SPANS = {
    "step": "training steps",
    "start": "starting: devices, data, restoring",
    "compile": "compiling the step",
    "input": "waiting for data",
    "evaluate": "evaluating",
    "checkpoint": "saving (time the loop waited)",
}


class Clock:
    """Divides the wall time among named spans.

    Each moment counts for the innermost `span` around it. Outside all spans it counts for "start", or for "step" after
    `steps_begin` was called.
    """

    def __init__(self):
        self._last_s = time.monotonic()
        self._spent_s = dict.fromkeys(SPANS, 0.0)
        self._spans = ["start"]

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Counts the time that the block takes as `name`, a key of SPANS."""
        self._charge()
        self._spans.append(name)
        try:
            yield
        finally:
            self._charge()
            self._spans.pop()

    def steps_begin(self) -> None:
        self._charge()
        self._spans[0] = "step"

    def take(self) -> dict[str, float]:
        """Returns {span: its seconds since the last call of `take`}."""
        self._charge()
        spent_s, self._spent_s = self._spent_s, dict.fromkeys(SPANS, 0.0)
        return spent_s

    def _charge(self) -> None:
        now_s = time.monotonic()
        self._spent_s[self._spans[-1]] += now_s - self._last_s
        self._last_s = now_s


def training_s(spent_s: dict[str, float]) -> float:
    """Returns the seconds of training: all seconds except those of starting, compiling and evaluating."""
    return sum(spent_s.values()) - spent_s["start"] - spent_s["compile"] - spent_s["evaluate"]


def table(rows: Sequence[dict]) -> list[dict]:
    """Returns one row per span: its seconds, and its share of the wall time. All restarts of a run are included.

    rows: the rows of `metrics.jsonl`. They may not account for all of the time between the first and the last of them,
        because the run was down or made steps that it repeated later. The table has a separate row for that time.
    """
    timed = [row for row in rows if "time/unix" in row]
    if not timed:
        return []
    seconds: dict[str, float] = {text: sum(row[f"time/{span}"] for row in timed) for span, text in SPANS.items()}
    first = timed[0]
    wall_s = timed[-1]["time/unix"] - first["time/unix"] + sum(first[f"time/{span}"] for span in SPANS)
    seconds["downtime, and steps repeated after it"] = max(0.0, wall_s - sum(seconds.values()))
    wall_s = sum(seconds.values()) or 1.0
    return [{"activity": text, "seconds": s, "share %": 100 * s / wall_s} for text, s in seconds.items()]
