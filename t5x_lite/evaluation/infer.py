"""Bulk prediction: writes one output line for every line of a JSONL, CSV or text file, in the same order.

An output line repeats the fields of the input line and adds these:
    prediction, score     the answer and its log-probability; with --mode=score instead `logprob` and `tokens`
    truncated             whether the text was cut because it does not fit in the run's rows
    step                  the step of the checkpoint
    probabilities         {class: probability}, if the model is an encoder that classifies
If a line lacks a field that the model reads, the template that the run was trained with makes the field.

All processes compute, but only process 0 writes. It writes in chunks; after a kill, the same command resumes after the
last complete chunk. So the output has exactly the lines of an uninterrupted run. `OUTPUT.settings.json` names the
checkpoint and the settings; the command refuses to resume with different ones. It also refuses if it did not write the
output file; it never changes such a file.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from t5x_lite import atomic, console, runtime, side_files
from t5x_lite.checkpoints import manifest
from t5x_lite.checkpoints.checkpoint import DIRECTORY
from t5x_lite.checkpoints.loading import check_layers, load_model
from t5x_lite.cluster import processes, sharding
from t5x_lite.data import convert, guessed_format, json_documents, preprocess, registry
from t5x_lite.data.eval_batches import prompt_batch
from t5x_lite.data.guessed_format import Reading
from t5x_lite.data.records import Records
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Files
from t5x_lite.data.text_lines import Line, read_lines
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation import predict
from t5x_lite.evaluation.evaluate import chosen_steps
from t5x_lite.experiment import Experiment
from t5x_lite.lookup import lookup
from t5x_lite.saved_run import templates_of

HEADER = Reading(header=True)
HALF = re.compile("[\ud800-\udfff]")  # one half of a surrogate pair


def run(
    experiment: Experiment, workdir: Path, source: Path, output: Path, which: str, mode: str, task_name: str
) -> None:
    """Predicts or scores every line of `source` with the checkpoint `which` of `workdir` (the verb `infer`).

    mode: "predict" or "score".
    task_name: the task whose labels or texts are predicted; "": the run's first supervised task.

    Raises ConfigError if the mode, task, input or output cannot work, DataError if a line is bad, and CheckpointError
    if there is no such checkpoint.
    """
    cfg = experiment.cfg
    task = _task(experiment, task_name)
    if mode == "score" and experiment.model.architecture == "encoder_only":
        raise ConfigError("--mode=score needs a model that assigns probabilities to text; encoder-only models do not")
    needed = ("inputs", "targets") if mode == "score" else _needed(experiment, task)
    results = (*(("prediction", "score") if mode == "predict" else ("logprob", "tokens")), "truncated")
    if mode == "predict" and experiment.model.architecture == "encoder_only" and task.labels:
        results = (*results, "probabilities")
    templates = {name: text for name, text in templates_of(task).items() if name in needed}
    reading = Reading(cfg.data.header is not False, cfg.data.delimiter, line_pattern=cfg.data.line_pattern)
    examples = read_input(source, needed, ("step", *results), templates, reading)
    which, _, weights = which.partition("+")
    if which == "all":
        raise ConfigError("--checkpoint=all: infer uses one checkpoint; use latest, best or a step")
    (step,) = chosen_steps(workdir, which, cfg.checkpoint.keep_best)
    settings = _settings(experiment, workdir / DIRECTORY / str(step), mode, task, results)
    settings |= {"weights": weights} if weights else {}
    added = {"step": step, **dict.fromkeys(results)}
    check_layers(workdir, step, experiment.model)
    with contextlib.ExitStack() as closing:
        is_first = jax.process_index() == 0
        processes.on_first(lambda: set_aside_damaged(output))
        out = processes.on_each(lambda: closing.enter_context(open_output(output)) if is_first else None)
        processes.on_first(lambda: _require_same(output, settings))
        done = processes.on_first(lambda: resume(output, examples, added, cfg.eval.batch_rows))
        on_devices = runtime.start(experiment)
        params = load_model(workdir, step, on_devices.abstract_params(), weights)
        predictor = predict.Predictor(experiment, on_devices)
        progress = closing.enter_context(_progress())
        bar = progress.add_task(console.safe(output.name), total=len(examples), completed=done)
        truncated = 0
        for begin in range(done, len(examples), cfg.eval.batch_rows):
            end = min(begin + cfg.eval.batch_rows, len(examples))
            local_results = _results(predictor, params, task, mode, examples, templates, range(begin, end))
            result_of = dict(processes.gather(local_results))  # several hosts may read a row; the dict keeps it once
            if out is not None:
                lines = (dumps(examples[i] | result_of[i] | {"step": step}) + "\n" for i in range(begin, end))
                out.write("".join(lines))
                out.flush()
                os.fsync(out.fileno())  # a chunk is on disk before the next begins
            truncated += sum(result_of[i]["truncated"] for i in range(begin, end))
            progress.update(bar, completed=end)
    if out is not None:
        console.say(f"{len(examples)} lines in {output}" + (f", {done} of them from an earlier run" if done else ""))
        if truncated:
            console.say(f"{truncated} of them truncated: longer than the run's rows (--config.data.length)")


def _results(
    predictor: predict.Predictor,
    params: Any,
    task: Task,
    mode: str,
    examples: Sequence[dict],
    templates: Mapping[str, str],
    chunk: range,
) -> list[tuple[int, dict]]:
    """Returns (line number from 0, fields to add to the line) for each line of a chunk that this process computes."""
    experiment, batch_rows = predictor.experiment, predictor.experiment.cfg.eval.batch_rows
    share = sharding.input_shard(predictor.on_devices.layout, batch_rows)
    each = batch_rows // share["shard_count"]
    rows = chunk[share["shard_index"] * each : (share["shard_index"] + 1) * each]
    local_examples = [filled(examples[i], templates) for i in rows]
    if mode == "score":
        scores = predictor.score(params, local_examples, task, each)
        added = [dataclasses.asdict(score) | {"logprob": _rounded(score.logprob)} for score in scores]
        return list(zip(rows, added, strict=True))
    batch, truncated = prompt_batch(
        local_examples, task, experiment.converter, experiment.vocabulary, batch_rows=each,
        max_new_tokens=experiment.cfg.eval.max_decode_tokens,
    )  # fmt: skip
    answer = predictor.answers(task)[0]
    predictions = predictor.predict(params, batch, task, answer, rows, local_examples)[: len(local_examples)]
    added = []
    for prediction, is_truncated in zip(predictions, truncated, strict=True):
        fields = {"prediction": prediction.text, "score": _rounded(prediction.score), "truncated": is_truncated}
        if prediction.probabilities is not None:
            fields["probabilities"] = {name: _rounded(share) for name, share in prediction.probabilities.items()}
        added.append(fields)
    return list(zip(rows, added, strict=True))


def _rounded(number: float) -> float | None:
    """Returns the number, rounded to 5 decimals; None if it is not finite, because JSON has no such numbers."""
    return round(number, 5) if math.isfinite(number) else None


def _progress():
    """Returns a progress bar on stderr. It shows only on process 0, and only if stderr is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = console.plain(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=terminal, disable=not terminal.is_terminal or jax.process_index() > 0)


def _needed(experiment: Experiment, task: Task) -> tuple[str, ...]:
    """Returns the names of the fields of a line that the model reads."""
    return task.encoder_fields if experiment.model.architecture == "encoder_only" else ("inputs",)


def _task(experiment: Experiment, name: str) -> Task:
    """Returns the task called `name`; without a name, the run's first supervised task.

    If the run has no supervised task, returns a task that continues any text; an encoder cannot do this. Raises
    ConfigError if the name is unknown, or if the run trained an encoder without supervised tasks.
    """
    supervised = {task.name: task for task in experiment.tasks if not task.is_corpus}
    if name:
        return lookup("task of this run", name, supervised)
    if not supervised:
        if experiment.model.architecture == "encoder_only":
            raise ConfigError(
                "this run trained an encoder on corpora alone: it has no labels to predict; use another run"
            )
        return convert.text_task(experiment.model.architecture)  # a model without supervised tasks continues any text
    return next(iter(supervised.values()))


def filled(row: Mapping, templates: Mapping[str, str]) -> dict:
    """Returns a row with its missing fields, made by `templates`. Raises ValueError if a template fails."""
    return dict(row) | {name: preprocess.fill(text, row) for name, text in templates.items() if name not in row}


def read_input(
    path: Path, needed: tuple[str, ...], added: tuple[str, ...], templates: Mapping[str, str], reading: Reading = HEADER
) -> Sequence[dict]:
    """Returns the objects of a JSON file, the rows of a CSV or TSV table, or {"inputs": line} for each line of text.

    templates: {needed field: template}. If a row lacks such a field, the template makes it.
    reading: the run's settings for reading tables, and the pattern, if any, that splits lines of text into fields.

    Tables stay on disk; JSON and text are kept in memory. Raises ConfigError if the file has the wrong format. Raises
    DataError for the first row that lacks a `needed` field or already has an `added` field; it names line and field.
    """
    kind = guessed_format.kind_of(path.name) or "text"
    if kind not in ("text", "json", "csv", "tsv") or path.suffix.lower() == ".gz":
        raise ConfigError(f"--input={path}: must be an uncompressed .jsonl, .csv, .tsv or .txt file; convert it to one")
    if kind == "text" and not reading.line_pattern:
        if needed != ("inputs",):
            raise ConfigError(
                f"--input={path} has only texts; needed fields: {', '.join(needed)}; write them as .jsonl"
            )
        rows: Sequence[dict] = [{"inputs": line.text} for line in _lines(path)]
    elif kind == "json":
        rows = list(_objects(path, needed, added, templates))
    else:
        rows = _table(path, kind, reading)  # type: ignore[assignment]
        if len(rows):
            if missing := [name for name in needed if name not in rows[0] and name not in templates]:
                raise DataError(f"{path} has the columns {', '.join(rows[0])}; a column {missing[0]!r} is needed")
            _require_fields(rows[0], needed, templates, f"{path} has the columns {', '.join(rows[0])}")
            _require_free(added, rows[0], str(path))
            if kind == "text":
                _require_groups(rows, needed, templates)  # type: ignore[arg-type]
    if not len(rows):
        raise DataError(f"{path} has no lines")
    return rows


def _table(path: Path, kind: str, reading: Reading) -> Sequence[Mapping[str, str]]:
    """Returns the rows of a CSV or TSV table, or of a text file whose lines a pattern splits."""
    of_kind = {"line_pattern": ""} if kind != "text" else {"header": None, "delimiter": ""}
    form, _ = guessed_format.format_of(str(path), tolerant=False, reading=dataclasses.replace(reading, **of_kind))
    try:
        return Files({"all": str(path)}, form).split("all")
    except DataError as error:
        if kind != "text":
            raise
        raise DataError(f"{error}; correct the line, or write the fields of the inputs as .jsonl") from None


def _require_fields(row: dict, needed: tuple[str, ...], templates: Mapping[str, str], where: str) -> dict:
    """Returns the row plus the fields that templates make. Raises DataError if a needed field is still missing."""
    try:
        example = filled(row, templates)
    except ValueError as error:
        raise DataError(
            f"{where}: a text field {needed[0]!r} is needed, and the run's templates "
            f"({', '.join(map(repr, templates.values()))}) cannot make it: {error}"
        ) from None
    if missing := [name for name in needed if name not in example]:
        raise DataError(f'{where}: no text field {missing[0]!r}; write {{"{missing[0]}": "…"}}')
    return example


def _require_groups(rows: Records, needed: tuple[str, ...], templates: Mapping[str, str]) -> None:
    """Raises DataError at the first line that lacks a needed text, because a group of the pattern takes no part in its
    match."""
    for number, row in enumerate(rows):
        try:
            example = filled(row, templates)
            if absent := [name for name in needed if not isinstance(example[name], str)]:
                raise ValueError(f"the needed field {absent[0]!r} is null")
        except ValueError as error:
            raise DataError(f"{rows.where(number)}: {error}; correct the line, or data.line_pattern") from None


def _require_free(added: tuple[str, ...], row: dict, where: str) -> None:
    for name in added:
        if name in row:
            raise DataError(f"{where}: already has a field {name!r}, which the output adds; rename it in the input")


def _lines(path: Path) -> Iterator[Line]:
    """Yields the lines of a file. Raises DataError at the first line that is not UTF-8."""
    for line in read_lines(path, str(path)):
        if line.error:
            raise line.error
        yield line


def _objects(
    path: Path, needed: tuple[str, ...], added: tuple[str, ...], templates: Mapping[str, str]
) -> Iterator[dict]:
    """Yields the objects of a JSON file. Raises DataError as `read_input` does."""
    for where, row in _located(path):
        if not isinstance(row, dict):
            raise DataError(f'{where}: not an object; write {{"{needed[0]}": "…"}}')
        example = _require_fields(row, needed, templates, where)
        for field in needed:
            fits = (str, list) if field == "tokens" else str  # "tokens" may be a list of words
            if not isinstance(example[field], fits):
                raise DataError(f'{where}: no text field {field!r}; write {{"{field}": "…"}}')
            if HALF.search(str(example[field])):
                raise DataError(f"{where}: {field!r} holds half of a surrogate pair, not a character; remove it")
        _require_free(added, row, where)
        yield row


def _located(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (place, value) for each line of a JSONL file that is not blank, or for each record of a JSON document."""
    if path.suffix.lower() == ".json" and (document := json_documents.document(str(path))):
        records = Files({"all": str(path)}, document).split("all")
        yield from ((f"{path}: record {number}", row) for number, row in enumerate(records, 1))
        return
    for line in _lines(path):
        if line.text.strip():
            where = f"{path}:{line.number}"
            try:
                yield where, json.loads(line.text)
            except (ValueError, RecursionError) as error:
                raise DataError(f'{where}: not a JSON object ({error}); write {{"inputs": "…"}}') from None


def open_output(path: Path) -> TextIO:
    """Opens the file to append to it, and locks it. Without the lock, two processes could write the same lines.

    Raises ConfigError if the file cannot be opened, or if another process has locked it.
    """
    try:
        file = path.open("a+", encoding="utf-8")
        if not path.is_file():  # a device, of which no line can be read back
            file.close()
            raise OSError(errno.EINVAL, "it is not a regular file")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {side_files.why(error)}; use another --output") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"another process is writing {path}; wait for it, stop it, or use another --output") from None
    except OSError:  # the disk does not support locks
        pass
    return file


def _settings(experiment: Experiment, checkpoint: Path, mode: str, task: Task, results: tuple[str, ...]) -> dict:
    """Returns the settings that determine the output lines. `eval.batch_rows` and the devices are not among them."""
    data, evaluation = experiment.cfg.data.to_dict(), experiment.cfg.eval.to_dict()
    del evaluation["batch_rows"]
    settings = {
        "checkpoint": manifest.identity(checkpoint),
        "mode": mode,
        "task": task.name,
        "fields": list(results),
        "seed": experiment.cfg.seed,
        "vocabulary": experiment.vocabulary.fingerprint,
        "data": data,
        "eval": evaluation,
    }
    return json.loads(json.dumps(settings))


def _settings_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.settings.json")


def set_aside_damaged(output: Path) -> None:
    """If the file of an output's settings is damaged, renames both files, so that all lines are computed again."""
    file = _settings_file(output)
    try:
        side_files.read_json(file)
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        damaged = [path for path in (file, output) if side_files.is_there(path)]
        targets = " and ".join(side_files.set_aside(path).name for path in damaged)
        reason = side_files.why(error)
        logging.getLogger(__name__).warning("%s is damaged (%s): starting again; see %s", file, reason, targets)


def _require_same(path: Path, settings: dict) -> None:
    """Raises ConfigError if the output `path` was written with other settings. If it is empty, stores the settings."""
    settings_file = _settings_file(path)
    if not path.stat().st_size:
        atomic.write_output(settings_file, json.dumps(settings, indent=1))
        return
    try:
        settings_before = side_files.read_json(settings_file)
    except (OSError, ValueError, RecursionError):
        raise ConfigError(
            f"{path} is not empty, and {settings_file.name}, which names its settings, is missing or not readable; "
            "use another --output, or remove the file"
        ) from None
    if differing := list(registry.differences(settings_before, settings)):
        raise ConfigError(
            f"{path} was written with a different checkpoint or settings: {'; '.join(differing[:3])}. "
            "Use the same ones, use another --output, or remove the file"
        )


def resume(path: Path, examples: Sequence[dict], added: dict, chunk: int = 1) -> int:
    """Returns how many lines of the output `path` are done. Removes an incomplete last chunk, which a kill may leave.

    Lines are done if they form complete chunks, or if every example has its line.
    added: {field that the output adds: its value in every line}. The value None allows any value.
    chunk: the number of lines in a chunk.

    Raises ConfigError unless the lines are the results of the first examples: each line must have the fields of its
    example, with the same values, and the fields of `added`. The error leaves the file unchanged.
    """
    data = path.read_bytes()
    complete = data.rfind(b"\n") + 1  # bytes of complete lines
    lines, rest = data[:complete].splitlines(), data[complete:]

    def is_result(number: int, raw: bytes) -> bool:
        try:
            row = json.loads(raw)
        except ValueError:
            return False
        expected = examples[number] | added
        return isinstance(row, dict) and all(k in row and v in (None, row[k]) for k, v in expected.items())

    fits = len(lines) <= len(examples) and all(is_result(*line) for line in enumerate(lines))
    if rest and fits:
        begins = dumps(examples[len(lines)])[:-1].encode() if len(lines) < len(examples) else b""
        fits = bool(begins) and rest[: len(begins)] == begins[: len(rest)]
    if not fits:
        raise ConfigError(
            f"{path} does not hold the first results of this input, --mode and --checkpoint; "
            "use another --output, or remove the file"
        )
    done = len(lines) if len(lines) == len(examples) else len(lines) - len(lines) % chunk
    if rest or done < len(lines):
        with path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines[:done]))
    return done


def dumps(row: dict) -> str:
    """Returns a row as JSON that UTF-8 can encode. Half of a surrogate pair stays escaped, as in the input."""
    text = json.dumps(row, ensure_ascii=False)
    return json.dumps(row) if HALF.search(text) else text
