"""Which layers read the same value, as the program of a traced model says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr

from tdjax.plan.layers import Layer
from tdjax.plan.shared import group_problem, sharing_problem
from tdjax.trace.marks import INPUT, mark_p
from tdjax.trace.programs import calls_of
from tdjax.trace.trace import Trace

# A value by the ids of its program and of its variable there.
Value = tuple[int, int]


def same_inputs(traced: Trace) -> tuple[tuple[str, ...], ...]:
    """Paths of the layers that read the same values in all of their calls, two or more together.

    Those alone that can share an input factor. All are called inside the same programs of the
    trace, so that no transformation is around one of them alone.
    """
    values = inputs_of_calls(traced)
    reads: dict[str, set[Value]] = defaultdict(set)
    for number, made in traced.calls.items():
        if number in values:
            reads[made.layer.path].add(values[number])
    alike: dict[Any, list[Layer]] = defaultdict(list)
    for path, layer in traced.layers.items():
        if path in reads and sharing_problem(layer) is None:
            alike[frozenset(reads[path])].append(layer)
    groups = (own for own in alike.values() if group_problem(own) is None)
    return tuple(tuple(layer.path for layer in own) for own in groups)


def inputs_of_calls(traced: Trace) -> dict[int, Value]:
    """By number of a call, the value that goes into it; of calls inside one program alike."""
    return {
        eqn.params["number"]: (id(program.jaxpr), id(eqn.invars[0]))
        for program, eqn in _inputs(traced.jaxpr)
    }


def shapes_at_inputs(traced: Trace) -> dict[int, tuple[int, ...]]:
    """By number of a call, the shape of what goes into one layer, with the axes of `vmap`."""
    found = {}
    for _, eqn in _inputs(traced.jaxpr):
        stacked = eqn.params["stacked"]
        aval: Any = eqn.invars[0].aval
        own = tuple(
            n for axis, n in enumerate(aval.shape) if not (axis < len(stacked) and stacked[axis])
        )
        found[eqn.params["number"]] = own
    return found


def _inputs(program: ClosedJaxpr) -> Iterator[tuple[ClosedJaxpr, Any]]:
    """The marks at the inputs of calls, and the programs that these are in."""
    for eqn in program.jaxpr.eqns:
        if eqn.primitive is mark_p:
            if eqn.params["end"] == INPUT:
                yield program, eqn
            continue
        calls = calls_of(eqn)
        for called in () if calls is None else calls.programs:
            yield from _inputs(called.program)
