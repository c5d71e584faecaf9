"""Copies a run's checkpoints to an object store. If a machine and its disk are lost, another machine can resume.

All file systems of fsspec work (gs://, s3://, az://; each needs its package). Object stores have no atomic rename, so
the manifest of a step is copied last. A step without a manifest is therefore incomplete; a step whose files do not
match its manifest is corrupted.
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from t5x_lite.checkpoints import manifest
from t5x_lite.errors import CheckpointError, ConfigError, first_line
from t5x_lite.models import stored

T = TypeVar("T")

BESIDE = ("config.json", "metrics.jsonl")  # files of the workdir that a run needs besides a checkpoint
TRIES = 5
FIRST_PAUSE_S = 1.0  # each later pause is twice as long


class Mirror:
    """The copies of one run's checkpoints in an object store."""

    def __init__(self, url: str):
        """url: a directory that only this run uses, for example "gs://bucket/runs/a".

        Raises ConfigError if fsspec does not know the protocol or lacks its package.
        """
        import fsspec

        if wrong := re.search(r"[][*?]", url):  # fsspec takes such paths for patterns, also when it removes
            raise ConfigError(f"checkpoint.mirror={url!r}: give a path without {wrong[0]}")
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"checkpoint.mirror={url!r}: {error}") from error
        self.url = url
        self.sent = 0  # number of files sent; while it grows, a long copy is not taken for a hang

    def steps(self) -> list[int]:
        """Returns the completely copied steps, oldest first. Raises CheckpointError if the store fails."""
        self._files.invalidate_cache()
        manifests = self._tried(lambda: self._files.glob(f"{self._root}/*/{manifest.NAME}"))
        return sorted(int(name) for path in manifests if (name := str(path).split("/")[-2]).isdigit())

    def push(self, step_directory: Path, kept: Collection[int]) -> None:
        """Copies a step and the workdir's files beside it, then removes all other steps that are not in `kept`.

        Raises CheckpointError if the store fails.
        """
        step, target = int(step_directory.name), f"{self._root}/{step_directory.name}"
        workdir, beside = step_directory.parents[1], list(BESIDE)
        if not self.sent:  # a run writes these before its first step, and never again
            of_model = (workdir / stored.DIRECTORY).rglob("*")
            beside += [file.relative_to(workdir).as_posix() for file in of_model if file.is_file()]
        names = [p.relative_to(step_directory).as_posix() for p in step_directory.rglob("*") if p.is_file()]
        for name in sorted(names, key=lambda name: name == manifest.NAME):
            self._tried(lambda name=name: self._put(step_directory / name, f"{target}/{name}"))
        for name in beside:
            if (workdir / name).exists():
                self._tried(lambda name=name: self._put(workdir / name, f"{self._root}/{name}"))
        for old in set(self.steps()) - {step, *kept}:
            self._tried(lambda old=old: self._files.rm(f"{self._root}/{old}/{manifest.NAME}"))
            self._tried(lambda old=old: self._files.rm(f"{self._root}/{old}", recursive=True))

    def pull(self, workdir: Path, checkpoints: str, staging: str) -> int | None:
        """Copies the newest intact step and the files of BESIDE into the workdir. Returns the step.

        If the mirror has no step, returns None.

        checkpoints, staging: names of directories in the workdir.

        Raises CheckpointError if the store fails, or if a file's path leads out of its step. Also raises it if all
        steps are corrupted: without the error, a run from step 0 would overwrite them.
        """
        rejected = []
        for step in reversed(self.steps()):
            partial = workdir / staging / str(step)
            shutil.rmtree(partial, ignore_errors=True)
            self._get_all(str(step), partial)
            if problem := manifest.problem(partial):
                logging.getLogger(__name__).warning("%s/%d is corrupted and was skipped: %s", self.url, step, problem)
                rejected.append(f"{step}: {problem}")
                continue
            for name in BESIDE:
                if self._tried(lambda name=name: self._files.exists(f"{self._root}/{name}")):
                    self._tried(lambda name=name: self._files.get_file(f"{self._root}/{name}", str(workdir / name)))
            if self._tried(lambda: self._files.exists(f"{self._root}/{stored.DIRECTORY}")):
                self._get_all(stored.DIRECTORY, workdir / stored.DIRECTORY)
            (workdir / checkpoints).mkdir(exist_ok=True)
            partial.rename(workdir / checkpoints / str(step))
            return step
        if rejected:
            raise CheckpointError(
                f"every checkpoint of {self.url} is corrupted ({'; '.join(rejected)}). Restore one from a copy, or set "
                "a different checkpoint.mirror to start again from step 0"
            )
        return None

    def _get_all(self, name: str, directory: Path) -> None:
        """Copies the mirror's directory `name` to `directory`. Raises CheckpointError if a file would lie outside."""
        root = f"{self._root}/{name}"
        for path in self._tried(lambda: self._files.find(root)):
            target = directory / str(path).split(f"{root.lstrip('/')}/", 1)[1]
            if directory.resolve() not in target.resolve().parents:
                raise CheckpointError(f"{self.url} holds a file {path!r} that would lie outside {directory}")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._tried(lambda path=path, target=target: self._files.get_file(path, str(target)))

    def _put(self, file: Path, target: str) -> None:
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(file), target)
        self.sent += 1

    def _tried(self, do: Callable[[], T]) -> T:
        """Returns the result of `do`. Tries again after an error. Raises CheckpointError if TRIES attempts fail."""
        for number in range(1, TRIES + 1):
            try:
                return do()
            except Exception as error:  # each file system raises its own errors
                if number == TRIES:
                    raise CheckpointError(
                        f"{self.url}: {first_line(error)}, {TRIES} times. When the store works again, run the same "
                        "command to resume"
                    ) from error
                time.sleep(FIRST_PAUSE_S * 2 ** (number - 1))
        raise AssertionError
