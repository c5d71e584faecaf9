"""Compares GLUE fine-tuning by `t5x-lite train --config=configs/glue.py:TASK` with the same recipe in transformers.

    t5x-lite import DIR runs/minilm
    python benchmarks/glue.py --data=GLUE --model=DIR --output=runs/glue.jsonl

DIR is the model in Hugging Face format; configs/glue.py expects its import in runs/minilm. GLUE is the directory that
contains CoLA, MRPC, …. Needs the extra `parity`. Each run has its own process. For each task and seed, both sides run,
one after the other. Each finished run becomes one line of the output, so the same command continues after a kill. At
the end, prints a table.

    scores        on the validation set after the last step, × 100
    training_s    time from the first batch to the last step, without evaluation; our time includes compilation
    seconds       time of the whole process: imports, data, model, training, evaluation; ours also writes a checkpoint
    losses        mean losses of ten equal parts of the training
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SEEDS = {"cola": 3, "mrpc": 3, "stsb": 3, "wnli": 3, "sst2": 1}
EPOCHS = {"sst2": 1}  # other tasks: 3
SIDES = ("t5x_lite", "torch", "torch_bfloat16")


def ours(task: str, seed: int, arguments: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, "-m", "t5x_lite.cli", "train", f"--config={ROOT}/configs/glue.py:{task}"),
            *(f"--workdir={workdir}", f"--config.data.dir={arguments.data.absolute()}", f"--config.seed={seed}"),
        ]
        if arguments.steps:
            command += [f"--config.train.total_steps={arguments.steps}", "--config.schedule.warmup_steps=3"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    prefix = f"eval/glue_{task}/"
    metrics = {k.removeprefix(prefix): v for row in rows for k, v in row.items() if k.startswith(prefix)}
    logged = [row for row in rows if "train/loss" in row]
    losses = [row["train/loss"] for row in logged]
    spans = ("time/step", "time/input", "time/compile")
    return {
        "scores": {
            name: metrics[name] for name in ("matthews", "f1", "accuracy", "pearson", "spearman") if name in metrics
        },
        "steps": logged[-1]["step"],
        "training_s": sum(row[span] for row in logged for span in spans),
        "losses": [float(np.mean(part)) for part in np.array_split(losses, min(10, len(losses)))],
    }


def theirs(task: str, seed: int, arguments: argparse.Namespace, *flags: str) -> dict:
    command = [
        *(sys.executable, str(ROOT / "benchmarks" / "glue_torch.py"), f"--task={task}", f"--seed={seed}"),
        *(f"--data={arguments.data}", f"--model={arguments.model}", f"--epochs={EPOCHS.get(task, 3)}", *flags),
    ]
    if arguments.steps:
        command.append(f"--steps={arguments.steps}")
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def table(runs: list[dict]) -> list[str]:
    """Returns the lines of a Markdown table with mean ± standard deviation over seeds."""
    by_run = defaultdict(list)
    for run in runs:
        by_run[run["task"], run["side"]].append(run)
    lines = [
        "| task | side | metric | score | seeds | steps | training s | whole s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, side), group in by_run.items():
        training, whole = (statistics.mean(run[key] for run in group) for key in ("training_s", "seconds"))
        costs = f"{len(group)} | {group[0]['steps']} | {training:.0f} | {whole:.0f}"
        for metric in group[0]["scores"]:
            score = mean_and_deviation([run["scores"][metric] for run in group])
            lines.append(f"| {task} | {side} | {metric} | {score} | {costs} |")
    return lines


def mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--tasks", default=",".join(SEEDS))
    parser.add_argument("--sides", default="t5x_lite,torch", help=f"comma-separated, from: {', '.join(SIDES)}")
    parser.add_argument("--seeds", type=int, help="number of seeds for every task, instead of SEEDS in this file")
    parser.add_argument("--steps", type=int, help="steps of each run, for a quick look")
    arguments = parser.parse_args()
    sides, tasks = arguments.sides.split(","), arguments.tasks.split(",")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.touch()
    runs = [json.loads(line) for line in arguments.output.read_text().splitlines()]
    done = {(run["task"], run["seed"], run["side"]) for run in runs}
    for task in tasks:
        for seed in range(arguments.seeds or SEEDS[task]):
            for side in sides:
                if (task, seed, side) in done:
                    continue
                begin_s = time.time()
                flags = ["--bfloat16"] if side == "torch_bfloat16" else []
                results = ours(task, seed, arguments) if side == "t5x_lite" else theirs(task, seed, arguments, *flags)
                seconds = time.time() - begin_s
                run = {
                    "task": task,
                    "seed": seed,
                    "side": side,
                    "seconds": seconds,
                    **results,
                    "load": os.getloadavg()[0],
                }
                with arguments.output.open("a") as file:
                    print(json.dumps(run), file=file, flush=True)
                print(json.dumps({k: v for k, v in run.items() if k != "losses"}), flush=True)
                runs.append(run)
    print("\n".join(table([run for run in runs if run["task"] in tasks and run["side"] in sides])))


if __name__ == "__main__":
    main()
