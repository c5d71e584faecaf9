"""Optimizers as optax chains: AdamW and T5's Adafactor (adafactor.py).

An optimizer in this module has four parts. In this order, they clip gradients, scale them, decay weights, and multiply
by −learning rate. If a parameter is boxed, its optimizer state is boxed with the same logical axes, so that the state
is sharded like the parameter (cluster/sharding.py).
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from t5x_lite import models, own_code
from t5x_lite.cluster.axes import is_axes
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup
from t5x_lite.models import paths
from t5x_lite.training.schedules import Schedule

NO_DECAY = (r"(.*/)?(bias|scale)",)  # matches the paths of all biases and of the scales of norms


def make_optimizer(
    name: str | Callable[[Schedule], optax.GradientTransformation],
    schedule: Schedule,
    param_axes: Any,
    *,
    weight_decay: float = 0.0,
    no_decay: tuple[str, ...] = NO_DECAY,
    clip_norm: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    decay_exponent: float = 0.8,
    min_dim_size_to_factor: int = 128,
) -> optax.GradientTransformation:
    """Returns the optimizer `name`, with weight decay and with clipping by the global norm.

    Args:
      name: adamw, adafactor, or a user's function, schedule -> optimizer. Only clipping is added to a user's optimizer.
          The arrays of a user's optimizer state are replicated on every device unless they have the shapes of
          parameters.
      schedule: number of updates made so far -> learning rate.
      param_axes: tree of logical axis names (`sharding.param_axes`); Adafactor uses them to factor moments.
      weight_decay: decoupled weight decay: each update also adds −learning_rate · weight_decay · parameter.
      no_decay: regular expressions; a parameter whose whole path ("decoder/norm/scale") matches one does not decay.
      clip_norm: gradients are scaled down to this global norm; 0: no clipping.
      b1, b2, epsilon: AdamW's constants (Loshchilov and Hutter 2019).
      decay_exponent, min_dim_size_to_factor: Adafactor's constants, see adafactor.py.
    Raises:
      ConfigError: the name is unknown; clip_norm or weight_decay is negative; weight_decay is not 0 for a user's
          optimizer; or a user's function fails or does not return an optax optimizer.
    """

    def adafactor() -> optax.GradientTransformation:
        from t5x_lite.training.adafactor import scale_by_adafactor

        return scale_by_adafactor(param_axes, decay_exponent, min_dim_size_to_factor)

    table = {"adamw": lambda: optax.scale_by_adam(b1, b2, epsilon), "adafactor": adafactor}
    if clip_norm < 0 or weight_decay < 0:
        raise ConfigError(f"clip_norm={clip_norm}, weight_decay={weight_decay}: both must be 0 (off) or more")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    if not isinstance(name, str):
        if weight_decay:
            raise ConfigError(
                f"optimizer.weight_decay={weight_decay} must be 0 with optimizer.name={own_code.name_of(name)}: "
                "decay weights in that function"
            )
        return optax.chain(clip, _own(name, schedule))
    # The chain always has four parts, so that a resumed run may switch clipping or decay on.
    return optax.chain(
        clip,
        lookup("optimizer", name, table)(),
        optax.add_decayed_weights(weight_decay, decay_mask(param_axes, no_decay)),
        optax.scale_by_learning_rate(schedule),
    )


def _own(function: Callable[[Schedule], optax.GradientTransformation], schedule: Schedule) -> Any:
    what = f"optimizer.name={own_code.name_of(function)}"
    optimizer = own_code.called(what, function, schedule)
    if not isinstance(optimizer, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
        raise ConfigError(
            f"{what} returns a {type(optimizer).__name__}; it must return an optax.GradientTransformation"
        )
    return optimizer._replace(init=lambda params: models.boxed(optimizer.init(params)))


def decay_mask(param_axes: Any, no_decay: tuple[str, ...] = NO_DECAY) -> Any:
    """Returns a tree that says for each parameter whether it decays (bool).

    param_axes: the tree of logical axis names. no_decay: see `make_optimizer`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(re.fullmatch(rule, paths.text(path)) for rule in no_decay), param_axes, is_leaf=is_axes
    )
