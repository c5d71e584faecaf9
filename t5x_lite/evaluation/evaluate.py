"""Evaluates a checkpoint: computes the loss on every task, and predictions and metrics on every supervised task.

Each evaluation writes `predictions/step_N/TASK.jsonl`, which has every input, target, prediction and score.
"""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from t5x_lite import config as configs
from t5x_lite import console, runtime
from t5x_lite.checkpoints.checkpoint import choose, saved_steps
from t5x_lite.checkpoints.loading import check_layers, load_model
from t5x_lite.cluster import processes, sharding
from t5x_lite.data import convert
from t5x_lite.data.eval_batches import eval_batches, prompt_batches
from t5x_lite.data.reader import text_examples
from t5x_lite.data.registry import Task
from t5x_lite.data.targets import Match, Text
from t5x_lite.errors import DataError, writing
from t5x_lite.evaluation import predict, retrieval, scores
from t5x_lite.evaluation import submission as submissions
from t5x_lite.evaluation.baselines import word_baselines
from t5x_lite.experiment import Experiment
from t5x_lite.reports import metric_sums, results, run_page
from t5x_lite.reports.loggers import Loggers
from t5x_lite.reports.results import read_metrics
from t5x_lite.runtime import Runtime
from t5x_lite.training import step_metrics
from t5x_lite.training.step import make_eval_step


class Stopped(Exception):
    """Raised when `stop` tells an evaluation to end early."""


class Evaluator:
    """Evaluates parameters on an experiment's tasks. Compiles its programs once, for all evaluations.

    Raises DataError if a task has no example in the split `eval.split`.
    """

    def __init__(self, experiment: Experiment, on_devices: Runtime, workdir: Path):
        self.experiment, self.on_devices, self.workdir = experiment, on_devices, workdir
        self._lower_is_better: set[str] = set()
        for task in experiment.eval_tasks:
            if not len(task.source.split(experiment.cfg.eval.split)):
                raise DataError(f"task {task.name!r} has no example in split {experiment.cfg.eval.split!r} to evaluate")
        self.predictor = predict.Predictor(experiment, on_devices)
        self._eval_step = make_eval_step(on_devices.module, on_devices.layout, on_devices.abstract_params())

    def evaluate(
        self, params: Any, step: int, stop: Callable[[], bool] = lambda: False, prefix: str = ""
    ) -> tuple[dict[str, float], dict[str, list[dict]]]:
        """Returns ({"eval/TASK/METRIC": value}, {task: its first few predictions}).

        prefix: what the names of metrics begin with; with a prefix, predictions are neither written nor returned.
        stop: called before each batch. If it returns True, `evaluate` raises Stopped.
        """
        values: dict[str, float] = {}
        samples: dict[str, list[dict]] = {}
        for task in self.experiment.eval_tasks:
            of_task = self._loss(params, task, stop)
            lower = {name for name in of_task if not name.endswith("accuracy")}  # all except accuracies are losses
            if not task.is_corpus:
                rows, references = self.predictions(params, task, stop)
                for answer, field in fields_of(self.predictor.answers(task)).items():
                    begins = "" if field == "prediction" else f"{answer}/"
                    of_answer = scores.scores_of(task, rows, references, field)
                    of_task |= {f"{begins}{name}": value for name, value in of_answer.values.items()}
                    lower |= {f"{begins}{name}" for name in of_answer.lower}
                if not prefix:
                    processes.on_first(lambda name=task.name, rows=rows: self._write(step, name, rows))
                    samples[task.name] = rows[: self.experiment.cfg.eval.predictions_shown]
            values |= {f"eval/{task.name}/{prefix}{name}": value for name, value in of_task.items()}
            self._lower_is_better |= {f"{task.name}/{prefix}{name}" for name in lower}
        return values, samples

    def directions(self) -> dict[str, float]:
        """Returns {"lower_is_better/TASK/METRIC": 1} for the metrics for which lower is better.

        Has only metrics that were already computed.
        """
        return {f"{results.LOWER}{name}": 1.0 for name in sorted(self._lower_is_better)}

    def hints(self, values: Mapping[str, float]) -> list[str]:
        """Returns one line for each task whose predictions are all invalid although constrained answers are possible.

        values: the values that `evaluate` returned.
        """
        answers = self.experiment.cfg.eval.answers
        if set(answers) & set(configs.NEED_LABELS):
            return []
        return [
            f"task {task.name!r}: no prediction is one of its {len(task.labels)} labels; "
            f"--config.eval.answers={','.join((*answers, 'constrained'))} also generates answers that are labels"
            for task in self.experiment.eval_tasks
            if task.labels and not task.target.several and values.get(f"eval/{task.name}/invalid") == 100
        ]

    def _loss(self, params: Any, task: Task, stop: Callable[[], bool]) -> dict[str, float]:
        """Returns a task's losses and accuracies by name; for a corpus, also perplexities and bits per byte."""
        cfg, total = self.experiment.cfg, self._sums(params, task, stop)
        if total is None:
            return {}
        named = _named(metric_sums.finalise(total))
        if task.is_corpus and "lm/loss_sum" in total:
            named["perplexity"] = math.exp(min(named["loss"], 700))
            converter = self.experiment.converter
            if isinstance(converter, convert.DecoderOnly) and not converter.denoisers:
                # The loss covers every text to its end, so bits_per_byte can be compared between vocabularies.
                texts = text_examples(task, cfg.eval.split)
                evaluated = itertools.islice(texts, cfg.eval.max_examples or None)
                size = sum(len(str(example["text"]).encode()) for _, example in evaluated)
                named["bits_per_byte"] = total["lm/loss_sum"] / math.log(2) / max(size, 1)
            if cfg.eval.stride and (overlapping := self._sums(params, task, stop, cfg.eval.stride)):
                loss = metric_sums.finalise(overlapping)["loss"]
                named[f"{results.STRIDED}{cfg.eval.stride}"] = math.exp(min(loss, 700))
        return named

    def _sums(self, params: Any, task: Task, stop: Callable[[], bool], stride: int = 0) -> dict[str, float] | None:
        """Returns the sums of a task's losses and accuracies, or None without any batch. stride: as in `eval_batches`.

        stop: called before each batch. If it returns True, `_sums` raises Stopped.
        """
        cfg, total = self.experiment.cfg, None
        batches = eval_batches(
            task,
            self.experiment.converter,
            self.experiment.vocabulary,
            batch_rows=cfg.eval.batch_rows,
            split=cfg.eval.split,
            pack=cfg.data.pack,
            limit=cfg.eval.max_examples,
            stride=stride,
            **sharding.input_shard(self.on_devices.layout, cfg.eval.batch_rows),
        )
        for batch in batches:
            _stop_if(stop)
            sums = self._eval_step(params, sharding.put_batch(batch, self.on_devices.layout))
            total = metric_sums.add(total, step_metrics.fetch(sums))
        return total

    def _prompts(self, task: Task, split: str, limit: int):
        """Yields (batch, indices of the examples, text examples). Each row of a batch holds one example."""
        cfg = self.experiment.cfg
        return prompt_batches(
            task,
            self.experiment.converter,
            self.experiment.vocabulary,
            batch_rows=cfg.eval.batch_rows,
            max_new_tokens=cfg.eval.max_decode_tokens,
            split=split,
            limit=limit,
            **sharding.input_shard(self.on_devices.layout, cfg.eval.batch_rows),
        )

    def predict(self, params: Any, task: Task, split: str) -> list[dict]:
        """Returns one row of predictions per example of a split, in the source's order. Needs no targets."""
        unlabelled = dataclasses.replace(task, target=Text(), reference=None)
        return self.predictions(params, task, prompts=self._prompts(unlabelled, split, limit=0))[0]

    def predictions(
        self, params: Any, task: Task, stop: Callable[[], bool] = lambda: False, prompts: Iterable | None = None
    ) -> tuple[list[dict], list]:
        """Returns (rows of the predictions' file, references for the metrics). Both are in the order of the examples.

        stop: called before each batch. If it returns True, `predictions` raises Stopped.
        prompts: batches, as `_prompts` yields them; None: the batches of `eval.split`. If `prompts` is given, all
            references are None.
        """
        rows, fields = [], fields_of(self.predictor.answers(task))
        cfg = self.experiment.cfg.eval
        with_references = (
            (batch, indices, examples, [None if prompts else scores.reference(task, example) for example in examples])
            for batch, indices, examples in prompts or self._prompts(task, cfg.split, cfg.max_examples)
        )
        while (following := processes.on_each(lambda: next(with_references, None))) is not None:
            batch, indices, examples, references = following
            row_of = [
                {"index": int(i), "inputs": e["inputs"], "target": e["targets"]}
                for i, e in zip(indices, examples, strict=True)
            ]
            for answer, field in fields.items():
                _stop_if(stop)
                predictions = self.predictor.predict(params, batch, task, answer, indices, examples)[: len(indices)]
                for row, prediction in zip(row_of, predictions, strict=True):
                    row[field] = prediction.text
                    row[field.replace("prediction", "score")] = round(prediction.score, 5)
                    if prediction.embeddings:
                        row["embeddings"] = tuple(vector_D.tolist() for vector_D in prediction.embeddings)
            rows += zip(row_of, references, strict=True)
        # Hosts may read the same rows (sharding.input_shard); the dict keeps each row once.
        by_index = {row["index"]: (row, reference) for row, reference in processes.gather(rows)}
        in_order = [by_index[index] for index in sorted(by_index)]
        if isinstance(task.target, Match):
            retrieval.rank([row for row, _ in in_order])
        return [row for row, _ in in_order], [reference for _, reference in in_order]

    def _write(self, step: int, task: str, rows: list[dict]) -> None:
        directory = _directory(self.workdir, step)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{task}.jsonl").write_text(text, encoding="utf-8")


def run(experiment: Experiment, workdir: Path, which: str, submission: Path | None = None) -> None:
    """Evaluates checkpoints of a workdir (the verb `eval`).

    which: "latest", "best", "all" or a step, and "+WEIGHTS" as in `load_model`; the names of metrics begin with these.
    submission: a zip file for GLUE's server. The last checkpoint's predictions for the test sets are added to it.

    Raises CheckpointError if there is no such checkpoint, ConfigError if the submission is impossible, DataError if a
    split has no examples, and DivergedError if a prediction for the submission is not finite.
    """
    which, _, weights = which.partition("+")
    prefix = f"{weights}/" if weights not in ("", "raw") else ""
    steps = chosen_steps(workdir, which, experiment.cfg.checkpoint.keep_best)
    check_layers(workdir, steps[-1], experiment.model)
    submitted = []
    if submission:
        submissions.check(submission)
        submitted = submissions.tasks_of(experiment)
    first = jax.process_index() == 0
    on_devices = runtime.start(experiment)
    evaluator = Evaluator(experiment, on_devices, workdir)
    target = on_devices.abstract_params()
    config = configs.data(experiment.cfg)
    loggers = Loggers(workdir, results.title(config, workdir), config, None, first)
    params = None
    try:
        loggers.scalars(steps[0], word_baselines(experiment))
        for step in steps:
            params = load_model(workdir, step, target, weights)
            values, samples = evaluator.evaluate(params, step, prefix=prefix)
            if first:
                predicted = _directory(workdir, step)
                tasks = () if prefix else experiment.eval_tasks
                bounds = scores.intervals(tasks, experiment.cfg.eval.split, predicted)
                loggers.note(step, evaluator.directions())
                loggers.scalars(step, values | bounds)
                for task, rows in samples.items():
                    loggers.table(step, f"predictions/{task}", rows)
                with console.optional(sys.stdout):
                    console.plain().print(results.results_table(read_metrics(workdir), step))
                for hint in evaluator.hints(values):
                    console.say(hint)
        predictions = {task.name: evaluator.predict(params, task, "test") for task in submitted}
        if submission is not None and first:
            console.say(submissions.write(submission, predictions))
    finally:
        loggers.close()
    if first:
        run_page.write(workdir, experiment.cfg.eval.predictions_shown)


def chosen_steps(workdir: Path, which: str, keep_best: str) -> list[int]:
    """Returns the steps that `which` names ("latest", "best", "all" or a step).

    Process 0 lists the steps for all processes, because they may change while a run saves in the workdir. Raises
    CheckpointError if there is no such step.
    """

    def chosen() -> list[int]:
        return choose(workdir, which, results.best_step(read_metrics(workdir), keep_best, saved_steps(workdir)))

    return processes.on_first(chosen)


def _directory(workdir: Path, step: int) -> Path:
    return workdir / "predictions" / f"step_{step}"


def fields_of(answers: Sequence[str]) -> dict[str, str]:
    """Returns {answer: its field in the files of predictions}. The first answer has the field "prediction"."""
    return {answer: f"{answer}_prediction" if number else "prediction" for number, answer in enumerate(answers)}


def _stop_if(stop: Callable[[], bool]) -> None:
    if stop():
        raise Stopped


def _named(out: dict[str, float]) -> dict[str, float]:
    """Returns {name in reports: value}: the losses (in nats) and accuracies (in percent) of a task's heads.

    The names lack the head's name if there is only one head. out: the result of metric_sums.finalise.
    """
    heads = [name.removeprefix("loss/") for name in out if name.startswith("loss/")]
    named = {"loss": out["loss"]}
    for head in heads:
        prefix = "token_" if head == "lm" else "" if len(heads) == 1 else f"{head}_"
        if len(heads) > 1:
            named[f"{prefix}loss"] = out[f"loss/{head}"]
        if f"accuracy/{head}" in out:
            named[f"{prefix}accuracy"] = 100 * out[f"accuracy/{head}"]
    return named
