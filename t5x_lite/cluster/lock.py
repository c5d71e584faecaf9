"""One run in a workdir at a time: two would write over each other's checkpoints."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from t5x_lite.errors import ConfigError, cannot_write

NAME = "run.lock"
HEARTBEAT_S = 10.0
AGAIN = "T5X_LITE_AGAIN"
LEAVES_S = 120.0  # train.grace_s, and some more


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """The workdir, for this process alone; ConfigError names who has it, CheckpointError where it cannot be written.

    The system's own lock on a file goes with the process, however it ends. It may not reach other hosts on every
    network disk: there the file's heartbeat tells whether the run it names still lives. A launcher that starts a run
    again sets T5X_LITE_AGAIN: what has the workdir may be that run's last moments, and is waited for.
    """
    try:
        descriptor = _take(workdir, time.monotonic() + (LEAVES_S if AGAIN in os.environ else 0))
    except OSError as error:
        raise cannot_write(workdir, error) from error
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=beat, name="t5x_lite-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # what remains there names a process that is gone
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _take(workdir: Path, until_s: float) -> int:
    """The descriptor of the lock file, locked and with this process's name in it."""
    descriptor = os.open(workdir / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    raise ConfigError(_taken(workdir, _holder(descriptor))) from None
                time.sleep(0.1)
                continue
            except OSError:  # a disk without locks: the heartbeat is all there is
                pass
            break
        _wait_for_other_host(workdir, descriptor, until_s)
        me = {"host": socket.gethostname(), "boot": _boot_id(), "pid": os.getpid(), "since": time.strftime("%F %T")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait_for_other_host(workdir: Path, descriptor: int, until_s: float) -> None:
    """Where another host's run did not let go of the workdir: ConfigError if it lives; a dead one's file stays as it
    is for three heartbeats."""
    silent, seen = 0, os.fstat(descriptor).st_mtime_ns
    while silent < 3:
        holder = _holder(descriptor)
        if not holder or (holder.get("host"), holder.get("boot")) == (socket.gethostname(), _boot_id()):
            return  # on this host, the lock has told
        time.sleep(HEARTBEAT_S)
        beaten = (workdir / NAME).stat().st_mtime_ns
        if beaten != seen and time.monotonic() >= until_s:
            raise ConfigError(_taken(workdir, holder))
        silent, seen = (silent + 1 if beaten == seen else 0), beaten


def _boot_id() -> str:
    """Tells apart machines that bear the same name one after the other, as the pods of a job do."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _holder(descriptor: int) -> dict:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _taken(workdir: Path, holder: dict) -> str:
    by = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}" if holder else "another"
    return f"{workdir} is in use by a run ({by}); wait for it, stop it, or give another --workdir"
