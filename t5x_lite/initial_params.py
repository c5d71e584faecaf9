"""Starts a run from the parameters of a different model. Classes of the two are matched by name, not by number.

A classifier of (contradiction, neutral, entailment) may start a run whose task lists (entailment, neutral,
contradiction): the rows of its head move.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite import saved_run
from t5x_lite.checkpoints import checkpoint
from t5x_lite.checkpoints.loading import load_params
from t5x_lite.heads import HEADS
from t5x_lite.models import paths

IMPORTED = "huggingface.json"  # the config.json that a directory was imported with


def load(source: str, params: Any, classes: tuple[str, ...]) -> tuple[Any, str]:
    """Returns (`params` with the parameters of the checkpoint `source`, a report of them in words).

    classes: the run's, in the order of its heads. Raises CheckpointError as `load_params` does.
    """
    loaded, report = load_params(source, params)
    theirs = names_of(checkpoint.find(source).parents[1])
    loaded, note = align(loaded, params, theirs, classes)
    return loaded, f"{report}; {note}" if note else str(report)


def align(loaded: Any, fresh: Any, theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[Any, str]:
    """Returns (parameters, a note for the user, "" if nothing changed).

    loaded: parameters after loading a checkpoint whose classes are `theirs`; fresh: the same before it.
    ours: the run's classes. The same names in another order move the rows of the heads; upper and lower case count as
        the same name. Different names leave the heads as they are in `fresh`. A checkpoint without names (LABEL_0, …)
        is taken by number.
    """
    flat, start = paths.flatten(loaded), paths.flatten(fresh)
    heads = [path for path in flat if path.split("/")[0] in HEADS and HEADS[path.split("/")[0]].has_classes]
    changed = [path for path in heads if flat[path].shape[-1] == len(ours) and flat[path] is not start[path]]
    if not changed or len(theirs) != len(ours) or theirs == ours:
        return loaded, ""
    if all(name == f"LABEL_{number}" for number, name in enumerate(theirs)):
        return loaded, f"the checkpoint has no names for its classes; they are taken in the order {', '.join(ours)}"
    number_of = {name.casefold(): number for number, name in enumerate(theirs)}
    if len(number_of) == len(theirs) and set(number_of) == {name.casefold() for name in ours}:
        order = jnp.array([number_of[name.casefold()] for name in ours])
        moved = {path: _reordered(flat[path], order) for path in changed}
        said = f"its classes {', '.join(theirs)} are matched by name with {', '.join(ours)}"
        return paths.unflatten(flat | moved), said
    said = f"its classes {', '.join(theirs)} are not the run's {', '.join(ours)}, so {', '.join(changed)} start fresh"
    return paths.unflatten(flat | {path: start[path] for path in changed}), said


def _reordered(array: jax.Array, order: jax.Array) -> jax.Array:
    return jax.device_put(jnp.take(array, order, axis=-1), array.sharding)


def names_of(directory: Path) -> tuple[str, ...]:
    """Returns the names of the classes of a workdir's or imported directory's model; () if it has none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        described = json.loads((directory / saved_run.DIRECTORY / saved_run.TASKS).read_bytes())
        targets = [task["target"] for task in described["tasks"]]
        return next((tuple(names) for t in targets if (names := t.get("labels") or t.get("classes"))), ())
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = json.loads((directory / IMPORTED).read_bytes())["id2label"]
        return tuple(names[str(number)] for number in range(len(names)))
    return ()
