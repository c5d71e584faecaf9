"""Shows a training run on the terminal: progress, messages and tables of results."""

import sys
import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from t5x_lite import console


class Terminal:
    """Writes a run's output to stdout: with a progress bar if stdout is a terminal, else as plain lines.

    If the terminal is closed, the run continues.
    """

    def __init__(self, total_steps: int, start_step: int, active: bool = True):
        self.active = active
        self._total = total_steps
        self._console = console.plain(soft_wrap=True)
        self._bar: Progress | None = None
        self._first: tuple[int, float] | None = None  # the first step that was done, and when
        if active and self._console.is_terminal:
            bar = Progress(
                TextColumn("step {task.completed}/{task.total}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.description}  ETA", markup=False),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = bar.add_task("starting", total=total_steps, completed=start_step)
            with console.optional(sys.stdout):
                bar.start()
            self._bar = bar

    def compiling(self) -> None:
        """Says that the training step is being compiled, until the first step is done."""
        if self._bar:
            self._bar.update(self._task, description="compiling the training step")
        else:
            self.line("compiling the training step")

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`, if there is one. The time left is estimated from the steps after the first,
        because the first one includes compilation."""
        if self._first is None:
            self._first = step, time.monotonic()
            if self._bar:
                self._bar.update(self._task, description="training")
        if self._bar:
            self._bar.update(self._task, completed=step)

    def train(self, step: int, loss: float, tokens_per_s: float, padding: float) -> None:
        """Shows the metrics of the steps up to `step`. The caller has called `advance(step)` before."""
        text = f"loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s  padding {100 * padding:.1f}%"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        else:
            self.line(f"step {step}/{self._total}  {text}{self._time_left(step)}")

    def _time_left(self, step: int) -> str:
        first_step, first_s = self._first or (step, 0.0)
        if step <= first_step:
            return ""
        left_s = (time.monotonic() - first_s) / (step - first_step) * (self._total - step)
        return f"  ETA {int(left_s // 60)}:{int(left_s % 60):02d}"

    def line(self, text: str = "") -> None:
        """Prints a line above the progress bar."""
        self.show(text)

    def show(self, renderable: Any) -> None:
        """Prints a text or a rich table."""
        if self.active:
            with console.optional(sys.stdout):
                self._console.print(renderable)

    def close(self) -> None:
        if self._bar:
            with console.optional(sys.stdout):
                self._bar.stop()
