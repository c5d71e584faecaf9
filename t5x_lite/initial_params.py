"""Starts a run from the parameters of a different model. Matches the classes of the two models by name, not by number.

For example, a run whose task lists (entailment, neutral, contradiction) may start from a classifier of (contradiction,
neutral, entailment). Then the classes in the classifier's head are put in the run's order.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from t5x_lite import saved_run, side_files
from t5x_lite.checkpoints import checkpoint
from t5x_lite.checkpoints.loading import chosen_weights, load_params, split_weights
from t5x_lite.errors import CheckpointError
from t5x_lite.heads import HEADS
from t5x_lite.models import paths, stored
from t5x_lite.models.config import ModelConfig

if TYPE_CHECKING:
    from t5x_lite.experiment import Experiment
    from t5x_lite.runtime import Training


def state(experiment: "Experiment", training: "Training") -> tuple[Any, str, dict]:
    """Returns (the train state that begins with the parameters of init.checkpoint, and what `load` reports)."""
    cfg = experiment.cfg.init
    fresh = training.new_state().params
    params, report, of_each = load(cfg.checkpoint, fresh, experiment.model, experiment.classes, cfg.adapt)
    return training.state_from(params), report, of_each


def load(source: str, params: Any, model: ModelConfig, classes: tuple[str, ...], adapt: bool) -> tuple[Any, str, dict]:
    """Returns (`params` with the parameters that the checkpoint `source` has, a report of what was loaded, {path of a
    parameter: where its value comes from}).

    source: a workdir or a step's directory; with "+average" behind it, trainable parameters come from the moving
        average, as they do by default from a schedule-free run.
    model: the run's.  classes: the run's classes, in the order of its heads' outputs.
    adapt: whether the checkpoint may be of a model of another architecture or depth (adapted_params.py).
    Raises CheckpointError as `load_params` does, or if the architectures differ and `adapt` is false.
    """
    source, weights = split_weights(source)
    step_directory = checkpoint.find(source)
    directory = step_directory.parents[1]
    old, origins = _model_of(directory), None
    if old is None and adapt:
        raise CheckpointError(
            f"init.adapt=True: {directory} does not describe its model, as if the user's own code defines it, its "
            "vocabulary or its targets; set init.adapt=False to load the parameters that have the same names"
        )
    depth, old_depth = ((of and (of.num_encoder_layers, of.num_decoder_layers)) for of in (model, old))
    if old is not None and (old.stacks != model.stacks or (adapt and depth != old_depth)):
        if not adapt:
            raise CheckpointError(
                f"the model in {source} has {_named(old)}, but the run's has {_named(model)}; set init.adapt=True to "
                "continue the one as the other"
            )
        from t5x_lite import adapted_params

        origins = functools.partial(adapted_params.origins, old, model)
    is_sum = old is not None and old.has_generator and old.generator_embeddings == "disentangled"
    is_sum = is_sum and not model.has_generator
    wanted = params | {"generator": {"token_embedding": params["token_embedding"]}} if is_sum else params
    loaded, report = load_params(source, wanted, origins)
    if chosen_weights(step_directory, weights) == checkpoint.AVERAGE:
        loaded, _ = load_params(source, loaded, origins, part=checkpoint.AVERAGE)
    of_each = report.of_each()
    if is_sum:
        loaded = _with_generators_table(loaded, of_each)
    aligned, note = align(loaded, params, classes_of(directory), classes)
    flat, fresh = paths.flatten(loaded), paths.flatten(params)
    for path, array in paths.flatten(aligned).items():
        if array is not flat[path]:
            is_fresh = array is fresh[path]
            of_each[path] = "fresh, because the classes differ" if is_fresh else "adapted: classes matched by name"
    return aligned, f"{report}; {note}" if note else str(report), of_each


def _with_generators_table(loaded: Any, of_each: dict[str, str]) -> Any:
    """Returns the parameters with the generator's table of tokens added to the discriminator's, and without it.

    loaded: with the table below "generator".  of_each: where each value comes from; tells of the sum.
    """
    loaded, path = dict(loaded), "token_embedding/embedding"
    tables = loaded.pop("generator")["token_embedding"], loaded["token_embedding"]
    if of_each.pop(f"generator/{path}") == of_each[path] == "loaded":
        of_each[path] = "adapted: the generator's table of tokens is added"
        loaded["token_embedding"] = jax.tree.map(jnp.add, *tables)
    return loaded


def _named(model: ModelConfig) -> str:
    return " and ".join({"encoder": "an encoder", "decoder": "a decoder"}[stack] for stack in model.stacks)


def _model_of(directory: Path) -> ModelConfig | None:
    """Returns the model of a workdir or imported directory; None if it has no description."""
    for place in (saved_run.directory_of(directory), directory):
        if place is not None and side_files.is_there(place / stored.FILE):
            return stored.read(place)
    return None


def align(loaded: Any, fresh: Any, old: tuple[str, ...], new: tuple[str, ...]) -> tuple[Any, str]:
    """Puts the classes in loaded heads in the run's order. Returns (parameters, a note for the user or "").

    If the checkpoint has the run's names in a different order, reorders its heads; upper and lower case do not matter.
    If it has different names, the heads stay as in `fresh`. If it has no names (none, or only LABEL_0, …), its classes
    are matched by number.

    loaded: the parameters with those of the checkpoint. fresh: the parameters before the checkpoint was loaded.
    old: the checkpoint's classes. new: the run's classes.
    """
    flat, start = paths.flatten(loaded), paths.flatten(fresh)
    heads = [path for path in flat if path.split("/")[0] in HEADS and HEADS[path.split("/")[0]].has_classes]
    changed = [path for path in heads if flat[path].shape[-1] == len(new) and flat[path] is not start[path]]
    if not changed or old == new:
        return loaded, ""
    if all(name == f"LABEL_{number}" for number, name in enumerate(old)):
        return loaded, f"the checkpoint has no names for its classes; they are taken in the order {', '.join(new)}"
    number_of = {name.casefold(): number for number, name in enumerate(old)}
    if len(number_of) == len(old) and set(number_of) == {name.casefold() for name in new}:
        order = jnp.array([number_of[name.casefold()] for name in new])
        moved = {path: _reordered(flat[path], order) for path in changed}
        note = f"its classes {', '.join(old)} are matched by name with {', '.join(new)}"
        return paths.unflatten(flat | moved), note
    note = f"its classes {', '.join(old)} are not the run's {', '.join(new)}, so {', '.join(changed)} start fresh"
    return paths.unflatten(flat | {path: start[path] for path in changed}), note


def _reordered(array: jax.Array, order: jax.Array) -> jax.Array:
    return jax.device_put(jnp.take(array, order, axis=-1), array.sharding)


def classes_of(directory: Path) -> tuple[str, ...]:
    """Returns the classes of the model in a workdir or imported directory, in its order; () if it names none.

    Raises CheckpointError if the file that names them is corrupted.
    """
    if (of_run := saved_run.directory_of(directory)) is not None:
        return saved_run.classes_of(of_run)
    file = directory / stored.SETTINGS
    if not side_files.is_there(file):
        return ()
    try:
        names = side_files.read_json(file).get("id2label") or {}
        return tuple(str(names.get(str(number), f"LABEL_{number}")) for number in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is corrupted ({side_files.why(error)}); import the model again") from None
