"""Task metrics over a checkpoint: loss on every task, predictions where there is something to predict.

Each evaluation leaves `predictions/step_N/TASK.jsonl` with every input, target, prediction and score.
"""

import collections
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from t5x_lite import metrics, predict, processes, report, runtime, sharding
from t5x_lite.checkpoint import choose, load_model, saved_steps
from t5x_lite.data import pipeline
from t5x_lite.data.registry import Task
from t5x_lite.errors import DataError
from t5x_lite.experiment import Experiment
from t5x_lite.runtime import Runtime
from t5x_lite.step import make_eval_step
from t5x_lite.writers import Writers, read_metrics


class Stopped(Exception):
    """An evaluation was asked to end before its time."""


class Evaluator:
    """Evaluates parameters on the tasks of an experiment; compiled once, used at every evaluation."""

    def __init__(self, experiment: Experiment, on_devices: Runtime, workdir: Path):
        self.experiment, self.on_devices, self.workdir = experiment, on_devices, workdir
        for task in experiment.eval_tasks:
            if not len(task.source.split(experiment.cfg.eval.split)):
                raise DataError(f"task {task.name!r} has no example in split {experiment.cfg.eval.split!r} to evaluate")
        self._predictor = predict.Predictor(experiment, on_devices)
        self._eval_step = make_eval_step(on_devices.module, on_devices.layout, on_devices.abstract_params())

    def evaluate(
        self, params: Any, step: int, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], dict[str, list[dict]]]:
        """({"eval/TASK/METRIC": value}, {task: its first few predictions}). Raises Stopped once `stop()` says so."""
        values: dict[str, float] = {}
        samples: dict[str, list[dict]] = {}
        for task in self.experiment.eval_tasks:
            scores = self._loss(params, task, stop)
            if not task.is_corpus:
                rows = self._predictions(params, task, stop)
                targets = [task.postprocess(row["target"]) for row in rows]
                predictions = [task.postprocess(row["prediction"]) for row in rows]
                for metric in task.metrics:
                    scores |= metric(targets, predictions)
                self._write(step, task.name, rows)
                samples[task.name] = rows[: self.experiment.cfg.eval.predictions_shown]
            values |= {f"eval/{task.name}/{name}": value for name, value in scores.items()}
        return values, samples

    def baselines(self) -> dict[str, float]:
        """{"baseline/TASK/METRIC": value} of predicting without learning, on the same examples."""
        values: dict[str, float] = {}
        for task in self.experiment.eval_tasks:
            if not task.baseline:
                continue
            found = pipeline.text_examples(task, self.experiment.cfg.eval.split)
            examples = [e for _, e in itertools.islice(found, self.experiment.cfg.eval.max_examples or None)]
            if task.baseline == "majority":
                counts = collections.Counter(e["targets"] for _, e in pipeline.text_examples(task, "train"))
                guesses = [counts.most_common(1)[0][0]] * len(examples)
            else:
                guesses = [first_sentence(e["inputs"]) for e in examples]
            targets = [task.postprocess(e["targets"]) for e in examples]
            for metric in task.metrics:
                scores = metric(targets, [task.postprocess(guess) for guess in guesses])
                values |= {f"baseline/{task.name}/{name}": value for name, value in scores.items()}
        return values

    def _loss(self, params: Any, task: Task, stop: Callable[[], bool]) -> dict[str, float]:
        cfg, total = self.experiment.cfg, None
        batches = pipeline.eval_batches(
            task,
            self.experiment.converter,
            self.experiment.vocabulary,
            batch_rows=cfg.eval.batch_rows,
            split=cfg.eval.split,
            pack=cfg.data.pack,
            limit=cfg.eval.max_examples,
            **sharding.input_shard(self.on_devices.layout, cfg.eval.batch_rows),
        )
        for batch in batches:
            _stop_if(stop)
            total = metrics.add(total, self._eval_step(params, sharding.put_batch(batch, self.on_devices.layout)))
        if total is None:
            return {}
        return _named(metrics.finalise(total))

    def _prompts(self, task: Task):
        """Batches of one example per row: (batch, indices, text examples)."""
        cfg = self.experiment.cfg
        return pipeline.prompt_batches(
            task,
            self.experiment.converter,
            self.experiment.vocabulary,
            batch_rows=cfg.eval.batch_rows,
            max_new_tokens=cfg.eval.max_decode_tokens,
            split=cfg.eval.split,
            limit=cfg.eval.max_examples,
            **sharding.input_shard(self.on_devices.layout, cfg.eval.batch_rows),
        )

    def _predictions(self, params: Any, task: Task, stop: Callable[[], bool]) -> list[dict]:
        rows = []
        for batch, indices, examples in self._prompts(task):
            _stop_if(stop)
            predictions = self._predictor.predict(params, batch, task)[: len(indices)]
            for index, example, prediction in zip(indices, examples, predictions, strict=True):
                rows.append(
                    {
                        "index": int(index),
                        "inputs": example["inputs"],
                        "target": example["targets"],
                        "prediction": prediction.text,
                        "score": round(prediction.score, 5),
                    }
                )
        # Hosts that share rows (sharding.input_shard) have the same ones.
        by_index = {row["index"]: row for row in processes.gather(rows)}
        return [by_index[index] for index in sorted(by_index)]

    def _write(self, step: int, task: str, rows: list[dict]) -> None:
        if jax.process_index() == 0:
            directory = self.workdir / "predictions" / f"step_{step}"
            directory.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (directory / f"{task}.jsonl").write_text(text, encoding="utf-8")


def run(experiment: Experiment, workdir: Path, which: str) -> None:
    """The verb `eval`: evaluates the checkpoints `which` ("latest", "best", "all" or a step) of a workdir."""
    from rich.console import Console

    def chosen() -> list[int]:
        best = best_step(read_metrics(workdir), experiment.cfg.checkpoint.keep_best, saved_steps(workdir))
        return choose(workdir, which, best)

    steps = processes.on_first(chosen)
    first = jax.process_index() == 0
    on_devices = runtime.start(experiment)
    evaluator = Evaluator(experiment, on_devices, workdir)
    target = on_devices.abstract_params()
    writers = Writers(workdir, report.title(experiment.cfg.to_dict(), workdir), experiment.cfg.to_dict(), None, first)
    try:
        for step in steps:
            values, _ = evaluator.evaluate(load_model(workdir, step, target), step)
            writers.scalars(step, values)
            if first:
                Console().print(results_table(read_metrics(workdir), step))
    finally:
        writers.close()
    if first:
        report.write(workdir, experiment.cfg.eval.predictions_shown)


def _stop_if(stop: Callable[[], bool]) -> None:
    if stop():
        raise Stopped


def _named(out: dict[str, float]) -> dict[str, float]:
    """A task's own names for the sums of its heads: `loss` in nats, accuracies in percent."""
    heads = [name.removeprefix("loss/") for name in out if name.startswith("loss/")]
    named = {"loss": out["loss"]}
    for head in heads:
        prefix = "token_" if head == "lm" else "" if len(heads) == 1 else f"{head}_"
        if len(heads) > 1:
            named[f"{prefix}loss"] = out[f"loss/{head}"]
        if f"accuracy/{head}" in out:
            named[f"{prefix}accuracy"] = 100 * out[f"accuracy/{head}"]
    return named


def best_step(rows: list[dict], key: str, saved: Collection[int]) -> int | None:
    """The step of `saved` whose `eval/KEY` is best (the earliest of equals); None without a key or a value."""
    points = [
        (step, value) for step, value in report.curves(rows, f"eval/{key}").get(f"eval/{key}", ()) if step in saved
    ]
    if not points:
        return None
    return (min if metrics.lower_is_better(key) else max)(points, key=lambda point: point[1])[0]


def was_evaluated(rows: list[dict], step: int, tasks: Iterable[Task]) -> bool:
    """Whether every task has a loss at that step."""
    found = {key for row in rows if row["step"] == step for key in row}
    return all(f"eval/{task.name}/loss" in found for task in tasks)


def first_sentence(inputs: str) -> str:
    """The "copy" baseline: the first sentence of the text after the task's prefix."""
    text = inputs.partition(": ")[2] or inputs
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]


def results_table(rows: list[dict], step: int) -> Table:
    """Every task's metrics at `step`, beside its baseline and the untrained model."""
    table = Table(title=f"evaluation at step {step}", title_justify="left")
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("baseline", "untrained", "now", "best"):
        table.add_column(column, justify="right")
    now = {k: v for row in rows if row["step"] == step for k, v in row.items()}
    for row in report.results(rows):
        name = f"eval/{row['task']}/{row['metric']}"
        cells = [row["baseline"], row["untrained"], now.get(name), row["best"]]
        table.add_row(row["task"], row["metric"], *("–" if v is None else f"{v:.2f}" for v in cells))
    return table


def sample_lines(workdir: Path, step: int, count: int) -> list[str]:
    """A few predictions of each task as lines for the console."""
    lines = []
    for file in sorted((workdir / "predictions" / f"step_{step}").glob("*.jsonl")):
        with file.open(encoding="utf-8") as rows:
            for _, line in zip(range(count), rows, strict=False):
                row = json.loads(line)
                inputs = " ".join(row["inputs"].split())
                lines += [
                    f"{file.stem}  {inputs[:100]}{'…' if len(inputs) > 100 else ''}",
                    f"    target      {row['target']}",
                    f"    prediction  {row['prediction']}",
                ]
    return lines
