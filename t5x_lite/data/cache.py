"""Tasks preprocessed and tokenised once, on disk: `t5x-lite cache` makes them, `data.cache_dir` reads them.

What is the same in every epoch is cached, which is the task's own part: its preprocessors and its token ids. The
objective's noise, packing and order stay with the run, so the batches are those of the uncached task, bit for bit.

    DIR/TASK/recipe.json                       what it is made from; another recipe is another cache
    DIR/TASK/00003-of-00016.safetensors        training examples 3·n to 4·n − 1 of the source, by its own numbers
    DIR/TASK/00003-of-00016.json               that shard is whole: its counts, bytes and sha256
    DIR/TASK/manifest.json                     the cache is whole: recipe, totals and all shards

A shard holds, for each field, `FIELD.ids` (all texts one after the other; uint16 where the vocabulary allows, else
int32) and `FIELD.offsets` (int64: where each begins, and the last ends); `kept` (bool: not dropped by a preprocessor);
of a corpus that an encoder reads, `sentences.ids` (their lengths) and offsets; of a task with labels, `label`
(float64).

safetensors and not ArrayRecord, because training reads in a shuffled order: out of a memory map an example costs 2 µs,
an ArrayRecord's random access 40 µs (array_record 0.8, groups of one, batches of 64), which for texts of 100 tokens is
2 million tokens a second before anything is done with them.

Every file appears under its name whole or not at all, so a job that was killed goes on with the shards it lacks. A
shard is made in constant memory, however large.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import mmap
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
from t5x_lite.data import preprocess, registry
from t5x_lite.data.convert_encoder import EncoderOnly, sentences
from t5x_lite.data.fields import Encoded, label, text_of
from t5x_lite.data.reader import Reader
from t5x_lite.data.registry import Task
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import ConfigError, DataError

FORMAT = 2  # of the files; another one is another recipe
SHARDS = 1024  # at most: so many machines can make a cache
MIN_SHARD_EXAMPLES = 4096
EXAMPLES_TOGETHER = 256  # tokenised in one call
OPEN_SHARDS = 512  # memory maps kept, of all tasks; each holds a file descriptor
STALE_S = 3600  # a partial file that nobody has written to for so long was left by a process that was killed
# By their names in safetensors; the widest first, so that every column begins where its numbers may.
DTYPES = {"I64": np.int64, "F64": np.float64, "I32": np.int32, "U16": np.uint16, "BOOL": np.bool_}


@dataclasses.dataclass(frozen=True)
class Job:
    """A task's training examples, to be cached in `directory`."""

    task: Task
    vocabulary: Vocabulary
    recipe: Mapping[str, Any]
    directory: Path

    @property
    def shards(self) -> int:
        return -(-self.recipe["examples"] // self.recipe["shard_examples"])

    def path(self, shard: int, suffix: str) -> Path:
        return self.directory / f"{shard:05d}-of-{self.shards:05d}{suffix}"


def job(task: Task, converter: Any, vocabulary: Vocabulary, output: Path) -> Job:
    """What there is to do for a task; ConfigError where it cannot be cached, DataError where it has no example."""
    if reason := random_preprocessor(task):
        raise ConfigError(
            f"task {task.name!r} cannot be cached: its preprocessor {reason} draws at random, so that every epoch "
            "differs. Train on it without a cache, or take the random part out of the task"
        )
    identity = registry.identity(task)
    examples = identity["examples"]
    if not examples:
        raise DataError(f"task {task.name!r} has no training example; check its source")
    recipe = {
        "format": FORMAT,
        "task": task.name,
        **identity,
        "vocabulary": vocabulary.fingerprint,
        **_reading(task, converter),
        "shard_examples": max(MIN_SHARD_EXAMPLES, -(-examples // SHARDS)),
    }
    return Job(task, vocabulary, recipe, Path(output) / task.name)


def random_preprocessor(task: Task) -> str:
    """The name of the first preprocessor that draws at random; "" when there is none."""
    return next((preprocess.identity(f).split("#")[0] for f in task.preprocessors if preprocess.takes_rng(f)), "")


def _reading(task: Task, converter: Any) -> dict[str, Any]:
    """What an architecture reads of a task: fields as texts or sentence by sentence, and what `targets` stand for."""
    encoder = isinstance(converter, EncoderOnly)
    if task.is_corpus:
        return {"fields": ["text"], "sentences": encoder, "labels": []}
    if encoder and task.head in ("token_classification", "span"):
        raise ConfigError(
            f"task {task.name!r} is read word by word for the head {task.head!r}; a cache holds ids of texts. "
            "Train on it without data.cache_dir"
        )
    if encoder and task.head == "multi_label":
        raise ConfigError(
            f"task {task.name!r} gives an example several labels; a cache holds one. Train on it without data.cache_dir"
        )
    fields = list(task.encoder_fields) if encoder else ["inputs", "targets"]
    one_label = [] if task.multi_label else list(task.labels)
    return {"fields": fields, "sentences": False, "labels": "number" if task.regression else one_label}


# ------------------------------------------------------------------------------------------------------------- making


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
    """Caches each task; of several, those that draw at random are left out, as training does without.

    workers: processes. beam_flags: not None to do it on Apache Beam.
    """
    alone = len(tasks) == 1
    for task in tasks:
        if not alone and (reason := random_preprocessor(task)):
            report(f"{task.name}: left out, its preprocessor {reason} draws at random; it is read without a cache")
    jobs = [job(t, converter, vocabulary, output) for t in tasks if alone or not random_preprocessor(t)]
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
            f"cannot write the cache {job.directory}: {error.strerror}; make room and run again"
        ) from error
    return counts


def _columns(job: Job) -> dict[str, str]:
    """{column of a shard: its type}, in the order of the file."""
    ids = "U16" if job.vocabulary.size <= 2**16 else "I32"
    fields = dict.fromkeys(job.recipe["fields"], ids) | ({"sentences": "I32"} if job.recipe["sentences"] else {})
    types = {f"{field}.offsets": "I64" for field in fields} | {f"{field}.ids": kind for field, kind in fields.items()}
    types |= {"kept": "BOOL"} | ({"label": "F64"} if job.recipe["labels"] else {})
    return dict(sorted(types.items(), key=lambda item: list(DTYPES).index(item[1])))


def _write(path: Path, columns: Mapping[str, str], parts: Mapping[str, BinaryIO]) -> dict[str, Any]:
    """A safetensors file of columns that stand in files of their own; its bytes and sha256."""
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
    """The manifest of a cache whose shards are all there: totals, so that nothing else need be opened to know it."""
    shards = [_read_json(job.path(shard, ".json")) for shard in range(job.shards)]
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


def _arrays_of(job: Job, reader: Reader, indices: range) -> dict[str, np.ndarray]:
    """Some examples of the source, preprocessed and tokenised, as columns; of offsets, those behind each example."""
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
            columns[field] = vocabulary.encode(texts)
    for field, rows in columns.items():
        arrays[f"{field}.ids"] = np.concatenate(rows)
        arrays[f"{field}.offsets"] = np.cumsum([len(row) for row in rows], dtype=np.int64)
    if recipe["labels"]:
        arrays["label"] = np.array([0 if example is None else label(example, task) for example in examples])
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
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
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
        again = f"`t5x-lite cache {job.task.name} --output={job.directory.parent}`, with the run's --config,"
        if not (job.directory / "manifest.json").exists():
            begun = (job.directory / "recipe.json").exists()
            raise DataError(
                f"the cache {job.directory} is {'only half made' if begun else 'not there'}; {again} "
                f"{'finishes' if begun else 'makes'} it, or leave data.cache_dir empty"
            )
        manifest = _read_json(job.directory / "manifest.json")
        _require(job, manifest.get("recipe", {}), f"the cache {job.directory} is stale")
        for shard, expected in enumerate(manifest["shards"]):
            path = job.path(shard, ".safetensors")
            size = path.stat().st_size if path.exists() else -1
            if size != expected["bytes"]:
                found = "is not there" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
                raise DataError(f"{path} {found}; {again} makes it again")
        hashes = (shard["sha256"] for shard in manifest["shards"])
        self._files = [(str(job.path(n, ".safetensors")), sha256) for n, sha256 in enumerate(hashes)]

    def __len__(self) -> int:
        return self._job.recipe["examples"]

    def read(self, indices: Sequence[int]) -> list[Encoded | None]:
        """The examples of these numbers, in this order, None for those that were dropped: views of the files, ids in
        their dtype."""
        recipe, out = self._job.recipe, []
        fields, size = recipe["fields"], recipe["shard_examples"]
        for index in indices:
            arrays = _arrays(*self._files[index // size])
            i = index % size
            if not arrays["kept"][i]:
                out.append(None)
                continue
            example = Encoded()
            for field in fields:
                example[field] = _row(arrays, field, i)
            if recipe["sentences"]:
                ends = np.cumsum(_row(arrays, "sentences", i))
                example["text"] = np.split(example["text"], ends[:-1]) if len(ends) else []
            if recipe["labels"]:
                example.label = arrays["label"][i].item()
            out.append(example)
        return out


def _row(arrays: Mapping[str, np.ndarray], column: str, i: int) -> np.ndarray:
    offsets = arrays[f"{column}.offsets"]
    return arrays[f"{column}.ids"][offsets[i] : offsets[i + 1]]


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _arrays(path: str, sha256: str) -> dict[str, np.ndarray]:
    """The columns of a shard as views of a memory map: nothing is read before it is looked at. sha256: of what should
    be there; a cache that was made again is another one."""
    columns = {}
    try:
        with Path(path).open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        begin = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(bytes(data[8:begin])).items():
            first, end = entry["data_offsets"]
            columns[name] = np.frombuffer(data[begin + first : begin + end], DTYPES[entry["dtype"]])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); the same `t5x-lite cache` again mends it") from None
    return columns


def _require(job: Job, theirs: Mapping[str, Any], what: str) -> None:
    """DataError, saying what differs, unless a cache was made from what this job would make it from."""
    differing = [f"{line}" for line in registry.differences(theirs, job.recipe)]
    if differing:
        raise DataError(
            f"{what}: {'; '.join(differing)[:600]}. Delete {job.directory} and make it again with "
            f"`t5x-lite cache {job.task.name} --output={job.directory.parent}`, or take another directory"
        )
