"""Waiting for what another thread or process does: never for a time, always with an end."""

import subprocess
import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen | None = None, timeout_s: float = 300, look_s=0.02
) -> None:
    """Returns once `condition` is true; AssertionError if `process` ends before, or after `timeout_s`.

    look_s: seconds between two looks.
    """
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < end_s, "nothing happened"
        time.sleep(look_s)
