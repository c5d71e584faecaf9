"""The end of a run that is asked to stop, or hangs: at a step that all processes agree on, or else by force.

Ctrl-C or SIGTERM to any process asks all of them to save and stop. What does not come to it in time, because a loader,
a disk or another process hangs, is ended by a thread that needs nobody's help: the launcher starts the same command
again, and it goes on from the newest checkpoint.
"""

import contextlib
import faulthandler
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
AGAIN_S = 1.0  # one Ctrl-C comes as several signals: the terminal's, and those of launchers that pass it on
LAST_RESORT_S = 90.0  # beyond hang_s; the stacks are told when two thirds of it are over
STDERR = 2


class Guard:
    """A context around a run. It must be entered in the main thread, as signals are handled there.

    hang_s: without a `beat` for half of it, the stacks of all threads go to stderr; for all of it, the process ends
        with RESTART_ME. 0: never. It counts from the first beat on, and not in a `pause`.
    grace_s: from a signal until the process ends by force, saved or not. A second signal ends it at once.
    """

    def __init__(self, hang_s: float, grace_s: float):
        self.requested = False  # of this process; what to do about it is for `stops` to say
        self._hang_s, self._grace_s = hang_s, grace_s
        self._beat: tuple[float, str] | None = None
        self._being_asked: jax.Array | None = None
        self._ended = threading.Event()

    def beat(self, at: str) -> None:
        """The run goes on; `at` ("step 12") is said where it then does not."""
        self._beat = time.monotonic(), at

    def pause(self) -> None:
        """What follows, as restoring and compiling, may take any time: until the next beat nothing counts as a hang."""
        self._beat = None

    def stops(self) -> bool:
        """Whether the run was asked to stop: the same answer on all processes, which must ask equally often.

        Several processes hear what was known when they last asked: the sum over them is made by the devices meanwhile,
        and nobody waits for it.
        """
        if jax.process_count() == 1:
            return self.requested
        known, self._being_asked = self._being_asked, self._count()
        return known is not None and int(known) > 0

    def goes_on(self, at: str) -> bool:
        """A beat, and whether no process was asked to stop; all processes must ask equally often."""
        self.beat(at)
        return not self.stops()

    def _count(self) -> jax.Array:
        """The number of devices whose process was asked to stop, on its way."""
        if not hasattr(self, "_sum"):
            mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
            self._split = NamedSharding(mesh, PartitionSpec("devices"))
            self._sum = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
        mine = np.full(jax.local_device_count(), self.requested, np.int32)
        return self._sum(jax.make_array_from_process_local_data(self._split, mine))

    def __enter__(self) -> "Guard":
        self._inbox, outbox = os.pipe()
        os.set_blocking(outbox, False)
        self._outbox = outbox
        self._previous_fd = signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)  # also where Python code is stuck
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
            _say("stopping after this step; again to leave at once without saving")

    def _watch(self) -> None:
        asked_s, told = None, None
        while not self._ended.is_set():
            ready, _, _ = select.select([self._inbox], [], [], POLL_S)
            now_s = time.monotonic()
            if ready and any(byte in SIGNALS for byte in os.read(self._inbox, 64)):
                if asked_s is not None and now_s - asked_s > AGAIN_S:
                    _end("asked twice to stop")
                asked_s = now_s if asked_s is None else asked_s
            if asked_s is not None and now_s - asked_s > self._grace_s:
                _end(f"asked to stop {self._grace_s:.0f} s ago (train.grace_s) and still not saved", stacks=True)
            last_resort_s = 0.0
            if self._hang_s and (beat := self._beat):
                beat_s, at = beat
                silent_s = now_s - beat_s
                if silent_s > self._hang_s:
                    _end(f"nothing happened for {silent_s:.0f} s (train.hang_s) after {at}", stacks=True)
                if silent_s > self._hang_s / 2 and told != beat_s:
                    told = beat_s
                    _dump(f"nothing happened for {silent_s:.0f} s after {at}")
                last_resort_s = self._hang_s + LAST_RESORT_S
            # Native code that keeps the interpreter's lock holds up this thread, too. Then the system ends the process,
            # by a signal that launchers take for a kill; 0 takes the alarm back.
            signal.setitimer(signal.ITIMER_REAL, last_resort_s)
            if last_resort_s:
                faulthandler.dump_traceback_later(last_resort_s - LAST_RESORT_S / 3, file=STDERR)
            else:
                faulthandler.cancel_dump_traceback_later()
        faulthandler.cancel_dump_traceback_later()


def _say(text: str) -> None:
    """Past Python's buffers, whose lock the stuck thread may hold; to nobody where the console is gone."""
    with contextlib.suppress(OSError):
        os.write(STDERR, f"t5x-lite: {text}\n".encode())


def _dump(why: str) -> None:
    _say(f"{why}; all threads:")
    faulthandler.dump_traceback(file=STDERR, all_threads=True)


def _end(why: str, stacks: bool = False) -> None:
    """Ends the process now: what waits for the stuck thread, as `sys.exit` does, would wait with it."""
    try:
        if stacks:
            _dump(why)
        _say(f"{why}: this process ends; the same command goes on from the newest checkpoint")
    finally:
        os._exit(RESTART_ME)
