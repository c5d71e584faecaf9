"""Two runs in one workdir: the second fails and names the first; a dead run keeps nobody out."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from waiting import wait_until

from t5x_lite.cluster import lock
from t5x_lite.errors import CheckpointError, ConfigError

HOLD = "import sys, time, pathlib; from t5x_lite.cluster import lock\nwith lock.held(pathlib.Path(sys.argv[1])):\n"
HOLD += "    print('held', flush=True); time.sleep(600)"


def test_a_living_run_keeps_others_out_and_a_killed_one_does_not(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    with (
        pytest.raises(ConfigError, match=f"in use by a run \\(process {process.pid} on .*another --workdir") as caught,
        lock.held(tmp_path),
    ):
        pass
    assert caught.value.exit_code == 2
    process.kill()
    process.wait()
    with lock.held(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} "), lock.held(tmp_path):
        pass
    with lock.held(tmp_path):
        pass


NO_FLOCK = "import errno, fcntl\ndef flock(*_): raise OSError(errno.{}, 'no locks on this disk')\nfcntl.flock = flock\n"


def without_flock(monkeypatch, number: int) -> None:
    def flock(*_):
        raise OSError(number, "no locks on this disk")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.mark.parametrize("error", ["ENOTSUP", "ENOLCK"])
def test_without_file_locks_a_living_process_keeps_others_out_and_a_dead_one_does_not(tmp_path, monkeypatch, error):
    """The lock file names the process; a new process that got the same pid started at another time."""
    without_flock(monkeypatch, getattr(errno, error))
    monkeypatch.setattr(lock, "HEARTBEAT_S", 600)  # nothing here waits for a heartbeat
    code = NO_FLOCK.format(error) + HOLD
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"in use by a run \\(process {process.pid} on "), lock.held(tmp_path):
        pass
    process.kill()
    wait_until(lambda: not lock._started(process.pid))  # killed but not waited for: a zombie
    with lock.held(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} "), lock.held(tmp_path):
        pass
    process.wait()
    with lock.held(tmp_path):
        named = json.loads((tmp_path / lock.NAME).read_text())
    (tmp_path / lock.NAME).write_text(json.dumps(named | {"started": "1"}))
    with lock.held(tmp_path):
        pass


def test_without_file_locks_and_proc_the_heartbeat_tells(tmp_path, monkeypatch):
    """Also where another container on this host has pids of its own."""
    without_flock(monkeypatch, errno.ENOLCK)
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lock, "_pid_namespace", lambda: "pid:[1]")
    with lock.held(tmp_path):
        monkeypatch.setattr(lock, "_pid_namespace", lambda: "pid:[2]")
        with pytest.raises(ConfigError, match=f"process {os.getpid()} "), lock.held(tmp_path):
            pass
        left = (tmp_path / lock.NAME).read_text()
    (tmp_path / lock.NAME).write_text(left)
    with lock.held(tmp_path):
        pass


def test_without_file_locks_one_of_two_runs_that_start_together_has_the_workdir(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOLCK)
    both_looked, both_know, results = threading.Barrier(2), threading.Barrier(2), []
    look, this_process = lock._wait_for_holder, lock._this_process

    def look_together(*arguments):
        look(*arguments)
        both_looked.wait(60)

    def run():
        try:
            with lock.held(tmp_path):
                results.append("held")
                both_know.wait(60)
        except ConfigError as error:
            results.append(str(error))
            both_know.wait(60)

    monkeypatch.setattr(lock, "_wait_for_holder", look_together)
    monkeypatch.setattr(lock, "_this_process", lambda: this_process() | {"pid": threading.get_ident()})
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "in use by a run" in sorted(results)[0] and sorted(results)[1] == "held"


def test_another_hosts_run_is_told_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    file = tmp_path / lock.NAME
    file.write_text('{"host": "elsewhere", "pid": 7, "since": "noon"}')
    has_beaten, beating = threading.Event(), threading.Event()

    def beat():
        while not beating.wait(0.05):
            os.utime(file)
            has_beaten.set()

    thread = threading.Thread(target=beat)
    thread.start()
    assert has_beaten.wait(60)
    with pytest.raises(ConfigError, match="process 7 on elsewhere, since noon"), lock.held(tmp_path):
        pass
    beating.set()
    thread.join()
    with lock.held(tmp_path):  # its heartbeat has stopped
        assert '"elsewhere"' not in file.read_text()


def test_a_machine_that_bears_the_same_name_is_another(tmp_path, monkeypatch):
    """As a job's pods do, one after the other, on a disk without locks."""
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    waits = []
    monkeypatch.setattr(lock, "boot_id", lambda: "before")
    with lock.held(tmp_path):
        left = (tmp_path / lock.NAME).read_text()
    (tmp_path / lock.NAME).write_text(left)
    monkeypatch.setattr(lock, "boot_id", lambda: "after")
    monkeypatch.setattr(lock.time, "sleep", waits.append)
    with lock.held(tmp_path):
        assert len(waits) == 3  # heartbeats that were missed


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_that_is_started_again_waits_for_its_last_moments(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    file = tmp_path / lock.NAME
    ended, waited = threading.Event(), threading.Event()

    def before():
        with lock.held(tmp_path):
            waited.set()
            ended.wait(60)

    def before_elsewhere():
        waited.set()
        while not ended.wait(0.02):
            os.utime(file)

    if elsewhere:
        file.write_text('{"host": "elsewhere", "pid": 7, "since": "noon"}')
    thread = threading.Thread(target=before_elsewhere if elsewhere else before)
    thread.start()
    waited.wait(60)
    with pytest.raises(ConfigError, match="in use"), lock.held(tmp_path):
        pass
    monkeypatch.setenv(lock.AGAIN, "1")
    with monkeypatch.context() as impatient, pytest.raises(ConfigError, match="in use"):
        impatient.setattr(lock, "LEAVES_S", 0.3)
        with lock.held(tmp_path):
            pass
    sleep = time.sleep

    def sleep_and_end(interval_s: float) -> None:
        ended.set()
        sleep(interval_s)

    monkeypatch.setattr(lock.time, "sleep", sleep_and_end)
    with lock.held(tmp_path):
        assert ended.is_set() and f'"pid": {os.getpid()}' in file.read_text()
    thread.join()


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_a_full_disk_is_an_error_that_names_the_workdir(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, full)
        with pytest.raises(CheckpointError, match=r"cannot write to the workdir .*No space left"), lock.held(tmp_path):
            pass
    with lock.held(tmp_path):  # the failed attempt left no lock
        pass


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write to the workdir"), lock.held(tmp_path / "missing"):
        pass
