"""Gradients of losses that compare the examples of a whole batch, when the batch is split into microbatches.

Such a loss is not a sum over microbatches. But it depends on them only through the outputs of a head, which are few
numbers per example. So the step makes two passes (Gao et al. 2021, "Scaling deep contrastive learning batch size under
memory limited setup", §3.2):

1. Each microbatch's outputs are computed without activations to keep. The loss of all outputs gives its gradient with
   respect to each output.
2. Each microbatch is computed again. The product of its outputs and that gradient, a constant, has the gradient of the
   loss with respect to the parameters.

The result is the exact gradient, whatever the number of microbatches.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.training.losses import LossSum, compared, total_loss

GRADIENT = "gradient/"  # begins the names of arrays that hold the gradient with respect to a head's outputs


class FirstPass(NamedTuple):
    """The result of the first pass. loss, sums: of the heads that compare examples, over the whole batch.
    microbatches: with the gradients, for the second pass."""

    microbatches: dict[str, jax.Array]
    loss: jax.Array
    sums: dict[str, LossSum]

    def second_pass(
        self, outputs: Mapping[str, Any], microbatch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, Any], jax.Array]:
        """Returns (the outputs whose losses are sums over microbatches, a term with the gradient of the other losses).

        The term's value is 0, because `loss` already has the value.
        """
        rest, term = dict(outputs), jnp.zeros(())
        for name in self.sums:
            term += jnp.vdot(microbatch[GRADIENT + name], rest.pop(name))
        return rest, term - jax.lax.stop_gradient(term)


def first_pass(
    outputs_of: Callable, loss_fn: Callable, batch: Mapping, microbatches: Mapping, key: jax.Array, weights: Mapping
) -> FirstPass:
    """Computes the losses of `compared(batch)`, and their gradients with respect to the heads' outputs.

    Args:
      outputs_of: (microbatch, key) -> {head: output [B / count, …]}.
      loss_fn: (outputs, batch) -> {head: LossSum}.
      batch: arrays [B, …].
      microbatches: the same arrays, split by `microbatches.split_rows`: [count, B / count, …].
      key: the dropout key of the step, from which each microbatch's key is folded, as in the second pass.
      weights: {head: Σ weight} over the batch.
    """
    names = compared(batch)

    def outputs(_: None, part: tuple[Mapping, jax.Array]) -> tuple[None, dict[str, jax.Array]]:
        every = outputs_of(part[0], jax.random.fold_in(key, part[1]))
        return None, {name: every[name] for name in names}

    count = len(next(iter(microbatches.values())))
    _, of_parts = jax.lax.scan(outputs, None, (dict(microbatches), jnp.arange(count)))

    def loss(of_parts: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, LossSum]]:
        # `split_rows` gives each microbatch every count-th row.
        whole = {name: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]) for name, x in of_parts.items()}
        sums = loss_fn(whole, batch)
        return total_loss(sums, weights), sums

    (value, sums), gradients = jax.value_and_grad(loss, has_aux=True)(of_parts)
    return FirstPass({**microbatches, **{GRADIENT + name: x for name, x in gradients.items()}}, value, sums)
