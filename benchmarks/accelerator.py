"""Measures training on the GPU or TPU of this machine, and compares its steps with torch.compile.

    python benchmarks/accelerator.py --minutes=9
    python benchmarks/accelerator.py --toy                                    # tiny models; runs on a CPU, too

The torch side needs the extra `parity` and runs on GPUs and CPUs. Prints JSON lines, the most important first, and
starts nothing new after --minutes. The parts:

    step      train_step.py's comparison in bfloat16: our attention kernels (--ours) against transformers with
              torch.compile and fused AdamW (--torch). First both must report the same loss for the same parameters, to
              2e-3, because products are in bfloat16. A sample is 5 steps. "fraction_of_peak" divides by the measured
              rate of bfloat16 products of 8192 x 8192 matrices
    loop      loop.py: the time that data, metrics and logging add to the bare step
    resume    whether a run that was killed and resumed ends with the loss of an uninterrupted run, bit for bit, with
              XLA's deterministic operations; and the seconds from the resuming command to its first step
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shapes import SHAPES
from train_step import HERE, Side, agree, row

MODELS = "gpt2-124m,t5-base-512,bert-base,t5-small-512,t5-large-512,gpt2-355m,bert-large"
STEPS_PER_SAMPLE = 5
TOLERANCE = 2e-3  # of losses whose products are in bfloat16
# Two processes share the device's memory.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45", "JAX_ENABLE_COMPILATION_CACHE": "false"}
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
DEVICE = "import jax; d = jax.devices(); print(d[0].device_kind, len(d), jax.__version__, sep='|', end='')"


def show(**values) -> None:
    print(json.dumps(values), flush=True)


def compare_steps(model: str, arguments: argparse.Namespace, scratch: Path) -> None:
    """Prints a row for each side, and the ratio of the fastest torch side to our fastest side."""
    shape, dtype = SHAPES[model], "--dtype=bfloat16"
    step_ms: dict[str, dict[str, float]] = {"side_ours.py": {}, "side_torch.py": {}}
    parameters = scratch / f"{model}.npz"
    for ours_attention in arguments.ours.split(","):
        ours = Side("side_ours.py", shape, [dtype, f"--attention={ours_attention}"], ENVIRONMENT)
        for attention in filter(None, arguments.torch.split(",")):
            name = f"torch, {attention}"
            if name in step_ms["side_torch.py"]:
                continue  # measured beside our first kernel
            theirs = attempt(lambda: Side("side_torch.py", shape, [dtype, f"--attention={attention}"], ENVIRONMENT))  # noqa: B023
            if theirs is None:
                continue
            agree(model, ours, theirs, parameters, TOLERANCE)
            step_ms["side_torch.py"][name] = timed(name, model, theirs, arguments)
        name = f"t5x_lite, {ours_attention}"
        step_ms["side_ours.py"][name] = timed(name, model, ours, arguments)
    best, their_best = (min(times.values(), default=0.0) for times in step_ms.values())
    if their_best:
        show(model=model, side="ratio of the fastest, torch / t5x_lite", step=round(their_best / best, 3))


def timed(name: str, model: str, side: Side, arguments: argparse.Namespace) -> float:
    """Prints the row of a side, ends its process, and returns its median time of a step in ms."""
    side.run(1, STEPS_PER_SAMPLE)  # warms up
    side.samples = {key: [] for key in side.samples}
    side.run(arguments.samples, STEPS_PER_SAMPLE)
    side.peak += side.ask("peak 10")["gflops"][2:]
    print(json.dumps(row(name, model, SHAPES[model], side, sorted(side.peak)[len(side.peak) // 2])), flush=True)
    side.quit()
    return side.median("step_ms")


def attempt(make: Callable[[], Side]) -> Side | None:
    """Returns a side, or None after printing why its process could not run: transformers lacks some kinds of attention
    for some models."""
    try:
        return make()
    except SystemExit as error:
        show(failed=str(error)[-200:])
        return None


def loop(arguments: argparse.Namespace) -> None:
    """Prints what loop.py prints about a T5 small enough that the loop's own work would show."""
    sizes = ["--preset=t5_tiny", "--turns=3"] if arguments.toy else ["--rows=128", "--length=512", "--targets=114"]
    done = subprocess.run([sys.executable, str(HERE / "loop.py"), *sizes], capture_output=True, text=True)
    if done.returncode:
        show(part="loop", failed=done.stderr[-500:])
    for line in done.stdout.splitlines()[-2:]:
        show(part="loop", **json.loads(line))


def resume(arguments: argparse.Namespace, scratch: Path) -> None:
    """Kills a run with SIGKILL after its first checkpoint, resumes it, and compares its last loss with that of an
    uninterrupted run."""
    steps = 40 if arguments.toy else 400
    config = f"--config={HERE.parent / 'configs' / 'quickstart.py'}"
    keys = {"train.total_steps": steps, "train.log_every_steps": 5, "checkpoint.every_steps": steps // 4}
    keys |= {"eval.every_steps": 0, "eval.untrained": False, "eval.max_examples": 2, "schedule.warmup_steps": 10}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "t5x_lite.cli", "train", config, f"--workdir={scratch / name}", *flags]
        xla_flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
        return subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": xla_flags}, stdout=subprocess.DEVNULL)

    def losses(name: str) -> dict[int, float]:
        file = scratch / name / "metrics.jsonl"
        rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        return {logged["step"]: logged["train/loss"] for logged in rows if "train/loss" in logged}

    start("whole").wait()
    run = start("killed")
    while run.poll() is None and max(losses("killed"), default=0) <= steps // 2:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    reached, begin_s = max(losses("killed"), default=0), time.perf_counter()
    run = start("killed")
    first_s = None
    while run.poll() is None:
        if first_s is None and max(losses("killed"), default=0) > reached:
            first_s = round(time.perf_counter() - begin_s, 1)
        time.sleep(0.05)
    whole, killed = losses("whole"), losses("killed")
    show(part="resume", killed_after_step=reached, same_losses=whole == killed and steps in whole, resume_s=first_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="step,loop,resume")
    parser.add_argument("--models", default="", help=f"comma-separated, from: {', '.join(SHAPES)}; default: {MODELS}")
    parser.add_argument("--ours", default="", help="our kernels of attention; default: auto, and pallas off the CPU")
    parser.add_argument("--torch", default="sdpa", help="transformers' kinds of attention, such as sdpa,flex_attention")
    parser.add_argument("--samples", type=int, default=4, help=f"samples of a side, each of {STEPS_PER_SAMPLE} steps")
    parser.add_argument("--minutes", type=float, default=60.0, help="start nothing new after this time")
    parser.add_argument("--toy", action="store_true", help="tiny models and short runs")
    arguments = parser.parse_args()
    deadline_s = time.monotonic() + 60 * arguments.minutes
    found = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True, check=True).stdout.split("|")
    show(device=found[0], devices=int(found[1]), jax=found[2])
    arguments.ours = arguments.ours or ("auto" if found[0] == "cpu" else "pallas,auto")
    models = arguments.models or ("t5-tiny,bert-tiny,gpt2-tiny" if arguments.toy else MODELS)
    with tempfile.TemporaryDirectory() as scratch:
        work = [lambda m=m: compare_steps(m, arguments, Path(scratch)) for m in models.split(",")]
        parts = {"step": work, "resume": [lambda: resume(arguments, Path(scratch))], "loop": [lambda: loop(arguments)]}
        for part in arguments.parts.split(","):
            for number, run in enumerate(parts[part]):
                if time.monotonic() > deadline_s:
                    show(part=part, left_out=len(parts[part]) - number)
                    break
                run()


if __name__ == "__main__":
    main()
