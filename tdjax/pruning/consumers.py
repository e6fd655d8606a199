"""Where the outputs of a layer's neurons go, read off a traced model.

A neuron's output can be followed for as long as the program treats every neuron in the same way,
by itself: through elementwise functions, with vectors of one entry a neuron, pools, pads and sums
over other axes, and where axes in front are flattened into that of the neurons. Whatever else it
meets, it may matter there, and the neurons stay.

So do those that go into a layer which takes other inputs too, whose rows they would take away, and
those with a parameter that is read anywhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from tdjax.plan.layers import Layer
from tdjax.pruning.axes import axis_after
from tdjax.trace.elementwise import ELEMENTWISE
from tdjax.trace.marks import INPUT
from tdjax.trace.trace import Trace
from tdjax.trace.walking import Walk

# Layers whose kernel has one axis of inputs and one of outputs.
FOLLOWED = ("dense", "conv", "conv_transpose")


@dataclass(frozen=True)
class Value:
    """What is known of one value of the program.

    Arguments:
        axis: along which its entries belong to neurons; None for a value without such an axis.
        source: path of the layer whose neurons they are; None for parameters.
        leaves: parameters, vectors of one entry a neuron, that it was made of.
        uniform: the same for all neurons, whichever axis those may lie along.
        inside: path of the layer that computes it, between its marks.
    """

    axis: int | None = None
    source: str | None = None
    leaves: frozenset[int] = frozenset()
    uniform: bool = False
    inside: str | None = None


UNKNOWN, UNIFORM = Value(), Value(uniform=True)


@dataclass
class Reach:
    """Where the outputs of one layer's neurons go.

    Arguments:
        consumers: paths of the layers that they go into.
        leaves: places of the parameters that hold one entry for each neuron.
        obstacle: why its neurons cannot be taken away; None where they can.
    """

    consumers: set[str] = field(default_factory=set)
    leaves: set[int] = field(default_factory=set)
    obstacle: str | None = None


def reach_of(
    trace: Trace, leaves: Sequence[Any], places: Mapping[tuple[str, str], int]
) -> dict[str, Reach]:
    """Where the neurons of each layer of a model go, by path.

    Arguments:
        leaves: parameters and state, which the program takes first; arrays or shapes.
        places: of a layer's parameter among them, by the layer's path and the parameter's name.
    """
    own = {
        path: frozenset(place for (layer, _), place in places.items() if layer == path)
        for path in trace.layers
    }
    walk = _Walk(trace, [tuple(leaf.shape) for leaf in leaves], own)
    walk.whole()
    return walk.found


class _Walk(Walk[Value]):
    """One walk through a program.

    Attributes:
        own: places of the parameters of each layer, by path.
        met: numbers of the calls that were come by.
        fed: by path of a layer, the layers whose neurons its calls take; None for other inputs.
        read: places of the parameters that are read where they cannot be made smaller.
    """

    def __init__(
        self,
        trace: Trace,
        shapes: Sequence[tuple[int, ...]],
        own: Mapping[str, frozenset[int]],
    ) -> None:
        self.trace, self.shapes, self.own = trace, shapes, own
        self.found = {path: Reach() for path in trace.layers}
        self.met: set[int] = set()
        self.fed: dict[str, set[str | None]] = {path: set() for path in trace.layers}
        self.read: set[int] = set()
        calls = Counter(made.layer.path for made in trace.calls.values())
        for path, layer in trace.layers.items():
            why = _obstacle(layer)
            if why is None and calls[path] > 1:
                why = "it is called more than once"
            if why is not None:
                self.block(path, why)

    def block(self, path: str | None, why: str) -> None:
        """Leave the neurons of a layer alone; the first reason stays."""
        if path is not None and self.found[path].obstacle is None:
            self.found[path].obstacle = why

    def whole(self) -> None:
        """Walk through all of the program."""
        program = self.trace.jaxpr
        arguments = [
            Value(0, None, frozenset([place])) if len(shape) == 1 else UNKNOWN
            for place, shape in enumerate(self.shapes)
        ]
        arguments += [UNKNOWN] * (len(program.jaxpr.invars) - len(arguments))
        results = self.program(program, arguments)
        # Behind the outputs come values that the model keeps.
        for value in results[: len(results) - len(self.trace.kept)]:
            self.block(value.source, "the model returns its outputs")
            self.read |= value.leaves
        for number, made in self.trace.calls.items():
            if made.call is not None and number not in self.met:
                path = made.layer.path
                self.block(path, "it has no call outside loops and conditions")
                self.leave_inputs(path, f"layer {path!r} is also called in a loop or a condition")
        for path, sources in self.fed.items():
            if len(sources) > 1:
                self.leave_inputs(path, f"layer {path!r} takes other inputs too")
        self.check_parameters()

    def leave_inputs(self, path: str, why: str) -> None:
        """Leave the neurons alone that go into a layer."""
        for source in self.fed[path]:
            self.block(source, why)

    def check_parameters(self) -> None:
        """Leave neurons alone with parameters that are not theirs alone."""
        users: dict[int, list[str]] = {}
        for path, reach in self.found.items():
            for leaf in reach.leaves | self.own[path]:
                users.setdefault(leaf, []).append(path)
        for leaf, paths in users.items():
            for path in paths:
                if len(paths) > 1:
                    self.block(path, "its neurons share a parameter with those of another layer")
                elif leaf in self.read:
                    self.block(path, "a parameter of its neurons is read elsewhere too")

    def constant(self, value: Any) -> Value:
        """A number is the same for all neurons."""
        return UNKNOWN if np.ndim(value) else UNIFORM

    def mark(self, eqn: Any, value: Value) -> Value:
        """The end of a layer: neurons go in, or others come out."""
        number = eqn.params["number"]
        layer = self.trace.calls[number].layer
        self.met.add(number)
        last = len(eqn.invars[0].aval.shape) - 1
        if eqn.params["stacked"]:
            self.block(layer.path, "it is called inside a vmap")
        if eqn.params["end"] != INPUT:
            return Value(last, layer.path)
        self.read |= value.leaves
        self.fed[layer.path].add(value.source)
        if value.source is not None:
            if value.axis != last or _obstacle(layer) is not None or eqn.params["stacked"]:
                self.block(
                    value.source,
                    f"layer {layer.path!r} does not read its neurons channel by channel",
                )
            self.found[value.source].consumers.add(layer.path)
        return Value(inside=layer.path)

    def lost(self, eqn: JaxprEqn, reads: Sequence[Value]) -> list[Value]:
        """Neurons and parameters that go where they cannot be followed."""
        for value in reads:
            self.read |= value.leaves
            self.block(
                value.source,
                f"its outputs go through {eqn.primitive.name}, where they may meet others",
            )
        return [UNKNOWN] * len(eqn.outvars)

    def computed(self, eqn: JaxprEqn, reads: Sequence[Value]) -> list[Value]:
        """What is known of what an equation computes itself."""
        if not reads or all(value.uniform for value in reads):
            # Of numbers that are the same everywhere, whatever has no entries of its own.
            same = eqn.primitive.name in ELEMENTWISE or eqn.primitive.name == "broadcast_in_dim"
            return [UNIFORM if same else UNKNOWN] * len(eqn.outvars)
        inside = {value.inside for value in reads if value.inside is not None}
        if len(inside) == 1:
            (path,) = inside
            self.within(path, eqn, reads)
            return [Value(inside=path)] * len(eqn.outvars)
        if eqn.primitive.name in ELEMENTWISE:
            together = self.together(eqn, reads)
        else:
            first, *others = reads
            plain = all(value.uniform for value in others)
            axis = axis_after(eqn, first.axis) if plain and first.axis is not None else None
            together = None
            if axis is not None:
                together = Value(axis, first.source, first.leaves)
        if together is None:
            return self.lost(eqn, reads)
        return [together] * len(eqn.outvars)

    def within(self, path: str, eqn: JaxprEqn, reads: Sequence[Value]) -> None:
        """A layer computes something: with other parameters than its own, all of them stay."""
        others = [
            value for value in reads if value.source is not None or value.leaves - self.own[path]
        ]
        if others:
            self.lost(eqn, others)
            self.block(path, "it reads a parameter or neurons of another layer")

    def together(self, eqn: Any, reads: Sequence[Value]) -> Value | None:
        """Values that meet entry by entry; None where neurons meet something else."""
        met = [value for value in reads if not value.uniform]
        axes = {value.axis for value in met}
        sources = {value.source for value in met if value.source is not None}
        if None in axes or len(axes) > 1 or len(sources) > 1:
            return None
        (axis,) = axes
        leaves = frozenset().union(*(value.leaves for value in met))
        if not sources:
            return Value(axis, None, leaves)
        (source,) = sources
        assert axis is not None
        features = self.trace.layers[source].kernel_shape[-1]
        if leaves and eqn.outvars[0].aval.shape[axis] != features:
            return None
        if any(self.shapes[leaf] != (features,) for leaf in leaves):
            return None
        if any(leaves & own for own in self.own.values()):
            return None
        self.found[source].leaves |= leaves
        return Value(axis, source)


def followed(layer: Layer) -> bool:
    """Whether neurons can be followed out of a layer, and into it."""
    return _obstacle(layer) is None


def _obstacle(layer: Layer) -> str | None:
    """Why the neurons of a layer cannot be followed, or those that go into it."""
    if layer.obstacle is not None:
        return layer.obstacle
    if layer.kind not in FOLLOWED:
        return f"it is of kind {layer.kind}"
    if layer.groups > 1:
        return "it has feature groups"
    return "it is a stack of layers" if layer.storage.stack is not None else None
