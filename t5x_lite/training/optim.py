"""Makes the optimizer of a run: an optax chain that clips gradients, then does what one of the optimizers does.

optimizers.py has the optimizers by name; parameter_groups.py scales updates and decays weights by parameter. If a
parameter is boxed, its optimizer state is boxed with the same logical axes, so that the state is sharded like the
parameter (cluster/sharding.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import optax

from t5x_lite import models, own_code
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup, own_parameters
from t5x_lite.training import parameter_groups
from t5x_lite.training.parameter_groups import EVERYTHING_ALIKE, Groups

if TYPE_CHECKING:
    from t5x_lite.training.schedules import Schedule


class Parts(NamedTuple):
    """Holds what every optimizer gets.

    param_axes: tree of logical axis names (`sharding.param_axes`).
    schedule: number of updates made so far -> learning rate.
    groups: learning rates and weight decays by parameter.
    """

    param_axes: Any
    schedule: "Schedule"
    groups: Groups

    def decay(self) -> optax.GradientTransformation:
        """Returns the transformation that adds weight_decay · parameter."""
        return parameter_groups.decayed(self.groups)

    def rate(self) -> optax.GradientTransformation:
        """Returns the transformation that multiplies by −learning rate, and by each parameter's factor of it."""
        by_schedule, by_group = optax.scale_by_learning_rate(self.schedule), parameter_groups.scaled(self.groups)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            scaled, new_state = by_schedule.update(updates, state, params)
            return by_group.update(scaled, optax.EmptyState())[0], new_state

        # The state is the schedule's, with any factors, so that a resumed run may change them.
        return optax.GradientTransformation(by_schedule.init, update) if self.groups.scales_rates else by_schedule


def make_optimizer(
    name: str | Callable[["Schedule"], optax.GradientTransformation],
    schedule: "Schedule",
    param_axes: Any,
    *,
    groups: Groups = EVERYTHING_ALIKE,
    clip_norm: float = 0.0,
    **hyper_parameters: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer `name`, with weight decay and with clipping by the global norm.

    Args:
      name: a name in optimizers.py, or a user's function, schedule -> optimizer. Only clipping is added to a user's
          optimizer. The arrays of its state are replicated on every device unless they have the shapes of parameters.
      schedule: number of updates made so far -> learning rate.
      param_axes: tree of logical axis names (`sharding.param_axes`).
      groups: learning rates and weight decays by parameter. The decay is decoupled: each update also adds
          −learning_rate · weight_decay · parameter (Loshchilov and Hutter 2019).
      clip_norm: gradients are scaled down to this global norm; 0: no clipping.
      hyper_parameters: of the optimizer; those that are missing or None have the defaults of its function.
    Raises:
      ConfigError: the name is unknown; the optimizer has no such hyper-parameter; clip_norm or a weight decay is
          negative; a user's optimizer gets groups or a weight decay, fails, or is no optax optimizer.
    """
    if clip_norm < 0 or groups.weight_decay < 0:
        raise ConfigError(f"clip_norm={clip_norm}, weight_decay={groups.weight_decay}: both must be 0 (off) or more")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    if not isinstance(name, str):
        given = [f"optimizer.{key}" for key, value in hyper_parameters.items() if value is not None]
        given += ["optimizer.weight_decay"] * (groups.weight_decay > 0)
        given += ["optimizer.groups and layer_decay"] * bool(groups.groups or groups.scales_rates)
        if given:
            what = f"optimizer.name={own_code.name_of(name)}"
            raise ConfigError(f"{' and '.join(given)} must be unset with {what}: set it in that function")
        return optax.chain(clip, _own(name, schedule))
    function = _function(name)
    own = own_parameters("optimizer", name, function, hyper_parameters)
    # The chain has these parts with any settings, so that a resumed run may switch clipping, decay or factors on.
    return optax.chain(clip, *function(Parts(param_axes, schedule, groups), **own))


def _function(name: str) -> Callable[..., list[optax.GradientTransformation]]:
    from t5x_lite.training import optimizers

    return lookup("optimizer", name, optimizers.OPTIMIZERS)


def _own(function: Callable[["Schedule"], optax.GradientTransformation], schedule: "Schedule") -> Any:
    what = f"optimizer.name={own_code.name_of(function)}"
    optimizer = own_code.called(what, function, schedule)
    if not isinstance(optimizer, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
        raise ConfigError(
            f"{what} returns a {type(optimizer).__name__}; it must return an optax.GradientTransformation"
        )
    return optimizer._replace(init=lambda params: models.boxed(optimizer.init(params)))
