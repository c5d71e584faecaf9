"""Checkpoints: train state, data position and config in one atomic step directory, written by Orbax.

`WORKDIR/checkpoints/STEP/{params,optimizer,progress,config,MANIFEST.json}`. A step is written in `WORKDIR/saving` and
appears by one rename, with the hash of every file in its manifest: a process that dies while saving leaves the older
steps alone, and what a disk changed later is found before it is used. Restoring takes the shardings of the target, so
another mesh or process count reads the same files.
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
from typing import Any

import jax
import orbax.checkpoint as ocp

from t5x_lite import atomic
from t5x_lite.checkpoints import manifest
from t5x_lite.checkpoints.mirror import Mirror
from t5x_lite.cluster import processes
from t5x_lite.errors import CheckpointError, ConfigError, first_line
from t5x_lite.models import paths
from t5x_lite.training.step import TrainState

DIRECTORY = "checkpoints"
STAGING = "saving"
LOOK_S = 10.0  # while waiting for a save: how often to look whether it gets on
BARRIER_S = 24 * 3600  # for all processes to have written: it is the guard that ends what hangs

# Replicas write a part each of what they all hold. To cut an array is a program to compile for every shape, and more
# work than to write a small one whole.
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20), override=True
)


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous: `save` returns once the arrays are copied.

    All processes call the same methods in the same order. Process 0 alone names, lists and removes directories.
    """

    def __init__(
        self,
        workdir: Path,
        keep_last: int,
        beat: Callable[[str], None] = lambda at: None,
        mirror: Mirror | None = None,
    ):
        """beat: is called, with what it waits for, whenever a save that is waited for got on (Guard.beat).
        mirror: each step is copied there."""
        self._beat = beat
        self._mirror = mirror
        self.directory = Path(workdir).absolute() / DIRECTORY
        self._staging = self.directory.parent / STAGING
        self.keep_last = keep_last
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

        def prepare() -> list[int]:
            try:
                shutil.rmtree(self._staging, ignore_errors=True)  # what a killed process was writing or removing
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"cannot use {self.directory}: {error}; is the workdir writable?") from error
            return saved_steps(workdir)

        self._steps = processes.on_first(prepare)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(), async_options=ocp.options.AsyncOptions(timeout_secs=BARRIER_S)
        )

    def steps(self) -> list[int]:
        """The steps saved, oldest first; the newest may still be on its way to the disk."""
        return list(self._steps)

    def save(self, state: TrainState, data_state: dict, config_json: str, keep: Iterable[int] = ()) -> None:
        """Saves `state` under its own step. All but the newest `keep_last` steps and those in `keep` are dropped, once
        the newest is on disk: until then there is one more."""
        step = int(state.step)
        self.wait()
        if step in self._steps:
            return
        with self._saying(f"cannot save step {step}"):
            self._checkpointer.save(
                self._staging / str(step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(state.opt_state),
                    progress=ocp.args.JsonSave({"step": step, "data": data_state}),
                    config=ocp.args.JsonSave(json.loads(config_json)),
                ),
            )
        arrays = {"params": _kinds(state.params), "optimizer": _kinds(state.opt_state)}
        steps = [*self._steps, step]
        dropped = [old for old in steps[: -self.keep_last] if old not in keep]
        self._steps = [kept for kept in steps if kept not in dropped]
        self._thread = threading.Thread(target=self._finish, args=(step, arrays, dropped), name="t5x_lite-save")
        self._thread.start()

    def _finish(self, step: int, arrays: Mapping[str, Counter], dropped: list[int]) -> None:
        """Gives the step its manifest and its place once all processes have written it, and removes older ones."""
        try:
            self._checkpointer.wait_until_finished()
            if jax.process_index():
                return
            _check_arrays(self._staging / str(step), arrays)
            manifest.write(self._staging / str(step), step)
            (self._staging / str(step)).rename(self.directory / str(step))
            atomic.sync(self.directory)  # before an older step goes, also for a power failure
            for old in dropped:  # by two steps, so that no half of it is ever found under its name
                (self.directory / str(old)).rename(self._staging / f"{old}.dropped")
                shutil.rmtree(self._staging / f"{old}.dropped")
            if self._mirror:
                self._mirror.push(self.directory / str(step), self._steps)
        except Exception as error:
            self._error = error

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """The state of `step` in the shapes, dtypes and shardings of `like` (arrays or ShapeDtypeStructs),
        and the data position saved with it."""
        try:
            restored = self._checkpointer.restore(
                self.directory / str(step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(_abstract(like.params)),
                    optimizer=ocp.args.StandardRestore(_abstract(like.opt_state)),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"cannot restore {self.directory / str(step)}: {first_line(error)}. "
                "It was written with another model or optimizer; see its config/ for what it holds."
            ) from error
        arrays = jax.device_put(step, _abstract(like.step).sharding)
        return dataclasses.replace(
            like, step=arrays.astype("int32"), params=restored["params"], opt_state=restored["optimizer"]
        ), restored["progress"]["data"]

    def check(self) -> None:
        """Raises the CheckpointError of a save that has failed; waits for none."""
        if self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is on disk and what it replaces is gone; CheckpointError if it failed."""
        seen = None
        while self._thread:
            self._thread.join(LOOK_S)
            if not self._thread.is_alive():
                self._thread = None
            elif (moved := self._moved()) != seen:  # a large one takes long, but no disk may hang
                self._beat(f"{moved[0]:,} bytes of a checkpoint, {moved[1]:,} files in the mirror")
                seen = moved
        error, self._error = self._error, None
        if isinstance(error, CheckpointError):
            raise error
        with self._saying("cannot save"):
            if error:
                raise error

    def _moved(self) -> tuple[int, int]:
        return _bytes_below(self._staging), self._mirror.sent if self._mirror else 0

    def close(self) -> None:
        self.wait()
        self._checkpointer.close()
        if jax.process_index() == 0:
            shutil.rmtree(self._staging, ignore_errors=True)

    @contextlib.contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        """What Orbax and TensorStore raise while writing (a full disk is a ValueError to the latter) in a line."""
        try:
            yield
        except (OSError, ValueError) as error:
            left = ""
            with contextlib.suppress(OSError):
                left = f"; {shutil.disk_usage(self.directory).free:,} bytes are free there"
            raise CheckpointError(
                f"{what} to {self.directory}: {first_line(error)}; is the disk full, or read-only?{left}"
            ) from error


def check_path(workdir: Path) -> None:
    """Raises ConfigError if Orbax could not save below this path: it reads its own paths as glob patterns, and
    TensorStore takes a backslash for a slash."""
    if wrong := sorted(set(str(workdir.absolute())) & set("[]*?\\")):
        raise ConfigError(
            f"--workdir={workdir}: checkpoints cannot be written below a path with {' '.join(wrong)}; give a path "
            "without [ ] * ? and backslashes"
        )


def _kinds(tree: Any) -> Counter:
    """How many arrays of each shape and dtype there are."""
    return Counter((tuple(leaf.shape), str(leaf.dtype)) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def _check_arrays(directory: Path, arrays: Mapping[str, Counter]) -> None:
    """Raises CheckpointError unless Orbax opens every array that was saved: of some faults it only warns."""
    for name, expected in arrays.items():
        metadata = ocp.PyTreeCheckpointer().metadata(directory / name).item_metadata
        opened = _kinds(metadata.tree) if metadata else Counter()  # pyright: ignore[reportAttributeAccessIssue]
        if opened != expected:
            raise CheckpointError(
                f"cannot save to {directory}: of {expected.total()} arrays of {name} Orbax opens {opened.total()}; is "
                "the disk in order? The checkpoints before it are intact"
            )


def fetch(workdir: Path, mirror: Mirror) -> int | None:
    """The newest step of the mirror, where the workdir has none of its own; else None."""
    return None if saved_steps(workdir) else mirror.pull(workdir, DIRECTORY, STAGING)


def newest_good(workdir: Path, say: Callable[[str], None]) -> int | None:
    """The newest step of a workdir that is as it was written, on all processes; None where none was ever saved.

    A newer one that is not is renamed to STEP.corrupt, and `say` is told why. CheckpointError where all are damaged:
    to begin again from nothing is for the user to decide.
    """
    rejected: dict[int, str] = {}
    for step in reversed(processes.on_first(lambda: saved_steps(workdir))):
        problem = _problem(Path(workdir) / DIRECTORY / str(step))
        if problem is None:
            processes.on_first(lambda: _set_aside(Path(workdir) / DIRECTORY, list(rejected)))
            for number, why in rejected.items():
                say(f"checkpoint {number} is damaged and was set aside as {number}.corrupt: {why}")
            return step
        rejected[step] = problem
    if rejected:
        listed = "; ".join(f"{step}: {why}" for step, why in rejected.items())
        raise CheckpointError(
            f"every checkpoint of {workdir} is damaged ({listed}). Restore one from a copy, or remove "
            f"{Path(workdir) / DIRECTORY} to begin again from nothing"
        )
    return None


def check(directory: Path) -> None:
    """Raises CheckpointError unless every file of a step directory is as it was written."""
    problem = _problem(directory)
    if problem:
        raise CheckpointError(
            f"{directory} is damaged: {problem}. Take another step: `t5x-lite verify` tells which are whole"
        )


def verify(workdir: Path) -> dict[int, str | None]:
    """Every step of a workdir, oldest first, with what is wrong with it; None where nothing is."""
    return {step: _problem(Path(workdir) / DIRECTORY / str(step)) for step in saved_steps(workdir)}


def check_space(workdir: Path, state: TrainState, kept: int) -> None:
    """Raises CheckpointError unless the disk has room for `kept` checkpoints of `state`, and one more while saving."""
    bytes_each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state)))

    def look() -> None:
        # What a killed save left behind is removed, what was set aside stays.
        replaced = [Path(workdir) / STAGING, *(Path(workdir) / DIRECTORY / str(step) for step in saved_steps(workdir))]
        needed, free = (kept + 1) * bytes_each - sum(map(_bytes_below, replaced)), shutil.disk_usage(workdir).free
        if needed > free:
            raise CheckpointError(
                f"{workdir} has {free:,} bytes free; {kept} checkpoints and one being written take {needed:,} more. "
                "Lower checkpoint.keep_last, or take a --workdir on a larger disk"
            )

    processes.on_first(look)


def _problem(directory: Path) -> str | None:
    found = processes.gather([manifest.problem(directory, jax.process_index(), jax.process_count())])
    return next(filter(None, found), None)


def _set_aside(root: Path, steps: list[int]) -> None:
    for step in steps:
        target = root / f"{step}.corrupt"
        shutil.rmtree(target, ignore_errors=True)
        (root / str(step)).rename(target)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every parameter when a run started from another's checkpoint, by path."""

    loaded: list[str]
    fresh: list[str]  # in the model, not in the checkpoint
    skipped: list[str]  # in the checkpoint, not in the model
    reshaped: list[str]  # in both with different shapes: fresh in the model

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        kinds = {"fresh": "fresh", "skipped": "skipped", "reshaped": "fresh, as they have another shape"}
        for kind, words in kinds.items():
            names = getattr(self, kind)
            if names:
                lines.append(f"{len(names)} {words}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
        return "; ".join(lines)


def load_params(source: str | Path, params: Any) -> tuple[Any, LoadReport]:
    """`params` with every tensor that the checkpoint `source` has under the same path and shape.

    source: a workdir (its newest step), or `WORKDIR/checkpoints/STEP`.
    Raises CheckpointError when there is no checkpoint, none of its tensors fits, or its layers have other shapes: then
    it is of another model. (Tables and heads may differ: of another vocabulary, or other classes.)
    """
    found = Path(processes.on_first(lambda: str(find(source))))  # another run may be saving there
    check(found)
    directory = found / "params"
    checkpointer = ocp.PyTreeCheckpointer()
    ours = paths.flatten(params)
    try:
        metadata = checkpointer.metadata(directory).item_metadata
        stored = paths.flatten(metadata.tree)  # pyright: ignore  (None: damaged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {directory}: {first_line(error)}; is it damaged?") from error
    shapes_differ = [p for p in ours if p in stored and tuple(stored[p].shape) != ours[p].shape]
    loaded = [p for p in ours if p in stored and p not in shapes_differ]
    if not loaded:
        raise CheckpointError(
            f"{directory} shares no parameter with this model; it has for example {next(iter(stored), 'nothing')}, "
            f"the model {next(iter(ours))}. Is it of the same family, with the same model.scan_layers?"
        )
    if inner := [p for p in shapes_differ if re.search(r"(^|/)layers(_\d+)?/", p)]:
        theirs, here = list(stored[inner[0]].shape), list(ours[inner[0]].shape)
        raise CheckpointError(
            f"{directory} is of another model: {len(inner)} parameters of its layers have other shapes, the first "
            f"{inner[0]}, {theirs} there and {here} here. Take the same model.preset and sizes"
        )
    wanted = paths.unflatten({p: _abstract(ours[p]) for p in loaded})
    arguments = ocp.args.PyTreeRestore(
        item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    try:
        values = paths.flatten(checkpointer.restore(directory, args=arguments))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {directory}: {first_line(error)}; is it damaged?") from error
    report = LoadReport(
        loaded,
        fresh=[p for p in ours if p not in stored],
        skipped=[p for p in stored if p not in ours],
        reshaped=shapes_differ,
    )
    return paths.unflatten(ours | values), report


def load_model(workdir: Path, step: int, params: Any) -> Any:
    """The parameters of a workdir's step in the shapes and shardings of `params`; CheckpointError unless it has all."""
    loaded, report = load_params(workdir / DIRECTORY / str(step), params)
    if report.fresh or report.reshaped:
        raise CheckpointError(f"step {step} of {workdir} does not hold the model of its config.json: {report}")
    return loaded


def saved_steps(workdir: str | Path) -> list[int]:
    """The steps saved in a workdir, oldest first."""
    root = Path(workdir) / DIRECTORY
    return sorted(int(d.name) for d in root.iterdir() if re.fullmatch(r"\d+", d.name)) if root.is_dir() else []


def find(source: str | Path) -> Path:
    """The step directory that `source` (a workdir or a step directory) stands for."""
    path = Path(source).absolute()
    if (path / "params").is_dir():
        return path
    if path.parent.name == DIRECTORY and path.name.isdigit():
        steps = ", ".join(map(str, saved_steps(path.parents[1]))) or "none"
        raise CheckpointError(f"{path} is not there; a run beside may have dropped it. Steps now there: {steps}")
    return path / DIRECTORY / str(choose(source, "latest", None)[0])


def choose(workdir: str | Path, which: str, best: int | None) -> list[int]:
    """The steps that "latest", "best", "all" or a number names; CheckpointError lists those there are."""
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
                "no saved step was evaluated by checkpoint.keep_best; train with "
                "--config.checkpoint.keep_best=TASK/METRIC"
            )
        which = str(best)
    if not which.isdigit() or int(which) not in steps:
        raise CheckpointError(
            f"no checkpoint {which!r}; there are steps {', '.join(map(str, steps))}, latest, best, all"
        )
    return [int(which)]


def _bytes_below(root: Path) -> int:
    """The size of all files there, as far as they are not being removed."""
    total = 0
    for directory, _, files in os.walk(root):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(directory) / file).stat().st_size
    return total


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)
