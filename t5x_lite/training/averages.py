"""The moving average of the weights over training, which often generalizes better than the last weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Averaging(NamedTuple):
    """Says how weights are averaged.

    decay: of the average from step to step.  every_steps: steps from one update of the average to the next.
    """

    decay: float
    every_steps: int = 1


def next_average(averaging: Averaging, average: Any, params: Any, step: jax.Array) -> Any:
    """Returns the average after a step: d · average + (1 − d) · parameters, every `every_steps` steps.

    d = decay^every_steps, but at most (1 + n) / (10 + n) after n updates of the average, so that the average forgets
    the initial parameters (as in TensorFlow's ExponentialMovingAverage). Steps between two updates cost nothing.

    average, params: trees of the same arrays.  step: number of the step, from 1.
    """
    every = averaging.every_steps

    def mean() -> Any:
        n = (step // every).astype(jnp.float32)
        d = jnp.minimum(averaging.decay**every, (1 + n) / (10 + n))
        return jax.tree.map(lambda old, new: d * old + (1 - d) * new, average, params)

    return mean() if every == 1 else jax.lax.cond(step % every == 0, mean, lambda: average)


def of_schedule_free(params: Any, opt_state: Any) -> Any:
    """Returns the average that a schedule-free optimizer keeps (optimizers.py); None for other optimizers.

    params, opt_state: the trainable parameters and the optimizer's state.
    """
    from optax.contrib import ScheduleFreeState, schedule_free_eval_params

    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ScheduleFreeState))
    found = [node for node in nodes if isinstance(node, ScheduleFreeState)]
    return schedule_free_eval_params(found[0], params) if found else None
