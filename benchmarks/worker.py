"""Runs one side of a comparison in its own process: answers commands on stdin with JSON lines on stdout.

    run N [R]   takes N samples of R steps (default 1), waiting for the device after each sample: {"step_ms": [...],
                "cpu_ms": [...], "others": [...], "loss": loss of the first sample, "rss_mb": peak memory}; "others" is
                the number of cores that other processes used
    peak N      multiplies two matrices N times: {"gflops": [...]}. They are 2048 x 2048; on an accelerator, 8192 x 8192
    save FILE   writes the current parameters (our side)
    load FILE   reads those parameters (the torch side)
    NAME ARG    calls the side's own command NAME
    quit

First it prints {"first_loss", "first_step_s", "parameters"}. first_step_s counts from the start of the process.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shapes import Shape

PEAK_SIZE, ACCELERATOR_PEAK_SIZE = 2048, 8192


def arguments() -> argparse.Namespace:
    """Returns the command line of a side: its shape, and how it should compute."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", type=lambda text: Shape(**json.loads(text)), help="a Shape, as JSON")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of products")
    parser.add_argument("--attention", default="", help="the side's own name of a way to compute attention")
    parser.add_argument("--eager", action="store_true", help="torch: no torch.compile")
    return parser.parse_args()


def serve(first_loss: float, parameters: int, commands: dict[str, Callable], peak_size: int = PEAK_SIZE) -> None:
    """Reports the first step, then answers commands until `quit`.

    commands: {name: function}. One is `step`, whose value is a number, or an array that float() waits for.
    peak_size: the rows of the matrices that the command `product` multiplies.
    """
    say(first_loss=first_loss, first_step_s=time.time() - process_start(), parameters=parameters)
    for line in sys.stdin:
        verb, _, argument = line.strip().partition(" ")
        if verb == "quit":
            return
        if verb == "run":
            samples, loss = measure(commands["step"], *map(int, argument.split()))
            say(**samples, loss=loss, rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        elif verb == "peak":
            samples, _ = measure(commands["product"], int(argument))
            say(gflops=[2 * peak_size**3 / ms / 1e6 for ms in samples["step_ms"]])
        else:
            say(**(commands[verb](argument) or {}))


def measure(work: Callable, count: int, repeat: int = 1) -> tuple[dict[str, list[float]], float]:
    """Takes `count` samples of `repeat` calls of `work`. Returns (samples, the last value of the first sample).

    samples: one value per sample: step_ms and cpu_ms of a call, and others, the number of cores that other processes
        used.
    """
    samples: dict[str, list[float]] = {"step_ms": [], "cpu_ms": [], "others": []}
    first = None
    for _ in range(count):
        busy_s, cpu_s, wall_s = machine_busy_s(), time.process_time(), time.perf_counter()
        for _ in range(repeat):
            value = work()
        value = float(value)
        wall_s, cpu_s, busy_s = (
            time.perf_counter() - wall_s, time.process_time() - cpu_s, machine_busy_s() - busy_s,
        )  # fmt: skip
        samples["step_ms"].append(1e3 * wall_s / repeat)
        samples["cpu_ms"].append(1e3 * cpu_s / repeat)
        samples["others"].append(max(0.0, busy_s - cpu_s) / wall_s)
        first = value if first is None else first
    return samples, first or 0.0


def say(**values) -> None:
    print(json.dumps(values), flush=True)


def machine_busy_s() -> float:
    """Returns the CPU seconds that all processes used since the machine started (Linux)."""
    with Path("/proc/stat").open() as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_start() -> float:
    """Returns the `time.time()` at which this process began (Linux). A re-exec does not change it."""
    with Path("/proc/self/stat").open() as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    with Path("/proc/stat").open() as file:
        boot_s = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    return boot_s + ticks / os.sysconf("SC_CLK_TCK")
