"""T5's Adafactor, which factors moments by the logical axes of a parameter, not by their sizes."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from t5x_lite.cluster.axes import COLUMN, ROW, STACK, WHOLE, factor_of, is_axes


class FactorDims(NamedTuple):
    """Groups the dimensions of one parameter by their role in Adafactor's moments.

    `rows` and `columns` are () if the parameter is not factored.
    """

    rows: tuple[int, ...]  # averaged in the column moment
    columns: tuple[int, ...]  # averaged in the row moment
    within: tuple[int, ...]  # all dimensions except stacks of layers; the RMS is taken over these


class FactoredMoment(NamedTuple):
    """Holds the second moments of one factored parameter.

    `row` is averaged over the parameter's columns; `column` is averaged over the parameter's rows.
    """

    row: Any
    column: Any


class AdafactorState(NamedTuple):
    """Holds the state of `scale_by_adafactor`."""

    count: Any  # number of updates made
    moments: Any  # for each parameter, a FactoredMoment or one array of the parameter's shape


def factor_dims(axes: tuple[str | None, ...], shape: tuple[int, ...], min_dim_size_to_factor: int = 128) -> FactorDims:
    """Returns how Adafactor factors a parameter with these logical axes and this shape.

    cluster/axes.py gives each logical axis a role: ROW, COLUMN, STACK or WHOLE. A parameter is factored if all of this
    is true:
    - It has axes with the role ROW and axes with the role COLUMN.
    - The product of the sizes of its ROW axes is at least `min_dim_size_to_factor`, and so is that of its COLUMN axes
      (such as heads and kv).
    - None of its axes is WHOLE. An axis that is not listed in cluster/axes.py is WHOLE.

    T5X applies the minimum size only to unstacked parameters. This function also applies it to stacked parameters, so
    that scanned and unrolled layers train alike.
    """
    roles = [factor_of(name) for name in axes]
    rows, columns, stack = (tuple(i for i, role in enumerate(roles) if role == r) for r in (ROW, COLUMN, STACK))
    smallest = min(math.prod(shape[i] for i in dims) if dims else 0 for dims in (rows, columns))
    within = tuple(i for i in range(len(shape)) if i not in stack)
    if WHOLE in roles or smallest < max(1, min_dim_size_to_factor):
        return FactorDims((), (), within)
    return FactorDims(rows, columns, within)


def scale_by_adafactor(
    param_axes: Any,
    decay_exponent: float = 0.8,
    min_dim_size_to_factor: int = 128,
    clip_rms: float = 1.0,
    min_parameter_scale: float = 1e-3,
    epsilon: float = 1e-30,
) -> optax.GradientTransformation:
    """Returns T5's Adafactor without learning rate and momentum (Shazeer and Stern 2018; t5x/adafactor.py).

    For each parameter x with gradient g at update t = 0, 1, …:

            β₂ = 1 − (t+1)^−decay_exponent
            v  = β₂ v + (1−β₂) (g² + epsilon)
            u  = g / √v
            u  = u / max(1, RMS(u) / clip_rms)
            update = u · max(RMS(x), min_parameter_scale)

    If x is factored, only the row and column means of v are kept, and v ≈ row ⊗ column / mean(row).
    `optax.adafactor` differs: it factors the two largest dimensions, whatever their meaning.

    param_axes: tree of logical axis names (`sharding.param_axes`).
    min_dim_size_to_factor: smaller parameters are not factored; see `factor_dims`.
    """

    def dims_of(axes: tuple, value: Any) -> FactorDims:
        return factor_dims(axes, value.shape, min_dim_size_to_factor)

    def init(params: Any) -> AdafactorState:
        def moment(axes: tuple, param: Any) -> Any:
            value = param.value if isinstance(param, nn.Partitioned) else param
            dims = dims_of(axes, value)

            def zeros(dropped: tuple[int, ...]) -> Any:
                kept = [i for i in range(value.ndim) if i not in dropped]
                array = jnp.zeros([value.shape[i] for i in kept], jnp.float32)
                return array if value is param else nn.Partitioned(array, tuple(axes[i] for i in kept))

            return FactoredMoment(zeros(dims.columns), zeros(dims.rows)) if dims.rows else zeros(())

        return AdafactorState(jnp.zeros([], jnp.int32), jax.tree.map(moment, param_axes, params, is_leaf=is_axes))

    def update(grads: Any, state: AdafactorState, params: Any = None) -> tuple[Any, AdafactorState]:
        if params is None:
            raise ValueError("Adafactor scales updates by the parameters; pass params to `update`")
        b2 = 1 - (state.count.astype(jnp.float32) + 1) ** -decay_exponent

        def one(axes: tuple, grad: jax.Array, moment: Any, param: jax.Array) -> tuple[jax.Array, Any]:
            rows, columns, within = dims_of(axes, grad)
            grad = grad.astype(jnp.float32)
            squared = jnp.square(grad) + epsilon
            if rows:
                row = b2 * moment.row + (1 - b2) * squared.mean(columns)
                column = b2 * moment.column + (1 - b2) * squared.mean(rows)
                moment = FactoredMoment(row, column)
                row = jnp.expand_dims(row, columns)
                scaled = grad * jax.lax.rsqrt(row / row.mean(rows, keepdims=True))
                scaled *= jnp.expand_dims(jax.lax.rsqrt(column), rows)
            else:
                moment = b2 * moment + (1 - b2) * squared
                scaled = grad * jax.lax.rsqrt(moment)
            scaled /= jnp.maximum(1.0, _rms(scaled, within) / clip_rms)
            return scaled * jnp.maximum(_rms(param, within), min_parameter_scale), moment

        leaves, tree = jax.tree.flatten(param_axes, is_leaf=is_axes)
        done = [
            one(*each)
            for each in zip(leaves, *(tree.flatten_up_to(t) for t in (grads, state.moments, params)), strict=True)
        ]
        updates, moments = (tree.unflatten([d[i] for d in done]) for i in (0, 1))
        return updates, AdafactorState(optax.safe_increment(state.count), moments)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _rms(x: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean(dims, keepdims=True))
