"""Splits a batch into microbatches, which run one after the other, to save memory (gradient accumulation)."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from t5x_lite.cluster.sharding import Layout
from t5x_lite.errors import ConfigError
from t5x_lite.training import losses

if TYPE_CHECKING:
    from t5x_lite.training.whole_batch import FirstPass

Batch = Mapping[str, Any]


def prepare(
    batch: Batch,
    count: int,
    layout: Layout,
    outputs_of: Callable,
    loss_fn: Callable,
    key: jax.Array,
    weights: Mapping[str, jax.Array],
) -> "tuple[Batch, dict[str, jax.Array], FirstPass | None]":
    """Returns (the batch's microbatches, the weights of all losses over the whole batch, the first pass of losses that
    compare examples; None if there are none).

    outputs_of: (batch, key) -> outputs.  loss_fn: (outputs, batch) -> {head: LossSum}.
    key: the dropout key of the step.  weights: those that the batch holds (`losses.loss_weights`).
    """
    parts = split_rows(batch, count, layout)
    weights = {**weights, **auxiliary_weights(outputs_of, loss_fn, parts, count, key, weights)}
    if not losses.compared(batch):
        return parts, weights, None
    from t5x_lite.training import whole_batch  # few losses compare examples

    first = whole_batch.first_pass(outputs_of, loss_fn, batch, parts, key, weights)
    return first.microbatches, weights, first


def split_rows(batch: Batch, microbatches: int, layout: Layout) -> Batch:
    """Returns the batch [B, …] as [microbatches, B / microbatches, …]. Raises ConfigError if B is not divisible.

    With n microbatches, each microbatch gets every n-th row. So each device only splits the rows that it already holds,
    and no row moves between devices. A microbatch of contiguous rows would be on only a few devices.
    """

    def split(rows: jax.Array) -> jax.Array:
        if rows.shape[0] % microbatches:
            B = rows.shape[0]
            raise ConfigError(
                f"a batch of {B} rows is not divisible by microbatches={microbatches}; use a divisor of {B}"
            )
        parts = rows.reshape(rows.shape[0] // microbatches, microbatches, *rows.shape[1:]).swapaxes(0, 1)
        return layout.constrain(parts, (None, "batch") + (None,) * (rows.ndim - 1))

    return {name: split(rows) for name, rows in batch.items()}


def sum_over(microbatches: Batch, count: int, key: jax.Array, function: Callable) -> Any:
    """Calls `function` on one microbatch after the other, and returns the sum of the results.

    microbatches: arrays [count, B / count, …].
    key: the dropout key of the step, from which each microbatch's key is folded.
    function: (batch, key) -> a tree of arrays.
    """

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        microbatch, index = part
        return jax.tree.map(jnp.add, total, function(microbatch, jax.random.fold_in(key, index))), None

    first = {name: array[0] for name, array in microbatches.items()}
    shapes = jax.eval_shape(function, first, key)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(add, zeros, (microbatches, jnp.arange(count)))[0]


def auxiliary_weights(
    outputs_of: Callable,
    loss_fn: Callable,
    microbatches: Batch,
    count: int,
    key: jax.Array,
    known: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Returns {name: Σ weight} over all microbatches, for each loss whose weights are not in the batch.

    The first microbatch's gradient already needs these weights, so they are computed in an additional forward pass. In
    this pass, XLA computes only the parts of the model on which a weight depends.

    microbatches: arrays [count, B / count, …].
    known: the weights that the batch holds (`losses.loss_weights`).
    """

    def weights_of(batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        sums = loss_fn(outputs_of(batch, key), batch)
        return {name: jax.lax.stop_gradient(sums[name].weight) for name in sums.keys() - known.keys()}

    first = {name: array[0] for name, array in microbatches.items()}
    return sum_over(microbatches, count, key, weights_of) if jax.eval_shape(weights_of, first, key) else {}
