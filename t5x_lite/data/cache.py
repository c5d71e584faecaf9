"""Reads caches of tasks. A cache stores the training examples of a task on disk, preprocessed and tokenised. `t5x-lite
cache` makes a cache (make_cache.py), and a run with `data.cache_dir` reads it.

A cache holds what is the same in every epoch: the token ids of the preprocessed examples. The run itself still applies
the objective, packing and order. So its batches equal those of the uncached task, bit for bit.

    DIR/TASK/recipe.json                       everything the cache depends on; a changed recipe needs a new cache
    DIR/TASK/00003-of-00016.safetensors        examples 3·n to 4·n − 1 of the source (n: the recipe's shard_examples)
    DIR/TASK/00003-of-00016.json               that shard's counts, bytes and sha256; written when the shard is complete
    DIR/TASK/manifest.json                     recipe, totals and all shards; written when the cache is complete

A shard has these columns:

    FIELD.ids           for each field: the ids of all texts, concatenated (uint16 if all ids fit, else int32)
    FIELD.offsets       for each field: where each text begins in FIELD.ids, and where the last one ends (int64)
    kept                False for an example that a preprocessor drops (bool)
    sentences.ids       for a corpus that an encoder reads: the lengths of all sentences, in tokens (int32)
    sentences.offsets   where each text begins in sentences.ids, and where the last one ends (int64)
    label               for a task with labels or numbers: the class id or the number of each example (float64)

The format is safetensors and not ArrayRecord, because training reads examples in shuffled order. Reading one example
takes 2 µs from a memory map, but 40 µs from an ArrayRecord (array_record 0.8, groups of one, batches of 64). So with
texts of 100 tokens, ArrayRecord would limit reading to about 2 million tokens per second.
"""

import dataclasses
import functools
import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data import preprocess, registry
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.fields import Encoded
from t5x_lite.data.registry import Task
from t5x_lite.data.targets import Number, Span, Tags
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import ConfigError, DataError

FORMAT = 2  # version of the file format; part of the recipe
SHARDS = 1024  # the most shards of a cache; so also the most machines that can make a cache together
MIN_SHARD_EXAMPLES = 4096
OPEN_SHARDS = 512  # the most memory maps kept open, over all tasks; each holds a file descriptor
# {name in safetensors: dtype}, the widest first. A file stores its columns in this order, so that each is aligned.
DTYPES = {"I64": np.int64, "F64": np.float64, "I32": np.int32, "U16": np.uint16, "BOOL": np.bool_}


@dataclasses.dataclass(frozen=True)
class Job:
    """Describes a cache: the training examples of `task` in `directory`.

    recipe: everything that the contents of the cache depend on, as JSON-able data.
    """

    task: Task
    vocabulary: Vocabulary
    recipe: Mapping[str, Any]
    directory: Path

    @property
    def shards(self) -> int:
        return -(-self.recipe["examples"] // self.recipe["shard_examples"])

    def path(self, shard: int, suffix: str) -> Path:
        return self.directory / f"{shard:05d}-of-{self.shards:05d}{suffix}"


def job_for(task: Task, converter: Any, vocabulary: Vocabulary, output: Path) -> Job:
    """Returns the Job that describes a task's cache in the directory output/TASK.

    Raises ConfigError if the task cannot be cached, DataError if it has no training example.
    """
    if reason := random_preprocessor(task):
        raise ConfigError(
            f"task {task.name!r} cannot be cached: its preprocessor {reason} is random, so every epoch differs. "
            "Train on it without a cache, or remove the randomness from the task"
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
    """Returns the name of the task's first random preprocessor; "" if it has none."""
    return next((preprocess.identity(f).split("#")[0] for f in task.preprocessors if preprocess.takes_rng(f)), "")


def _reading(task: Task, converter: Any) -> dict[str, Any]:
    """Returns the part of the recipe that depends on the architecture: the fields that the model reads, whether the
    model reads them sentence by sentence, and the task's labels (or "number" if the targets are numbers).

    Raises ConfigError if a cache cannot hold the task's targets.
    """
    encoder = isinstance(converter, EncoderOnly)
    if task.is_corpus:
        return {"fields": ["text"], "sentences": encoder, "labels": []}
    target = task.target
    if encoder and isinstance(target, Tags | Span):
        raise ConfigError(
            f"task {task.name!r}: the head {target.head!r} reads words; a cache holds ids of texts. "
            "Train on it without data.cache_dir"
        )
    if encoder and target.several:
        raise ConfigError(
            f"task {task.name!r} has several labels per example; a cache holds one. Train on it without data.cache_dir"
        )
    fields = list(task.encoder_fields) if encoder else ["inputs", "targets"]
    labels = "number" if isinstance(target, Number) else [] if target.several else list(target.labels)
    return {"fields": fields, "sentences": False, "labels": labels}


def open_all(
    tasks: Sequence[Task], converter: Any, vocabulary: Vocabulary, directory: str | Path
) -> dict[str, "Cache"]:
    """Returns {task name: cache} for the tasks that have no random preprocessor.

    Raises DataError if a cache is missing or stale, ConfigError if a task cannot be cached.
    """
    cached = [task for task in tasks if not random_preprocessor(task)]
    return {task.name: Cache(job_for(task, converter, vocabulary, Path(directory))) for task in cached}


class Cache:
    """The cached training examples of a task, with random access by their indices in the source."""

    def __init__(self, job: Job):
        """Opens the cache. Raises DataError if the cache is missing, incomplete, or made from a different recipe."""
        self._job = job
        again = f"`t5x-lite cache {job.task.name} --output={job.directory.parent}`, with the run's --config,"
        if not (job.directory / "manifest.json").exists():
            begun = (job.directory / "recipe.json").exists()
            raise DataError(
                f"the cache {job.directory} is {'incomplete' if begun else 'missing'}; {again} "
                f"{'completes' if begun else 'makes'} it, or leave data.cache_dir empty"
            )
        manifest = read_json(job.directory / "manifest.json")
        require_same(job, manifest.get("recipe", {}), f"the cache {job.directory} is stale")
        for shard, expected in enumerate(manifest["shards"]):
            path = job.path(shard, ".safetensors")
            size = path.stat().st_size if path.exists() else -1
            if size != expected["bytes"]:
                problem = "is missing" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
                raise DataError(f"{path} {problem}; {again} makes it again")
        hashes = (shard["sha256"] for shard in manifest["shards"])
        self._files = [(str(job.path(n, ".safetensors")), sha256) for n, sha256 in enumerate(hashes)]

    def __len__(self) -> int:
        return self._job.recipe["examples"]

    def read(self, indices: Sequence[int]) -> list[Encoded | None]:
        """Returns the examples at `indices`, in the same order. An example that a preprocessor dropped is None. The
        arrays in the examples are views of the cache's files, with the dtypes of the columns. Raises DataError if a
        shard is corrupted."""
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
    """Returns {column: 1-D array} for a shard. The arrays are views of a memory map, so data is read only when it is
    used.

    sha256: the shard's expected hash. It is not verified here. It is only a key of the lru_cache, so that a shard that
    was made again is also mapped again.
    Raises DataError if the shard is corrupted.
    """
    columns = {}
    try:
        with Path(path).open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        begin = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(bytes(data[8:begin])).items():
            first, end = entry["data_offsets"]
            columns[name] = np.frombuffer(data[begin + first : begin + end], DTYPES[entry["dtype"]])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is corrupted ({error}); run the same `t5x-lite cache` again to repair it") from None
    return columns


def require_same(job: Job, recipe: Mapping[str, Any], what: str) -> None:
    """Raises DataError, which names the differences, if the `recipe` of an existing cache differs from the job's."""
    differing = list(registry.differences(recipe, job.recipe))
    if differing:
        raise DataError(
            f"{what}: {'; '.join(differing)[:600]}. Delete {job.directory} and make it again with "
            f"`t5x-lite cache {job.task.name} --output={job.directory.parent}`, or use a different directory"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a cache's file. Raises DataError if it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}; delete {path.parent} and cache the task again") from error
