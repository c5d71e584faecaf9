"""Before a run, checks the shapes that the user's own module, optimizer, schedule and loss return.

jax.eval_shape calls each of these functions, so nothing is computed and no device holds an array. Before an evaluation,
`take_objects` checks that the config file still has the objects of the run.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from t5x_lite import config, own_code
from t5x_lite.config import Config
from t5x_lite.errors import ConfigError
from t5x_lite.experiment import Experiment
from t5x_lite.heads import EXAMPLES, MASKED, TOKENS, WITH_LOSS
from t5x_lite.models.config import ModelConfig
from t5x_lite.own_code import called, name_of
from t5x_lite.training.losses import AUXILIARY, LossSum
from t5x_lite.training.step import TrainState
from t5x_lite.training.trainable import Trainable, split

# {what a head reads: an array of a batch}. The array has the shape of the head's output without its last axis.
COLUMNS = {
    TOKENS: "encoder_input_tokens",
    MASKED: "mlm_positions",
    EXAMPLES: "pooled_positions",
    "": "decoder_target_tokens",
}


def check(
    experiment: Experiment,
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Callable,
    state: TrainState,
    example: Mapping[str, Any],
    trainable: Trainable,
) -> None:
    """Raises ConfigError if the module, optimizer, schedule or loss fails or returns wrong types or shapes.

    The error names the config key and the user's object. state: the train state, as shapes. example: a batch.
    """
    cfg, model = experiment.cfg, experiment.model
    if callable(cfg.schedule.name):
        _check_schedule(cfg.schedule.name, schedule)
    if callable(cfg.optimizer.name):
        _check_optimizer(cfg.optimizer.name, optimizer, state, trainable)
    if model.module is not None or callable(cfg.loss.name):
        key = jax.eval_shape(jax.random.key, 0)

        def apply(params: Any, batch: Any, key: jax.Array) -> Any:
            return module.apply({"params": params}, batch, train=True, rngs={"dropout": key})

        what = f"model.module={name_of(model.module)}"
        outputs = jax.eval_shape(functools.partial(called, what, apply), state.params, example, key)
        if model.module is not None:
            _check_outputs(model, outputs, example)
        if callable(cfg.loss.name):
            _check_loss(cfg.loss.name, outputs, example)


def _check_schedule(function: Callable, schedule: Callable) -> None:
    rate = jax.eval_shape(schedule, jnp.zeros([], jnp.int32))
    if getattr(rate, "shape", None) != ():
        raise ConfigError(
            f"schedule.name={name_of(function)} returns {_shown(rate)}; it must return one number, the learning "
            "rate as a share of its peak"
        )


def _check_optimizer(
    function: Callable, optimizer: optax.GradientTransformation, state: TrainState, trainable: Trainable
) -> None:
    what = f"optimizer.name={name_of(function)}"
    params = split(state.params, trainable)[0]
    update = functools.partial(optax.with_extra_args_support(optimizer).update, value=jnp.zeros([]))  # for spikes.py
    updates, opt_state = jax.eval_shape(functools.partial(called, what, update), params, state.opt_state, params)
    for part, got, wanted in (("updates", updates, params), ("a state", opt_state, state.opt_state)):
        if jax.tree.map(jnp.shape, got) != jax.tree.map(jnp.shape, wanted):
            raise ConfigError(
                f"{what} returns {part} whose structure differs from that before the update; it must keep the shapes "
                "of the parameters and of its state"
            )


def _check_outputs(model: ModelConfig, outputs: Any, example: Mapping[str, Any]) -> None:
    what = f"model.module={name_of(model.module)}"
    if not isinstance(outputs, Mapping):
        raise ConfigError(f"{what} returns {_shown(outputs)}; it must return a dict {{head: output}}")
    needed = model.heads or ("lm",)
    if missing := [head for head in needed if head not in outputs]:
        raise ConfigError(
            f"{what} returns {', '.join(outputs) or 'nothing'}; the run's tasks need {' and '.join(missing)}"
        )
    for name, output in outputs.items():
        if name == AUXILIARY:
            continue
        if name not in WITH_LOSS:
            raise ConfigError(
                f"{what} returns {name!r}, which is not a head; allowed: {', '.join(WITH_LOSS)}, {AUXILIARY}"
            )
        head = WITH_LOSS[name]
        last = {None: (model.vocab_size,), 1: ()}.get(head.outputs, (head.outputs,))  # type: ignore[arg-type]
        wanted = (*example[COLUMNS[head.reads]].shape, *((model.num_classes,) if head.has_classes else last))
        if output.shape != wanted:
            raise ConfigError(f"{what} returns {name!r} of shape {list(output.shape)}; it must be {list(wanted)}")


def _check_loss(function: Callable, outputs: Any, example: Mapping[str, Any]) -> None:
    what = f"loss.name={name_of(function)}"
    sums = jax.eval_shape(functools.partial(called, what, function), outputs, example)
    if not isinstance(sums, Mapping) or not sums or not all(isinstance(loss, LossSum) for loss in sums.values()):
        raise ConfigError(f"{what} returns {_shown(sums)}; it must return {{name: LossSum(sum, weight)}}")
    for name, loss in sums.items():
        for part in ("sum", "weight"):
            if getattr(loss, part).shape != ():
                raise ConfigError(
                    f"{what}: the {part} of {name!r} has the shape {list(getattr(loss, part).shape)}; it must be one "
                    "number, summed over the batch"
                )


def _shown(value: Any) -> str:
    """Describes a value in a few words: a dict by its keys, an array by its shape, anything else by its type."""
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    return f"an array of shape {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def take_objects(cfg: Config, loaded: Config) -> None:
    """Replaces each reference in a run's config by the object that `loaded` has for the same key.

    loaded: the config that the run's config file returns now. Raises ConfigError if `loaded` has a different object
    for a key, or if the source of an object has changed since the run began.
    """
    for name, key in config.KEYS.items():
        if key.takes and cfg[name] != config.as_data(loaded[name]) and _has_reference(cfg[name]):
            raise ConfigError(
                f"the run was made with {name}={cfg[name]!r}; the config file has {config.as_data(loaded[name])!r}. "
                "Restore the file to its old state"
            )
        if key.takes and _has_reference(cfg[name]):
            section, _, leaf = name.rpartition(".")
            (cfg[section] if section else cfg)[leaf] = loaded[name]


def _has_reference(value: Any) -> bool:
    return any(map(own_code.is_reference, value if isinstance(value, tuple) else (value,)))
