"""Compares pre-training by replaced-token detection with masked language models, at equal FLOPs.

    python benchmarks/replaced_tokens.py --output=runs/replaced_tokens

Pre-trains the encoder of configs/quickstart_rtd.py in three ways, and fine-tunes it from each, and from scratch, on the
quickstart's classification:

    rtd         replaced-token detection; its FLOPs are those of generator and discriminator
    mlm         a masked language model of the discriminator's size, alone
    mlm_nsp     the same with next-sentence prediction (BERT)

All three spend the FLOPs of --steps steps of rtd (costs/model_flops.py), and share the optimizer, the learning rate and
the schedule. Each seed has its own pre-training. Each training is a process of `t5x-lite train`. Each finished one
becomes a line of OUTPUT/results.jsonl, so the same command continues after a kill. At the end, prints a table: means
over the seeds with 95 % confidence intervals (Student's t).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "pretrain": f"{ROOT}/configs/quickstart_rtd.py",
    "classify": f"{ROOT}/configs/quickstart_encoder.py:classify",
}
METHODS: dict[str, dict[str, str]] = {
    "rtd": {},
    "mlm": {"data.objective": "mlm", "model.generator_layers": "0", "model.heads": "mlm"},
    "mlm_nsp": {"data.objective": "mlm", "model.generator_layers": "0"},
}
SCRATCH = "scratch"
METRICS = ("accuracy", "macro_f1")


def flops_of(method: str) -> int:
    """Returns the FLOPs of one step of pre-training."""
    from t5x_lite import config, experiment, runtime
    from t5x_lite.costs import model_flops, plan

    cfg = config.load(CONFIGS["pretrain"])
    for key, text in METHODS[method].items():
        config.override(cfg, key, text)
    resolved = experiment.resolve(cfg)
    return model_flops.of_step(resolved, plan.abstract_batch(resolved, runtime.start(resolved).layout))


def train(arguments: argparse.Namespace, phase: str, workdir: Path, settings: dict[str, str]) -> dict[str, float]:
    """Trains, and returns {"seconds", "METRIC": its value in the last evaluation, …}."""
    command = [sys.executable, "-m", "t5x_lite.cli", "train", f"--config={CONFIGS[phase]}", f"--workdir={workdir}"]
    command += [f"--config.{key}={text}" for key, text in settings.items()]
    command += ["--config.train.total_steps=4", "--config.schedule.warmup_steps=1"] * arguments.trial
    began_s = time.monotonic()
    with Path(f"{workdir}.txt").open("w") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT)
    found = {"seconds": time.monotonic() - began_s}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        found |= {k.rpartition("/")[2]: v for k, v in json.loads(line).items() if k.startswith("eval/")}
    return found


def interval(values: list[float]) -> str:
    """Returns "mean ± half of the 95 % confidence interval" of a mean, by Student's t."""
    from scipy.stats import t

    if len(values) < 2:
        return f"{statistics.fmean(values):.1f}" if values else "–"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory for workdirs and results")
    parser.add_argument("--steps", type=int, default=3000, help="of rtd; the others have as many FLOPs (default 3000)")
    parser.add_argument("--seeds", type=int, default=5, help="of pre-training and fine-tuning (default 5)")
    parser.add_argument("--trial", action="store_true", help="four steps of each training, to see that all work")
    arguments = parser.parse_args()
    output = arguments.output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(output / "compiled"))  # few programs, many runs
    file = output / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    cost = {method: flops_of(method) for method in METHODS}
    steps = {method: round(arguments.steps * cost["rtd"] / cost[method]) for method in METHODS}
    print("; ".join(f"{method}: {steps[method]:,} steps of {cost[method] / 1e9:.2f} GFLOP" for method in METHODS))

    def done(start: str, phase: str, seed: int) -> bool:
        return any((row["start"], row["phase"], row["seed"]) == (start, phase, seed) for row in rows)

    def run(start: str, phase: str, seed: int, settings: dict[str, str]) -> None:
        if not done(start, phase, seed):
            found = train(arguments, phase, output / f"{start}-{phase}-{seed}", settings | {"seed": str(seed)})
            rows.append({"start": start, "phase": phase, "seed": seed} | found)
            with file.open("a") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)

    for seed in range(arguments.seeds):
        for method, settings in METHODS.items():
            more = {"train.total_steps": str(steps[method]), "eval.every_steps": "0", "eval.untrained": "false"}
            run(method, "pretrain", seed, settings | more)
        for start in (SCRATCH, *METHODS):
            source = {"init.checkpoint": str(output / f"{start}-pretrain-{seed}")} if start != SCRATCH else {}
            run(start, "classify", seed, source)
    print(f"\n| begins as | pre-training steps | {' | '.join(METRICS)} |\n|---|---|---|---|")
    for start in (SCRATCH, *METHODS):
        found = [row for row in rows if (row["start"], row["phase"]) == (start, "classify")]
        cells = [interval([row[metric] for row in found]) for metric in METRICS]
        print(f"| {start} | {steps.get(start, 0):,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
