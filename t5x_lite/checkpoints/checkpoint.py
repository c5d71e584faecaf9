"""Saves and restores checkpoints: train state, data position and config, written by Orbax in one directory per step.

`WORKDIR/checkpoints/STEP/{params,optimizer,average,progress,config,MANIFEST.json}`. A step is first written in
`WORKDIR/saving`, then one rename moves it into place. So older steps are safe if the process dies while saving. The
manifest has the hash of every file, so a corrupted file is detected before it is used. The arrays are restored in the
shardings of the new run. So the new run may have a different mesh and a different number of processes.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from t5x_lite import atomic, side_files
from t5x_lite.checkpoints import manifest
from t5x_lite.cluster import processes
from t5x_lite.errors import CheckpointError, ConfigError, first_line
from t5x_lite.models import paths
from t5x_lite.training.step import TrainState

if TYPE_CHECKING:
    from t5x_lite.checkpoints.mirror import Mirror

DIRECTORY = "checkpoints"
STAGING = "saving"
PARAMS, AVERAGE = "params", "average"  # directories of a step: the parameters, and the average of those trained
STEP = re.compile("0|[1-9][0-9]{0,18}")  # the name of a step's directory
LOOK_S = 10.0  # how often to check whether a save makes progress
BARRIER_S = 24 * 3600  # time for all processes to finish writing; the guard ends a hanging process sooner

# Replicas share the work of writing an array: each writes a slice. Slicing compiles a program per shape, which takes
# longer than writing a small array. So arrays below 1 << 20 bytes are written whole, by one replica.
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20), override=True
)


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous: `save` returns once the arrays are copied.

    All processes must call the same methods in the same order. Only process 0 renames, lists and removes directories.
    """

    def __init__(
        self,
        workdir: Path,
        keep_last: int,
        beat: Callable[[str], None] = lambda at: None,
        mirror: "Mirror | None" = None,
    ):
        """Prepares the workdir; raises CheckpointError if it is not writable.

        keep_last: number of newest steps to keep.
        beat: Guard.beat. `wait` calls it with a description whenever the save makes progress.
        mirror: gets a copy of every step; None: no copies.
        """
        self._beat = beat
        self._mirror = mirror
        self.directory = Path(workdir).absolute() / DIRECTORY
        self._staging = self.directory.parent / STAGING
        self.keep_last = keep_last
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

        def prepare() -> list[int]:
            try:
                shutil.rmtree(self._staging, ignore_errors=True)  # left by a process that was killed while saving
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"cannot use {self.directory}: {error}; is the workdir writable?") from error
            return saved_steps(workdir)

        self._steps = processes.on_first(prepare)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(), async_options=ocp.options.AsyncOptions(timeout_secs=BARRIER_S)
        )

    def steps(self) -> list[int]:
        """Returns the saved steps, oldest first. The newest may not be on disk yet."""
        return list(self._steps)

    def save(
        self, state: TrainState, data_state: dict, config_json: str, keep: Iterable[int] = (), average: Any = None
    ) -> None:
        """Waits for the previous save, then saves `state` as step `state.step`, unless that step is saved already.

        average: moving average of the trainable parameters; None: none.

        Once the step is on disk, keeps only the newest `keep_last` steps and those in `keep`. Until then, there is one
        more step. Raises CheckpointError if the previous save or this one fails.
        """
        step = int(state.step)
        self.wait()
        if step in self._steps:
            return
        parts = {PARAMS: state.params, "optimizer": state.opt_state} | ({} if average is None else {AVERAGE: average})
        with self._errors_in_a_line(f"cannot save step {step}"):
            self._checkpointer.save(
                self._staging / str(step),
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(part) for name, part in parts.items()},
                    progress=ocp.args.JsonSave({"step": step, "data": data_state}),
                    config=ocp.args.JsonSave(json.loads(config_json)),
                ),
            )
        arrays = {name: kinds_of(part) for name, part in parts.items()}
        steps = [*self._steps, step]
        dropped = [old for old in steps[: -self.keep_last] if old not in keep]
        self._steps = [kept for kept in steps if kept not in dropped]
        self._thread = threading.Thread(target=self._finish, args=(step, arrays, dropped), name="t5x_lite-save")
        self._thread.start()

    def _finish(self, step: int, arrays: Mapping[str, Counter], dropped: list[int]) -> None:
        """Waits until all processes have written the step, checks it, moves it into place and removes old steps.

        Runs in a thread. If it fails, `wait` raises the error.
        """
        try:
            self._checkpointer.wait_until_finished()
            if jax.process_index():
                return
            seal(self._staging / str(step), step, arrays)
            (self._staging / str(step)).rename(self.directory / str(step))
            atomic.sync(self.directory)  # the new step must survive a power failure before an older one is removed
            for old in dropped:  # renamed first, so that a partly removed step never has the name of a step
                (self.directory / str(old)).rename(self._staging / f"{old}.dropped")
                shutil.rmtree(self._staging / f"{old}.dropped")
            if self._mirror:
                self._mirror.push(self.directory / str(step), self._steps)
        except Exception as error:
            self._error = error

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """Returns (the state of `step`, the data position that was saved with it).

        like: a state of arrays or ShapeDtypeStructs. The restored arrays get the same shapes, dtypes and shardings. If
            it has an average and the step has none, the average begins as the parameters.
        Raises CheckpointError if the files cannot be read or do not fit `like`.
        """
        parts = {PARAMS: like.params, "optimizer": like.opt_state}
        if like.average is not None and (self.directory / str(step) / AVERAGE).is_dir():
            parts[AVERAGE] = like.average
        try:
            restored = self._checkpointer.restore(
                self.directory / str(step),
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardRestore(abstract(part)) for name, part in parts.items()},
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"cannot restore {self.directory / str(step)}: {first_line(error)}. "
                "Was it saved with a different model or optimizer? Compare its config/ with this run's config"
            ) from error
        arrays = jax.device_put(step, abstract(like.step).sharding)
        average, params = restored.get(AVERAGE), restored[PARAMS]
        if like.average is not None and average is None:
            of_params = paths.flatten(params)
            average = paths.unflatten({path: jnp.copy(of_params[path]) for path in paths.flatten(like.average)})
        state = dataclasses.replace(
            like, step=arrays.astype("int32"), params=params, opt_state=restored["optimizer"], average=average
        )
        return state, restored["progress"]["data"]

    def check(self) -> None:
        """Raises CheckpointError if a save has failed. Does not wait for a save that is under way."""
        if self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk and the old steps are removed. Raises CheckpointError if this failed."""
        last_moved = None
        while self._thread:
            self._thread.join(LOOK_S)
            if not self._thread.is_alive():
                self._thread = None
            elif (moved := self._moved()) != last_moved:  # a large save takes long; without progress the guard ends it
                self._beat(f"{moved[0]:,} bytes of a checkpoint, {moved[1]:,} files in the mirror")
                last_moved = moved
        error, self._error = self._error, None
        if isinstance(error, CheckpointError):
            raise error
        with self._errors_in_a_line("cannot save"):
            if error:
                raise error

    def _moved(self) -> tuple[int, int]:
        """Returns (bytes staged, files sent to the mirror). They change while a save makes progress."""
        return _bytes_below(self._staging), self._mirror.sent if self._mirror else 0

    def close(self) -> None:
        """Waits for the last save, then frees what saving uses. Raises CheckpointError if that save failed."""
        self.wait()
        self._checkpointer.close()
        if jax.process_index() == 0:
            shutil.rmtree(self._staging, ignore_errors=True)

    @contextlib.contextmanager
    def _errors_in_a_line(self, what: str) -> Iterator[None]:
        """Turns a writing error into a short CheckpointError. (On a full disk, TensorStore raises ValueError.)"""
        try:
            yield
        except (OSError, ValueError) as error:
            if (known := processes.named(error)) is not error:
                raise known from error
            left = ""
            with contextlib.suppress(OSError):
                left = f"; {shutil.disk_usage(self.directory).free:,} bytes are free there"
            raise CheckpointError(
                f"{what} to {self.directory}: {first_line(error)}; is the disk full or read-only?{left}"
            ) from error


def check_path(directory: Path) -> None:
    """Raises ConfigError if Orbax cannot save below `directory`, because its path contains […], *, ? or a backslash.

    Orbax reads its own paths as glob patterns, and TensorStore takes a backslash for a slash.
    """
    if wrong := re.search(r"\[[^\]]*\]|[*?\\]", str(directory.absolute())):
        raise ConfigError(
            f"{directory}: checkpoints cannot be written below a path with {wrong[0]}; give a path without […], *, ? "
            "and backslashes"
        )


def kinds_of(tree: Any) -> Counter:
    """Returns {(shape, dtype): number of such arrays in a tree}."""

    def kind(leaf: Any) -> tuple[tuple[int, ...], str]:
        if not isinstance(leaf.dtype, np.dtype) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # a random key is stored as its numbers
        return tuple(leaf.shape), str(leaf.dtype)

    return Counter(kind(leaf) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def seal(directory: Path, step: int, arrays: Mapping[str, Counter]) -> None:
    """Writes the manifest of a step's directory, after checking that Orbax opens every saved array.

    Opening an array reads its shape and dtype, not its values. arrays: {name of a part: kinds_of(its tree)}. Raises
    CheckpointError if an array is missing. (Orbax itself only warns of some faults.)
    """
    for name, expected in arrays.items():
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(directory / name).item_metadata
        opened = kinds_of(metadata.tree) if metadata else Counter()  # pyright: ignore[reportAttributeAccessIssue]
        if opened != expected:
            raise CheckpointError(
                f"cannot save to {directory}: Orbax opens {opened.total()} of {expected.total()} arrays of {name}; "
                f"missing: {', '.join(f'{dtype}{list(shape)}' for shape, dtype in (expected - opened)) or 'none'}. "
                "Is the disk in order? The checkpoints before it are intact"
            )
    manifest.write(directory, step)


def fetch(workdir: Path, mirror: "Mirror") -> int | None:
    """If the workdir has no checkpoint, copies the mirror's newest intact step into it and returns the step.

    Returns None if the workdir has a checkpoint or the mirror has none. Raises CheckpointError as `Mirror.pull` does.
    """
    return None if saved_steps(workdir) else mirror.pull(workdir, DIRECTORY, STAGING)


def newest_good(workdir: Path, say: Callable[[str], None]) -> int | None:
    """Returns the newest intact step of a workdir, or None if it has no steps. All processes get the same answer.

    Renames the corrupted steps after this step to STEP.corrupt, and calls `say` with the reason for each. Raises
    CheckpointError if all steps are corrupted, because only the user may decide to start again from step 0.
    """
    rejected: dict[int, str] = {}
    for step in reversed(processes.on_first(lambda: saved_steps(workdir))):
        problem = _problem(Path(workdir) / DIRECTORY / str(step))
        if problem is None:
            processes.on_first(lambda: _set_aside(Path(workdir) / DIRECTORY, list(rejected)))
            for number, reason in rejected.items():
                say(f"checkpoint {number} is corrupted and was renamed to {number}.corrupt: {reason}")
            return step
        rejected[step] = problem
    if rejected:
        listed = "; ".join(f"{step}: {reason}" for step, reason in rejected.items())
        raise CheckpointError(
            f"every checkpoint of {workdir} is corrupted ({listed}). Restore one from a copy, or remove "
            f"{Path(workdir) / DIRECTORY} to start again from step 0"
        )
    return None


def check(directory: Path) -> None:
    """Raises CheckpointError unless every file of a step directory is intact."""
    problem = _problem(directory)
    if problem:
        raise CheckpointError(
            f"{directory} is corrupted: {problem}. Use a different step; `t5x-lite verify` lists the intact ones"
        )


def verify(workdir: Path) -> dict[int, str | None]:
    """Returns {step: its problem, or None if the step is intact} for every step of a workdir, oldest first."""
    return {step: _problem(Path(workdir) / DIRECTORY / str(step)) for step in saved_steps(workdir)}


def check_space(workdir: Path, state: TrainState, kept: int) -> None:
    """Raises CheckpointError unless the disk has space for `kept` checkpoints of `state` and one more."""
    bytes_each = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state, state.average))
    )

    def look() -> None:
        # The saved steps and the files of a killed save will be removed, but corrupted steps (STEP.corrupt) will stay.
        replaced = [Path(workdir) / STAGING, *(Path(workdir) / DIRECTORY / str(step) for step in saved_steps(workdir))]
        needed, free = (kept + 1) * bytes_each - sum(map(_bytes_below, replaced)), shutil.disk_usage(workdir).free
        if needed > free:
            raise CheckpointError(
                f"{workdir} has {free:,} bytes free; {kept} checkpoints and one being written take {needed:,} more. "
                "Lower checkpoint.keep_last, or use a --workdir on a larger disk"
            )

    processes.on_first(look)


def _problem(directory: Path) -> str | None:
    """Returns a problem of a step, or None if the step is intact. Every process checks its share of the files."""
    problems = processes.gather([manifest.problem(directory, jax.process_index(), jax.process_count())])
    return next(filter(None, problems), None)


def _set_aside(root: Path, steps: list[int]) -> None:
    for step in steps:
        side_files.set_aside(root / str(step))


def saved_steps(workdir: str | Path) -> list[int]:
    """Returns the steps saved in a workdir, oldest first."""
    root = Path(workdir) / DIRECTORY
    return sorted(int(d.name) for d in root.iterdir() if STEP.fullmatch(d.name)) if root.is_dir() else []


def find(source: str | Path) -> Path:
    """Returns `source` if it is a step's directory. If it is a workdir, returns the directory of its newest step.

    Raises CheckpointError if there is no such step.
    """
    path = Path(source).absolute()
    if "\\" in str(path):
        raise CheckpointError(f"{path}: checkpoints cannot be read below a path with a backslash; rename the directory")
    if (path / "params").is_dir():
        return path
    if path.parent.name == DIRECTORY and STEP.fullmatch(path.name):
        steps = ", ".join(map(str, saved_steps(path.parents[1]))) or "none"
        raise CheckpointError(f"{path} is not there; a run beside may have dropped it. Steps now there: {steps}")
    return path / DIRECTORY / str(choose(source, "latest", None)[0])


def choose(workdir: str | Path, which: str, best: int | None) -> list[int]:
    """Returns the steps that `which` names: "latest", "best", "all" or a number.

    best: the best saved step; None if none was evaluated. Raises CheckpointError if there is no such step; the error
    lists the saved steps.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise CheckpointError(f"no checkpoint in {str(workdir)!r}; give the workdir of a `t5x-lite train`")
    if which == "all":
        return steps
    if which == "latest":
        return steps[-1:]
    if which == "best":
        if best is None:
            raise CheckpointError(
                "no saved step was evaluated for checkpoint.keep_best; train with "
                "--config.checkpoint.keep_best=TASK/METRIC"
            )
        which = str(best)
    if not STEP.fullmatch(which) or int(which) not in steps:
        raise CheckpointError(
            f"no checkpoint {which!r}; use a step ({', '.join(map(str, steps))}), latest, best or all"
        )
    return [int(which)]


def _bytes_below(root: Path) -> int:
    """Returns the total size in bytes of all files below `root`. Skips files that are being removed."""
    total = 0
    for directory, _, files in os.walk(root):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(directory) / file).stat().st_size
    return total


def abstract(tree: Any) -> Any:
    """Returns the shape, dtype and sharding of every array of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)
