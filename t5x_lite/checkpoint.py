"""Checkpoints: train state, data position and config in one atomic step directory, written by Orbax.

`WORKDIR/checkpoints/STEP/{params,optimizer,progress,config}`. A step directory appears by one rename, so a
process that dies while saving leaves the older steps alone. Restoring takes the shardings of the target, so
another mesh or process count reads the same files.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from t5x_lite.errors import CheckpointError
from t5x_lite.sharding import path_text
from t5x_lite.step import TrainState

DIRECTORY = "checkpoints"


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous: `save` returns once the arrays are copied."""

    def __init__(self, workdir: Path, keep_last: int):
        self.directory = Path(workdir).absolute() / DIRECTORY
        self.keep_last, self._keep = keep_last, frozenset[int]()
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True),
            )
        except OSError as error:
            raise CheckpointError(f"cannot use {self.directory}: {error}; is the workdir writable?") from error

    def steps(self) -> list[int]:
        """The steps saved, oldest first; the newest may still be on its way to the disk."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data_state: dict, config_json: str, keep: Iterable[int] = ()) -> None:
        """Saves `state` under its own step. All but the newest `keep_last` steps and those in `keep` are dropped, once
        the newest is on disk: until then there is one more."""
        step = int(state.step)
        self._keep = frozenset(keep)
        self.wait()
        if step in self._manager.all_steps():
            return
        with self._saying(f"cannot save step {step}"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(state.opt_state),
                    progress=ocp.args.JsonSave({"step": step, "data": data_state}),
                    config=ocp.args.JsonSave(json.loads(config_json)),
                ),
            )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """The state of `step` in the shapes, dtypes and shardings of `like` (arrays or ShapeDtypeStructs),
        and the data position saved with it."""
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(_abstract(like.params)),
                    optimizer=ocp.args.StandardRestore(_abstract(like.opt_state)),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"cannot restore {self.directory / str(step)}: {_first_line(error)}. "
                "It was written with another model or optimizer, or is damaged; see its config/ for what it holds."
            ) from error
        arrays = jax.device_put(step, _abstract(like.step).sharding)
        return dataclasses.replace(
            like, step=arrays.astype("int32"), params=restored["params"], opt_state=restored["optimizer"]
        ), restored["progress"]["data"]

    def wait(self) -> None:
        """Returns when the last save is on disk and what it replaces is gone; CheckpointError if it failed."""
        with self._saying("cannot save"):
            self._manager.wait_until_finished()
            for step in self.steps()[: -self.keep_last]:
                if step not in self._keep:
                    self._manager.delete(step)

    def close(self) -> None:
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        """What Orbax and TensorStore raise while writing (a full disk is a ValueError to the latter) in a line."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{what} to {self.directory}: {_first_line(error)}; is the disk full?") from error


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every parameter when a run started from another's checkpoint, by path."""

    loaded: list[str]
    fresh: list[str]  # in the model, not in the checkpoint
    skipped: list[str]  # in the checkpoint, not in the model
    reshaped: list[str]  # in both with different shapes: fresh in the model

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        for kind in ("fresh", "skipped", "reshaped"):
            names = getattr(self, kind)
            if names:
                lines.append(f"{len(names)} {kind}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
        return "; ".join(lines)


def load_params(source: str | Path, params: Any) -> tuple[Any, LoadReport]:
    """`params` with every tensor that the checkpoint `source` has under the same path and shape.

    source: a workdir (its newest step), or `WORKDIR/checkpoints/STEP`.
    Raises CheckpointError when there is no checkpoint, or none of its tensors fits.
    """
    directory = find(source) / "params"
    checkpointer = ocp.PyTreeCheckpointer()
    ours = _flat(params)
    try:
        stored = _flat(checkpointer.metadata(directory).item_metadata.tree)  # pyright: ignore  (None: damaged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {directory}: {_first_line(error)}; is it damaged?") from error
    shapes_differ = [p for p in ours if p in stored and tuple(stored[p].shape) != ours[p].shape]
    loaded = [p for p in ours if p in stored and p not in shapes_differ]
    if not loaded:
        raise CheckpointError(
            f"{directory} shares no parameter with this model; it has for example {next(iter(stored), 'nothing')}, "
            f"the model {next(iter(ours))}. Is it of the same family, with the same model.scan_layers?"
        )
    wanted = _nest({p: _abstract(ours[p]) for p in loaded})
    arguments = ocp.args.PyTreeRestore(
        item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    try:
        values = _flat(checkpointer.restore(directory, args=arguments))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {directory}: {_first_line(error)}; is it damaged?") from error
    report = LoadReport(
        loaded,
        fresh=[p for p in ours if p not in stored],
        skipped=[p for p in stored if p not in ours],
        reshaped=shapes_differ,
    )
    return _nest(ours | values), report


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


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)


def _flat(tree: Any) -> dict[str, Any]:
    return {path_text(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _nest(flat: dict[str, Any]) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
