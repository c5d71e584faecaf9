"""Loads only the parameters of a checkpoint: into a new run, for evaluation, or for inference."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from t5x_lite import side_files
from t5x_lite.checkpoints.checkpoint import AVERAGE, DIRECTORY, PARAMS, abstract, check, find, saved_steps
from t5x_lite.cluster import processes
from t5x_lite.errors import CheckpointError, ConfigError, first_line
from t5x_lite.models import paths
from t5x_lite.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Origin:
    """Says from which array of a checkpoint a parameter comes.

    path: the path of the array.  how: how the parameter differs from the array, in words; "" if they are equal.
    change: makes the parameter from the array; not called if `how` is "".
    """

    path: str
    how: str = ""
    change: Callable[[jax.Array], jax.Array] = lambda array: array


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Tells which parameters were loaded from another run's checkpoint. Each list has paths of parameters."""

    loaded: list[str]
    adapted: dict[str, str]  # {path: how}: from an array with another meaning or shape
    fresh: list[str]  # in the model but not in the checkpoint: newly initialized
    skipped: list[str]  # in the checkpoint but not in the model
    reshaped: list[str]  # in both, with different shapes: newly initialized

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        hows = list(self.adapted.values())
        lines += [f"{hows.count(how)} adapted: {how}" for how in dict.fromkeys(hows)]
        kinds = {"fresh": "fresh", "skipped": "skipped", "reshaped": "fresh, because their shapes differ"}
        for kind, words in kinds.items():
            names = getattr(self, kind)
            if names:
                lines.append(f"{len(names)} {words}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
        return "; ".join(lines)

    def of_each(self) -> dict[str, str]:
        """Returns {path of a parameter: "loaded", "adapted: HOW" or "fresh"} for all parameters of the model."""
        adapted = {path: f"adapted: {how}" for path, how in self.adapted.items()}
        fresh = dict.fromkeys(self.fresh, "fresh") | dict.fromkeys(self.reshaped, "fresh, because the shapes differ")
        return dict(sorted((dict.fromkeys(self.loaded, "loaded") | adapted | fresh).items()))


def load_params(
    source: str | Path,
    params: Any,
    origins: Callable[[Iterable[str], Iterable[str]], dict[str, Origin]] | None = None,
    part: str = PARAMS,
) -> tuple[Any, LoadReport]:
    """Returns `params`, in which each array is replaced by the checkpoint's array with the same path and shape, if any.

    source: a workdir (its newest step is used), or `WORKDIR/checkpoints/STEP`.
    params: a tree of arrays, or of ShapeDtypeStructs.
    origins: (paths of the model, paths of the checkpoint) -> {path of a parameter: its Origin}. None: each parameter
        comes from the array with the same path.
    part: the part of the checkpoint: PARAMS or AVERAGE.
    Raises CheckpointError if there is no checkpoint, if it is corrupted, or if none of its arrays fits. Also raises it
    if the layers have different shapes, because then the checkpoint belongs to another model. Tables and heads may have
    different shapes, because the vocabulary or the classes may differ.
    """
    step_directory = Path(processes.on_first(lambda: str(find(source))))  # another run may be saving in that workdir
    check(step_directory)
    directory = step_directory / part
    checkpointer = ocp.PyTreeCheckpointer()
    model = paths.flatten(params)
    try:
        metadata = checkpointer.metadata(directory).item_metadata
        stored = paths.flatten(metadata.tree)  # pyright: ignore  (None: corrupted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {directory}: {first_line(error)}; is it corrupted?") from error
    comes = {p: Origin(p) for p in model if p in stored} if origins is None else origins(model, stored)
    shape_of = {p: _shape(stored[origin.path], origin) for p, origin in comes.items()}
    shapes_differ = [p for p in comes if shape_of[p] != model[p].shape]
    loaded = [p for p in comes if p not in shapes_differ]
    if not loaded:
        raise CheckpointError(
            f"{directory} and this model share no parameter; the checkpoint has for example "
            f"{next(iter(stored), 'nothing')}, the model {next(iter(model))}. "
            "Use a checkpoint of the same family with the same model.scan_layers"
        )
    if inner := [p for p in shapes_differ if re.search(r"(^|/)layers(_\d+)?/", p)]:
        stored_shape, shape = list(shape_of[inner[0]]), list(model[inner[0]].shape)
        raise CheckpointError(
            f"{directory} is of a different model: {len(inner)} parameters of its layers have different shapes, for "
            f"example {inner[0]}: {stored_shape} in the checkpoint, {shape} in the model. "
            "Use the model.preset and sizes of the checkpoint"
        )
    used = {comes[p].path: p for p in loaded}
    wanted = {
        path: jax.ShapeDtypeStruct(stored[path].shape, model[p].dtype, sharding=abstract(model[p]).sharding)
        for path, p in used.items()
    }
    arguments = ocp.args.PyTreeRestore(
        item=paths.unflatten(wanted),
        restore_args=ocp.checkpoint_utils.construct_restore_args(paths.unflatten(wanted)),
        partial_restore=True,
    )
    try:
        arrays = paths.flatten(checkpointer.restore(directory, args=arguments))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {directory}: {first_line(error)}; is it corrupted?") from error
    values = {p: _changed(arrays[comes[p].path], comes[p], model[p]) for p in loaded}
    report = LoadReport(
        [p for p in loaded if not comes[p].how],
        {p: comes[p].how for p in loaded if comes[p].how},
        fresh=[p for p in model if p not in comes],
        skipped=[p for p in stored if p not in {origin.path for origin in comes.values()}],
        reshaped=shapes_differ,
    )
    return paths.unflatten(model | values), report


def _shape(array: Any, origin: Origin) -> tuple[int, ...]:
    """Returns the shape of a parameter that is made from `array` of a checkpoint's metadata."""
    if not origin.how:
        return tuple(array.shape)
    return jax.eval_shape(origin.change, jax.ShapeDtypeStruct(array.shape, array.dtype)).shape


def _changed(array: jax.Array, origin: Origin, parameter: Any) -> jax.Array:
    if not origin.how:
        return array
    # A copy: several parameters may come from one array, and a training step donates each parameter's memory.
    return jax.device_put(jnp.copy(origin.change(array)), parameter.sharding)


def check_layers(workdir: Path, step: int, model: ModelConfig) -> None:
    """Raises CheckpointError if a checkpoint has fewer arrays than `model` has layers.

    A corrupted model.json may ask for many layers. `load_model` finds that, too, but only after the model was traced,
    which takes seconds per hundred layers.
    """
    try:
        file = workdir / DIRECTORY / str(step) / "params" / "_METADATA"
        arrays = len(side_files.read_json(file)["tree_metadata"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # `load_model` says what is wrong
    if not (model.scan_layers or model.share_layers) and model.num_layers > arrays:
        raise CheckpointError(
            f"step {step} of {workdir} has {arrays} arrays, but its model has {model.num_layers} layers; is its config "
            "corrupted?"
        )


def load_model(workdir: Path, step: int, params: Any, weights: str = "") -> Any:
    """Returns the parameters of a workdir's step, with the shapes and shardings of `params`.

    weights: "raw": those of the step; "average": with their moving average; "mean:K": the mean of the K newest saved
        steps up to this one; "": raw, but the average for a schedule-free optimizer.
    Raises CheckpointError unless the step has all parameters of `params` in the same shapes, or if it has no such
    weights. Raises ConfigError if `weights` is none of these.
    """
    directory = workdir / DIRECTORY / str(step)
    weights = chosen_weights(directory, weights)
    if weights in ("raw", AVERAGE):
        steps = [step]
    elif match := re.fullmatch(r"mean:([1-9]\d{0,5})", weights):
        all_steps = processes.on_first(lambda: saved_steps(workdir))  # a run may be saving there
        steps = [saved for saved in all_steps if saved <= step][-int(match[1]) :]
        if len(steps) < int(match[1]):
            raise CheckpointError(
                f"+{weights}: {workdir} has only {len(steps)} checkpoints up to step {step}; raise checkpoint.keep_last"
            )
    else:
        raise ConfigError(f"weights {weights!r} of a checkpoint: must be raw, average or mean:K, such as latest+mean:3")
    mean: Any = None
    for saved in steps:
        loaded, report = load_params(workdir / DIRECTORY / str(saved), params)
        if report.fresh or report.reshaped:
            raise CheckpointError(f"step {saved} of {workdir} does not hold the model of its config.json: {report}")
        mean = loaded if mean is None else jax.tree.map(jnp.add, mean, loaded)
    if len(steps) > 1:
        mean = jax.tree.map(lambda total: total / len(steps), mean)
    if weights == AVERAGE:
        mean, _ = load_params(directory, mean, part=AVERAGE)
    return mean


def chosen_weights(directory: Path, weights: str) -> str:
    """Returns `weights`, or if it is "": "average" for a step of a schedule-free optimizer, "raw" for other steps.

    Raises CheckpointError if it is "average" and the step has none.
    """
    weights = weights or (AVERAGE if _is_schedule_free(directory) else "raw")
    if weights == AVERAGE and not side_files.is_there(directory / AVERAGE):
        raise CheckpointError(f"{directory} has no moving average; a run with --config.average.decay=0.999 keeps one")
    return weights


def split_weights(source: str) -> tuple[str, str]:
    """Returns (the path, the weights) of a source such as "runs/base+average".

    >>> split_weights("runs/a+b"), split_weights("runs/a+b+average")
    (('runs/a+b', ''), ('runs/a+b', 'average'))
    """
    path, plus, weights = source.rpartition("+")
    return (path, weights) if plus and weights in ("raw", AVERAGE) else (source, "")


def _is_schedule_free(directory: Path) -> bool:
    """Returns whether a step was made by a schedule-free optimizer. If its config cannot be read, returns False."""
    try:
        return side_files.read_json(directory / "config" / "metadata")["optimizer"]["name"] == "schedule_free"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
