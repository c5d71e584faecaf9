"""Tasks preprocessed and tokenised once, on disk: `t5x-lite cache` makes them, `data.cache_dir` reads them.

What is the same in every epoch is cached, which is the task's own part: its preprocessors and its token ids. The
objective's noise, packing and order stay with the run, so the batches are those of the uncached task, bit for bit.

    DIR/TASK/train/recipe.json                       what it is made from; another recipe is another cache
    DIR/TASK/train/00003-of-00016.safetensors        the examples 3·n to 4·n − 1 of the source, by its own numbers
    DIR/TASK/train/00003-of-00016.json               that shard is whole: its counts, bytes and sha256
    DIR/TASK/train/manifest.json                     the cache is whole: recipe, totals and all shards

A shard holds, for each field, `FIELD.ids` (all texts one after the other; uint16 where the vocabulary allows, else
int32) and `FIELD.offsets` (int64: where each begins, and the last ends); `kept` (bool: not dropped by a preprocessor);
of a corpus that an encoder reads, `sentences.ids` (their lengths) and offsets; of a task with labels, `label`
(float64).

safetensors and not ArrayRecord, because training reads in a shuffled order: out of a memory map an example costs 2 µs,
an ArrayRecord's random access 40 µs (array_record 0.8, groups of one, batches of 64), which for texts of 100 tokens is
2 million tokens a second before anything is done with them.

Every file appears under its name whole or not at all, so a job that was killed goes on with the shards it lacks.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import mmap
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite import atomic
from t5x_lite.data import preprocess, registry
from t5x_lite.data.convert import Encoded, EncoderOnly, label, sentences, text_of
from t5x_lite.data.registry import Task
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import ConfigError, DataError

FORMAT = 1  # of the files; another one is another recipe
SHARDS = 64  # at most, as each is a memory map of the training process
MIN_SHARD_EXAMPLES = 4096
EXAMPLES_TOGETHER = 256  # tokenised in one call
OPEN_SHARDS = 512  # memory maps kept, of all tasks; each holds a file descriptor


@dataclasses.dataclass(frozen=True)
class Job:
    """One split of one task, to be cached in `directory`."""

    task: Task
    vocabulary: Vocabulary
    recipe: Mapping[str, Any]
    directory: Path

    @property
    def shards(self) -> int:
        return -(-self.recipe["examples"] // self.recipe["shard_examples"])

    def path(self, shard: int, suffix: str) -> Path:
        return self.directory / f"{shard:05d}-of-{self.shards:05d}{suffix}"


def job(task: Task, converter: Any, vocabulary: Vocabulary, output: Path, split: str = "train") -> Job:
    """What there is to do for a task; ConfigError where it cannot be cached, DataError where it has no such split."""
    if reason := random_preprocessor(task):
        raise ConfigError(
            f"task {task.name!r} cannot be cached: its preprocessor {reason} draws at random, so that every epoch "
            "differs. Train on it without a cache, or take the random part out of the task"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", task.name) or set(task.name) <= {"."}:
        raise ConfigError(f"task {task.name!r} cannot name a directory; use letters, digits and _.- (at most 128)")
    identity = registry.identity(task, split)
    examples = identity["examples"]
    if not examples:
        raise DataError(f"task {task.name!r} has no example in split {split!r}; check its source")
    recipe = {
        "format": FORMAT,
        "task": task.name,
        "split": split,
        **identity,
        "vocabulary": vocabulary.fingerprint,
        **_reading(task, converter),
        "shard_examples": max(MIN_SHARD_EXAMPLES, -(-examples // SHARDS)),
    }
    return Job(task, vocabulary, recipe, Path(output) / task.name / split)


def random_preprocessor(task: Task) -> str:
    """The name of the first preprocessor that draws at random; "" when there is none."""
    return next((preprocess.identity(f).split("#")[0] for f in task.preprocessors if preprocess.takes_rng(f)), "")


def _reading(task: Task, converter: Any) -> dict[str, Any]:
    """What an architecture reads of a task: fields as texts or sentence by sentence, and what `targets` stand for."""
    encoder = isinstance(converter, EncoderOnly)
    if task.is_corpus:
        return {"fields": ["text"], "sentences": encoder, "labels": []}
    fields = list(task.segments) if encoder else ["inputs", "targets"]
    return {"fields": fields, "sentences": False, "labels": "number" if task.regression else list(task.labels)}


# ------------------------------------------------------------------------------------------------------------- making


def run(
    tasks: Sequence[Task],
    converter: Any,
    vocabulary: Vocabulary,
    output: Path,
    *,
    split: str = "train",
    workers: int = 1,
    beam_flags: Sequence[str] | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Caches a split of each task; of several, those that draw at random are left out, as training does without.

    workers: processes. beam_flags: not None to do it on Apache Beam.
    """
    alone = len(tasks) == 1
    for task in tasks:
        if not alone and (reason := random_preprocessor(task)):
            report(f"{task.name}: left out, its preprocessor {reason} draws at random; it is read without a cache")
    jobs = [job(t, converter, vocabulary, output, split) for t in tasks if alone or not random_preprocessor(t)]
    manifests = make_on_beam(jobs, beam_flags) if beam_flags is not None else [make(j, workers, report) for j in jobs]
    for made, manifest in zip(jobs, manifests, strict=True):
        report(
            f"{made.task.name}: {manifest['kept']:,} of {manifest['examples']:,} examples, "
            f"{manifest['tokens']:,} tokens, {manifest['bytes'] / 1e6:.1f} MB in {made.directory}"
        )
    report(f"train on it with --config.data.cache_dir={output}")


def make(job: Job, workers: int = 1, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Makes the shards that are not there yet, `workers` at a time, then the manifest, which it returns.

    A cache that is whole is checked against its sha256s; shards that differ are made again. Raises DataError where
    the directory holds another cache, ConfigError where it cannot be written.
    """
    begin(job)
    missing = [shard for shard in range(job.shards) if not _is_whole(job, shard)]
    kept = job.shards - len(missing)
    report(
        f"{job.task.name}: {job.recipe['examples']:,} examples in {job.shards} shards"
        + (f", {kept} there" * (kept > 0))
    )
    for done, shard in enumerate(_each(job, missing, workers), kept + 1):
        report(f"{job.task.name}: {done}/{job.shards} shards, {shard['tokens']:,} tokens in the last")
    return finish(job)


def begin(job: Job) -> None:
    """Writes the recipe, or compares it to the one that is there."""
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        if (job.directory / "recipe.json").exists():
            _require(job, _read_json(job.directory / "recipe.json"), f"{job.directory} holds another cache")
        atomic.write(job.directory / "recipe.json", json.dumps(job.recipe, indent=1).encode())
    except OSError as error:
        raise ConfigError(f"cannot write the cache {job.directory}: {error.strerror}; give another --output") from error


def make_shard(job: Job, shard: int) -> dict[str, Any]:
    """Writes one shard and its counts, which it returns."""
    size = job.recipe["shard_examples"]
    arrays = _arrays_of(job, range(shard * size, min((shard + 1) * size, job.recipe["examples"])))
    from safetensors.numpy import save

    data = save(arrays)
    ids = [arrays[f"{field}.ids"] for field in job.recipe["fields"]]
    counts = {
        "examples": len(arrays["kept"]),
        "kept": int(arrays["kept"].sum()),
        "tokens": sum(map(len, ids)),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        atomic.write(job.path(shard, ".safetensors"), data)
        atomic.write(job.path(shard, ".json"), json.dumps(counts).encode())
    except OSError as error:
        raise ConfigError(
            f"cannot write the cache {job.directory}: {error.strerror}; make room and run again"
        ) from error
    return counts


def finish(job: Job) -> dict[str, Any]:
    """The manifest of a cache whose shards are all there: totals, so that nothing else need be opened to know it."""
    shards = [_read_json(job.path(shard, ".json")) for shard in range(job.shards)]
    totals = {name: sum(shard[name] for shard in shards) for name in ("examples", "kept", "tokens", "bytes")}
    if not totals["kept"]:
        raise DataError(f"task {job.task.name!r} has no example left of {totals['examples']} after its preprocessors")
    for partial in job.directory.glob(".*"):  # of processes that were killed
        partial.unlink(missing_ok=True)
    manifest = {"recipe": dict(job.recipe), **totals, "shards": shards}
    atomic.write(job.directory / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def make_on_beam(jobs: Sequence[Job], flags: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The same files, each shard made by Apache Beam wherever its runner puts it (`pip install t5x-lite[beam]`).

    The output directory and the task's files must be the same path for every worker (NFS, Filestore, a mounted
    bucket), and workers need this package and what defines the task. flags are Beam's own:

        (none)                                                          this machine, one process
        --direct_num_workers=8 --direct_running_mode=multi_processing   this machine, 8 processes
        --runner=DataflowRunner --project=P --region=R --temp_location=gs://B/tmp --sdk_container_image=I
                                                                        Google Cloud Dataflow; image I has the package
        --runner=FlinkRunner --flink_master=HOST:8081 --environment_type=LOOPBACK
                                                                        a Flink cluster; LOOPBACK: workers run here

    A runner that tries a shard twice does no harm: it writes the same bytes. Run again, it makes what is missing.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--runner=beam needs Apache Beam; pip install 't5x-lite[beam]'") from error
    for job in jobs:
        begin(job)
    missing = [
        (number, shard) for number, job in enumerate(jobs) for shard in range(job.shards) if not _is_whole(job, shard)
    ]
    with beam.Pipeline(options=PipelineOptions(list(flags), save_main_session=False)) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(missing)
            | "spread" >> beam.Reshuffle()
            | "make" >> beam.MapTuple(lambda number, shard: make_shard(jobs[number], shard)["examples"])
        )
    return [finish(job) for job in jobs]


def _each(job: Job, shards: Sequence[int], workers: int) -> Iterator[dict[str, Any]]:
    """The counts of shards as they are made."""
    workers = min(workers, len(shards))
    if workers <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from (make_shard(job, shard) for shard in shards)
        return
    # Forked, as a task is seldom something that pickles: it is made of the functions of a config file.
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
    """What a worker begins with. It ends with its parent, also where that is killed."""
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


def _arrays_of(job: Job, indices: range) -> dict[str, np.ndarray]:
    """The contents of a shard: examples of the source, preprocessed and tokenised."""
    task, vocabulary, recipe = job.task, job.vocabulary, job.recipe
    source = task.source.split(recipe["split"])
    kept = np.zeros(len(indices), bool)
    labels = np.zeros(len(indices))
    columns: dict[str, list[np.ndarray]] = {field: [] for field in recipe["fields"]}
    if recipe["sentences"]:
        columns["sentences"] = []
    for at in range(0, len(indices), EXAMPLES_TOGETHER):
        group = indices[at : at + EXAMPLES_TOGETHER]
        examples = [preprocess.apply(task.preprocessors, source[index], _no_rng) for index in group]
        for index, example in zip(group, examples, strict=True):
            kept[index - indices.start] = example is not None
            if example is not None and recipe["labels"]:
                labels[index - indices.start] = label(example, task)
        for field in recipe["fields"]:
            texts = ["" if e is None else text_of(e, field, task) for e in examples]
            if not recipe["sentences"]:
                columns[field] += vocabulary.encode(texts)
                continue
            for text in texts:
                parts = [ids for ids in vocabulary.encode(sentences(text)) if len(ids)]
                columns[field].append(np.concatenate([*parts, np.zeros(0, np.int32)]))
                columns["sentences"].append(np.fromiter(map(len, parts), np.int32, len(parts)))
    dtype = np.uint16 if vocabulary.size <= 2**16 else np.int32
    arrays: dict[str, np.ndarray] = {"kept": kept}
    for field, rows in columns.items():
        arrays[f"{field}.ids"] = np.concatenate(rows).astype(np.int32 if field == "sentences" else dtype)
        arrays[f"{field}.offsets"] = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    if recipe["labels"]:
        arrays["label"] = labels
    return arrays


def _no_rng() -> np.random.Generator:
    raise AssertionError("a task with a random preprocessor is not cached")


def _is_whole(job: Job, shard: int) -> bool:
    """Whether a shard is there; in a cache that was whole before, whether it is also what it was."""
    data, counts = job.path(shard, ".safetensors"), job.path(shard, ".json")
    if not (data.exists() and counts.exists()):
        return False
    expected = _read_json(counts)
    if data.stat().st_size != expected["bytes"]:
        return False
    if not (job.directory / "manifest.json").exists():
        return True
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected["sha256"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; delete {path.parent} and cache the task again") from error


# ------------------------------------------------------------------------------------------------------------ reading


def open_all(
    tasks: Sequence[Task], converter: Any, vocabulary: Vocabulary, directory: str | Path
) -> dict[str, "Cache"]:
    """The caches of tasks by name, without those that draw at random. DataError where one is missing or stale."""
    cached = [task for task in tasks if not random_preprocessor(task)]
    return {task.name: Cache(job(task, converter, vocabulary, Path(directory))) for task in cached}


class Cache:
    """A cached split: random access by the source's own numbers."""

    def __init__(self, job: Job):
        """Raises DataError for a cache that is not there, not whole, or made from something else."""
        self._job = job
        again = f"`t5x-lite cache {job.task.name} --output={job.directory.parent.parent}`, with the run's --config,"
        if not (job.directory / "manifest.json").exists():
            begun = (job.directory / "recipe.json").exists()
            raise DataError(
                f"the cache {job.directory} is {'only half made' if begun else 'not there'}; {again} "
                f"{'finishes' if begun else 'makes'} it, or leave data.cache_dir empty"
            )
        manifest = _read_json(job.directory / "manifest.json")
        _require(job, manifest["recipe"], f"the cache {job.directory} is stale")
        for shard, expected in enumerate(manifest["shards"]):
            path = job.path(shard, ".safetensors")
            size = path.stat().st_size if path.exists() else -1
            if size != expected["bytes"]:
                found = "is not there" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
                raise DataError(f"{path} {found}; {again} makes it again")
        self._paths = [str(job.path(shard, ".safetensors")) for shard in range(job.shards)]

    def __len__(self) -> int:
        return self._job.recipe["examples"]

    def read(self, indices: Sequence[int]) -> list[Encoded]:
        """The examples of these numbers, in this order, without those that the preprocessors drop: views of the files,
        ids in their dtype."""
        recipe, out = self._job.recipe, []
        for index in indices:
            shard, i = divmod(index, recipe["shard_examples"])
            arrays = _arrays(self._paths[shard])
            if not arrays["kept"][i]:
                continue
            example = Encoded((field, _row(arrays, field, i)) for field in recipe["fields"])
            if recipe["sentences"]:
                ends = np.cumsum(_row(arrays, "sentences", i))
                example["text"] = np.split(example["text"], ends[:-1]) if len(ends) else []
            if recipe["labels"]:
                example.label = arrays["label"][i].item()
            out.append(example)
        return out


def _row(arrays: Mapping[str, np.ndarray], column: str, i: int) -> np.ndarray:
    begin, end = arrays[f"{column}.offsets"][i : i + 2].tolist()
    return arrays[f"{column}.ids"][begin:end]


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as views of a memory map: nothing is read before it is looked at."""
    with Path(path).open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    begin = 8 + int.from_bytes(data[:8], "little")
    dtypes = {"BOOL": np.bool_, "U16": np.uint16, "I32": np.int32, "I64": np.int64, "F64": np.float64}
    return {
        name: np.frombuffer(
            data[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]], dtypes[entry["dtype"]]
        )
        for name, entry in json.loads(bytes(data[8:begin])).items()
        if name != "__metadata__"
    }


def _require(job: Job, theirs: Mapping[str, Any], what: str) -> None:
    """DataError, saying what differs, unless a cache was made from what this job would make it from."""
    differing = [f"{line}" for line in registry.differences(theirs, job.recipe)]
    if differing:
        raise DataError(
            f"{what}: {'; '.join(differing)[:600]}. Delete {job.directory} and make it again with "
            f"`t5x-lite cache {job.task.name} --output={job.directory.parent.parent}`, or take another directory"
        )
