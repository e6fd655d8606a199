"""The multiply-accumulates of a traced program: those of each layer's calls, and all others.

The products of attention, of a head that reads a table which is an embedding's, of an einsum on
arrays of its own: what no layer does belongs to the network all the same.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn

from tdjax.trace.marks import calls_around
from tdjax.trace.programs import How, calls_of

# The key of what no layer does.
OTHER = -1


def products_of(program: ClosedJaxpr, around: int = OTHER) -> Counter[int]:
    """The multiply-accumulates of all matrix products and convolutions, by number of the call.

    The body of a while loop counts once; of the branches of a condition, that with most.

    Arguments:
        around: number of the call that the program is part of.
    """
    found: Counter[int] = Counter()
    for eqn in program.jaxpr.eqns:
        number = (around, *calls_around(eqn))[-1]
        count = PRODUCTS.get(eqn.primitive.name)
        if count is not None:
            found[number] += count(eqn)
        else:
            found.update(_inside(eqn, number))
    return found


def _inside(eqn: JaxprEqn, number: int) -> Counter[int]:
    """Those of the programs that an equation calls."""
    found: Counter[int] = Counter()
    calls = calls_of(eqn)
    if calls is None:
        return found
    for called in calls.programs:
        own = products_of(called.program, number)
        found = found | own if calls.how is How.COND else found + own
    times = 1 if calls.times is None else calls.times
    return Counter({number: times * count for number, count in found.items()})


def _of_matrices(eqn: Any) -> int:
    (_, contracted), (_, batched) = eqn.params["dimension_numbers"]
    left, right = (operand.aval.shape for operand in eqn.invars[:2])
    free = (n for axis, n in enumerate(right) if axis not in (*contracted, *batched))
    return math.prod(left) * math.prod(free)


def _of_convolution(eqn: Any) -> int:
    left, right = (operand.aval.shape for operand in eqn.invars[:2])
    numbers = eqn.params["dimension_numbers"]
    if any(step > 1 for step in eqn.params["lhs_dilation"]):
        # Every input is spread over a window; what lies between them is zero.
        batch, _, *spatial = numbers.lhs_spec
        return math.prod(left[axis] for axis in (batch, *spatial)) * math.prod(right)
    features = right[numbers.rhs_spec[0]]
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(right) // max(features, 1)


PRODUCTS = {"dot_general": _of_matrices, "conv_general_dilated": _of_convolution}
