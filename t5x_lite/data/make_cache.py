"""Makes the caches of tasks, on this machine or on Apache Beam. (cache.py describes and reads the files.)

Every file is written atomically, so after a kill the job resumes with the missing shards. Making a shard takes constant
memory, whatever its size.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from t5x_lite import atomic
from t5x_lite.data.cache import DTYPES, Job, job_for, random_preprocessor, read_json, require_same
from t5x_lite.data.fields import label, number, text_of, vocabulary_of
from t5x_lite.data.reader import Reader
from t5x_lite.data.registry import Task
from t5x_lite.data.sentence_pairs import sentences
from t5x_lite.data.targets import Number
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import ConfigError, DataError

EXAMPLES_TOGETHER = 256  # tokenised in one call
STALE_S = 3600  # seconds; a partial file that has not changed for this long was left by a killed process


def run(
    tasks: Sequence[Task],
    converter: Any,
    vocabulary: Vocabulary,
    output: Path,
    *,
    workers: int = 1,
    beam_flags: Sequence[str] | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Caches each task. Skips tasks with a random preprocessor, because training reads them without a cache.

    workers: processes on this machine.
    beam_flags: flags for Apache Beam, which then makes the caches; None: this machine makes them.
    report: called with each line of progress.
    Raises ConfigError if the only task has a random preprocessor, or if a cache cannot be written. Raises DataError if
    a task has no examples, or if the directory holds a different cache.
    """
    alone = len(tasks) == 1
    for task in tasks:
        if not alone and (reason := random_preprocessor(task)):
            report(f"{task.name}: not cached, because its preprocessor {reason} is random; runs read its source")
    jobs = [job_for(t, converter, vocabulary, output) for t in tasks if alone or not random_preprocessor(t)]
    manifests = make_on_beam(jobs, beam_flags) if beam_flags is not None else [make(j, workers, report) for j in jobs]
    for made, manifest in zip(jobs, manifests, strict=True):
        report(
            f"{made.task.name}: {manifest['kept']:,} of {manifest['examples']:,} examples, "
            f"{manifest['tokens']:,} tokens, {manifest['bytes'] / 1e6:.1f} MB in {made.directory}"
        )
    report(f"train on it with --config.data.cache_dir={output}")


def make(job: Job, workers: int = 1, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Makes the missing shards, `workers` at a time, then writes and returns the manifest.

    If the cache is complete, verifies the sha256 of every shard. A shard whose sha256 differs counts as missing. Raises
    DataError if the directory holds a different cache, ConfigError if the cache cannot be written.
    """
    begin(job)
    missing = _missing_shards(job)
    kept = job.shards - len(missing)
    report(
        f"{job.task.name}: {job.recipe['examples']:,} examples in {job.shards} shards"
        + (f", {kept} already made" * (kept > 0))
    )
    for done, shard in enumerate(_each(job, missing, workers), kept + 1):
        report(f"{job.task.name}: {done}/{job.shards} shards, {shard['tokens']:,} tokens in the latest")
    return finish(job)


def begin(job: Job) -> None:
    """Writes the recipe of a cache. Raises DataError if the directory holds a different recipe, ConfigError if the
    recipe cannot be written."""
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        if (job.directory / "recipe.json").exists():
            require_same(job, read_json(job.directory / "recipe.json"), f"{job.directory} holds a different cache")
        atomic.write(job.directory / "recipe.json", json.dumps(job.recipe, indent=1).encode())
    except OSError as error:
        raise ConfigError(
            f"cannot write the cache {job.directory}: {error.strerror}; use a different --output"
        ) from error


def make_shard(job: Job, shard: int) -> dict[str, Any]:
    """Writes one shard and its counts, and returns the counts. Raises ConfigError if the files cannot be written."""
    size, columns = job.recipe["shard_examples"], _columns(job)
    end = min((shard + 1) * size, job.recipe["examples"])
    reader, counts = Reader(job.task, "train"), {"examples": end - shard * size, "kept": 0, "tokens": 0}
    try:
        with contextlib.ExitStack() as stack:
            parts = {name: stack.enter_context(tempfile.TemporaryFile(dir=job.directory)) for name in columns}
            before = {name: np.zeros(1, np.int64) for name in columns if name.endswith(".offsets")}
            for name in before:
                parts[name].write(before[name].tobytes())
            for at in range(shard * size, end, EXAMPLES_TOGETHER):
                arrays = _arrays_of(job, reader, range(at, min(at + EXAMPLES_TOGETHER, end)))
                counts["kept"] += int(arrays["kept"].sum())
                counts["tokens"] += sum(len(arrays[f"{field}.ids"]) for field in job.recipe["fields"])
                for name, array in arrays.items():
                    if name in before:
                        array = before[name] = before[name][-1] + array
                    parts[name].write(array.astype(DTYPES[columns[name]], copy=False).tobytes())
            counts |= _write(job.path(shard, ".safetensors"), columns, parts)
        atomic.write(job.path(shard, ".json"), json.dumps(counts).encode())
    except OSError as error:
        raise ConfigError(
            f"cannot write the cache {job.directory}: {error.strerror}; free disk space and run again"
        ) from error
    return counts


def _columns(job: Job) -> dict[str, str]:
    """Returns {column of a shard: its type in safetensors}, in the order of the file."""
    ids = "U16" if job.vocabulary.size <= 2**16 else "I32"
    fields = dict.fromkeys(job.recipe["fields"], ids) | ({"sentences": "I32"} if job.recipe["sentences"] else {})
    types = {f"{field}.offsets": "I64" for field in fields} | {f"{field}.ids": kind for field, kind in fields.items()}
    types |= {"kept": "BOOL"} | ({"label": "F64"} if job.recipe["labels"] else {})
    return dict(sorted(types.items(), key=lambda item: list(DTYPES).index(item[1])))


def _write(path: Path, columns: Mapping[str, str], parts: Mapping[str, BinaryIO]) -> dict[str, Any]:
    """Joins the columns, one file per column, into one safetensors file. Returns the size (bytes) and the sha256 of
    that file."""
    header, at, hashed = {}, 0, hashlib.sha256()
    for name, kind in columns.items():
        size = parts[name].tell()
        header[name] = {
            "dtype": kind,
            "shape": [size // np.dtype(DTYPES[kind]).itemsize],
            "data_offsets": [at, at + size],
        }
        at += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with atomic.file(path) as out:

        def write(block: bytes) -> None:
            hashed.update(block)
            out.write(block)

        write(len(head).to_bytes(8, "little") + head)
        for name in columns:
            parts[name].seek(0)
            while block := parts[name].read(1 << 20):
                write(block)
    return {"bytes": 8 + len(head) + at, "sha256": hashed.hexdigest()}


def finish(job: Job) -> dict[str, Any]:
    """Writes and returns the manifest of a cache that has all its shards. The manifest includes the totals over all
    shards, so that a reader need not open the shards. Raises DataError if the preprocessors dropped every example."""
    shards = [read_json(job.path(shard, ".json")) for shard in range(job.shards)]
    totals = {name: sum(shard[name] for shard in shards) for name in ("examples", "kept", "tokens", "bytes")}
    if not totals["kept"]:
        raise DataError(f"task {job.task.name!r} has no example left of {totals['examples']} after its preprocessors")
    for partial in job.directory.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if partial.stat().st_mtime < time.time() - STALE_S:
                partial.unlink()
    manifest = {"recipe": dict(job.recipe), **totals, "shards": shards}
    atomic.write(job.directory / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def make_on_beam(jobs: Sequence[Job], flags: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Makes the caches on Apache Beam (`pip install t5x-lite[beam]`), whose runner distributes the shards to workers.
    Returns the manifests. The files are the same as those that `make` writes.

    The output directory and the task's files must have the same paths on every worker (NFS, Filestore, a mounted
    bucket). Workers need this package and the code that defines the task. `flags` are Beam's own, for example:

        (none)                                                          this machine, one process
        --direct_num_workers=8 --direct_running_mode=multi_processing   this machine, 8 processes
        --runner=DataflowRunner --project=P --region=R --temp_location=gs://B/tmp --sdk_container_image=I
                                                                        Google Cloud Dataflow; image I has the package
        --runner=FlinkRunner --flink_master=HOST:8081 --environment_type=LOOPBACK
                                                                        a Flink cluster; LOOPBACK: workers run here

    If a runner makes a shard twice, no harm is done: both attempts write the same bytes. After a failure, a second run
    makes only the missing shards.
    Raises ConfigError if Beam is not installed.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--runner=beam needs Apache Beam; pip install 't5x-lite[beam]'") from error
    for job in jobs:
        begin(job)
    missing = [(number, shard) for number, job in enumerate(jobs) for shard in _missing_shards(job)]
    with beam.Pipeline(options=PipelineOptions(list(flags), save_main_session=False)) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(missing)
            | "spread" >> beam.Reshuffle()
            | "make" >> beam.MapTuple(lambda number, shard: make_shard(jobs[number], shard)["examples"])
        )
    return [finish(job) for job in jobs]


def _each(job: Job, shards: Sequence[int], workers: int) -> Iterator[dict[str, Any]]:
    """Makes shards, and yields each shard's counts when the shard is complete."""
    workers = min(workers, len(shards))
    if workers <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from (make_shard(job, shard) for shard in shards)
        return
    # Workers are forked, because most tasks cannot be pickled: they hold functions of a config file.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), initializer=_adopt, initargs=(job, os.getpid())
    )
    with pool:
        futures = [pool.submit(_make_adopted, shard) for shard in shards]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _adopt(job: Job, parent: int) -> None:
    """Initialises a worker process. The worker exits when its parent does, even if the parent is killed."""
    global _adopted
    _adopted = job

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_adopted: Job | None = None


def _make_adopted(shard: int) -> dict[str, Any]:
    assert _adopted is not None
    return make_shard(_adopted, shard)


def _arrays_of(job: Job, reader: Reader, indices: range) -> dict[str, np.ndarray]:
    """Returns {column: 1-D array} for the preprocessed and tokenised examples at `indices`. In a column of offsets,
    each value is the end of an example."""
    task, vocabulary, recipe = job.task, job.vocabulary, job.recipe
    examples = [reader.read(index, _no_rng) for index in indices]
    arrays = {"kept": np.array([example is not None for example in examples])}
    columns: dict[str, list[np.ndarray]] = {}
    for field in recipe["fields"]:
        texts = ["" if e is None else text_of(e, field, task) for e in examples]
        if recipe["sentences"]:
            parts = [[ids for ids in vocabulary.encode(sentences(text)) if len(ids)] for text in texts]
            columns[field] = [np.concatenate([*document, np.zeros(0, np.int32)]) for document in parts]
            columns["sentences"] = [np.fromiter(map(len, document), np.int32, len(document)) for document in parts]
        else:
            columns[field] = vocabulary_of(field, vocabulary).encode(texts)
    for field, rows in columns.items():
        arrays[f"{field}.ids"] = np.concatenate(rows)
        arrays[f"{field}.offsets"] = np.cumsum([len(row) for row in rows], dtype=np.int64)
    if recipe["labels"]:
        read = number if isinstance(task.target, Number) else label
        arrays["label"] = np.array([0.0 if example is None else read(example, task) for example in examples])
    return arrays


def _no_rng() -> np.random.Generator:
    raise AssertionError("a task with a random preprocessor is not cached")


def _missing_shards(job: Job) -> list[int]:
    return [shard for shard in range(job.shards) if not _is_complete(job, shard)]


def _is_complete(job: Job, shard: int) -> bool:
    """Returns whether a shard has been written. If the cache has a manifest, also compares the shard's sha256."""
    data, counts = job.path(shard, ".safetensors"), job.path(shard, ".json")
    if not (data.exists() and counts.exists()):
        return False
    try:
        expected = read_json(counts)
    except DataError:  # corrupted, so that the shard is made again
        return False
    if data.stat().st_size != expected.get("bytes"):
        return False
    if not (job.directory / "manifest.json").exists():
        return True
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected["sha256"]
