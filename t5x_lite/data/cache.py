"""Tasks that are preprocessed and tokenised once and kept on disk. `t5x-lite cache` makes such a cache (make_cache.py),
and `data.cache_dir` reads it.

A cache holds what is the same in every epoch: the results of the task's preprocessors, as token ids. The run adds the
objective's noise, packing and order, so its batches are those of the uncached task, bit for bit.

    DIR/TASK/recipe.json                       what the cache is made from; another recipe makes another cache
    DIR/TASK/00003-of-00016.safetensors        training examples 3·n to 4·n − 1 of the source, by its indices
    DIR/TASK/00003-of-00016.json               written once that shard is complete: its counts, bytes and sha256
    DIR/TASK/manifest.json                     written once the cache is complete: recipe, totals and all shards

A shard has these columns. For each field, `FIELD.ids` are the ids of all texts, one after the other (uint16 if the
vocabulary allows it, else int32), and `FIELD.offsets` are where each text begins, and the last one ends (int64). `kept`
is False for an example that a preprocessor drops (bool). For a corpus that an encoder reads, `sentences.ids` and
`sentences.offsets` are the lengths of each text's sentences (int32). For a task with labels, `label` is what the
targets stand for (float64).

The format is safetensors and not ArrayRecord, because training reads in a shuffled order. An example costs 2 µs from a
memory map, but 40 µs by random access to an ArrayRecord (array_record 0.8, groups of one, batches of 64). For texts of
100 tokens the latter limits reading to 2 million tokens a second.
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

FORMAT = 2  # of the files; it is part of the recipe
SHARDS = 1024  # at most, so that so many machines can make a cache
MIN_SHARD_EXAMPLES = 4096
OPEN_SHARDS = 512  # memory maps that are kept, of all tasks; each holds a file descriptor
# By their names in safetensors. The widest come first in a file, so that every column is aligned.
DTYPES = {"I64": np.int64, "F64": np.float64, "I32": np.int32, "U16": np.uint16, "BOOL": np.bool_}


@dataclasses.dataclass(frozen=True)
class Job:
    """The cache of a task's training examples in `directory`. recipe: what it is made from, as JSON-able data."""

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
    """The job of caching a task in output/TASK. ConfigError when the task cannot be cached, DataError when it has no
    example."""
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
    """What an architecture reads of a task: its fields, whether sentence by sentence, and what `targets` stand for."""
    encoder = isinstance(converter, EncoderOnly)
    if task.is_corpus:
        return {"fields": ["text"], "sentences": encoder, "labels": []}
    target = task.target
    if encoder and isinstance(target, Tags | Span):
        raise ConfigError(
            f"task {task.name!r} is read word by word for the head {target.head!r}; a cache holds ids of texts. "
            "Train on it without data.cache_dir"
        )
    if encoder and target.several:
        raise ConfigError(
            f"task {task.name!r} gives an example several labels; a cache holds one. Train on it without data.cache_dir"
        )
    fields = list(task.encoder_fields) if encoder else ["inputs", "targets"]
    labels = "number" if isinstance(target, Number) else [] if target.several else list(target.labels)
    return {"fields": fields, "sentences": False, "labels": labels}


def open_all(
    tasks: Sequence[Task], converter: Any, vocabulary: Vocabulary, directory: str | Path
) -> dict[str, "Cache"]:
    """The caches of tasks by name. Tasks with a random preprocessor have none. DataError when one is missing or
    stale."""
    cached = [task for task in tasks if not random_preprocessor(task)]
    return {task.name: Cache(job_for(task, converter, vocabulary, Path(directory))) for task in cached}


class Cache:
    """The cached training examples of a task, with random access by their indices in the source."""

    def __init__(self, job: Job):
        """Raises DataError for a cache that is missing, incomplete, or made from something else."""
        self._job = job
        again = f"`t5x-lite cache {job.task.name} --output={job.directory.parent}`, with the run's --config,"
        if not (job.directory / "manifest.json").exists():
            begun = (job.directory / "recipe.json").exists()
            raise DataError(
                f"the cache {job.directory} is {'only half made' if begun else 'not there'}; {again} "
                f"{'finishes' if begun else 'makes'} it, or leave data.cache_dir empty"
            )
        manifest = read_json(job.directory / "manifest.json")
        require_same(job, manifest.get("recipe", {}), f"the cache {job.directory} is stale")
        for shard, expected in enumerate(manifest["shards"]):
            path = job.path(shard, ".safetensors")
            size = path.stat().st_size if path.exists() else -1
            if size != expected["bytes"]:
                problem = "is not there" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
                raise DataError(f"{path} {problem}; {again} makes it again")
        hashes = (shard["sha256"] for shard in manifest["shards"])
        self._files = [(str(job.path(n, ".safetensors")), sha256) for n, sha256 in enumerate(hashes)]

    def __len__(self) -> int:
        return self._job.recipe["examples"]

    def read(self, indices: Sequence[int]) -> list[Encoded | None]:
        """The examples of these indices, in this order, None for those that were dropped. Their arrays are views of the
        files, in the dtypes of the columns."""
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
    """The columns of a shard as views of a memory map, which reads nothing before it is used. sha256: of the shard that
    is expected, so that a cache that was made again is mapped again."""
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


def require_same(job: Job, recipe: Mapping[str, Any], what: str) -> None:
    """DataError, which says what differs, unless the `recipe` of an existing cache is that of the job."""
    differing = list(registry.differences(recipe, job.recipe))
    if differing:
        raise DataError(
            f"{what}: {'; '.join(differing)[:600]}. Delete {job.directory} and make it again with "
            f"`t5x-lite cache {job.task.name} --output={job.directory.parent}`, or take another directory"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a cache's file; DataError when it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}; delete {path.parent} and cache the task again") from error
