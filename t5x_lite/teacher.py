"""Loads the teacher of a distilled run, and adds its outputs to the run's batches (training/distillation.py)."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from t5x_lite.cluster import sharding
from t5x_lite.errors import ConfigError, UserError
from t5x_lite.heads import HEADS
from t5x_lite.hub import model as hub
from t5x_lite.models import build, paths
from t5x_lite.models.config import MERGED
from t5x_lite.models.projection import logits_of
from t5x_lite.training import distillation, step

if TYPE_CHECKING:
    from t5x_lite.experiment import Experiment
    from t5x_lite.runtime import Runtime


def load(experiment: "Experiment", on_devices: "Runtime") -> Callable[[Any], Any]:
    """Returns a function from a batch on the devices to the batch with the teacher's outputs.

    The teacher runs without dropout. Its parameters are sharded like the student's. Raises ConfigError if it cannot
    teach the run's model, or cannot be read.
    """
    weights = distillation.weights(experiment.cfg.distill)
    try:
        teacher = hub.load(experiment.cfg.distill.teacher, special_tokens=False)
    except UserError as error:
        raise ConfigError(f"distill.teacher={experiment.cfg.distill.teacher}: {error}") from error
    heads = _shared_heads(experiment, teacher, weights)
    layout, config = on_devices.layout, teacher.config
    if config.architecture == "encoder_only":  # whose other heads need arrays that the run's batches may lack
        config = dataclasses.replace(config, heads=heads)
    module = build(config, layout)
    try:
        boxed = step.abstract_params(module, on_devices.example)
        places = sharding.shardings(boxed, layout)
    except ConfigError as error:
        where = f"distill.teacher={experiment.cfg.distill.teacher} does not fit on the mesh"
        raise ConfigError(f"{where} {experiment.cfg.mesh}; use another one: {error}") from error
    stored = paths.flatten(teacher.params)
    params = paths.unflatten({path: stored[path] for path in paths.flatten(nn.meta.unbox(boxed))})
    params = jax.device_put(params, places)
    outputs_fn = distillation.outputs if weights.needs_hidden else step.outputs

    def outputs(params: Any, batch: Any) -> dict[str, jax.Array]:
        every = outputs_fn(module, params, batch)
        named = {name: x for name, x in every.items() if name in heads or name.startswith(distillation.HIDDEN)}
        return {distillation.TEACHER + name: x for name, x in logits_of(named).items()}

    jitted = jax.jit(outputs, in_shardings=(places, layout.batch_sharding), out_shardings=layout.batch_sharding)
    return lambda batch: {**batch, **jitted(params, batch)}


def _shared_heads(experiment: "Experiment", teacher: hub.Model, weights: distillation.Weights) -> tuple[str, ...]:
    """Returns the heads whose logits the student learns. Raises ConfigError if the models do not fit together."""
    new, old = experiment.model, teacher.config
    begins = f"distill.teacher={experiment.cfg.distill.teacher}"
    if new.has_generator or old.has_generator:
        raise ConfigError(f"{begins}: the objective rtd has no teacher; use the objective mlm")
    for model in (old, new):
        if model.module is not None or model.body not in ("transformer", MERGED):
            raise ConfigError(f"{begins}: neither model may have model.module, or model.body={model.body}")
    longest = max(experiment.cfg.data.length, experiment.cfg.data.targets_length if new.num_decoder_layers else 0)
    if old.positions == "learned" and longest > old.max_positions:
        raise ConfigError(
            f"{begins} has max_positions={old.max_positions}, fewer than the run's rows of {longest} tokens; lower "
            "data.length and data.targets_length"
        )
    if old.architecture != new.architecture:
        raise ConfigError(f"{begins} has the architecture {old.architecture}, but the run trains {new.architecture}")
    if teacher.vocabulary.fingerprint != experiment.vocabulary.fingerprint or old.vocab_size != new.vocab_size:
        raise ConfigError(
            f"{begins} has another vocabulary than the run ({old.vocab_size} ids, the run {new.vocab_size}), so its "
            "outputs stand for other tokens; set data.vocabulary and model.vocab_size to the teacher's"
        )
    theirs, ours = (model.heads if model.architecture == "encoder_only" else ("lm",) for model in (old, new))
    heads = tuple(name for name in distillation.taught(ours) if name in theirs) if weights.logits else ()
    if weights.logits and not heads:
        raise ConfigError(
            f"{begins} has the heads {', '.join(theirs) or '(none)'}, the run {', '.join(ours)}: they share no head "
            "that predicts a class or a token; set distill.logits=0, or use a teacher that predicts the same"
        )
    if any(HEADS[name].has_classes for name in heads) and tuple(teacher.labels) != tuple(experiment.classes):
        raise ConfigError(
            f"{begins} has the classes {', '.join(teacher.labels)}, the run {', '.join(experiment.classes)}; they must "
            "be the same in the same order"
        )
    if weights.needs_hidden and old.d_model != new.d_model:
        raise ConfigError(
            f"{begins} has d_model={old.d_model}, the run {new.d_model}, so their hidden states cannot be compared; "
            "set distill.cosine=0 and distill.hidden=0"
        )
    return heads
