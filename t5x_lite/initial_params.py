"""Starts a run from the parameters of a different model. Matches the classes of the two models by name, not by number.

For example, a run whose task lists (entailment, neutral, contradiction) may start from a classifier of (contradiction,
neutral, entailment). Then the classes in the classifier's head are put in the run's order.
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

IMPORTED = "huggingface.json"  # in an imported directory: the config.json of the original


def load(source: str, params: Any, classes: tuple[str, ...]) -> tuple[Any, str]:
    """Returns (`params` with the parameters that the checkpoint `source` has, a report of what was loaded).

    classes: the run's classes, in the order of its heads' outputs. Raises CheckpointError as `load_params` does.
    """
    loaded, report = load_params(source, params)
    theirs = names_of(checkpoint.find(source).parents[1])
    loaded, note = align(loaded, params, theirs, classes)
    return loaded, f"{report}; {note}" if note else str(report)


def align(loaded: Any, fresh: Any, theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[Any, str]:
    """Puts the classes in loaded heads in the run's order. Returns (parameters, a note for the user or "").

    If the checkpoint has the run's names in a different order, reorders its heads; upper and lower case do not matter.
    If it has different names, the heads stay as in `fresh`. If it has no names (only LABEL_0, …), its classes are
    matched by number.

    loaded: the parameters with those of the checkpoint. fresh: the parameters before the checkpoint was loaded.
    theirs: the checkpoint's classes. ours: the run's classes.
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
    """Returns the class names of the model in a workdir or imported directory; () if the model has none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        described = json.loads((directory / saved_run.DIRECTORY / saved_run.TASKS).read_bytes())
        targets = [task["target"] for task in described["tasks"]]
        return next((tuple(names) for t in targets if (names := t.get("labels") or t.get("classes"))), ())
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = json.loads((directory / IMPORTED).read_bytes())["id2label"]
        return tuple(names[str(number)] for number in range(len(names)))
    return ()
