"""Logs to wandb in a thread of its own, so that a slow or missing network never stops a run."""

import contextlib
import os
import queue
import socket
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x_lite import console
from t5x_lite.reports.loggers import Logger
from t5x_lite.reports.results import METRICS_FILE

WANDB_TIMEOUT_S = 15  # the time that wandb has to start
CLOSE_S = 15  # the time that a logger has to write its remaining values at the end
REACHABLE_S = 3.0  # the time that a connection to wandb's server may take
KEPT = ("config.json", "report.html", "report.md", METRICS_FILE)  # as an artifact


def start(workdir: Path, run_name: str, config: Mapping) -> Logger:
    """Returns the logger of a workdir's run. config: the run's config as JSON-able data, without secrets.

    Raises ImportError without wandb. Other errors, too, mean that the run cannot be logged to wandb.
    """
    return _InBackground(_Wandb(workdir, run_name, config), f"; later: wandb sync {workdir / 'wandb'}/*run-*")


class _Wandb:
    """Logs to one wandb run per workdir. A resumed run keeps its id. Records offline if there is no network."""

    def __init__(self, workdir: Path, run_name: str, config: Mapping):
        import wandb
        import wandb.errors

        id_file = workdir / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12])  # set by a sweep's agent
        mode = config["wandb"]["mode"]
        offline = f"recording offline. Later: wandb sync {workdir / 'wandb'}/offline-run-*"
        if mode == "online" and not _reachable(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")):
            console.tell(f"wandb: no network; {offline}")
            mode = "offline"
        arguments: dict[str, Any] = {
            "project": config["wandb"]["project"],
            "entity": config["wandb"]["entity"] or None,
            "name": run_name,
            "id": id_file.read_text().strip(),
            "resume": "allow",
            "dir": str(workdir),
            "config": dict(config),
            "settings": wandb.Settings(
                init_timeout=WANDB_TIMEOUT_S, finish_timeout=CLOSE_S / 2, silent=True, console="off"
            ),
        }
        try:
            self._run = wandb.init(mode=mode, **arguments)
        except wandb.errors.Error as error:
            console.tell(f"wandb: {error}; {offline}")
            wandb.teardown()  # otherwise the run that failed to start keeps the id
            self._run = wandb.init(mode="offline", **arguments)
        self._wandb, self._workdir = wandb, workdir

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def table(self, step: int, name: str, rows: list[dict]) -> None:
        if rows:
            columns = list(rows[0])
            data = [[str(row.get(c, "")) for c in columns] for row in rows]
            self._run.log({name: self._wandb.Table(columns=columns, data=data)}, step=step)

    def close(self) -> None:
        artifact = self._wandb.Artifact(f"report-{self._run.id}", type="report")
        for name in KEPT:
            if (self._workdir / name).exists():
                artifact.add_file(str(self._workdir / name))
        self._run.log_artifact(artifact)
        self._run.finish()


class _InBackground:
    """Calls a logger in a thread, because logging a table to wandb takes 40 s without a network.

    If such a call fails, a later call raises RuntimeError with the text of the logger's exception and `advice`.
    """

    def __init__(self, logger: Logger, advice: str):
        self._sink, self._advice = logger, advice
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="t5x_lite-logger", daemon=True)
        self._thread.start()

    def scalars(self, *args: Any) -> None:
        self._call("scalars", args)

    def table(self, *args: Any) -> None:
        self._call("table", args)

    def close(self) -> None:
        self._call("close", ())
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._error = TimeoutError(f"some values were not written within {CLOSE_S} s")
        self._call("", ())

    def _call(self, method: str, args: tuple) -> None:
        if self._error:
            raise RuntimeError(f"{self._error}{self._advice}") from self._error
        self._calls.put((method, args))

    def _work(self) -> None:
        method = ""
        while method != "close" and self._error is None:
            method, args = self._calls.get()
            try:
                getattr(self._sink, method)(*args)
            except Exception as error:
                self._error = error


def _reachable(url: str) -> bool:
    """Returns whether the server of `url`, or its proxy if there is one, accepts connections."""
    parts = urllib.parse.urlsplit(url)
    if (proxy := urllib.request.getproxies().get(parts.scheme)) and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlsplit(proxy)
    connected: list[bool] = []

    def look() -> None:
        with contextlib.suppress(OSError):
            default = 80 if parts.scheme == "http" else 443
            socket.create_connection((parts.hostname or "", parts.port or default), timeout=REACHABLE_S).close()
            connected.append(True)

    thread = threading.Thread(target=look, daemon=True)  # a thread, because a name server may take any time
    thread.start()
    thread.join(REACHABLE_S)
    return bool(connected)
