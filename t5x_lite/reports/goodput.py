"""Where a run's wall time goes: into steps, and into what keeps it from them."""

import contextlib
import time
from collections.abc import Iterator, Sequence

SPANS = {
    "step": "training steps",
    "start": "starting: devices, data, restoring",
    "compile": "compiling the step",
    "input": "waiting for data",
    "evaluate": "evaluating",
    "checkpoint": "saving (what the loop waited)",
}


class Clock:
    """Every moment belongs to one span: the innermost `span` around it, else to "start", and from `steps_begin` on to
    "step"."""

    def __init__(self):
        self._last_s = time.monotonic()
        self._spent_s = dict.fromkeys(SPANS, 0.0)
        self._spans = ["start"]

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """The time in the block goes to `name`, a key of SPANS."""
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
        """Seconds by span since the last time they were taken."""
        self._charge()
        spent_s, self._spent_s = self._spent_s, dict.fromkeys(SPANS, 0.0)
        return spent_s

    def _charge(self) -> None:
        now_s = time.monotonic()
        self._spent_s[self._spans[-1]] += now_s - self._last_s
        self._last_s = now_s


def training_s(spent_s: dict[str, float]) -> float:
    """The part that training takes where nothing interrupts it."""
    return sum(spent_s.values()) - spent_s["start"] - spent_s["compile"] - spent_s["evaluate"]


def table(rows: Sequence[dict]) -> list[dict]:
    """Span, seconds and share of the wall time of a run from its `metrics.jsonl`, over all its processes' lives.

    What no row accounts for, between the first and the last, went into being down and into steps done again.
    """
    timed = [row for row in rows if "time/unix" in row]
    if not timed:
        return []
    seconds: dict[str, float] = {text: sum(row[f"time/{span}"] for row in timed) for span, text in SPANS.items()}
    first = timed[0]
    wall_s = timed[-1]["time/unix"] - first["time/unix"] + sum(first[f"time/{span}"] for span in SPANS)
    seconds["being down, and steps done again after it"] = max(0.0, wall_s - sum(seconds.values()))
    wall_s = sum(seconds.values()) or 1.0
    return [{"time went into": text, "seconds": s, "share %": 100 * s / wall_s} for text, s in seconds.items()]
