"""What a traced program computes and keeps, before any compiler has seen it."""

import math
from collections.abc import Iterator

import jax
from jax.extend import core

# Multiply-adds of a matrix product count as two operations; nothing else of a network is worth counting.


def flops(jaxpr) -> int:
    """Floating-point operations of the matrix products of a traced program, all devices together.

    Loops count as often as they turn; a `while` in full, and a conditional as its longest branch. Calls of kernels
    count as they state.

    Args:
      jaxpr: Jaxpr or ClosedJaxpr, as `jax.jit(f).trace(...).jaxpr`.
    """
    total = 0
    for equation in _open(jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(sizes[d] for d in contracted)
        elif name == "scan":
            total += params["length"] * flops(params["jaxpr"])
        elif name == "while":
            total += _turns(params["cond_jaxpr"]) * flops(params["body_jaxpr"])
        elif name == "cond":
            total += max(map(flops, params["branches"]))
        elif name == "pallas_call" and params.get("cost_estimate"):
            total += params["cost_estimate"].flops
        else:
            # A manual region is written for one device.
            copies = params["mesh"].size if name == "shard_map" else 1
            total += copies * sum(flops(inner) for inner in _inner(params))
    return total


def _open(jaxpr) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _inner(params) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.Jaxpr | core.ClosedJaxpr):
                yield part


def _turns(condition) -> int:
    """The constant that a loop's counter must stay below; 1 where there is none."""
    bounds = [
        int(operand.val)
        for equation in _open(condition).eqns
        if equation.primitive.name in ("lt", "le")
        for operand in equation.invars
        if isinstance(operand, core.Literal) and operand.aval.shape == ()
    ]
    return max(bounds, default=1)


def kept_for_backward(jaxpr) -> int:
    """Bytes a device of the arrays that a training step computes forward and needs again backward.

    They are what equations of the backward pass read of those of the forward pass, as JAX names both. What the compiler
    computes again or fuses away it does not keep.
    """
    forward, total, counted = set(), 0, set()
    for equation in _open(jaxpr).eqns:
        names = str(equation.source_info.name_stack)
        if "transpose(" in names:
            for operand in equation.invars:
                if not isinstance(operand, core.Literal) and operand in forward and operand not in counted:
                    counted.add(operand)
                    total += share(operand.aval)
        elif "jvp(" in names:
            forward.update(equation.outvars)
    return total or max((kept_for_backward(i) for e in _open(jaxpr).eqns for i in _inner(e.params)), default=0)


def residuals(jaxpr: core.ClosedJaxpr) -> list[tuple[str, jax.core.ShapedArray]]:
    """What the results of a traced function are but for its arguments, each array once, with JAX's names of its maker.

    Of a function that returns the pullback of `jax.vjp`, it is what the forward pass keeps for the backward pass.
    """
    makers = {made: equation for equation in jaxpr.jaxpr.eqns for made in equation.outvars}
    kept = dict.fromkeys(v for v in jaxpr.jaxpr.outvars if not isinstance(v, core.Literal) and v in makers)
    return [(str(makers[v].source_info.name_stack), v.aval) for v in kept]


def share(array) -> int:
    """Bytes that one device holds of an array, a ShapeDtypeStruct or an abstract value."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):  # a key
        return 0
    cut = array.sharding.shard_shape(array.shape) if array.sharding is not None else array.shape
    return math.prod(cut) * array.dtype.itemsize


def summed_over_rows(jaxpr, rows: int, heads: int) -> list[tuple[int, ...]]:
    """Shapes [rows, heads, Q, K] that a loop of the backward pass adds up: a bias's gradient for every row."""
    found = []
    for equation in _open(jaxpr).eqns:
        if equation.primitive.name == "scan" and "transpose(" in str(equation.source_info.name_stack):
            first = equation.params["num_consts"]
            for operand in equation.invars[first : first + equation.params["num_carry"]]:
                if len(operand.aval.shape) == 4 and operand.aval.shape[:2] == (rows, heads):
                    found.append(operand.aval.shape)
        for inner in _inner(equation.params):
            found += summed_over_rows(inner, rows, heads)
    return found
