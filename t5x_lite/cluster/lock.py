"""Locks a workdir, so that only one run at a time uses it. Two runs would overwrite each other's checkpoints."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5x_lite import side_files
from t5x_lite.errors import ConfigError, cannot_write

NAME = "run.lock"
HEARTBEAT_S = 10.0
AGAIN = "T5X_LITE_AGAIN"
LEAVES_S = 120.0  # train.grace_s and a margin
SETTLES_S = 0.2  # longer than a starting run takes from reading the lock file to writing it


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Locks the workdir for this process while the context is open.

    The lock is the system's file lock, which ends with the process in every case. Some network disks do not share file
    locks between hosts, or have none. Therefore the lock file also names its run by host, process and the time when
    the process started, and the run keeps updating the file's modification time. This heartbeat tells whether a run on
    another host is alive. A launcher that restarts a run sets T5X_LITE_AGAIN. Then this call waits, because the
    previous attempt may still be ending.

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
    if os.path.lexists(workdir / NAME) and not stat.S_ISREG((workdir / NAME).lstat().st_mode):
        target = side_files.set_aside(workdir / NAME)
        what = "%s is not a regular file and was renamed to %s"
        logging.getLogger(__name__).warning(what, workdir / NAME, target.name)
    descriptor = os.open(workdir / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        has_lock = _lock(workdir, descriptor, until_s)
        _wait_for_holder(workdir, descriptor, has_lock, until_s)
        me = _this_process() | {"since": time.strftime("%F %T")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
        # Without file locks, a run that started at the same moment wrote its name, too; the last one gets the workdir.
        if not has_lock:
            time.sleep(SETTLES_S)
            if (holder := _holder(descriptor)) != me:
                raise ConfigError(_taken(workdir, holder))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(workdir: Path, descriptor: int, until_s: float) -> bool:
    """Takes the system's lock on the lock file. Returns False if the disk has no such locks.

    Raises ConfigError if another process still has it at the time `until_s`.
    """
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                raise ConfigError(_taken(workdir, _holder(descriptor))) from None
            time.sleep(0.1)
        except OSError:
            return False
        else:
            return True


def _wait_for_holder(workdir: Path, descriptor: int, has_lock: bool, until_s: float) -> None:
    """Waits while the lock file names a run that may be alive. Raises ConfigError if it is alive after `until_s`.

    A run counts as dead if its process is known to have ended, or if the file's modification time does not change for
    three heartbeats. has_lock: whether this process has the file's lock; then no run on this host is alive.
    """
    silent, last_beat_ns = 0, os.fstat(descriptor).st_mtime_ns
    while silent < 3:
        holder = _holder(descriptor)
        is_here = (holder.get("host"), holder.get("boot")) == (socket.gethostname(), boot_id())
        runs = _runs(holder) if is_here else None
        if not holder or (is_here and has_lock) or runs is False:
            return
        if runs and time.monotonic() >= until_s:
            raise ConfigError(_taken(workdir, holder))
        time.sleep(0.1 if runs else HEARTBEAT_S)
        beat_ns = (workdir / NAME).stat().st_mtime_ns
        if beat_ns != last_beat_ns and time.monotonic() >= until_s:
            raise ConfigError(_taken(workdir, holder))
        silent, last_beat_ns = (silent + 1 if beat_ns == last_beat_ns and not runs else 0), beat_ns


def _this_process() -> dict[str, Any]:
    me = {"host": socket.gethostname(), "boot": boot_id(), "pid": os.getpid()}
    return me | {"pids": _pid_namespace(), "started": _started(os.getpid())}


def _runs(holder: dict) -> bool | None:
    """Returns whether the process that a lock file names runs on this host; None if this process cannot tell.

    A process is known by its pid and the time when it started, because the system uses pids again.
    """
    pid, started = holder.get("pid"), holder.get("started")
    if not isinstance(pid, int) or not started or holder.get("pids") != _pid_namespace():
        return None
    return _started(pid) == started


def _started(pid: int) -> str:
    """Returns when a process started, in clock ticks since boot; "" if there is no such process, or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()  # the name before the parenthesis may contain spaces
    return "" if state in "ZX" else fields[18]  # a zombie has ended; field 22 of proc(5)


def _pid_namespace() -> str:
    """Returns an id of the processes that pids are unique among: containers on one host may each have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (not a path: "pid:[4026531836]")
    except OSError:
        return ""


def boot_id() -> str:
    """Returns an id of this boot of the machine. It differs between machines with the same name, such as pods."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _holder(descriptor: int) -> dict:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _taken(workdir: Path, holder: dict) -> str:
    by = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}" if holder else "unknown"
    return f"{workdir} is in use by a run ({by}); wait for it, stop it, or use another --workdir"
