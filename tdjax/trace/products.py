"""The multiply-accumulates of a traced program: those of each layer's calls, and all others.

The products of attention, of a head that reads a table which is an embedding's, of an einsum on
arrays of its own: what no layer does belongs to the network all the same.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.interpreters import partial_eval

from tdjax.trace.marks import INPUT, calls_around, mark_p, runs_of
from tdjax.trace.programs import How, calls_of

# The key of what no layer does.
OTHER = -1
# What the name stack of an equation says of those that derivatives brought.
DERIVED = ("jvp(", "transpose(")


@dataclass(frozen=True)
class Counts:
    """What one run of a program does, conditions left aside; by number of the call.

    Arguments:
        runs: how often its marked calls run.
        products: multiply-accumulates of all matrix products and convolutions.
        derived: those among them in derivatives that the program takes.
        conditions: for each the counts of its branches.
    """

    runs: Counter[int] = field(default_factory=Counter)
    products: Counter[int] = field(default_factory=Counter)
    derived: Counter[int] = field(default_factory=Counter)
    conditions: list[tuple[Counts, ...]] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Add those of another program."""
        self.runs.update(other.runs)
        self.products.update(other.products)
        self.derived.update(other.derived)
        self.conditions.extend(other.conditions)

    def times(self, number: int) -> Counts:
        """Those of so many runs."""

        def more(own: Counter[int]) -> Counter[int]:
            return Counter({key: number * count for key, count in own.items()})

        conditions = [tuple(one.times(number) for one in own) for own in self.conditions]
        return Counts(more(self.runs), more(self.products), more(self.derived), conditions)


def counts_of(program: ClosedJaxpr) -> Counts:
    """The counts of a program, without what its results do not need.

    Flax runs modules once more to make variables, and throws the outputs away. The body of a while
    loop counts once.
    """
    needed, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), True)
    return _counts(ClosedJaxpr(needed, program.consts), OTHER, derived=False)


def products_of(program: ClosedJaxpr) -> Counter[int]:
    """Its products by call; of the branches of a condition, the most that each call has in one."""
    return _products_at_most(counts_of(program))


def _products_at_most(counts: Counts) -> Counter[int]:
    found = Counter(counts.products)
    for branches in counts.conditions:
        most: Counter[int] = Counter()
        for branch in branches:
            most |= _products_at_most(branch)
        found.update(most)
    return found


def _counts(program: ClosedJaxpr, around: int, *, derived: bool) -> Counts:
    """The counts of a program.

    Arguments:
        around: number of the call that it is part of.
        derived: whether it is part of a derivative.
    """
    found = Counts()
    for eqn in program.jaxpr.eqns:
        number = (around, *calls_around(eqn))[-1]
        inside = derived or any(word in str(eqn.source_info.name_stack) for word in DERIVED)
        count = PRODUCTS.get(eqn.primitive.name)
        if eqn.primitive is mark_p:
            if eqn.params["end"] == INPUT:
                found.runs[eqn.params["number"]] += runs_of(eqn)
        elif count is not None:
            found.products[number] += count(eqn)
            found.derived[number] += count(eqn) if inside else 0
        else:
            found.add(_counts_inside(eqn, number, derived=inside))
    return found


def _counts_inside(eqn: JaxprEqn, number: int, *, derived: bool) -> Counts:
    """Those of the programs that an equation calls."""
    found, calls = Counts(), calls_of(eqn)
    if calls is None:
        return found
    each = [_counts(called.program, number, derived=derived) for called in calls.programs]
    if calls.how is How.COND:
        found.conditions.append(tuple(each))
        return found
    for one in each:
        found.add(one)
    return found if calls.times in (None, 1) else found.times(calls.times)


def _of_matrices(eqn: Any) -> int:
    (_, contracted), (_, batched) = eqn.params["dimension_numbers"]
    left, right = (operand.aval.shape for operand in eqn.invars[:2])
    free = (n for axis, n in enumerate(right) if axis not in (*contracted, *batched))
    return math.prod(left) * math.prod(free)


def _of_convolution(eqn: Any) -> int:
    """As `tdjax.plan.layers.Layer.windows` counts them."""
    left, right = (operand.aval.shape for operand in eqn.invars[:2])
    numbers, output = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
    sizes = [
        (left[before], output[after])
        for before, after in zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    ]
    spread = any(step > 1 for step in eqn.params["lhs_dilation"])
    windows = math.prod(min(pair) if spread else pair[1] for pair in sizes)
    batch, features = (output[axis] for axis in numbers.out_spec[:2])
    outputs = right[numbers.rhs_spec[0]]
    return batch * features * windows * math.prod(right) // max(outputs, 1)


PRODUCTS = {"dot_general": _of_matrices, "conv_general_dilated": _of_convolution}
