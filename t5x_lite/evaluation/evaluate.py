"""Task metrics over a checkpoint: loss on every task, predictions where there is something to predict.

Each evaluation leaves `predictions/step_N/TASK.jsonl` with every input, target, prediction and score.
"""

import collections
import dataclasses
import itertools
import json
import math
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from t5x_lite import atomic, console, runtime
from t5x_lite.checkpoints.checkpoint import choose, load_model, saved_steps
from t5x_lite.cluster import processes, sharding
from t5x_lite.data import convert, registry
from t5x_lite.data.eval_batches import eval_batches, prompt_batches
from t5x_lite.data.reader import text_examples
from t5x_lite.data.registry import Task, label_names
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation import predict
from t5x_lite.experiment import Experiment
from t5x_lite.reports import confidence, metric_sums, results, run_page
from t5x_lite.reports.results import read_metrics
from t5x_lite.reports.writers import Writers
from t5x_lite.runtime import Runtime
from t5x_lite.tasks import glue
from t5x_lite.tasks.metrics import percent
from t5x_lite.training import step_metrics
from t5x_lite.training.step import make_eval_step

WORD_EXAMPLES = 20_000  # of training that the bag-of-words baseline sees: seconds, not minutes


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
                rows, references = self._predictions(params, task, stop)
                for answer, field in fields_of(self._predictor.answers(task)).items():
                    found = scores_of(task, rows, references, field)
                    beside = "" if field == "prediction" else f"{answer}/"
                    scores |= {f"{beside}{name}": value for name, value in found.items()}
                processes.on_first(lambda name=task.name, rows=rows: self._write(step, name, rows))
                samples[task.name] = rows[: self.experiment.cfg.eval.predictions_shown]
            values |= {f"eval/{task.name}/{name}": value for name, value in scores.items()}
        return values, samples

    def baselines(self) -> dict[str, float]:
        """{"baseline/TASK/METRIC": value} of predicting without learning, on the same examples."""
        values: dict[str, float] = {}
        for task in self.experiment.eval_tasks:
            if not task.baseline or (task.baseline == "majority" and not _has_training(task)):
                continue
            found = text_examples(task, self.experiment.cfg.eval.split)
            examples = [e for _, e in itertools.islice(found, self.experiment.cfg.eval.max_examples or None)]
            if task.baseline == "majority":
                counts = collections.Counter(e["targets"] for _, e in text_examples(task, "train"))
                guesses = [counts.most_common(1)[0][0]] * len(examples)
            else:
                guesses = [first_sentence(e["inputs"]) for e in examples]
            values |= self._scored("baseline", task, examples, guesses)
        return values

    def word_baselines(self) -> dict[str, float]:
        """{"words/TASK/METRIC": value} of logistic regression on bags of words, for the tasks with labels."""
        values: dict[str, float] = {}
        for task in self.experiment.eval_tasks:
            if task.labels and not task.multi_label and _has_training(task):
                found = text_examples(task, self.experiment.cfg.eval.split)
                examples = [e for _, e in itertools.islice(found, self.experiment.cfg.eval.max_examples or None)]
                train = [e for _, e in itertools.islice(text_examples(task, "train"), WORD_EXAMPLES)]
                guesses = by_words([(e["inputs"], e["targets"]) for e in train], [e["inputs"] for e in examples])
                values |= self._scored("words", task, examples, guesses)
        return values

    @staticmethod
    def _scored(name: str, task: Task, examples: Sequence[Mapping], guesses: Sequence[str]) -> dict[str, float]:
        references, answers = [reference(task, e) for e in examples], [task.postprocess(guess) for guess in guesses]
        scores = {k: v for metric in task.metrics for k, v in metric(references, answers).items()}
        return {f"{name}/{task.name}/{metric}": value for metric, value in scores.items()}

    def intervals(self, step: int) -> dict[str, float]:
        """{"low/TASK/METRIC", "high/TASK/METRIC"}: between them lies a score with 95%, by the files of a step's
        evaluation."""
        values: dict[str, float] = {}
        for task in self.experiment.eval_tasks:
            path = self.workdir / "predictions" / f"step_{step}" / f"{task.name}.jsonl"
            if task.is_corpus or not path.exists():
                continue
            with path.open(encoding="utf-8") as lines:
                predictions = [task.postprocess(json.loads(line)["prediction"]) for line in lines]
            found = text_examples(task, self.experiment.cfg.eval.split)
            references = [reference(task, e) for _, e in itertools.islice(found, len(predictions))]
            for metric in task.metrics:
                for name, ends in confidence.bootstrap(metric, references, predictions).items():
                    for end, value in zip(("low", "high"), ends, strict=True):
                        values[f"{end}/{task.name}/{name}"] = value
        return values

    def _loss(self, params: Any, task: Task, stop: Callable[[], bool]) -> dict[str, float]:
        cfg, total = self.experiment.cfg, None
        batches = eval_batches(
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
            sums = self._eval_step(params, sharding.put_batch(batch, self.on_devices.layout))
            total = metric_sums.add(total, step_metrics.fetch(sums))
        if total is None:
            return {}
        named = _named(metric_sums.finalise(total))
        if task.is_corpus and "lm/loss_sum" in total:
            named["perplexity"] = math.exp(min(named["loss"], 700))
            converter = self.experiment.converter
            if isinstance(converter, convert.DecoderOnly) and not converter.denoisers:
                # Every text is read whole: comparable between vocabularies.
                texts = text_examples(task, cfg.eval.split)
                kept = itertools.islice(texts, cfg.eval.max_examples or None)
                size = sum(len(str(example["text"]).encode()) for _, example in kept)
                named["bits_per_byte"] = total["lm/loss_sum"] / math.log(2) / max(size, 1)
        return named

    def _prompts(self, task: Task, split: str, limit: int):
        """Batches of one example per row: (batch, indices, text examples)."""
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
        """The predictions of a whole split, in the source's order; its targets may be unknown."""
        unlabelled = dataclasses.replace(task, labels=(), multi_label=False, regression=False, reference=None)
        return self._predictions(params, task, lambda: False, self._prompts(unlabelled, split, limit=0))[0]

    def _predictions(
        self, params: Any, task: Task, stop: Callable[[], bool], prompts: Iterable | None = None
    ) -> tuple[list[dict], list]:
        """Rows for the predictions' file, and what the metrics compare each with (of other prompts: None)."""
        rows, fields = [], fields_of(self._predictor.answers(task))
        cfg = self.experiment.cfg.eval
        judged = (
            (batch, indices, examples, [None if prompts else reference(task, example) for example in examples])
            for batch, indices, examples in prompts or self._prompts(task, cfg.split, cfg.max_examples)
        )
        while (following := processes.on_each(lambda: next(judged, None))) is not None:
            batch, indices, examples, wanted = following
            row_of = [
                {"index": int(i), "inputs": e["inputs"], "target": e["targets"]}
                for i, e in zip(indices, examples, strict=True)
            ]
            for answer, field in fields.items():
                _stop_if(stop)
                predictions = self._predictor.predict(params, batch, task, answer, indices, examples)[: len(indices)]
                for row, prediction in zip(row_of, predictions, strict=True):
                    row[field] = prediction.text
                    row[field.replace("prediction", "score")] = round(prediction.score, 5)
            rows += zip(row_of, wanted, strict=True)
        # Hosts that share rows (sharding.input_shard) have the same ones.
        by_index = {row["index"]: (row, _tupled(wanted)) for row, wanted in processes.gather(rows)}
        found = [by_index[index] for index in sorted(by_index)]
        return [row for row, _ in found], [wanted for _, wanted in found]

    def _write(self, step: int, task: str, rows: list[dict]) -> None:
        directory = self.workdir / "predictions" / f"step_{step}"
        directory.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / f"{task}.jsonl").write_text(text, encoding="utf-8")


def run(experiment: Experiment, workdir: Path, which: str, submission: Path | None = None) -> None:
    """The verb `eval`: evaluates the checkpoints `which` ("latest", "best", "all" or a step) of a workdir.

    submission: a zip file that the predictions of the test sets by the last of them are added to, for GLUE's server.
    """
    steps = chosen_steps(workdir, which, experiment.cfg.checkpoint.keep_best)
    earlier = _in_zip(submission) if submission else {}
    tasks = _to_submit(experiment) if submission else []
    first = jax.process_index() == 0
    on_devices = runtime.start(experiment)
    evaluator = Evaluator(experiment, on_devices, workdir)
    target = on_devices.abstract_params()
    writers = Writers(workdir, results.title(experiment.cfg.to_dict(), workdir), experiment.cfg.to_dict(), None, first)
    params = None
    try:
        writers.scalars(steps[0], evaluator.word_baselines())
        for step in steps:
            params = load_model(workdir, step, target)
            values, samples = evaluator.evaluate(params, step)
            if first:
                writers.scalars(step, values | evaluator.intervals(step))
                for task, rows in samples.items():
                    writers.table(step, f"predictions/{task}", rows)
                with console.optional(sys.stdout):
                    console.plain().print(results.results_table(read_metrics(workdir), step))
        if submission is not None:
            _submit(evaluator, params, tasks, earlier, submission)
    finally:
        writers.close()
    if first:
        run_page.write(workdir, experiment.cfg.eval.predictions_shown)


def chosen_steps(workdir: Path, which: str, keep_best: str) -> list[int]:
    """The steps that `which` means, the same on all processes: another run may be saving there."""

    def chosen() -> list[int]:
        return choose(workdir, which, results.best_step(read_metrics(workdir), keep_best, saved_steps(workdir)))

    return processes.on_first(chosen)


def _in_zip(path: Path) -> dict[str, bytes]:
    """What an earlier submission has; ConfigError, before anything is computed, where one cannot be written there."""
    if not path.parent.is_dir():
        raise ConfigError(f"--submission={path}: there is no directory {path.parent}; make it, or give another")
    if not path.exists():
        return {}
    try:
        with zipfile.ZipFile(path) as old:
            return {name: old.read(name) for name in old.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"--submission={path} is there and no zip file ({error}); give another name") from error


def _to_submit(experiment: Experiment) -> list[Task]:
    """The tasks whose test sets GLUE's server judges."""
    names = {f"glue_{name}" for name in glue.SUBMISSION}
    tasks = [task for task in experiment.eval_tasks if task.name in names]
    if not tasks or not experiment.cfg.data.dir:
        raise ConfigError(
            "--submission is for GLUE's tasks, read from its own files (their order is the server's): "
            f"--config.data.dir=DIR; this run evaluates {', '.join(t.name for t in experiment.eval_tasks)}"
        )
    if "glue_mnli" in {task.name for task in tasks}:
        tasks += registry.tasks("glue_ax")  # a test set alone, for MNLI's model
    return tasks


def _submit(evaluator: Evaluator, params: Any, tasks: Sequence[Task], members: Mapping[str, bytes], path: Path) -> None:
    """Writes the zip file: the tasks' predictions of their test sets, in the place of earlier ones in `members`."""
    now = {}
    for task in tasks:
        rows = evaluator.predict(params, task, "test")
        name, text = glue.submission(task.name, [row["prediction"] for row in rows])
        now[name] = text.encode()
    if jax.process_index() == 0:
        with atomic.file(path) as file, zipfile.ZipFile(file, "w") as new:
            for name, content in sorted((dict(members) | now).items()):
                new.writestr(name, content)


def reference(task: Task, example: Mapping) -> Any:
    """What the metrics compare a prediction of the example with."""
    return task.reference(example) if task.reference else task.postprocess(example["targets"])


def scores_of(task: Task, rows: Sequence[Mapping], references: Sequence, field: str = "prediction") -> dict[str, float]:
    """The task's metrics of the predictions in `field`; of labels and numbers also the share that is `invalid`, and
    of labels the calibration error `ece` of their probabilities. Both × 100."""
    predictions = [task.postprocess(row[field]) for row in rows]
    scores = {name: value for metric in task.metrics for name, value in metric(references, predictions).items()}
    if task.regression:
        scores["invalid"] = percent([predicted is None for predicted in predictions])
    if task.multi_label:
        scores["invalid"] = percent([not set(label_names(row[field])) <= set(task.labels) for row in rows])
    elif task.labels:
        scores["invalid"] = percent([row[field].strip() not in task.labels for row in rows])
        confidences = [min(math.exp(row[field.replace("prediction", "score")]), 1.0) for row in rows]
        right = [row[field].strip() == row["target"].strip() for row in rows]
        scores["ece"] = confidence.expected_calibration_error(confidences, right)
    return scores


def fields_of(answers: Sequence[str]) -> dict[str, str]:
    """{answer: its field in the predictions' files}; the first is the task's own."""
    return {answer: f"{answer}_prediction" if number else "prediction" for number, answer in enumerate(answers)}


def _has_training(task: Task) -> bool:
    """A diagnostic set, such as glue_ax, has none."""
    try:
        return len(task.source.split("train")) > 0
    except ConfigError:
        return False


def by_words(train: Sequence[tuple[str, str]], inputs: Sequence[str]) -> list[str]:
    """Labels by logistic regression on the words and pairs of words of the texts, weighted by their rarity."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = zip(*train, strict=True)
    if len(set(labels)) == 1:
        return [labels[0]] * len(inputs)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]"), LogisticRegression(max_iter=1000)
    )
    return [str(label) for label in model.fit(texts, labels).predict(inputs)]


def _tupled(value: Any) -> Any:
    """What went through JSON on its way between processes as it was."""
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


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


def first_sentence(inputs: str) -> str:
    """The "copy" baseline: the first sentence of the text after the task's prefix."""
    text = inputs.partition(": ")[2] or inputs
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]
