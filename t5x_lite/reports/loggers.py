"""On process 0, writes to experiment loggers: `metrics.jsonl`, TensorBoard, wandb and the user's own.

`metrics.jsonl` holds everything: each line is an object with "step" and all values. So wandb is optional. If a logger
raises an exception, it is switched off with one warning, because a failed log must not stop a run.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from t5x_lite import atomic, console
from t5x_lite.own_code import name_of
from t5x_lite.redaction import redact, redacted
from t5x_lite.reports.results import METRICS_FILE, read_lines


class Logger(Protocol):
    """Receives metrics. If it raises any exception, it is switched off."""

    def scalars(self, step: int, values: dict[str, float], /) -> None: ...

    def table(self, step: int, name: str, rows: list[dict], /) -> None: ...

    def close(self) -> None: ...


class Loggers:
    """Passes `scalars`, `table` and `close` on to all loggers of a run.

    config: the run's config as JSON-able data.
    resume_step: the step where the run resumes. Later rows are dropped from `metrics.jsonl`, because their steps run
        again. None: keep all rows.
    own: the user's loggers. Each is called with (workdir, run_name, config) and returns an object with
        `scalars(step, values)` and, if it needs them, `table` and `close`.
    loggers: {name: logger} of the loggers that are still on.
    """

    def __init__(
        self,
        workdir: Path,
        run_name: str,
        config: Mapping,
        resume_step: int | None,
        active: bool = True,
        own: Sequence[Callable[..., Any]] = (),
    ):
        self.loggers: dict[str, Logger] = {}
        self._workdir, self._run_name, self._config = workdir, redact(run_name), redacted(config)
        self._active, self._own = active, own
        self._open_all(resume_step)

    def _open_all(self, resume_step: int | None) -> None:
        workdir, run_name, config = self._workdir, self._run_name, self._config
        if not self._active:
            return
        self._open(METRICS_FILE, lambda: _Jsonl(workdir, resume_step))
        self._open("TensorBoard", lambda: _TensorBoard(workdir, resume_step))
        if config["wandb"]["mode"] != "disabled":
            from t5x_lite.reports import wandb_logger  # few runs use it

            self._open("wandb", lambda: wandb_logger.start(workdir, run_name, config))
        for logger in self._own:
            if callable(logger):
                self._open(name_of(logger), lambda logger=logger: _Own(logger(workdir, run_name, config)))
            else:  # a reference from a config.json
                console.tell(f"{logger} is off: give the config file that defines it, --config=FILE.py")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each("scalars", step, dict(values))

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values to metrics.jsonl only. They are for the run's own reports."""
        if METRICS_FILE in self.loggers:
            self._call(METRICS_FILE, "scalars", step, dict(values))

    def table(self, step: int, name: str, rows: list[dict]) -> None:
        """Logs a small table of examples to wandb and the user's loggers. Files in the workdir hold all examples."""
        self._each("table", step, name, redacted(rows))

    def rewind(self, step: int) -> None:
        """Drops the values of steps after `step`, because these steps run again."""
        self.close()
        self._open_all(step)

    def close(self) -> None:
        self._each("close")
        self.loggers.clear()

    def _open(self, name: str, make: Callable[[], Logger]) -> None:
        try:
            self.loggers[name] = make()
        except Exception as error:
            console.tell(f"{name} is off: {error}")

    def _each(self, method: str, *args: Any) -> None:
        for name in list(self.loggers):
            self._call(name, method, *args)

    def _call(self, name: str, method: str, *args: Any) -> None:
        logger = self.loggers[name]
        try:
            getattr(logger, method)(*args)
        except Exception as error:
            del self.loggers[name]
            console.tell(f"{name} is off from here on: {error}")
            if method != "close":
                with contextlib.suppress(Exception):  # leaves no file and no wandb service open
                    logger.close()


class _Jsonl:
    def __init__(self, workdir: Path, resume_step: int | None):
        path = workdir / METRICS_FILE
        if resume_step is not None and path.exists():
            rows, corrupted = read_lines(workdir)
            if corrupted:
                console.tell(f"{path}: {corrupted} corrupted line(s) are dropped")
            atomic.write(path, "".join(json.dumps(row) + "\n" for row in rows if 0 < resume_step >= row["step"]))
        if os.path.lexists(path) and not path.is_file():  # opening a FIFO would wait for ever
            raise OSError(f"{path} is not a regular file")
        self._file = path.open("a", encoding="utf-8")
        if _ends_within_a_line(path):  # a process died while it wrote this line
            self._file.write("\n")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **{k: _rounded(v) for k, v in values.items()}}) + "\n")
        self._file.flush()

    def table(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        self._file.close()


def _ends_within_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _rounded(value: float) -> float:
    """Rounds to 8 significant digits (a float32 has no more). Rounds values from 100,000 on (times) to 3 decimals."""
    return round(float(value), 3) if abs(value) >= 1e5 else float(f"{value:.8g}")


class _TensorBoard:
    """Writes an event file in the calling thread.

    SummaryWriter is not used, because it writes in a thread of its own. If the disk is full, that thread ends, and then
    all calls to SummaryWriter hang forever, and so does the process when it ends.
    """

    def __init__(self, workdir: Path, resume_step: int | None):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        directory = workdir / "tensorboard"
        directory.mkdir(exist_ok=True)
        self._file, self._event, self._scalar = EventsWriter(str(directory / "events")), Event, summary.scalar
        if resume_step:  # tells TensorBoard to hide events of later steps in earlier files
            self._write(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=self._scalar(name, value))
        self._file.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))

    def table(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        self._file.close()


class _Own:
    """Wraps the user's own logger, whose `table` and `close` are optional."""

    def __init__(self, logger: Any):
        if not callable(getattr(logger, "scalars", None)):
            raise TypeError(f"{type(logger).__name__} has no method scalars(step, values)")
        self._logger = logger

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._logger.scalars(step, values)

    def table(self, step: int, name: str, rows: list[dict]) -> None:
        if hasattr(self._logger, "table"):
            self._logger.table(step, name, rows)

    def close(self) -> None:
        if hasattr(self._logger, "close"):
            self._logger.close()
