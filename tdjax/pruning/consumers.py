"""Where the outputs of a layer's neurons go, read off a traced model.

A neuron's output can be followed for as long as the program treats every neuron in the same way,
by itself: through elementwise functions, with vectors of one entry a neuron, pools, pads and sums
over other axes, and where axes in front are flattened into that of the neurons. Whatever else it
meets, it may matter there, and the neurons stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from tdjax.plan.layers import Layer
from tdjax.trace.marks import INPUT, mark_p
from tdjax.trace.programs import How, calls_of, walk
from tdjax.trace.trace import Trace

# Layers whose kernel has one axis of inputs and one of outputs.
FOLLOWED = ("dense", "conv", "conv_transpose")
# Equations that compute each entry of the result from the same entry of the operands.
ELEMENTWISE = frozenset({
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt",
    "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not",
    "optimization_barrier", "or", "pow", "real", "reduce_precision", "rem", "round", "rsqrt",
    "select_n", "sharding_constraint", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "sub", "tan", "tanh", "xor",
})  # fmt: skip
REDUCTIONS = frozenset(
    ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"]
)
WINDOWS = frozenset(
    ["reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"]
)


@dataclass(frozen=True)
class Value:
    """What is known of one value of the program.

    Arguments:
        axis: along which its entries belong to neurons; None for a value without such an axis.
        source: path of the layer whose neurons they are; None for parameters.
        leaves: parameters, vectors of one entry a neuron, that it was made of.
        uniform: the same for all neurons, whichever axis those may lie along.
    """

    axis: int | None = None
    source: str | None = None
    leaves: frozenset[int] = frozenset()
    uniform: bool = False


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


def reach_of(trace: Trace, leaves: Sequence[Any]) -> dict[str, Reach]:
    """Where the neurons of each layer of a model go, by path.

    Arguments:
        leaves: parameters and state, which the program takes first; arrays or shapes.
    """
    walk = _Walk(trace, [tuple(leaf.shape) for leaf in leaves])
    walk.whole()
    shared: dict[int, list[str]] = {}
    for path, reach in walk.found.items():
        for leaf in reach.leaves:
            shared.setdefault(leaf, []).append(path)
    for paths in shared.values():
        if len(paths) > 1:
            for path in paths:
                walk.block(path, "its neurons share a parameter with those of another layer")
    return walk.found


class _Walk:
    """One walk through a program."""

    def __init__(self, trace: Trace, shapes: Sequence[tuple[int, ...]]) -> None:
        self.trace, self.shapes = trace, shapes
        self.found = {path: Reach() for path in trace.layers}
        self.met: set[int] = set()
        calls: dict[str, int] = {}
        for made in trace.calls.values():
            calls[made.layer.path] = calls.get(made.layer.path, 0) + 1
        for path, layer in trace.layers.items():
            why = _obstacle(layer)
            if why is None and calls[path] > 1:
                why = "it is called more than once"
            if why is not None:
                self.block(path, why)

    def block(self, path: str, why: str) -> None:
        """Leave the neurons of a layer alone; the first reason stays."""
        if self.found[path].obstacle is None:
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
            if value.source is not None:
                self.block(value.source, "the model returns its outputs")
        for number, made in self.trace.calls.items():
            if made.call is not None and number not in self.met:
                self.block(made.layer.path, "it has no call outside loops and conditions")

    def program(self, program: ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
        """Walk through a program; what is known of its results."""
        return walk(program, arguments, self.equation, _constant)

    def equation(self, eqn: JaxprEqn, reads: Sequence[Value]) -> list[Value]:
        """What is known of the results of an equation."""
        if eqn.primitive is mark_p:
            return [self.mark(eqn, reads[0])]
        calls = calls_of(eqn)
        if calls is not None and calls.how is How.IN_PLACE:
            (called,) = calls.programs
            return self.program(called.program, called.arguments(reads))
        return self.computed(eqn, reads)

    def mark(self, eqn: Any, value: Value) -> Value:
        """The end of a layer: neurons go in, or others come out."""
        number = eqn.params["number"]
        layer = self.trace.calls[number].layer
        self.met.add(number)
        last = len(eqn.invars[0].aval.shape) - 1
        if eqn.params["stacked"]:
            self.block(layer.path, "it is called inside a vmap")
        if eqn.params["end"] == INPUT:
            if value.source is not None:
                if value.axis != last or _obstacle(layer) is not None or eqn.params["stacked"]:
                    self.block(
                        value.source,
                        f"layer {layer.path!r} does not read its neurons channel by channel",
                    )
                self.found[value.source].consumers.add(layer.path)
            return UNKNOWN
        return Value(last, layer.path)

    def lost(self, eqn: JaxprEqn, reads: Sequence[Value]) -> list[Value]:
        """Neurons that go where they cannot be followed."""
        for value in reads:
            if value.source is not None:
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
        if eqn.primitive.name in ELEMENTWISE:
            together = self.together(eqn, reads)
        else:
            first, *others = reads
            plain = all(value.uniform for value in others)
            axis = _axis_after(eqn, first.axis) if plain and first.axis is not None else None
            together = None
            if axis is not None:
                together = Value(axis, first.source, first.leaves)
        if together is None:
            return self.lost(eqn, reads)
        return [together] * len(eqn.outvars)

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
        self.found[source].leaves |= leaves
        return Value(axis, source)


def _constant(value: Any) -> Value:
    """A number is the same for all neurons."""
    return UNKNOWN if np.ndim(value) else UNIFORM


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


def _axis_after(eqn: Any, axis: int) -> int | None:
    """Where the axis of the neurons is in the result; None where they are mixed or not all."""
    name, params = eqn.primitive.name, eqn.params
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if name in REDUCTIONS:
        axes = params["axes"]
        return None if axis in axes else axis - sum(gone < axis for gone in axes)
    if name in WINDOWS:
        alone = params["window_dimensions"][axis] == 1 and before[axis] == after[axis]
        return axis if alone else None
    if name == "broadcast_in_dim":
        place = params["broadcast_dimensions"][axis]
        return place if after[place] == before[axis] else None
    if name == "transpose":
        return list(params["permutation"]).index(axis)
    if name == "squeeze":
        gone = params["dimensions"]
        return None if axis in gone else axis - sum(dim < axis for dim in gone)
    if name == "reshape":
        return _after_reshape(before, after, axis)
    if name == "rev":
        return None if axis in params["dimensions"] else axis
    if name == "pad":
        return axis if tuple(params["padding_config"][axis]) == (0, 0, 0) else None
    if name in ("slice", "dynamic_slice"):
        return axis if before[axis] == after[axis] else None
    return None


def _after_reshape(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    size = before[axis]
    if math.prod(before) == size:
        return next((k for k, length in enumerate(after) if length == size), None)
    if axis != len(before) - 1 or not after or after[-1] % size:
        return None
    # Axes in front that are flattened into it run slower.
    return len(after) - 1
