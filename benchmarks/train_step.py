"""Compares the speed of our training step with that of transformers on torch, on one batch in float32.

    python benchmarks/train_step.py --models=t5,bert,gpt2 --rounds=5 --steps=4

Needs the extra `parity`. The torch side uses torch.compile, sdpa attention and fused AdamW. Each side runs in its own
process. They take turns, round by round, so that a slow minute of the machine affects both. First they must agree: with
our parameters, the torch side must report our loss. Prints JSON lines for each model, one per side and one with the
ratios:

    step_ms, cpu_ms       wall time and CPU time of a step: medians over quiet samples, in which other processes used
                          less than 0.15 cores. `quiet` is the number of quiet samples. If it is below 3, the medians
                          are over all samples; then run with --core and read cpu_ms
    gflops                useful matrix-product work (shapes.py: step_flops) per second of step time, in GFLOP/s
    fraction_of_peak      gflops divided by the machine's peak rate for products of 2048 x 2048 float32 matrices. The
                          peak is measured between the rounds; it is the median of the faster library
    first_step_s          from the start of the process to the end of the first step, with no compilation cache
    rss_mb                peak memory of the process
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from shapes import SHAPES, Shape, step_flops

from t5x_lite.cli import HUGE_PAGES  # `t5x-lite train` restarts itself with huge pages

HERE = Path(__file__).parent
QUIET_CORES = 0.15


class Side:
    """Holds a worker process and its samples."""

    def __init__(self, script: str, shape: Shape, flags: list[str], environment: dict[str, str]):
        command = [sys.executable, str(HERE / script), json.dumps(dataclasses.asdict(shape)), *flags]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.first = self._answer()
        self.samples: dict[str, list[float]] = {"step_ms": [], "cpu_ms": [], "others": []}
        self.peak: list[float] = []
        self.rss_mb = 0.0

    def ask(self, command: str) -> dict:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        return self._answer()

    def run(self, samples: int, steps: int = 1) -> None:
        """Takes `samples` samples, each of `steps` steps."""
        answer = self.ask(f"run {samples} {steps}")
        for name, values in self.samples.items():
            values += answer[name]
        self.rss_mb = answer["rss_mb"]

    def quit(self) -> None:
        self.process.communicate("quit\n")

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} exited with status {self.process.wait()}")  # type: ignore
        return json.loads(line)

    def median(self, name: str) -> float:
        quiet = [v for v, o in zip(self.samples[name], self.samples["others"], strict=True) if o < QUIET_CORES]
        return statistics.median(quiet if len(quiet) >= 3 else self.samples[name])


def compare(model: str, arguments: argparse.Namespace, scratch: Path) -> None:
    changes = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Shape)[1:]}
    shape = dataclasses.replace(SHAPES[model], **{name: size for name, size in changes.items() if size is not None})
    threads = {"OMP_NUM_THREADS": "1"} if arguments.core is not None else {}
    # An empty cache directory for torch and no compilation cache for jax, so that both start cold.
    cold = {"TORCHINDUCTOR_CACHE_DIR": str(scratch / f"inductor-{model}"), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = threads | ({} if arguments.warm else cold)
    sides = {"t5x_lite": Side("side_ours.py", shape, [], environment | {"GLIBC_TUNABLES": HUGE_PAGES})}
    if not arguments.ours_only:
        flags = ["--eager"] if arguments.eager else []
        sides["torch"] = Side("side_torch.py", shape, flags, environment)
        agree(model, sides["t5x_lite"], sides["torch"], scratch / f"{model}.npz")
    for side in sides.values():
        side.ask("run 2")
    for _ in range(arguments.rounds):
        for side in sides.values():
            side.run(arguments.steps)
        for side in sides.values():
            side.peak += side.ask("peak 5")["gflops"]
    for side in sides.values():
        side.quit()
    peak = max(statistics.median(side.peak) for side in sides.values())
    for name, side in sides.items():
        print(json.dumps(row(name, model, shape, side, peak)), flush=True)
    if "torch" in sides:
        ours, theirs = sides["t5x_lite"], sides["torch"]
        ratio = {
            "model": model,
            "side": "ratio torch / t5x_lite",
            "step": round(theirs.median("step_ms") / ours.median("step_ms"), 3),
            "cpu": round(theirs.median("cpu_ms") / ours.median("cpu_ms"), 3),
            "first_step": round(theirs.first["first_step_s"] / ours.first["first_step_s"], 2),
            "rss": round(theirs.rss_mb / ours.rss_mb, 2),
        }
        print(json.dumps(ratio), flush=True)


def agree(model: str, ours: Side, theirs: Side, path: Path, tolerance: float = 1e-5) -> None:
    """Exits if the two sides do not compute the same loss from the same parameters, up to a relative `tolerance`."""
    ours.ask(f"save {path}")
    theirs.ask(f"load {path}")
    path.unlink()
    losses = ours.ask("run 1")["loss"], theirs.ask("run 1")["loss"]
    parameters = ours.first["parameters"], theirs.first["parameters"]
    if abs(losses[0] - losses[1]) > tolerance * abs(losses[0]) or parameters[0] != parameters[1]:
        raise SystemExit(f"{model}: the sides disagree: losses {losses}, parameters {parameters}")
    print(json.dumps({"model": model, "same_parameters": parameters[0], "losses": losses}), flush=True)


def row(name: str, model: str, shape: Shape, side: Side, peak_gflops: float) -> dict:
    step_ms = side.median("step_ms")
    gflops = step_flops(shape) / step_ms / 1e6
    values = {
        "step_ms": step_ms,
        "cpu_ms": side.median("cpu_ms"),
        "tokens_per_s": 1e3 * shape.tokens / step_ms,
        "gflops": gflops,
        "peak_gflops": peak_gflops,
        "first_step_s": side.first["first_step_s"],
        "rss_mb": side.rss_mb,
    }
    return {
        "model": model,
        "side": name,
        **{key: round(value, 1) for key, value in values.items()},
        "fraction_of_peak": round(gflops / peak_gflops, 3),
        "samples": len(side.samples["step_ms"]),
        "quiet": sum(others < QUIET_CORES for others in side.samples["others"]),
        "shape": dataclasses.asdict(shape),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="t5,bert,gpt2", help=f"comma-separated, from: {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of each side per round")
    parser.add_argument("--core", type=int, help="pin everything to this core: cpu_ms stays meaningful under load")
    parser.add_argument("--eager", action="store_true", help="run torch without torch.compile")
    parser.add_argument("--warm", action="store_true", help="let both sides use their compilation caches")
    parser.add_argument("--ours-only", action="store_true", help="skip the torch side")
    for field in dataclasses.fields(Shape)[1:]:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, help="overrides the model's value")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    with tempfile.TemporaryDirectory() as scratch:
        for model in arguments.models.split(","):
            compare(model, arguments, Path(scratch))


if __name__ == "__main__":
    main()
