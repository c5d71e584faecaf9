"""Bulk prediction: every line of a JSONL file in, one line out in the same order, resumable.

Output lines repeat the input's fields and add "prediction" and "score" (or, scoring, "logprob" and "tokens"), and
"step", the checkpoint's. Chunks are written whole; after a kill the same command goes on behind the last complete
line. What else stands in the output file is never touched: it is an error.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from t5x_lite import predict, runtime
from t5x_lite.checkpoint import choose, load_model, saved_steps
from t5x_lite.data import pipeline
from t5x_lite.data.registry import Task
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluate import best_step
from t5x_lite.experiment import Experiment
from t5x_lite.lookup import lookup
from t5x_lite.writers import read_metrics


def run(
    experiment: Experiment, workdir: Path, source: Path, output: Path, which: str, mode: str, task_name: str
) -> None:
    """The verb `infer`: predicts (or scores) every line of `source` with the checkpoint `which` of `workdir`."""
    cfg = experiment.cfg
    task = _task(experiment, task_name)
    if mode == "score" and experiment.model.architecture == "encoder_only":
        raise ConfigError("--mode=score needs a model that gives text a probability; encoder-only models have none")
    examples = list(_read(source, needed=("inputs", "targets") if mode == "score" else ("inputs",)))
    best = best_step(read_metrics(workdir), cfg.checkpoint.keep_best, saved_steps(workdir))
    step = choose(workdir, which, best)[-1]
    added = {"step": step, **dict.fromkeys(("prediction", "score") if mode == "predict" else ("logprob", "tokens"))}
    done = _resume(output, examples, added)
    on_devices = runtime.start(experiment)
    params = load_model(workdir, step, on_devices.abstract_params())
    predictor = predict.Predictor(experiment, on_devices)
    with output.open("a", encoding="utf-8") as out:
        for begin in range(done, len(examples), cfg.eval.batch_rows):
            chunk = examples[begin : begin + cfg.eval.batch_rows]
            shape = {"batch_rows": cfg.eval.batch_rows}
            if mode == "predict":
                shape["max_new_tokens"] = cfg.eval.max_decode_tokens
                batch = pipeline.prompt_batch(chunk, task, experiment.converter, experiment.vocabulary, **shape)
                found = predictor.predict(params, batch, task)
                extra = [{"prediction": p.text, "score": round(p.score, 5)} for p in found]
            else:
                batch = pipeline.example_batch(chunk, task, experiment.converter, experiment.vocabulary, **shape)
                extra = [{"logprob": round(lp, 5), "tokens": n} for lp, n in predictor.score(params, batch)]
            lines = [_dumps(e | x | {"step": step}) for e, x in zip(chunk, extra, strict=False)]
            out.write("\n".join(lines) + "\n")
            out.flush()
    print(f"{len(examples)} lines in {output}" + (f", {done} of them from before" if done else ""))


def _task(experiment: Experiment, name: str) -> Task:
    """The task whose labels an encoder predicts; generation needs none, any supervised one will do."""
    supervised = {task.name: task for task in experiment.tasks if not task.is_corpus}
    if name:
        return lookup("task of this run", name, supervised)
    if not supervised:
        if experiment.model.architecture == "encoder_only":
            raise ConfigError("this run trained no classification or regression task; there is nothing to predict")
        return Task("text", source=None)  # type: ignore[arg-type]  (a pure language model continues any text)
    return next(iter(supervised.values()))


def _read(path: Path, needed: tuple[str, ...]) -> Iterator[dict]:
    """The objects of a JSONL file; DataError names line and field of the first that lacks one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    for number, raw in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f'{path}:{number}: not a JSON object in UTF-8 ({error}); write {{"inputs": "…"}}') from None
        for field in needed:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise DataError(f'{path}:{number}: no text field {field!r}; write {{"{field}": "…"}}')
        yield row


def _resume(path: Path, examples: list[dict], added: dict) -> int:
    """How many lines of `path` are done; a last one cut off by a kill is removed. ConfigError, and nothing changed,
    where the file holds anything but first results of these examples: with the fields of `added`, and its values where
    they are not None."""
    try:
        path.open("a").close()
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another --output") from error
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
        begins = _dumps(examples[len(lines)])[:-1].encode() if len(lines) < len(examples) else b""
        fits = bool(begins) and rest[: len(begins)] == begins[: len(rest)]
    if not fits:
        raise ConfigError(
            f"{path} holds something else than the first results of this input, --mode and --checkpoint; "
            "give another --output, or remove the file"
        )
    if rest:
        with path.open("r+b") as file:
            file.truncate(whole)
    return len(lines)


def _dumps(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False)
