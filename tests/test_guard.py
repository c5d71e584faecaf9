"""Runs that are asked to stop, or hang: sends real signals to a process that only hangs."""

import signal
import subprocess
import sys
import time

import pytest

HANG = """
import contextlib, ctypes, os, sys, time
from t5x_lite.cluster import guard
guard.LAST_RESORT_S = 0.5
with guard.Guard(hang_s=float(sys.argv[1]), grace_s=float(sys.argv[2])) as guarded:
    guarded.beat("step 7")
    print("ready", flush=True)
    while sys.argv[3] == "hangs" or not guarded.stops():
        if sys.argv[3] == "holds the interpreter":
            time.sleep(1.2)
            ctypes.PyDLL(None).sleep(600)
        if sys.argv[3] == "compiles":
            guarded.pause()
        time.sleep(0.01)
    time.sleep(0.5)  # saving
with contextlib.suppress(OSError):
    os.write(1, b"left by itself")
"""


def hanging(*arguments: object) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HANG, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("hang_s", "grace_s", "kind", "signals_after_s", "code", "said"),
    [
        (0, 60, "obeys", [0, 0.1, 0.1], 0, "left by itself"),  # one Ctrl-C under two launchers
        (1, 60, "compiles", [2], 0, "left by itself"),
        (0, 0.5, "hangs", [0], 75, "asked to stop 0 s ago (train.grace_s) and not stopped yet"),
        (0, 60, "hangs", [0, 1.3], 75, "asked twice to stop"),
        (1, 60, "hangs", [], 75, "(train.hang_s) after step 7"),
        (2, 60, "holds the interpreter", [], -signal.SIGALRM, "Timeout"),
    ],
)
def test_a_process_ends_by_itself_or_by_force(hang_s, grace_s, kind, signals_after_s, code, said):
    process = hanging(hang_s, grace_s, kind)
    for after_s in signals_after_s:
        time.sleep(after_s)
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    assert said in output
    assert ('File "<string>"' in output) == (said.startswith("asked to stop") or "hang" in said or code < 0)  # stacks


@pytest.mark.parametrize(("kind", "code"), [("obeys", 0), ("hangs", 75)])
def test_a_lost_console_changes_nothing(kind, code):
    process = hanging(1, 60, kind)
    assert process.stdout
    process.stdout.close()
    if kind == "obeys":
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == code
