"""The floating point operations of a program, counted in its jaxpr: a loop counts as often as it turns.

XLA's own count takes the body of a loop once, so it is wrong by the number of layers where they are scanned.
"""

import math
from typing import Any

from jax.extend import core


def count(jaxpr: Any) -> int:
    """The FLOPs of all matrix products (a multiplication and an addition: 2) in a jaxpr, over all devices.

    Products are what an accelerator's peak is about; norms, softmax and optimizer are left out (under 1 % of them at
    the sizes that matter). What is rematerialised counts twice: it is work done. A causal mask halves nothing: the
    masked half of attention is computed. Of a branch the larger side counts; a `while` without a known number of turns
    counts once.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # closed ones too
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracted)
    if name == "scan":
        return params["length"] * count(params["jaxpr"])
    if name == "cond":
        return max(count(branch) for branch in params["branches"])
    if name == "while":
        return count(params["body_jaxpr"]) + count(params["cond_jaxpr"])
    return sum(count(inner) for value in params.values() for inner in _jaxprs(value))


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [inner for each in value for inner in _jaxprs(each)]
    return []


def inputs_read(jaxpr: Any) -> list[bool]:
    """Which inputs of a program lead to one of its results; a compiled program does not take the others at all."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    live = {id(var) for var in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(var) in live for var in equation.outvars):
            inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit", "scan") else None
            read = inputs_read(inner) if inner is not None else [True] * len(equation.invars)
            live.update(id(var) for var, is_read in zip(equation.invars, read, strict=True) if is_read)
    return [id(var) in live for var in jaxpr.invars]


def of_step(train_step: Any, *arguments: Any) -> int:
    """The FLOPs of one call of a jitted function; tracing it is shared with calling it."""
    return count(train_step.trace(*arguments).jaxpr)
