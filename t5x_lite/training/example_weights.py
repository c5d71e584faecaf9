"""Weighs the targets of tasks and of classes in a batch, before anything else of a training step.

The loss stays a weighted mean. So a target of weight 2 trains as if its example were there twice.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from t5x_lite.errors import ConfigError
from t5x_lite.heads import WITH_LOSS
from t5x_lite.lookup import lookup
from t5x_lite.training.losses import task_ids_of

Batch = Mapping[str, jax.Array]


def weighing(task_weights: Sequence[float], class_weights: Sequence[float]) -> Callable[[Batch], dict[str, jax.Array]]:
    """Returns a function that multiplies the weights of a batch's targets.

    task_weights: of each task, in the order of the batch's task ids; () for none.
    class_weights: of each class, for heads that predict one class; () for none.
    """

    def weighed(batch: Batch) -> dict[str, jax.Array]:
        out = dict(batch)
        for head in WITH_LOSS.values():
            if head.weights not in batch:
                continue
            if task_weights:
                of_task = jnp.array([1.0, *task_weights])  # 1 for padding, whose task id is 0
                out[head.weights] *= of_task[task_ids_of(head, batch)]
            if class_weights and head.has_classes and head.loss == "cross_entropy":
                out[head.weights] *= jnp.array(class_weights)[batch[head.targets]]
        return out

    return weighed


def parse(key: str, texts: Sequence[str], names: Sequence[str]) -> tuple[float, ...]:
    """Returns the weight of each name; 1 for those that no text "NAME=WEIGHT" gives, () without texts.

    key: the config key, for errors.
    Raises ConfigError for a text of another form, an unknown name, or a weight that is not 0 or more.
    """
    places, weights = {name: i for i, name in enumerate(names)}, [1.0] * len(names)
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not name or not 0 <= weight < float("inf"):
            raise ConfigError(
                f"{key} entry {text!r}: write NAME=WEIGHT with a weight of 0 or more, such as {names[0]}=2"
            )
        weights[lookup(key, name, places)] = weight
    if texts and not any(weights):
        raise ConfigError(f"{key}={tuple(texts)}: all weights are 0, so nothing would train; leave some above 0")
    return tuple(weights) if texts else ()
