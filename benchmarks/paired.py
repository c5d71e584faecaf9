"""Compares three architectures on the same documents: from scratch, and continued as one another (configs/paired.py).

    python benchmarks/paired.py --output=runs/paired

Pre-trains an encoder, a decoder and an encoder-decoder. Continues each of them as each architecture, also as its own,
for comparison. Then fine-tunes all twelve on classification and, unless they are encoders, on summarisation, with
several seeds. Each training is a process of `t5x-lite train`; two run at a time. Each finished training becomes a line
of OUTPUT/results.jsonl, so the same command continues after a kill. At the end, checks that the three models read the
same documents in every step of pre-training, and prints a table.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("encoder_only", "decoder_only", "text_to_text")
SCRATCH = "scratch"
METRICS = {"classify": ("accuracy", "macro_f1"), "summarize": ("rouge2", "rougeLsum")}


def train(config: str, workdir: Path, source: Path | None, seed: int, steps: int) -> dict[str, float]:
    """Trains, and returns {"seconds", metric of the last evaluation: its value, …}.

    source: the workdir whose parameters the training starts from.  steps: 0 for the config's own.
    """
    command = [sys.executable, "-m", "t5x_lite.cli", "train", f"--config={ROOT}/configs/paired.py:{config}"]
    command += [f"--workdir={workdir}", f"--config.seed={seed}"]
    command += [f"--config.init.checkpoint={source}"] * bool(source)
    command += [f"--config.train.total_steps={steps}", "--config.schedule.warmup_steps=1"] * bool(steps)
    begin_s = time.monotonic()
    with Path(f"{workdir}.txt").open("w") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT)
    found = {"seconds": time.monotonic() - begin_s}
    for row in rows_of(workdir):
        found |= {k.rpartition("/")[2]: value for k, value in row.items() if k.startswith("eval/")}
    return found


def rows_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


class Results:
    """Keeps one line per finished training in a file: {"config", "start", "seed", …}."""

    def __init__(self, file: Path):
        self._file = file
        self.rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def find(self, **wanted) -> list[dict]:
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]

    def add(self, row: dict) -> None:
        self.rows.append(row)
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def run_all(jobs: Iterable[tuple[str, str, int]], results: Results, arguments: argparse.Namespace) -> None:
    """Runs trainings, each (config, start, seed), two at a time; those in `results` are done."""

    def run(job: tuple[str, str, int]) -> None:
        config, start, seed = job
        if results.find(config=config, start=start, seed=seed):
            return
        architecture, _, phase = config.partition(",")
        workdir, source = arguments.output / f"{start}-{config.replace(',', '-')}-{seed}", None
        if phase == "continue":
            source = arguments.output / f"{SCRATCH}-{start}-0"
        elif phase:
            first = f"{SCRATCH}-{architecture}-0" if start == SCRATCH else f"{start}-{architecture}-continue-0"
            source = arguments.output / first
        found = train(config, workdir, source, seed, arguments.steps)
        results.add({"config": config, "start": start, "seed": seed} | found)
        print(json.dumps(results.rows[-1]), flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, jobs))


def same_documents(output: Path) -> int:
    """Returns in how many steps of pre-training the three architectures read documents, after checking that they are
    the same."""
    read = [
        {
            row["step"]: row["documents/hash"]
            for row in rows_of(output / f"{SCRATCH}-{name}-0")
            if "documents/hash" in row
        }
        for name in ARCHITECTURES
    ]
    assert read[0] == read[1] == read[2], "the architectures read different documents"
    return len(read[0])


def table(results: Results) -> list[str]:
    """Returns the lines of a Markdown table: mean ± standard deviation over seeds, × 100."""
    lines = ["| model | begins as | accuracy | macro F1 | ROUGE-2 | ROUGE-Lsum |", "|---|---|---|---|---|---|"]
    for architecture in ARCHITECTURES:
        for start in (SCRATCH, *ARCHITECTURES):
            cells = [
                spread([row[metric] for row in results.find(config=f"{architecture},{phase}", start=start)])
                for phase, metrics in METRICS.items()
                for metric in metrics
            ]
            lines.append(f"| {architecture} | {start} | {' | '.join(cells)} |")
    return lines


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory for workdirs and results")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning (default 3)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default 2)")
    parser.add_argument("--steps", type=int, default=0, help="of each training, for a trial; 0: the config's own")
    arguments = parser.parse_args()
    arguments.output = arguments.output.absolute()
    arguments.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(arguments.output / "compiled"))  # few programs, many runs
    begin_s, results = time.monotonic(), Results(arguments.output / "results.jsonl")
    run_all([(name, SCRATCH, 0) for name in ARCHITECTURES], results, arguments)
    print(f"the same documents in {same_documents(arguments.output)} steps")

    def run_pairs(pairs: list[tuple[str, str]]) -> None:
        """Continues `start` as `name` for each pair (start, name), and then fine-tunes."""
        run_all([(f"{name},continue", start, 0) for start, name in pairs if start != SCRATCH], results, arguments)
        tuned = [
            (f"{name},{phase}", start, seed)
            for seed in range(arguments.seeds)
            for start, name in pairs
            for phase in METRICS
            if (name, phase) != ("encoder_only", "summarize")
        ]
        run_all(tuned, results, arguments)

    every = [(start, name) for start in (SCRATCH, *ARCHITECTURES) for name in ARCHITECTURES]
    run_pairs([(start, name) for start, name in every if start != name])
    run_pairs([(name, name) for name in ARCHITECTURES])  # for comparison
    print("\n".join(table(results)))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes, cpu_minutes = (time.monotonic() - begin_s) / 60, (used.ru_utime + used.ru_stime) / 60
    print(f"\n{len(results.rows)} trainings; this call: {minutes:.1f} minutes, {cpu_minutes:.1f} minutes of CPU time")


if __name__ == "__main__":
    main()
