"""Where a run's numbers go: console, `metrics.jsonl`, TensorBoard and wandb, from process 0 only.

`metrics.jsonl` is the truth: one object a line with "step" and the values; wandb off loses nothing. A writer
that fails is switched off with one warning: no log is worth a run.
"""

import contextlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from t5x_lite import atomic, console

METRICS_FILE = "metrics.jsonl"
WANDB_TIMEOUT_S = 20


class Writers:
    """All writers of a run behind `scalars`, `table` and `close`.

    resume_step: what stands in `metrics.jsonl` of later steps is dropped, as they will happen again; None: add to it.
    """

    def __init__(self, workdir: Path, run_name: str, config: Mapping, resume_step: int | None, active: bool = True):
        self._sinks: dict[str, Any] = {}
        if not active:
            return
        self._open("metrics.jsonl", lambda: _Jsonl(workdir, resume_step))
        self._open("TensorBoard", lambda: _TensorBoard(workdir, resume_step))
        if config["wandb"]["mode"] != "disabled":
            self._open("wandb", lambda: _Wandb(workdir, run_name, config))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each("scalars", step, dict(values))

    def table(self, step: int, name: str, rows: list[dict]) -> None:
        """A small table of examples (wandb only: the files of the workdir hold all of them)."""
        self._each("table", step, name, rows)

    def close(self) -> None:
        self._each("close")
        self._sinks.clear()

    def _open(self, name: str, make: Callable[[], Any]) -> None:
        try:
            self._sinks[name] = make()
        except Exception as error:
            _warn(f"{name} is off: {error}")

    def _each(self, method: str, *args: Any) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                getattr(sink, method)(*args)
            except Exception as error:
                del self._sinks[name]
                _warn(f"{name} is off from here: {error}")
                if method != "close":
                    with contextlib.suppress(Exception):  # a file, or a service of wandb's, is not left open
                        sink.close()


class _Jsonl:
    def __init__(self, workdir: Path, resume_step: int | None):
        path = workdir / METRICS_FILE
        if resume_step is not None and path.exists():
            kept = [json.dumps(row) + "\n" for row in read_metrics(workdir) if 0 < resume_step >= row["step"]]
            atomic.write(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **{k: float(f"{v:.8g}") for k, v in values.items()}}) + "\n")
        self._file.flush()

    def table(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    def __init__(self, workdir: Path, resume_step: int | None):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One wandb run per workdir, under the same id after a resume. Without a network it records offline."""

    def __init__(self, workdir: Path, run_name: str, config: Mapping):
        import wandb
        import wandb.errors

        id_file = workdir / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12])  # an agent's, in a sweep
        mode = config["wandb"]["mode"]
        if mode == "online" and not _reachable(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")):
            _warn(f"wandb: no network; recording offline. Later: wandb sync {workdir / 'wandb'}/offline-run-*")
            mode = "offline"
        arguments: dict[str, Any] = {
            "project": config["wandb"]["project"],
            "entity": config["wandb"]["entity"] or None,
            "name": run_name,
            "id": id_file.read_text().strip(),
            "resume": "allow",
            "dir": str(workdir),
            "config": dict(config),
            "settings": wandb.Settings(init_timeout=WANDB_TIMEOUT_S, silent=True, console="off"),
        }
        try:
            self._run = wandb.init(mode=mode, **arguments)
        except wandb.errors.Error as error:
            _warn(f"wandb: {error}; recording offline")
            self._run = wandb.init(mode="offline", **arguments)
        self._wandb = wandb

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def table(self, step: int, name: str, rows: list[dict]) -> None:
        if rows:
            columns = list(rows[0])
            data = [[str(row.get(c, "")) for c in columns] for row in rows]
            self._run.log({name: self._wandb.Table(columns=columns, data=data)}, step=step)

    def close(self) -> None:
        self._run.finish()


class Terminal:
    """The terminal: a progress bar where it is one, plain lines where it is a file or a pipe. The run goes on without
    it when it is closed."""

    def __init__(self, total_steps: int, start_step: int, active: bool = True):
        self.active = active
        self._total, self._start = total_steps, start_step
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._began_s = time.monotonic()
        if active and self._console.is_terminal:
            bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}  ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = bar.add_task("starting", total=total_steps, completed=start_step)
            with console.optional(sys.stdout):
                bar.start()
            self._bar = bar

    def advance(self, step: int) -> None:
        """Moves the bar; costs nothing without one."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def train(self, step: int, loss: float, tokens_per_s: float, padding: float) -> None:
        text = f"loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s  padding {100 * padding:.1f}%"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        else:
            left_s = (time.monotonic() - self._began_s) / max(step - self._start, 1) * (self._total - step)
            self.line(f"step {step}/{self._total}  {text}  ETA {int(left_s // 60)}:{int(left_s % 60):02d}")

    def line(self, text: str = "") -> None:
        """A line above the bar."""
        self.show(Text(text))

    def show(self, renderable: Any) -> None:
        """A rich table."""
        if self.active:
            with console.optional(sys.stdout):
                self._console.print(renderable)

    def close(self) -> None:
        if self._bar:
            with console.optional(sys.stdout):
                self._bar.stop()


def read_metrics(workdir: Path) -> list[dict]:
    """The rows of `metrics.jsonl`; a last line cut off by a crash is left out."""
    path = Path(workdir) / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _reachable(url: str, timeout_s: float = 3) -> bool:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=timeout_s):
            return True
    except OSError:
        return False


def _warn(text: str) -> None:
    with console.optional(sys.stderr):
        print(f"t5x-lite: {text}", file=sys.stderr)
