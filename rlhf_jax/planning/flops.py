"""Floating-point operations of a program, from its jaxpr.

The compiler's own analysis counts the body of a loop once, however often the loop runs.
Only matrix products count, two operations a multiplication; the rest is small beside
them. Recomputation in the backward pass counts, because the program performs it.
"""

import math

import jax
from jax.extend import core


def count_flops(function, *args, loop_steps: int = 1) -> int:
    """Count the operations of `function(*args)` on all devices together.

    Args:
        loop_steps: iterations of a loop without a known end (tokens of a response).
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr, loop_steps)


def _jaxpr_flops(jaxpr, loop_steps) -> int:
    return sum(_equation_flops(equation, loop_steps) for equation in jaxpr.eqns)


def _equation_flops(equation, loop_steps) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if params.get("name") == "spare_rounds":  # of `models.experts`: if loads are uneven
        return 0
    if name == "ragged_dot_general":
        return _ragged_flops(equation)
    inner = [
        _jaxpr_flops(jaxpr, loop_steps)
        for value in params.values()
        for jaxpr in _jaxprs(value)
    ]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "while":
        return loop_steps * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * sum(inner)
    if name == "shard_map":
        return params["mesh"].size * sum(inner)
    return sum(inner)


def _ragged_flops(equation) -> int:
    """Count a grouped product: each row meets the matrix of its own group alone."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    left = equation.invars[0].aval.shape
    (ragged,) = numbers.lhs_ragged_dimensions
    groups = equation.invars[2].aval.shape[-1]
    depth = math.prod(left[axis] for axis in contracted)
    total = 2 * depth * math.prod(equation.outvars[0].aval.shape)
    return total // groups if ragged in contracted else total


def _jaxprs(value):
    """Yield the jaxprs in a parameter of an equation."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)
