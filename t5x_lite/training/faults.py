"""Decides how a run reacts to a bad step. A step is bad if its loss or gradient is not finite, or its loss is a spike.

The step itself never applies a bad update (step.py). This module decides whether the run stops, continues or rolls
back.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_lite.errors import DivergedError


@dataclasses.dataclass(frozen=True)
class BeginAt:
    """Says with which state and which batch the training loop begins.

    step: the step of the checkpoint to restore; 0: the loop begins with the initial state.
    skip_batches: number of batches to skip after the checkpoint's data position.
    """

    step: int
    skip_batches: int = 0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Holds the decision about one step.

    problem: why the step's update was skipped; "" for a good step.
    begin: the checkpoint and the batches to skip for a rollback; None: no rollback.
    """

    problem: str = ""
    begin: BeginAt | None = None


class FaultPolicy:
    """Judges the steps of a run, one after the other.

    on_nonfinite: what to do if a loss or gradient is not finite: "stop" the run, "skip" the update, or "rollback" to
        the newest checkpoint and skip the batches since then. If the loss is a spike, the update is always skipped.
    max_nonfinite: the run stops if more than this many steps in a row are bad, or if it would have to roll back more
        than this many times.
    """

    def __init__(self, on_nonfinite: str, max_nonfinite: int):
        self._on_nonfinite, self._max_nonfinite = on_nonfinite, max_nonfinite
        self._skipped = 0  # bad steps in a row
        self._rollbacks = 0

    def judge(self, step: int, metrics: Mapping[str, Any], begun: BeginAt, saved_steps: Sequence[int]) -> Verdict:
        """Returns the verdict on one step. Raises DivergedError if the run has to stop.

        metrics: the step's metrics (step_metrics.py), on the host.
        begun: the checkpoint and skipped batches with which the loop began, or began again after the last rollback.
        saved_steps: the steps of the existing checkpoints.
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
            return Verdict(f"{problem}. Skipping its update")
        if self._rollbacks == self._max_nonfinite:
            raise DivergedError(f"{problem}. Stopping after {self._rollbacks} rollbacks (train.max_nonfinite)")
        self._rollbacks, self._skipped = self._rollbacks + 1, 0
        newest = max(saved_steps, default=0)
        already_skipped = begun.skip_batches if newest == begun.step else 0
        return Verdict(f"{problem}. Rolling back", BeginAt(newest, step - newest + already_skipped))


def _problem(step: int, metrics: Mapping[str, Any], saved_steps: Sequence[int]) -> str:
    shown = {k: round(float(v), 6) for k, v in metrics.items() if k in ("loss", "grad_norm", "learning_rate")}
    newest = f"the newest checkpoint is step {max(saved_steps)}" if saved_steps else "there is no checkpoint yet"
    if metrics["is_finite"]:
        return f"the loss at step {step} is a spike (train.spike_sigmas): {json.dumps(shown)}; {newest}"
    return (
        f"the loss or gradient at step {step} is not finite: {json.dumps(shown)}. "
        f"Nothing was saved after it; {newest}. "
        "Lower optimizer.learning_rate, raise schedule.warmup_steps, or set optimizer.clip_norm"
    )
