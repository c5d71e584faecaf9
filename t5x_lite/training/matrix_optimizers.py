"""Optimizers of matrices: Muon and SOAP. They treat a parameter as the matrix by which its layer multiplies.

The logical axes say what that matrix is. The kernel [embed, heads, kv] of queries is a matrix of D rows and H · K
columns, and a stack of scanned layers is one matrix per layer. Embeddings, logits, class heads, LoRA, biases and norms
are no such matrices.

Shapes: a parameter is arranged as [N, R, C]: N matrices (1 without scanned layers) of R rows and C columns.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from t5x_lite.cluster.axes import ROW, STACK, factor_of, is_axes, is_hidden

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024, Muon: an optimizer for hidden layers
ITERATIONS = 5
SHIFT = 0.01  # of SOAP's power iteration, as a share of the mean eigenvalue
MATRICES, OTHERS = "matrices", "others"


class MatrixAxes(NamedTuple):
    """The dimensions of a parameter that are rows and columns of its matrix, and the stack of layers (() if none)."""

    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def matrix_axes(axes: tuple[str | None, ...]) -> MatrixAxes | None:
    """Returns how a parameter with these logical axes is a matrix; None if it is none.

    >>> matrix_axes(("layers", "embed", "heads", "kv"))
    MatrixAxes(stack=(0,), rows=(1,), columns=(2, 3))
    >>> matrix_axes(("vocab", "embed")) is matrix_axes(("mlp",)) is None
    True
    """
    stack = tuple(i for i, name in enumerate(axes) if factor_of(name) == STACK)
    inside = [i for i in range(len(axes)) if i not in stack]
    is_row = [factor_of(axes[i]) == ROW for i in inside]
    if not all(is_hidden(axes[i]) for i in inside) or len(set(is_row)) < 2:
        return None
    first = tuple(i for i, row in zip(inside, is_row, strict=True) if row == is_row[0])
    return MatrixAxes(stack, first, tuple(i for i in inside if i not in first))


def by_kind(
    param_axes: Any, matrices: optax.GradientTransformation, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns the transformation that applies `matrices` to matrices, and `others` to all other parameters."""
    labels = jax.tree.map(lambda axes: MATRICES if matrix_axes(axes) else OTHERS, param_axes, is_leaf=is_axes)
    return optax.partition({MATRICES: matrices, OTHERS: others}, labels)  # pyright: ignore[reportReturnType]


def _of_matrices(param_axes: Any, function: Callable[..., Any], *trees: Any) -> Any:
    """Returns the tree of function(matrix axes, *leaves) for the matrices; other leaves are empty (`by_kind`)."""

    def one(axes: tuple, *leaves: Any) -> Any:
        found = matrix_axes(axes)
        return function(found, *leaves) if found else optax.MaskedNode()

    return jax.tree.map(one, param_axes, *trees, is_leaf=is_axes)


def arranged(found: MatrixAxes, x: jax.Array) -> jax.Array:
    """Returns a parameter or gradient as [N, R, C]."""
    moved = x.transpose(*found.stack, *found.rows, *found.columns)
    sizes = (math.prod(x.shape[i] for i in dims) for dims in found)
    return moved.reshape(*sizes)


def restored(found: MatrixAxes, x_NRC: jax.Array, like: jax.Array) -> jax.Array:
    """Returns what `arranged` arranged, in the shape of `like`."""
    order = [i for dims in found for i in dims]
    moved = x_NRC.reshape([like.shape[i] for i in order])
    return moved.transpose(sorted(range(like.ndim), key=order.__getitem__))


# Muon -----------------------------------------------------------------------------------------------------------------


class MuonState(NamedTuple):
    """Holds the momentum of each matrix, in the parameter's shape."""

    momentum: Any


def scale_by_muon(
    param_axes: Any, momentum: float, nesterov: bool, momentum_dtype: str
) -> optax.GradientTransformation:
    """Returns Muon (Jordan et al. 2024) without learning rate, for matrices.

    For each matrix [R, C] with gradient G:

            M = momentum · M + (1 − momentum) · G
            U = (1 − momentum) · G + momentum · M       (M without nesterov)
            update = orthogonalized(U) · 0.2 √max(R, C)

    The last factor gives updates the RMS of AdamW's, so that one learning rate serves both (Liu et al. 2025, Muon is
    scalable for LLM training, §2.2). optax.contrib.scale_by_muon corrects the bias of M and G, which Muon does not.
    """

    def init(params: Any) -> MuonState:
        return MuonState(_of_matrices(param_axes, lambda _, x: optax.tree.zeros_like(x, dtype=momentum_dtype), params))

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        def mean(_: Any, old: jax.Array, grad: jax.Array) -> jax.Array:
            return momentum * old.astype(jnp.float32) + (1 - momentum) * grad

        means = _of_matrices(param_axes, mean, state.momentum, grads)

        def direction(found: MatrixAxes, mean: jax.Array, grad: jax.Array) -> jax.Array:
            update_NRC = arranged(found, (1 - momentum) * grad + momentum * mean if nesterov else mean)
            scale = 0.2 * math.sqrt(max(update_NRC.shape[1:]))
            return restored(found, scale * orthogonalized(update_NRC), grad)

        updates = _of_matrices(param_axes, direction, means, grads)
        return updates, MuonState(jax.tree.map(lambda mean: mean.astype(momentum_dtype), means))

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def orthogonalized(x_NRC: jax.Array) -> jax.Array:
    """Returns matrices with the singular vectors of x and singular values near 1 (from 0.7 to 1.2).

    Five iterations of Newton and Schulz, X → a X + b (X Xᵀ) X + c (X Xᵀ)² X, from X = x / ‖x‖ (Jordan et al. 2024).
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = x_NRC.shape[1] > x_NRC.shape[2]
    x = x_NRC.swapaxes(1, 2) if is_tall else x_NRC
    x /= jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7
    for _ in range(ITERATIONS):
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.swapaxes(1, 2) if is_tall else x


# SOAP -----------------------------------------------------------------------------------------------------------------


class SoapState(NamedTuple):
    """Holds the state of `scale_by_soap`.

    count: number of updates made.
    momentum: first moment of each matrix, in the parameter's shape.
    second: second moment of each matrix in the rotated space, [N, R, C].
    left, right: means of G Gᵀ [N, R, R] and Gᵀ G [N, C, C].
    left_basis, right_basis: orthogonal matrices of their eigenvectors, in columns.
    """

    count: Any
    momentum: Any
    second: Any
    left: Any
    right: Any
    left_basis: Any
    right_basis: Any


def scale_by_soap(
    param_axes: Any, b1: float, b2: float, epsilon: float, every_steps: int
) -> optax.GradientTransformation:
    """Returns SOAP (Vyas et al. 2024, algorithm 3) without learning rate, for matrices: Adam in Shampoo's eigenbasis.

    For each matrix with gradient G, and bases P and Q of its rows and columns:

            M = b1 M + (1−b1) G                     V = b2 V + (1−b2) (Pᵀ G Q)²
            update = P (M̂' / (√V̂ + epsilon)) Qᵀ      where M' = Pᵀ M Q, and ^ corrects the bias as Adam does
            L = b2 L + (1−b2) G Gᵀ                  R = b2 R + (1−b2) Gᵀ G
            P, Q = bases of QR((L + l I) P), QR((R + r I) Q)     after the first and every `every_steps` updates

    The last line is one power iteration. The shifts l and r, a hundredth of the mean eigenvalue, change no eigenvector.
    They keep directions in which no gradient has been as they are; otherwise rounding would choose them, and another
    number of devices would train differently. P and Q begin as identities: the first update is Adam's. (The authors'
    code begins with eigenvectors of the first L and R, most of which are arbitrary if a matrix is not square, and
    makes no first update.)
    """

    def init(params: Any) -> SoapState:
        def zeros(*fields: str) -> Any:
            return _of_matrices(param_axes, lambda found, x: _zeros(x, [getattr(found, f) for f in fields]), params)

        squares = zeros("stack", "rows", "rows"), zeros("stack", "columns", "columns")
        identities = [jax.tree.map(lambda x: jnp.broadcast_to(jnp.eye(x.shape[-1]), x.shape), each) for each in squares]
        momentum = _of_matrices(param_axes, lambda _, x: optax.tree.zeros_like(x), params)
        return SoapState(jnp.zeros([], jnp.int32), momentum, zeros("stack", "rows", "columns"), *squares, *identities)

    def update(grads: Any, state: SoapState, params: Any = None) -> tuple[Any, SoapState]:
        count = state.count + 1

        def one(found: MatrixAxes, grad, momentum, second, left, right, left_basis, right_basis):
            grad_NRC = arranged(found, grad.astype(jnp.float32))
            momentum_NRC = b1 * arranged(found, momentum) + (1 - b1) * grad_NRC
            rotated = _rotated(grad_NRC, left_basis, right_basis)
            second = b2 * second + (1 - b2) * jnp.square(rotated)
            direction = _rotated(momentum_NRC, left_basis, right_basis) / (1 - b1**count)
            direction /= jnp.sqrt(second / (1 - b2**count)) + epsilon
            out = _rotated(direction, left_basis.swapaxes(1, 2), right_basis.swapaxes(1, 2))
            left = b2 * left + (1 - b2) * grad_NRC @ grad_NRC.swapaxes(1, 2)
            right = b2 * right + (1 - b2) * grad_NRC.swapaxes(1, 2) @ grad_NRC
            bases = [_next_basis(count, every_steps, *side) for side in ((left, left_basis), (right, right_basis))]
            return (restored(found, out, grad), restored(found, momentum_NRC, grad), second, left, right, *bases)

        done = _of_matrices(param_axes, one, grads, *state[1:])
        is_result = lambda x: isinstance(x, tuple) and not isinstance(x, optax.MaskedNode)  # noqa: E731
        updates, *fields = (
            jax.tree.map(lambda result, i=i: result[i], done, is_leaf=is_result) for i in range(len(state))
        )
        return updates, SoapState(count, *fields)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _next_basis(count: jax.Array, every_steps: int, mean: jax.Array, basis: jax.Array) -> jax.Array:
    """Returns the basis after update number `count`. mean, basis: [N, R, R]."""

    def next_basis() -> jax.Array:
        shift = SHIFT * jnp.trace(mean, axis1=1, axis2=2)[:, None, None] / mean.shape[1]
        return jnp.linalg.qr(mean @ basis + shift * basis)[0]

    is_due = (count == 1) | (count % every_steps == 0)
    return jax.lax.cond(is_due, next_basis, lambda: basis)


def _rotated(x_NRC: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns leftᵀ x right."""
    return left.swapaxes(1, 2) @ x_NRC @ right


def _zeros(param: Any, dims: Sequence[tuple[int, ...]]) -> Any:
    """Returns zeros, each dimension of which has the size of some dimensions of a parameter, merged.

    If the parameter is boxed, the zeros are, too: a dimension has the name of the first one merged in it, unless an
    earlier one has it.
    """
    value = param.value if isinstance(param, nn.Partitioned) else param
    array = jnp.zeros([math.prod(value.shape[i] for i in each) for each in dims], jnp.float32)
    if value is param:
        return array
    names = [param.names[each[0]] if each and each not in dims[:n] else None for n, each in enumerate(dims)]
    return nn.Partitioned(array, tuple(names))
