"""Logs training: adds up the metrics of the steps, and writes the result every `train.log_every_steps` steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_lite.reports import metric_sums
from t5x_lite.reports.goodput import Clock, training_s
from t5x_lite.reports.loggers import Loggers
from t5x_lite.reports.terminal import Terminal


class StepLog:
    """Writes a row to all loggers (metrics.jsonl, TensorBoard, wandb) and a line to the terminal every few steps.

    every_steps: a row is written at multiples of this, and at the last step.
    tasks: names of the tasks whose losses are logged separately; () if there is only one task.
    rates: steps per second -> further values of a row, such as MFU (share of the peak FLOP/s).
    counters: returns the running totals of the data.
    gather: joins the lists of all processes and returns the result on every process. All must call it for every row.
    """

    def __init__(
        self,
        loggers: Loggers,
        terminal: Terminal,
        clock: Clock,
        *,
        every_steps: int,
        tasks: Sequence[str],
        rates: Callable[[float], dict[str, float]],
        counters: Callable[[], dict[str, float]],
        gather: Callable[[list], list],
    ):
        self._loggers, self._terminal, self._clock = loggers, terminal, clock
        self._every_steps, self._tasks = every_steps, tasks
        self._rates, self._counters, self._gather = rates, counters, gather
        self._total: dict[str, Any] | None = None  # sums over the steps since the last row

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds the metrics of a step. Do not call it for steps whose update was skipped."""
        self._total = metric_sums.add(self._total, metrics)

    def reach(self, step: int, is_last: bool) -> None:
        """Moves the progress bar to `step`. Writes a row if one is due and metrics were added since the last row.

        is_last: whether the run ends or stops after this step. Then a row is due, too.
        """
        self._terminal.advance(step)
        if self._total and (is_last or step % self._every_steps == 0):
            self._write(step, self._total)
            self._total = None

    def _write(self, step: int, total: Mapping[str, Any]) -> None:
        spent_s = self._clock.take()
        trained_s = training_s(spent_s)
        row = metric_sums.finalise(total, self._tasks) | self._rates(total["steps"] / trained_s)
        row["tokens_per_s"] = row.pop("tokens") / trained_s
        row |= self._data_wait(spent_s["input"] / trained_s) | self._counters()
        self._terminal.train(step, row["loss"], row["tokens_per_s"], row["padding"])
        times = {f"time/{span}": seconds for span, seconds in spent_s.items()} | {"time/unix": time.time()}
        self._loggers.scalars(step, {f"train/{name}": value for name, value in row.items()} | times)

    def _data_wait(self, share: float) -> dict[str, float]:
        """Returns the longest wait of a process for data, as a share of the time, and the number of this process."""
        shares = self._gather([share])
        slowest = max(range(len(shares)), key=shares.__getitem__)
        return {"data_wait": shares[slowest]} | ({"slowest_process": float(slowest)} if len(shares) > 1 else {})
