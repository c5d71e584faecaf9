"""Measures the wall time of a run: how much goes into training steps, and how much into everything else."""

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
    """Charges the wall time to spans.

    Each moment belongs to the innermost `span` around it; outside of spans, to "start", and after `steps_begin` to
    "step".
    """

    def __init__(self):
        self._last_s = time.monotonic()
        self._spent_s = dict.fromkeys(SPANS, 0.0)
        self._spans = ["start"]

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Charges the time in the block to `name`, a key of SPANS."""
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
        """Returns the seconds of each span since the last call."""
        self._charge()
        spent_s, self._spent_s = self._spent_s, dict.fromkeys(SPANS, 0.0)
        return spent_s

    def _charge(self) -> None:
        now_s = time.monotonic()
        self._spent_s[self._spans[-1]] += now_s - self._last_s
        self._last_s = now_s


def training_s(spent_s: dict[str, float]) -> float:
    """Returns the seconds of training itself: without starting, compiling and evaluating."""
    return sum(spent_s.values()) - spent_s["start"] - spent_s["compile"] - spent_s["evaluate"]


def table(rows: Sequence[dict]) -> list[dict]:
    """Returns the seconds of each span and their share of the wall time, over all restarts of a run.

    rows: of `metrics.jsonl`. Time between the first and the last row that no row accounts for is downtime, or went into
    steps that were repeated after it.
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
