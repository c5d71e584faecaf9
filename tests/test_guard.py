"""A run that is asked to stop, or hangs: by real signals to a process that does nothing but hang."""

import signal
import subprocess
import sys
import time

import pytest

HANG = """
import sys, threading, time
from t5x_lite.guard import Guard
with Guard(hang_s=float(sys.argv[1]), grace_s=float(sys.argv[2])) as guard:
    guard.beat("step 7")
    print("ready", flush=True)
    while not (sys.argv[3] == "obeys" and guard.stops()):
        time.sleep(0.01)
print("left by itself")
"""


@pytest.mark.parametrize(
    ("hang_s", "grace_s", "kind", "signals", "code", "said"),
    [
        (0, 60, "obeys", 1, 0, "left by itself"),
        (0, 0.5, "hangs", 1, 75, "asked to stop 0 s ago (train.grace_s) and still not saved"),
        (0, 60, "hangs", 2, 75, "asked twice to stop"),
        (1, 60, "hangs", 0, 75, "(train.hang_s) after step 7"),
    ],
)
def test_a_process_ends_by_itself_or_by_force(hang_s, grace_s, kind, signals, code, said):
    process = subprocess.Popen(
        [sys.executable, "-c", HANG, str(hang_s), str(grace_s), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    assert said in output
    assert ('File "<string>"' in output) == (said.startswith("asked to stop") or hang_s > 0)  # the stacks
