"""Produces results ahead of time in a background thread."""

import queue
import threading
from collections.abc import Callable
from typing import Any


class Prefetcher:
    """Calls `produce` in a background thread and keeps up to `depth` results ready."""

    def __init__(self, produce: Callable[[], Any], depth: int):
        self._queue: queue.Queue = queue.Queue(depth)
        self._failed: tuple[str, Any] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(produce,), name="t5x_lite-data", daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """Returns the next result, in order. If `produce` raised an exception, this and every later call raise it."""
        kind, value = self._failed or self._queue.get()
        if kind == "error":
            self._failed = kind, value  # the thread has ended, so the queue stays empty
            raise value
        return value

    def close(self) -> None:
        """Stops the thread and drops the results that were not taken."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _run(self, produce: Callable[[], Any]) -> None:
        while not self._stopped.is_set():
            try:
                item = ("value", produce())
            except BaseException as error:
                item = ("error", error)
            while not self._stopped.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[0] == "error":
                return
