"""Layers whose outputs one other layer alone reads, through functions that let fewer pass.

What a layer puts out is followed through the traced program. While nothing happens to it but sums
over other axes with weights that know nothing of single outputs (as those of an attention, which
may be others for each head), the outputs of each head may be mixed. Where a function of each output
by itself is in the way, as in an MLP, they may be chosen from. Whatever else it meets, it is lost,
and the layer in no pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import JaxprEqn

from tdjax.plan.layers import Layer
from tdjax.plan.pair import Pair, layer_problem, pair_problem
from tdjax.trace import matrices
from tdjax.trace.axes import longer
from tdjax.trace.elementwise import ELEMENTWISE
from tdjax.trace.marks import INPUT
from tdjax.trace.outputs import (
    Other,
    Outputs,
    Value,
    after_elementwise,
    after_product,
    along,
    moved,
    shared_heads,
    varies_after,
)
from tdjax.trace.programs import calls_of
from tdjax.trace.trace import Trace
from tdjax.trace.walking import Walk


def pairs_of(traced: Trace) -> tuple[Pair, ...]:
    """The pairs of a traced model, in the order in which consumers are called."""
    walking = _Walk(traced)
    program = traced.jaxpr
    for result in walking.program(program, list(map(_any, program.jaxpr.invars))):
        walking.lose(result)
    return walking.pairs()


def _any(variable: Any) -> Other:
    """What is known of a value of the program from its shape."""
    return _of_shape(variable.aval.shape)


def _of_shape(shape: Sequence[int]) -> Other:
    return Other(frozenset(axis for axis, size in enumerate(shape) if size > 1))


@dataclass
class _Walk(Walk[Value]):
    """One walk through a program.

    Arguments:
        lost: paths of the layers whose outputs go elsewhere.
        reads: by path of a layer, what its calls read.
        fed: by path of a layer, the layers that read its outputs.
        met: paths of layers whose outputs are multiplied with each other, and in how many heads of
            the second, each met by how many of the first.
    """

    trace: Trace
    lost: set[str] = field(default_factory=set)
    reads: dict[str, set[Value]] = field(default_factory=dict)
    fed: dict[str, set[str]] = field(default_factory=dict)
    met: dict[tuple[str, str], set[tuple[int, int]]] = field(default_factory=dict)

    def pairs(self) -> tuple[Pair, ...]:
        """What was found."""
        layers, found = self.trace.layers, []
        for path, values in self.reads.items():
            if len(values) != 1:
                continue
            (value,) = values
            if not isinstance(value, Outputs) or value.layers & self.lost:
                continue
            if any(self.fed[own] != {path} for own in value.layers):
                continue
            heads = None if value.bent else value.heads
            if value.bent and value.heads * value.repeats > 1:
                continue
            producers = tuple(own for own in layers if own in value.layers)
            width = layers[path].kernel_shape[0]
            if heads is not None and heads * value.repeats >= width:
                continue
            pair = Pair(producers, path, heads, repeats=value.repeats)
            if pair_problem([layers[own] for own in producers], layers[path], pair) is None:
                found.append(pair)
        order = list(layers)
        return tuple(sorted([*found, *self.scores()], key=lambda pair: order.index(pair.consumer)))

    def scores(self) -> list[Pair]:
        """Queries and keys."""
        layers, found = self.trace.layers, []
        for (first, second), numbers in self.met.items():
            if len(numbers) > 1 or {first, second} & self.lost or first == second:
                continue
            if self.fed[first] != {second} or self.fed[second] != {first}:
                continue
            ((heads, repeats),) = numbers
            pair = Pair((first,), second, heads, scores=True, repeats=repeats)
            if pair_problem([layers[first]], layers[second], pair) is None:
                found.append(pair)
        return found

    def meet(self, eqn: Any, first: Outputs, second: Outputs) -> bool:
        """Whether outputs of two layers are multiplied with each other, head by head."""
        if eqn.primitive.name != "dot_general" or first.bent or second.bent:
            return False
        if len(first.layers) > 1 or len(second.layers) > 1:
            return False
        (one,), (other,) = first.layers, second.layers
        for swapped in (False, True):
            found = shared_heads(eqn, first, second, swapped=swapped)
            if found is not None:
                self.fed.setdefault(one, set()).add(other)
                self.fed.setdefault(other, set()).add(one)
                self.met.setdefault((other, one) if swapped else (one, other), set()).add(found)
                return True
        return False

    def lose(self, value: Value) -> None:
        """Outputs go where they cannot be followed."""
        if isinstance(value, Outputs):
            self.lost |= value.layers

    def constant(self, value: Any) -> Value:
        """See `Walk`."""
        return _of_shape(getattr(value, "shape", ()))

    def computed(self, eqn: JaxprEqn, reads: Sequence[Value]) -> list[Value]:
        """See `Walk`."""
        calls = calls_of(eqn)
        own = [value for value in reads if isinstance(value, Outputs)]
        if calls is not None:
            for called in calls.programs:
                arguments = list(map(_any, called.program.jaxpr.invars))
                for result in self.program(called.program, arguments):
                    self.lose(result)
        elif len(own) == 2 and self.meet(eqn, *own):
            return list(map(_any, eqn.outvars))
        elif own:
            found = self.after(eqn, reads, own)
            if found is not None:
                return [found] * len(eqn.outvars)
        else:
            varies = varies_after(eqn, reads)
            if varies is not None:
                return [Other(varies)] * len(eqn.outvars)
        for value in own:
            self.lose(value)
        return list(map(_any, eqn.outvars))

    def mark(self, eqn: Any, value: Value) -> Value:
        """The end of a layer: outputs go in, or others come out."""
        number, shape = eqn.params["number"], eqn.invars[0].aval.shape
        made = self.trace.calls[number]
        layer, stacked = made.layer, any(eqn.params["stacked"])
        if eqn.params["end"] != INPUT:
            axes = _last_axes(shape, layer.kernel_shape[-1])
            whole = self.trace.layers[layer.path]
            if stacked or axes is None or layer_problem(whole) is not None or not _in_order(made):
                return _any(eqn.outvars[0])
            return Outputs(frozenset([layer.path]), axes)
        if isinstance(value, Outputs):
            for path in value.layers:
                self.fed.setdefault(path, set()).add(layer.path)
            found = along(value, longer(_input_axes(made, len(shape)), shape), shape)
            if stacked or found is None:
                self.lose(value)
            else:
                value = found
        self.reads.setdefault(layer.path, set()).add(value)
        return _any(eqn.outvars[0])

    def after(self, eqn: Any, reads: Sequence[Value], own: Sequence[Outputs]) -> Outputs | None:
        """Outputs behind an equation; None where they cannot be followed through it."""
        name = eqn.primitive.name
        if name == "dot_general" and len(own) == 1:
            return after_product(eqn, reads)
        if name in ELEMENTWISE:
            return after_elementwise(eqn, reads, own)
        if len(own) > 1 or reads[0] is not own[0]:
            return None
        if any(isinstance(value, Other) and value.varies for value in reads[1:]):
            return None
        return moved(eqn, own[0])


def _last_axes(shape: Sequence[int], size: int) -> tuple[int, ...] | None:
    """The last axes that together have so many entries, but for those of one entry."""
    for number in range(1, len(shape) + 1):
        if math.prod(shape[-number:]) == size:
            return longer(range(len(shape) - number, len(shape)), shape)
    return None


def _labels(made: Any) -> Any:
    call = made.call
    return matrices.einsum_labels(
        call.module, call.equation, call.inputs.ndim, len(made.layer.storage.shape)
    )


def _in_order(made: Any) -> bool:
    """Whether a call's outputs lie in the order of the kernel's, behind all other axes."""
    if made.layer.kind != "einsum":
        return True
    labels = _labels(made)
    return not isinstance(labels, str) and labels.output.endswith(labels.made)


def _input_axes(made: Any, ndim: int) -> tuple[int, ...]:
    """The axes of a call's input that a layer reads, in the order of the kernel's."""
    layer: Layer = made.layer
    if layer.kind == "dense":
        return (ndim - 1,)
    if layer.kind == "dense_general":
        own = made.call.inputs.ndim
        return tuple(axis + ndim - own for axis in matrices.input_axes(made.call.module, own))
    if layer.kind == "einsum":
        labels = _labels(made)
        if not isinstance(labels, str):
            front = ndim - len(labels.inputs)
            return tuple(front + labels.inputs.index(label) for label in labels.contracted)
    return ()
