"""A copy of a run's checkpoints in an object store: where a machine goes with its disk, the next one goes on.

Any of fsspec's file systems serves (gs://, s3://, az://, each with its package). There is no rename in a bucket: a
step is there once its manifest is, which comes last, and counts once every file fits it.
"""

import logging
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from t5x_lite.checkpoints import manifest
from t5x_lite.errors import CheckpointError, ConfigError, first_line

T = TypeVar("T")

BESIDE = ("config.json", "metrics.jsonl")  # what a run needs of its workdir beside a checkpoint
TRIES = 5
FIRST_PAUSE_S = 1.0  # doubled after each try


class Mirror:
    """url: a directory for this run alone, "gs://bucket/runs/a"."""

    def __init__(self, url: str):
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"checkpoint.mirror={url!r}: {error}") from error
        self.url = url
        self.sent = 0  # files: that it grows tells a long copy from one that hangs

    def steps(self) -> list[int]:
        """Those whose copy came to its end, oldest first."""
        self._files.invalidate_cache()

        def directories() -> list[str]:
            return self._files.ls(self._root, detail=False) if self._files.exists(self._root) else []

        names = [name for path in self._tried(directories) if (name := str(path).rstrip("/").split("/")[-1]).isdigit()]
        sealed = (n for n in names if self._tried(lambda n=n: self._files.exists(f"{self._root}/{n}/{manifest.NAME}")))
        return sorted(map(int, sealed))

    def push(self, step_directory: Path, kept: Collection[int]) -> None:
        """Copies a step, and what stands beside it; then removes those that are not in `kept`."""
        step, target = int(step_directory.name), f"{self._root}/{step_directory.name}"
        names = [p.relative_to(step_directory).as_posix() for p in step_directory.rglob("*") if p.is_file()]
        for name in sorted(names, key=lambda name: name == manifest.NAME):
            self._tried(lambda name=name: self._put(step_directory / name, f"{target}/{name}"))
        for name in BESIDE:
            if (workdir_file := step_directory.parents[1] / name).exists():
                self._tried(lambda file=workdir_file, name=name: self._put(file, f"{self._root}/{name}"))
        for old in set(self.steps()) - {step, *kept}:
            self._tried(lambda old=old: self._files.rm(f"{self._root}/{old}/{manifest.NAME}"))
            self._tried(lambda old=old: self._files.rm(f"{self._root}/{old}", recursive=True))

    def pull(self, workdir: Path, checkpoints: str, staging: str) -> int | None:
        """Fetches the newest step that is whole, and what stood beside it; None where no step is. CheckpointError
        where all are damaged: a run from the beginning would take their place."""
        rejected = []
        for step in reversed(self.steps()):
            partial = workdir / staging / str(step)
            shutil.rmtree(partial, ignore_errors=True)
            root = f"{self._root}/{step}"
            for path in self._tried(lambda root=root: self._files.find(root)):
                target = partial / str(path).split(f"{root.lstrip('/')}/", 1)[1]
                if partial.resolve() not in target.resolve().parents:
                    raise CheckpointError(f"{self.url} holds a file {path!r} that would lie outside of its step")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._tried(lambda path=path, target=target: self._files.get_file(path, str(target)))
            if problem := manifest.problem(partial):
                logging.getLogger(__name__).warning("%s/%d is damaged, and not taken: %s", self.url, step, problem)
                rejected.append(f"{step}: {problem}")
                continue
            for name in BESIDE:
                if self._tried(lambda name=name: self._files.exists(f"{self._root}/{name}")):
                    self._tried(lambda name=name: self._files.get_file(f"{self._root}/{name}", str(workdir / name)))
            (workdir / checkpoints).mkdir(exist_ok=True)
            partial.rename(workdir / checkpoints / str(step))
            return step
        if rejected:
            raise CheckpointError(
                f"every checkpoint of {self.url} is damaged ({'; '.join(rejected)}). Restore one from a copy, or give "
                "another checkpoint.mirror to begin again from nothing"
            )
        return None

    def _put(self, file: Path, target: str) -> None:
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(file), target)
        self.sent += 1

    def _tried(self, do: Callable[[], T]) -> T:
        """What `do` returns; again after a pause where the store is busy or away, and CheckpointError in the end."""
        for number in range(1, TRIES + 1):
            try:
                return do()
            except Exception as error:  # each file system has its own
                if number == TRIES:
                    raise CheckpointError(
                        f"{self.url}: {first_line(error)}, {TRIES} times. Once the store is well again the same "
                        "command goes on"
                    ) from error
                time.sleep(FIRST_PAUSE_S * 2 ** (number - 1))
        raise AssertionError
