"""What a run does about a bad step: one whose loss or gradient is not finite, or whose loss is a spike.

The step itself never applies a bad update (step.py); here the run decides whether it goes on.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_lite.errors import DivergedError


@dataclasses.dataclass(frozen=True)
class BeginAt:
    """Where the loop begins: at the checkpoint of `step` (0: at the initial state), past the next `skip_batches`
    batches of the data."""

    step: int
    skip_batches: int = 0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What becomes of a step. problem: why its update was skipped, "" for a good step; begin: where a rollback leads,
    else None."""

    problem: str = ""
    begin: BeginAt | None = None


class FaultPolicy:
    """Judges steps in their order.

    on_nonfinite: for a loss or gradient that is not finite, "stop" the run, "skip" the update, or "rollback" to the
        newest checkpoint and skip past the batches that led to it. A spike always skips its update.
    max_nonfinite: bad steps in a row, or rollbacks, after which the run stops in any case.
    """

    def __init__(self, on_nonfinite: str, max_nonfinite: int):
        self._on_nonfinite, self._max_nonfinite = on_nonfinite, max_nonfinite
        self._skipped = 0  # updates in a row
        self._rollbacks = 0

    def judge(self, step: int, metrics: Mapping[str, Any], begun: BeginAt, saved_steps: Sequence[int]) -> Verdict:
        """The verdict on one step. Raises DivergedError where the run has to stop.

        metrics: of that step (step_metrics.py), on the host. begun: where the loop began. saved_steps: the checkpoints
        there are.
        """
        is_spike = metrics["is_finite"] and metrics.get("is_spike")
        if metrics["is_finite"] and not is_spike:
            self._skipped = 0
            return Verdict()
        self._skipped += 1
        problem = _problem(step, metrics, saved_steps)
        policy = "skip" if is_spike else self._on_nonfinite
        if policy == "stop" or self._skipped > self._max_nonfinite:
            raise DivergedError(problem)
        if policy == "skip":
            return Verdict(f"{problem}. Its update is skipped")
        if self._rollbacks == self._max_nonfinite:
            raise DivergedError(f"{problem}. After {self._rollbacks} rollbacks the run stops")
        self._rollbacks, self._skipped = self._rollbacks + 1, 0
        newest = max(saved_steps, default=0)
        already_skipped = begun.skip_batches if newest == begun.step else 0
        return Verdict(f"{problem}. Rolling back", BeginAt(newest, step - newest + already_skipped))


def _problem(step: int, metrics: Mapping[str, Any], saved_steps: Sequence[int]) -> str:
    shown = {k: round(float(v), 6) for k, v in metrics.items() if k in ("loss", "grad_norm", "learning_rate")}
    newest = f"the newest checkpoint is step {max(saved_steps)}" if saved_steps else "there is no checkpoint yet"
    if metrics["is_finite"]:
        return f"step {step} is a spike (train.spike_sigmas): {json.dumps(shown)}; {newest}"
    return (
        f"step {step} is not finite: {json.dumps(shown)}. Nothing was saved after it; {newest}. "
        "Lower optimizer.learning_rate, lengthen schedule.warmup_steps, or set optimizer.clip_norm"
    )
