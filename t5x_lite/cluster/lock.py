"""Locks a workdir, so that only one run at a time uses it. Two runs would overwrite each other's checkpoints."""

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
LEAVES_S = 120.0  # train.grace_s and a margin


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Locks the workdir for this process while the context is open.

    The lock is the system's file lock, which ends with the process in every case. Some network disks do not share file
    locks between hosts. Therefore the lock file also names its run, and the run keeps updating the file's modification
    time. This heartbeat tells whether the run is alive. A launcher that restarts a run sets T5X_LITE_AGAIN. Then this
    call waits, because the previous attempt may still be ending.

    Raises ConfigError if a run uses the workdir (the error names its host and pid), and CheckpointError if the workdir
    is not writable.
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
        with contextlib.suppress(OSError):  # so that the file does not name a process that has ended
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _take(workdir: Path, until_s: float) -> int:
    """Locks the lock file, writes this process's host and pid into it, and returns its descriptor.

    Raises ConfigError if the workdir is still in use at the time `until_s` (of time.monotonic).
    """
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
            except OSError:  # the disk does not support locks; only the heartbeat can tell
                pass
            break
        _wait_for_other_host(workdir, descriptor, until_s)
        me = {"host": socket.gethostname(), "boot": boot_id(), "pid": os.getpid(), "since": time.strftime("%F %T")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait_for_other_host(workdir: Path, descriptor: int, until_s: float) -> None:
    """Waits while the lock file names a run on another host. Raises ConfigError if that run is alive after `until_s`.

    A run counts as dead if the file's modification time does not change for three heartbeats.
    """
    silent, last_beat_ns = 0, os.fstat(descriptor).st_mtime_ns
    while silent < 3:
        holder = _holder(descriptor)
        if not holder or (holder.get("host"), holder.get("boot")) == (socket.gethostname(), boot_id()):
            return  # the run was on this host, so we would not have its file lock if it were alive
        time.sleep(HEARTBEAT_S)
        beat_ns = (workdir / NAME).stat().st_mtime_ns
        if beat_ns != last_beat_ns and time.monotonic() >= until_s:
            raise ConfigError(_taken(workdir, holder))
        silent, last_beat_ns = (silent + 1 if beat_ns == last_beat_ns else 0), beat_ns


def boot_id() -> str:
    """Returns an id of this boot of the machine. It differs between machines with the same name, such as pods."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _holder(descriptor: int) -> dict:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _taken(workdir: Path, holder: dict) -> str:
    by = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}" if holder else "unknown"
    return f"{workdir} is in use by a run ({by}); wait for it, stop it, or use another --workdir"
