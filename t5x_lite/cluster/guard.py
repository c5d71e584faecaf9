"""Stops a run on request, at a step that all processes agree on, and ends a process that hangs.

Ctrl-C or SIGTERM to any process asks all processes to save and stop. A process may fail to stop in time,
because a loader, a disk or another process hangs. Then a thread of the stuck process ends it; this thread depends on
none of the three. The launcher runs the command again, and the run resumes from the newest checkpoint.
"""

import contextlib
import faulthandler
import math
import os
import select
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t5x_lite.errors import RESTART_ME

SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_S = 1.0
AGAIN_S = 1.0  # signals within this time count as one: the terminal and launchers may all send Ctrl-C
LAST_RESORT_S = 90.0  # the system kills a process whose `_watch` is stuck for hang_s plus this; stacks: 30 s before
STDERR = 2


class Guard:
    """A context around a run. Enter it in the main thread, because Python handles signals there.

    hang_s: the longest time without a `beat`. After it, the process ends with RESTART_ME; after half of it, the
        stacks of all threads go to stderr. 0: no limit. Time before the first beat or in a `pause` does not count.
    grace_s: time from a signal until the process is ended by force, saved or not. A second signal ends it at once.
    """

    def __init__(self, hang_s: float, grace_s: float):
        self.requested = False  # whether this process was asked to stop; `stops` tells whether the run stops
        self._hang_s, self._grace_s = hang_s, grace_s
        self._limit_s = math.inf  # when `limit` asks to stop
        self._beat: tuple[float, str] | None = None
        self._being_asked: jax.Array | None = None
        self._ended = threading.Event()

    def beat(self, at: str) -> None:
        """Records that the run makes progress. at: the place ("step 12"), for the message if the run then hangs."""
        self._beat = time.monotonic(), at

    def pause(self) -> None:
        """Suspends hang detection until the next beat: restoring and compiling may take any time."""
        self._beat = None

    def limit(self, seconds: float) -> None:
        """Asks the run to stop after this time. If it is infinite, withdraws an earlier limit and what it asked for.

        All processes must call this equally often.
        """
        if self._limit_s < time.monotonic():
            self.requested, self._being_asked = False, None
        self._limit_s = time.monotonic() + seconds

    def stops(self) -> bool:
        """Returns whether the run was asked to stop. All processes get the same answer.

        All processes must call this equally often. If there are several processes, a call returns whether the run had
        been asked before the previous call. The devices add up the requests between two calls, so no process waits.
        """
        if jax.process_count() == 1:
            return self.requested
        known, self._being_asked = self._being_asked, self._count()
        return known is not None and int(known) > 0

    def goes_on(self, at: str) -> bool:
        """Records a beat and returns whether the run goes on. All processes must call this equally often."""
        self.beat(at)
        return not self.stops()

    def _count(self) -> jax.Array:
        """Returns, without waiting, an int32 scalar: the number of devices whose process was asked to stop."""
        if not hasattr(self, "_sum"):
            mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
            self._split = NamedSharding(mesh, PartitionSpec("devices"))
            self._sum = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
        requests = np.full(jax.local_device_count(), self.requested, np.int32)  # one element per local device
        return self._sum(jax.make_array_from_process_local_data(self._split, requests))

    def __enter__(self) -> "Guard":
        self._inbox, outbox = os.pipe()
        os.set_blocking(outbox, False)
        self._outbox = outbox
        self._previous_fd = signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)  # works while Python is stuck
        self._previous = {number: signal.signal(number, self._request) for number in SIGNALS}
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, signal.SIG_DFL)  # see _watch
        self._previous_timer = signal.getitimer(signal.ITIMER_REAL)
        self._thread = threading.Thread(target=self._watch, name="t5x_lite-guard", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        os.write(self._outbox, b"\0")  # wakes the thread
        self._thread.join()
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, *self._previous_timer)
        os.close(self._inbox)
        os.close(self._outbox)

    def _request(self, number: int, frame) -> None:
        if not self.requested:
            self.requested = True
            _say("stopping after this step; repeat to exit at once without saving")

    def _watch(self) -> None:
        asked_s, dumped_beat_s = None, None
        while not self._ended.is_set():
            ready, _, _ = select.select([self._inbox], [], [], POLL_S)
            now_s = time.monotonic()
            self.requested |= now_s > self._limit_s
            if ready and any(byte in SIGNALS for byte in os.read(self._inbox, 64)):
                if asked_s is not None and now_s - asked_s > AGAIN_S:
                    _end("asked twice to stop")
                asked_s = now_s if asked_s is None else asked_s
            if asked_s is not None and now_s - asked_s > self._grace_s:
                _end(f"asked to stop {self._grace_s:.0f} s ago (train.grace_s) and not stopped yet", stacks=True)
            last_resort_s = 0.0
            if self._hang_s and (beat := self._beat):
                beat_s, at = beat
                silent_s = now_s - beat_s
                if silent_s > self._hang_s:
                    _end(f"no progress for {silent_s:.0f} s (train.hang_s) after {at}", stacks=True)
                if silent_s > self._hang_s / 2 and dumped_beat_s != beat_s:
                    dumped_beat_s = beat_s
                    _dump(f"no progress for {silent_s:.0f} s after {at}")
                last_resort_s = self._hang_s + LAST_RESORT_S
            # If native code holds the interpreter's lock, this thread is blocked, too. Then the alarm is not reset, and
            # the system ends the process by SIGALRM. Launchers take that for a kill. 0 cancels the alarm.
            signal.setitimer(signal.ITIMER_REAL, last_resort_s)
            if last_resort_s:
                faulthandler.dump_traceback_later(last_resort_s - LAST_RESORT_S / 3, file=STDERR)
            else:
                faulthandler.cancel_dump_traceback_later()
        faulthandler.cancel_dump_traceback_later()


def _say(text: str) -> None:
    """Writes a line to stderr. Avoids Python's buffers, whose lock a stuck thread may hold. Ignores a lost console.

    On a terminal, begins a new line, because the cursor stands behind the progress bar or an echoed ^C.
    """
    with contextlib.suppress(OSError):
        begin = "\n" if os.isatty(STDERR) else ""
        os.write(STDERR, f"{begin}t5x-lite: {text}\n".encode())


def _dump(why: str) -> None:
    _say(f"{why}; all threads:")
    faulthandler.dump_traceback(file=STDERR, all_threads=True)


def _end(why: str, stacks: bool = False) -> None:
    """Ends the process at once. (`sys.exit` would wait for the stuck thread.)"""
    try:
        if stacks:
            _dump(why)
        _say(f"{why}: ending this process; run the same command again to resume from the newest checkpoint")
    finally:
        os._exit(RESTART_ME)
