"""Counts a program's floating point operations from its jaxpr. A loop's body counts once per iteration.

In XLA's own count, a loop's body counts only once. So with N scanned layers, it has only 1/N of the layers' FLOPs.
"""

import math
from typing import Any

from jax.extend import core


def count(jaxpr: Any) -> int:
    """Returns the FLOPs of all matrix products in a jaxpr, over all devices.

    A multiplication and an addition are 2 FLOPs. Only matrix products count, because an accelerator's peak refers to
    them. At realistic sizes, norms, softmax and the optimizer have under 1 % of the FLOPs of the matrix products.
    Rematerialised products count twice, because they run twice. A causal mask does not halve the FLOPs of attention,
    because the masked half is computed, too. Of the branches of a `cond`, the one with the most FLOPs counts. The
    number of iterations of a `while` loop is unknown, so its body counts once. A Pallas kernel says its FLOPs itself.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # also of a ClosedJaxpr
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracted)
    if name == "pallas_call":  # it loops over blocks as the data says
        return params["cost_estimate"].flops
    if name == "shard_map":  # its jaxpr is one device's
        return params["mesh"].size * count(params["jaxpr"])
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
    """Returns one bool per input of a jaxpr: whether a result or an effect depends on the input.

    The compiled program drops the inputs on which nothing depends.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    live = {id(var) for var in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(var) in live for var in equation.outvars):
            inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit", "scan") else None
            read = inputs_read(inner) if inner is not None else [True] * len(equation.invars)
            live.update(id(var) for var, is_read in zip(equation.invars, read, strict=True) if is_read)
    return [id(var) in live for var in jaxpr.invars]


def of_step(train_step: Any, *arguments: Any) -> int:
    """Returns the FLOPs of one call of a jitted function. This traces the function; a later call reuses the trace."""
    return count(train_step.trace(*arguments).jaxpr)
