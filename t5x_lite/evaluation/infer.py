"""Bulk prediction: every line of a JSONL, CSV or text file in, one line out in the same order, resumable.

Output lines repeat the input's fields and add "prediction" and "score" (or, scoring, "logprob" and "tokens"), and
"truncated", of a text that does not fit in the run's rows, and "step", the checkpoint's. Chunks are written by one
process however many compute; after a kill the same command goes on behind the last whole chunk, so that it ends with
the very lines of a run that was never killed. `OUTPUT.settings.json` says by which checkpoint and settings: with others
it does not go on. What else stands in the output file is never touched: it is an error.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from t5x_lite import atomic, console, runtime
from t5x_lite.checkpoints import manifest
from t5x_lite.checkpoints.checkpoint import DIRECTORY, load_model
from t5x_lite.cluster import processes, sharding
from t5x_lite.data import convert, local_files, registry
from t5x_lite.data.eval_batches import prompt_batch
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Csv
from t5x_lite.data.text_lines import Line, read_lines
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation import predict
from t5x_lite.evaluation.evaluate import chosen_steps
from t5x_lite.experiment import Experiment
from t5x_lite.lookup import lookup

HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


def run(
    experiment: Experiment, workdir: Path, source: Path, output: Path, which: str, mode: str, task_name: str
) -> None:
    """The verb `infer`: predicts (or scores) every line of `source` with the checkpoint `which` of `workdir`."""
    cfg = experiment.cfg
    task = _task(experiment, task_name)
    if mode == "score" and experiment.model.architecture == "encoder_only":
        raise ConfigError("--mode=score needs a model that gives text a probability; encoder-only models have none")
    needed = ("inputs", "targets") if mode == "score" else _needed(experiment, task)
    results = (*(("prediction", "score") if mode == "predict" else ("logprob", "tokens")), "truncated")
    examples = read_input(source, needed, added=("step", *results))
    if which == "all":
        raise ConfigError("--checkpoint=all: lines are of one checkpoint; give latest, best or a step")
    (step,) = chosen_steps(workdir, which, cfg.checkpoint.keep_best)
    settings = _settings(experiment, workdir / DIRECTORY / str(step), mode, task)
    added = {"step": step, **dict.fromkeys(results)}
    with contextlib.ExitStack() as closing:
        is_first = jax.process_index() == 0
        out = processes.on_each(lambda: closing.enter_context(open_output(output)) if is_first else None)
        processes.on_first(lambda: _require_same(output, settings))
        done = processes.on_first(lambda: resume(output, examples, added, cfg.eval.batch_rows))
        on_devices = runtime.start(experiment)
        params = load_model(workdir, step, on_devices.abstract_params())
        predictor = predict.Predictor(experiment, on_devices)
        progress = closing.enter_context(_progress())
        bar = progress.add_task(output.name, total=len(examples), completed=done)
        truncated = 0
        for begin in range(done, len(examples), cfg.eval.batch_rows):
            end = min(begin + cfg.eval.batch_rows, len(examples))
            mine = _results(predictor, params, task, mode, examples, range(begin, end))
            found = dict(processes.gather(mine))  # hosts that share rows have the same ones
            if out is not None:
                lines = (dumps(examples[i] | found[i] | {"step": step}) + "\n" for i in range(begin, end))
                out.write("".join(lines))
                out.flush()
                os.fsync(out.fileno())  # a chunk is on disk before the next begins
            truncated += sum(found[i]["truncated"] for i in range(begin, end))
            progress.update(bar, completed=end)
    if out is not None:
        with console.optional(sys.stdout):
            print(f"{len(examples)} lines in {output}" + (f", {done} of them from before" if done else ""))
            if truncated:
                print(f"{truncated} of them longer than this run's rows, and cut (--config.data.length)")


def _results(
    predictor: predict.Predictor, params: Any, task: Task, mode: str, examples: Sequence[dict], chunk: range
) -> list[tuple[int, dict]]:
    """(number, what is added) of those rows of a chunk that are this process's."""
    experiment, batch_rows = predictor.experiment, predictor.experiment.cfg.eval.batch_rows
    share = sharding.input_shard(predictor.on_devices.layout, batch_rows)
    each = batch_rows // share["shard_count"]
    rows = chunk[share["shard_index"] * each : (share["shard_index"] + 1) * each]
    mine = [examples[i] for i in rows]
    if mode == "score":
        scores = predictor.score(params, mine, task, each)
        found = [dataclasses.asdict(score) | {"logprob": _rounded(score.logprob)} for score in scores]
        return list(zip(rows, found, strict=True))
    batch, truncated = prompt_batch(
        mine, task, experiment.converter, experiment.vocabulary, batch_rows=each,
        max_new_tokens=experiment.cfg.eval.max_decode_tokens,
    )  # fmt: skip
    found = predictor.predict(params, batch, task, predictor.answers(task)[0], rows, mine)[: len(mine)]
    return [
        (i, {"prediction": p.text, "score": _rounded(p.score), "truncated": cut})
        for i, p, cut in zip(rows, found, truncated, strict=True)
    ]


def _rounded(number: float) -> float | None:
    """None where it is not finite, which JSON has no word for."""
    return round(number, 5) if math.isfinite(number) else None


def _progress():
    """A bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=terminal, disable=not terminal.is_terminal or jax.process_index() > 0)


def _needed(experiment: Experiment, task: Task) -> tuple[str, ...]:
    """The fields that a model reads of a line."""
    return task.encoder_fields if experiment.model.architecture == "encoder_only" else ("inputs",)


def _task(experiment: Experiment, name: str) -> Task:
    """The task whose labels an encoder predicts; generation needs none, any supervised one will do."""
    supervised = {task.name: task for task in experiment.tasks if not task.is_corpus}
    if name:
        return lookup("task of this run", name, supervised)
    if not supervised:
        if experiment.model.architecture == "encoder_only":
            raise ConfigError("this run trained an encoder on corpora alone; there is nothing to predict")
        return convert.text_task(experiment.model.architecture)  # it continues any text
    return next(iter(supervised.values()))


def read_input(path: Path, needed: tuple[str, ...], added: tuple[str, ...]) -> Sequence[dict]:
    """The objects of a JSON-lines file, the rows of a CSV or TSV table, or each line of a text as {"inputs": …}. Tables
    stay on disk; JSON lines and text are kept in memory.

    DataError, with line and field, for the first row that lacks a `needed` field, or has one that will be `added`.
    """
    kind = local_files.kind_of(path.name) or "text"
    if kind not in ("text", "json", "csv", "tsv") or path.suffix.lower() == ".gz":
        raise ConfigError(f"--input={path}: .jsonl, .csv, .tsv and .txt are read, unpacked; write it as one of them")
    if kind == "text":
        if needed != ("inputs",):
            raise ConfigError(f"--input={path} has texts alone; {', '.join(needed)} are needed: write them as .jsonl")
        rows: Sequence[dict] = [{"inputs": line.text} for line in _lines(path)]
    elif kind == "json":
        rows = list(_objects(path, needed, added))
    else:
        rows = Csv({"all": str(path)}, delimiter="\t" if kind == "tsv" else ",").split("all")  # type: ignore[assignment]
        for field in needed:
            if field not in rows[0]:
                raise DataError(f"{path} has the columns {', '.join(rows[0])}; a column {field!r} is needed")
        _require_free(added, rows[0], str(path))
    if not len(rows):
        raise DataError(f"{path} has no line")
    return rows


def _require_free(added: tuple[str, ...], row: dict, where: str) -> None:
    for name in added:
        if name in row:
            raise DataError(f"{where}: the output adds a field {name!r}, which is there; rename it")


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a UTF-8 file; DataError for the first that is not UTF-8."""
    for line in read_lines(path, str(path)):
        if line.error:
            raise line.error
        yield line


def _objects(path: Path, needed: tuple[str, ...], added: tuple[str, ...]) -> Iterator[dict]:
    """The objects of a JSONL file; blank lines are skipped."""
    for line in _lines(path):
        if not line.text.strip():
            continue
        where = f"{path}:{line.number}"
        try:
            row = json.loads(line.text)
        except (ValueError, RecursionError) as error:
            raise DataError(f'{where}: not a JSON object ({error}); write {{"inputs": "…"}}') from None
        for field in needed:
            fits = (str, list) if field == "tokens" else str  # words may stand in a list
            if not isinstance(row, dict) or not isinstance(row.get(field), fits):
                raise DataError(f'{where}: no text field {field!r}; write {{"{field}": "…"}}')
            if HALF.search(str(row[field])):
                raise DataError(f"{where}: {field!r} holds half of a surrogate pair, which is no character")
        _require_free(added, row, where)
        yield row


def open_output(path: Path) -> TextIO:
    """The file, opened to append to and locked: two processes that go on from the same line would write the rest twice.
    ConfigError when it cannot be opened, or another process has locked it."""
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another --output") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"another process writes {path}; wait for it, stop it, or give another --output") from None
    except OSError:  # a disk without locks
        pass
    return file


def _settings(experiment: Experiment, checkpoint: Path, mode: str, task: Task) -> dict:
    """What decides the lines: not how many are computed at once, nor on which devices."""
    data, evaluation = experiment.cfg.data.to_dict(), experiment.cfg.eval.to_dict()
    del evaluation["batch_rows"]
    settings = {
        "checkpoint": manifest.identity(checkpoint),
        "mode": mode,
        "task": task.name,
        "seed": experiment.cfg.seed,
        "vocabulary": experiment.vocabulary.fingerprint,
        "data": data,
        "eval": evaluation,
    }
    return json.loads(json.dumps(settings))


def _require_same(path: Path, settings: dict) -> None:
    """ConfigError where `path` was begun with others; of an empty file, they are written beside it."""
    beside = path.with_name(f"{path.name}.settings.json")
    if not path.stat().st_size:
        atomic.write(beside, json.dumps(settings, indent=1))
        return
    try:
        theirs = json.loads(beside.read_bytes())
    except (OSError, ValueError):
        raise ConfigError(
            f"{path} holds something, and no {beside.name} says by which settings; give another --output, or remove it"
        ) from None
    if differing := list(registry.differences(theirs, settings)):
        raise ConfigError(
            f"{path} was begun with another checkpoint or other settings: {'; '.join(differing[:3])}. "
            "Give the same, or another --output, or remove the file"
        )


def resume(path: Path, examples: Sequence[dict], added: dict, chunk: int = 1) -> int:
    """How many lines of `path` are done: complete chunks, or all. What a kill left after them is removed.

    ConfigError, without a change to the file, unless it holds the first results of these examples, with the fields of
    `added` and those of its values that are not None.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    lines, rest = data[:whole].splitlines(), data[whole:]

    def ours(number: int, raw: bytes) -> bool:
        try:
            row = json.loads(raw)
        except ValueError:
            return False
        wanted = examples[number] | added
        return isinstance(row, dict) and all(k in row and v in (None, row[k]) for k, v in wanted.items())

    fits = len(lines) <= len(examples) and all(ours(*line) for line in enumerate(lines))
    if rest and fits:
        begins = dumps(examples[len(lines)])[:-1].encode() if len(lines) < len(examples) else b""
        fits = bool(begins) and rest[: len(begins)] == begins[: len(rest)]
    if not fits:
        raise ConfigError(
            f"{path} holds something else than the first results of this input, --mode and --checkpoint; "
            "give another --output, or remove the file"
        )
    done = len(lines) if len(lines) == len(examples) else len(lines) - len(lines) % chunk
    if rest or done < len(lines):
        with path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines[:done]))
    return done


def dumps(row: dict) -> str:
    """A row as JSON that UTF-8 can encode: half of a surrogate pair is escaped, as in the input."""
    text = json.dumps(row, ensure_ascii=False)
    return json.dumps(row) if HALF.search(text) else text
