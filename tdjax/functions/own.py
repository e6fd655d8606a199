"""Layers of classes that no module system has: modules with one kernel among arrays of their own.

What such a module does with its array is read off its traced program, as of a pure function. A
chain then takes the place of the product in that program. An adapter makes that function of a
module: of the arrays by name, and the arguments of a call.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tdjax.functions.model import evaluated
from tdjax.functions.program import Apply, Program, program_of
from tdjax.functions.read import Marks, known_layers
from tdjax.params.factorize import weight_name
from tdjax.plan.layers import LEAF, OWN, Layer, in_stack
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.trace.names import Names
from tdjax.trace.recorder import Recorder
from tdjax.trace.trace import TracedCall


class OwnCall(NamedTuple):
    """A call of a module that multiplies by one of its arrays.

    Arguments:
        name: of the array.
        layer: what is known of the array by itself.
        program: of the call, of which the module's arrays are the first arguments.
    """

    name: str
    layer: Layer
    program: Program


def own_call(
    apply: Apply, params: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> OwnCall | str:
    """A call of a module as one of a layer; where it is none that can be factorised, why.

    Arguments:
        apply: the module's call; it raises where it does more than to return something.
        params: the module's arrays.
    """
    try:
        program = program_of(apply, params, args, kwargs)
    # What a module needs beside its arrays is not known, nor what it raises without it.
    except Exception:
        return "it needs or keeps more than its parameters"
    known = known_layers(program)
    taken = [layer for layer in known.values() if layer.obstacle is None]
    if not taken:
        reasons = [f"{path}: {layer.obstacle}" for path, layer in sorted(known.items())]
        return "; ".join(reasons) or "it has no matrix"
    if len(taken) > 1:
        return (
            f"it multiplies by several arrays: {', '.join(sorted(layer.path for layer in taken))}"
        )
    (layer,) = taken
    if layer.storage.stack is not None:
        return f"its {layer.path} is a stack of kernels"
    if layer.kind == "embed" or layer.path != weight_name(params):
        beside = "rows are looked up in it" if layer.kind == "embed" else "there are other arrays"
        return f"its {layer.path} is no kernel alone: {beside}"
    return OwnCall(layer.path, layer, program)


def record_own(
    found: OwnCall,
    path: str,
    array: Names,
    recorder: Recorder,
    shapes: Mapping[str, Sequence[int]],
) -> Any:
    """The output of a call, recorded.

    Arguments:
        path: of the module.
        array: names of its array among those of the model.
        shapes: of all its arrays, with the axis of a stack.
    """
    stored = dataclasses.replace(found.layer.storage, name=found.name)
    other = sum(math.prod(shape) for name, shape in shapes.items() if name != found.name)
    kind = OWN[found.layer.kind]
    layer = dataclasses.replace(found.layer, path=path, kind=kind, stored=stored, other=other)
    layer = in_stack(layer, found.name, tuple(shapes[found.name]))
    marks = Marks({found.name: found.layer}, recorder.number, found.program.arrays)
    outputs = found.program.run(marks, marks.layers)
    for number, made in marks.calls.items():
        called = dataclasses.replace(
            layer,
            in_spatial=made.layer.in_spatial,
            out_spatial=made.layer.out_spatial,
            positions=made.layer.positions,
        )
        recorder.calls[number] = TracedCall(called, made.call, array)
    return outputs


def own_output(
    entry: PlannedLayer,
    apply: Apply,
    params: Mapping[str, Any],
    factors: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """What a module returns with a chain in place of its kernel.

    Arguments:
        apply: the module's call.
        params: its arrays but the kernel.
        factors: mappings with the `kernel` of each stage, by name.
    """
    name = entry.layer.storage.name
    stored = dataclasses.replace(entry.layer.storage, name=LEAF, stack=None, copies=1)
    kind = entry.layer.multiplies_as
    layer = dataclasses.replace(entry.layer, path=name, kind=kind, other=0, stored=stored)
    plan = Plan((PlannedLayer(layer, entry.form),))
    return evaluated(apply, plan, {**params, name: factors}, args, kwargs)


def are_of_one(entry: PlannedLayer, factors: Mapping[str, Any]) -> bool:
    """Whether factors are those of one layer, not of a stack whose layers are called inside."""
    return all(factors[s.name]["kernel"].shape == s.kernel_shape for s in entry.stages)
