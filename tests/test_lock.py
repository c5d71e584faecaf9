"""Two runs in one workdir: the second fails and names the first; a dead run keeps nobody out."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

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
