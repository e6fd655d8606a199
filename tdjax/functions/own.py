"""Layers of classes that no module system has: modules with kernels among arrays of their own.

What such a module does with its arrays is read off its traced program, as of a pure function.
Chains then take the place of the products in that program. An adapter makes that function of a
module: of the arrays by name, and the arguments of a call.

A module that holds nothing but one kernel is a layer itself. The arrays of others, their members,
are layers by themselves, whose paths end in their names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tdjax.functions.model import evaluated
from tdjax.functions.program import Apply, Program, program_of
from tdjax.functions.read import Marks, known_layers
from tdjax.params.arrays import reconstruct_array
from tdjax.params.factorize import weight_name
from tdjax.params.storing import full_array
from tdjax.params.tree import join_path
from tdjax.plan.layers import LEAF, OWN, Layer, in_stack
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.trace.call import StaticPart, split_arrays
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


class Members(NamedTuple):
    """A call of a module that may multiply by several of its arrays.

    Arguments:
        reason: why it is no layer itself.
    """

    reason: str


def own_call(
    apply: Apply, params: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> OwnCall | Members | str:
    """A call of a module as one of a layer; where it is none that can be factorised, why.

    Arguments:
        apply: the module's call; it raises where it does more than to return something.
        params: the module's arrays.
    """
    try:
        program = program_of(apply, params, args, kwargs)
    # What a module needs beside its arrays is not known, nor what it raises without it.
    except Exception:
        return Members("it needs or keeps more than its parameters")
    known = known_layers(program)
    taken = [layer for layer in known.values() if layer.obstacle is None]
    if not taken:
        reasons = [f"{path}: {layer.obstacle}" for path, layer in sorted(known.items())]
        return "; ".join(reasons) or "it has no matrix"
    if len(taken) > 1:
        names = ", ".join(sorted(layer.path for layer in taken))
        return Members(f"it multiplies by several arrays: {names}")
    (layer,) = taken
    if layer.storage.stack is not None:
        return f"its {layer.path} is a stack of kernels"
    if layer.kind == "embed" or layer.path != weight_name(params):
        if layer.kind == "embed":
            return f"rows are looked up in its {layer.path}"
        return Members(f"its {layer.path} is no kernel alone: there are other arrays")
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


class Untraceable(Exception):
    """A module's call is no function of its arrays."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """A module whose arrays may be layers by themselves.

    Arguments:
        path: of the module.
        names: its own, among those of the model's arrays.
        shapes: of its arrays, with the axis of a stack.
        recorder: of the pass.
    """

    path: str
    names: Names
    shapes: Mapping[str, Sequence[int]]
    recorder: Recorder

    def record(
        self,
        apply: Apply,
        params: Mapping[str, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, bool]:
        """What a call returns, its products recorded, and whether there are any.

        Arguments as `own_call`. Raises `Untraceable`.
        """
        statics: list[StaticPart] = []
        try:
            program = program_of(_of_arrays(apply, statics), params, args, kwargs)
        # As above; the call itself will say what is wrong with it.
        except Exception as error:
            raise Untraceable from error
        known = {name: _member(layer) for name, layer in known_layers(program).items()}
        taken = {name: layer for name, layer in known.items() if layer.obstacle is None}
        marks = Marks(taken, self.recorder.number, program.arrays)
        arrays = program.run(marks, taken)
        for number, made in marks.calls.items():
            name = made.layer.path
            self.recorder.calls[number] = dataclasses.replace(
                made,
                layer=self._named(made.layer),
                array=(*self.names, name),
            )
        for layer in known.values() if taken else ():
            if layer.obstacle is not None:
                self.recorder.calls[self.recorder.number()] = TracedCall(self._named(layer))
        return statics[0].join(arrays), bool(taken)

    def _named(self, layer: Layer) -> Layer:
        """A member as the layer table has it."""
        name, shape = layer.path, tuple(self.shapes[layer.path])
        layer = dataclasses.replace(layer, path=join_path(self.path, name))
        if layer.obstacle is not None:
            return dataclasses.replace(layer, kernel_shape=shape, stored=None)
        own = dataclasses.replace(layer, kind=OWN[layer.kind])
        return own if shape == own.storage.whole_shape else in_stack(own, name, shape)


def _member(layer: Layer) -> Layer:
    """What is known of an array of a module."""
    if layer.kind != "embed":
        return layer
    return dataclasses.replace(layer, obstacle="rows are looked up in it")


def _of_arrays(apply: Apply, statics: list[StaticPart]) -> Apply:
    """A function that returns the arrays of what another returns; the rest is put into a list."""

    def call(*args: Any, **kwargs: Any) -> list[Any]:
        arrays, rest = split_arrays(apply(*args, **kwargs))
        statics[:] = [rest]
        return arrays

    return call


def output_of_members(
    entries: Sequence[PlannedLayer],
    apply: Apply,
    factors: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """What a module returns with chains in place of some of its arrays.

    Arguments:
        entries: of the plan.
        apply: the module's call, as a function of these arrays alone.
        factors: by name of the array.
    """
    statics: list[StaticPart] = []
    own = Plan(tuple(_alone(entry, factors) for entry in entries))
    arrays = evaluated(_of_arrays(apply, statics), own, factors, args, kwargs)
    return statics[0].join(arrays)


def multiplied_out(entry: PlannedLayer, factors: Mapping[str, Any]) -> Any:
    """The array that the factors of a member stand for, where they are."""
    kernels = {name: own["kernel"] for name, own in factors.items()}
    if entry.dtype is not None:
        kernels = {name: full_array(kernel) for name, kernel in kernels.items()}
    return reconstruct_array(kernels, _alone(entry, {member_name(entry): factors}))


def member_name(entry: PlannedLayer) -> str:
    """The name of a member in its module."""
    return entry.layer.path.rpartition("/")[2]


def _alone(entry: PlannedLayer, factors: Mapping[str, Any]) -> PlannedLayer:
    """A plan's entry for a member of a module by itself, which may lie in a stack."""
    name, stored = member_name(entry), entry.layer.storage
    if are_of_one(entry, factors[name]):
        stored = dataclasses.replace(stored, stack=None, copies=1)
    kind = entry.layer.multiplies_as
    layer = dataclasses.replace(entry.layer, path=name, kind=kind, stored=stored)
    return dataclasses.replace(entry, layer=layer)


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
    plan = Plan((dataclasses.replace(entry, layer=layer),))
    return evaluated(apply, plan, {**params, name: factors}, args, kwargs)


def are_of_one(entry: PlannedLayer, factors: Mapping[str, Any]) -> bool:
    """Whether factors are those of one layer, not of a stack whose layers are called inside."""
    return all(factors[s.name]["kernel"].shape == s.kernel_shape for s in entry.stages)
