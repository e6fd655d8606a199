"""Who reads the arrays of a model's layers: whether each goes to its own layer, and nowhere else.

A chain of factors stands for the array that a layer multiplies by. A model may normalise it first,
read it as the head of a language model reads the embedding, or return it: then the factors, once
they are there in its place, are not what the model asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn

from tdjax.trace.marks import INPUT, OUTPUT, calls_around, mark_p
from tdjax.trace.names import Names
from tdjax.trace.programs import Called, Calls, How, calls_of, walk
from tdjax.trace.views import NOTHING, Value, either, made_of, passed_on, view_of

# Places of the arrays of the layers in whose calls a program is.
Own = frozenset[int]


@dataclass
class Reads:
    """Who reads the arrays of layers.

    Arguments:
        others: of an array, by its place, what reads it beside the layer's own calls.
        changed: arrays that a layer does not get as they are.
        stacks: of an array the axes that its layer gets a slice of.
    """

    others: dict[int, str] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    stacks: dict[int, set[int]] = field(default_factory=dict)

    def obstacle(self, array: int, name: str) -> str | None:
        """Why no factors may stand in place of an array, called `name`; None where they may."""
        if array in self.changed:
            return f"the model changes its {name} before it multiplies"
        if array in self.others:
            return f"its {name} is read elsewhere too ({self.others[array]})"
        return None


def reads_of(
    program: ClosedJaxpr,
    arrays: Mapping[int, int],
    layers: Mapping[int, str],
    results: Sequence[Names | None],
    names: Sequence[Names],
) -> Reads:
    """Walk through a program, and note who reads the arrays of its layers.

    Arguments:
        program: with marks at the layers' calls.
        arrays: of each marked call, by its number, the place of the layer's array among the
            arguments of the program.
        layers: paths of the layers, by number of the call.
        results: names of the program's results, None for what the model returns.
        names: of the arrays, by place.
    """
    invars: Sequence[Any] = program.jaxpr.invars
    whole = {place: view_of(place, invars[place].aval.shape) for place in set(arrays.values())}
    through = _Walk(arrays, layers, whole, Reads())
    values = [whole.get(place, NOTHING) for place in range(len(program.jaxpr.invars))]
    found = through.program(program, values, frozenset())
    home = {names[place]: place for place in whole}
    for name, value in zip(results, found, strict=True):
        place = None if name is None else home.get(name)
        if place is not None:
            if value != whole[place]:
                through.reads.changed.add(place)
        elif value.array is not None:
            kept = "the model returns it" if name is None else f"kept as {'/'.join(name)!r}"
            through.reads.others.setdefault(value.array, kept)
    return through.reads


@dataclass(frozen=True)
class _Walk:
    """One walk through a program; see `reads_of`.

    Arguments:
        whole: the layers' arrays, by place, as the program is given them.
    """

    arrays: Mapping[int, int]
    layers: Mapping[int, str]
    whole: Mapping[int, Value]
    reads: Reads

    def program(self, program: ClosedJaxpr, arguments: Sequence[Value], own: Own) -> list[Value]:
        """What is known of the results of a program."""

        def equation(eqn: JaxprEqn, reads: list[Value]) -> Sequence[Value]:
            return self.equation(eqn, reads, own)

        return walk(program, arguments, equation, lambda _: NOTHING)

    def equation(self, eqn: JaxprEqn, reads: Sequence[Value], own: Own) -> Sequence[Value]:
        """What is known of the results of an equation."""
        if eqn.primitive is mark_p:
            return [self.mark(eqn, *reads)]
        around = calls_around(eqn)
        own |= {self.arrays[number] for number in around if number in self.arrays}
        calls = calls_of(eqn)
        if calls is not None:
            return self.calls(eqn, calls, reads, own)
        passed = passed_on(eqn, reads)
        if passed is not None:
            return passed
        others = [value for value in reads if value.arrays and not value.arrays <= own]
        self.read(others, self.layer(around[-1]) if around else f"by {eqn.primitive.name}")
        return [made_of(*others)] * len(eqn.outvars)

    def layer(self, number: int) -> str:
        """The layer of a call, as a reader."""
        return f"by layer {self.layers.get(number, '')!r}"

    def read(self, values: Sequence[Value], reader: str) -> None:
        """Note a reader of all views among some values."""
        for value in values:
            if value.array is not None:
                self.reads.others.setdefault(value.array, reader)

    def mark(self, eqn: JaxprEqn, x: Value, kernel: Value) -> Value:
        """The array that passes a mark; the layer's own is looked at where the call begins."""
        number, place = eqn.params["number"], self.arrays.get(eqn.params["number"])
        if eqn.params["end"] == OUTPUT:
            return x
        self.read([x], self.layer(number))
        if place is None:
            return made_of(x)
        layers = sum(eqn.params["stacked"])
        axes = kernel.axes if kernel.array == place and not kernel.flipped else None
        rest = [axis for axis in (axes or ())[layers:] if axis is not None]
        if axes is None or rest != sorted(rest) or kernel.cut.intersection(rest):
            self.reads.changed.add(place)
        else:
            sliced = set(self.whole[place].axes or ()) - set(rest)
            self.reads.stacks.setdefault(place, set()).update(sliced)  # type: ignore[arg-type]
        return made_of(x)

    def calls(
        self, eqn: JaxprEqn, calls: Calls, reads: Sequence[Value], own: Own
    ) -> Sequence[Value]:
        """What is known of the results of an equation that calls programs."""
        if calls.how is How.UNKNOWN:
            return self.unknown(eqn, calls, reads, own)
        if calls.how is How.SCAN:
            (body,) = calls.programs
            found = self.turns(body, reads, own, id(eqn))
            number = len(body.carried)
            return [*found[:number], *(value.of_all_turns(id(eqn)) for value in found[number:])]
        if calls.how is How.WHILE:
            condition, body = calls.programs
            found = self.turns(body, reads, own)
            arguments = condition.arguments(reads)
            for place, value in zip(condition.carried, found, strict=True):
                arguments[place] = value
            self.program(condition.program, arguments, own)
            return found
        if calls.how is How.COND:
            self.read([value for value in reads[:1] if not value.arrays <= own], "by a condition")
        each = [self.program(c.program, c.arguments(reads), own) for c in calls.programs]
        results = each[0]
        for more in each[1:]:
            results = [either(a, b) for a, b in zip(results, more, strict=True)]
        return results

    def turns(
        self, body: Called, reads: Sequence[Value], own: Own, scan: int | None = None
    ) -> list[Value]:
        """The results of a program in turns, whatever the turn; first those that are carried."""
        arguments = body.arguments(reads)
        for place in body.sliced:
            arguments[place] = arguments[place].slice_of_turn(scan or 0)
        while True:
            results = self.program(body.program, arguments, own)
            before = [arguments[place] for place in body.carried]
            after = [either(a, b) for a, b in zip(before, results[: len(before)], strict=True)]
            if before == after:
                return [*after, *results[len(after) :]]
            arguments[body.carried.start : body.carried.stop] = after

    def unknown(
        self, eqn: JaxprEqn, calls: Calls, reads: Sequence[Value], own: Own
    ) -> Sequence[Value]:
        """Of programs of which it is not known what they are called with."""
        (first, *more) = calls.programs
        if not more and len(first.program.jaxpr.invars) == len(reads):
            results = self.program(first.program, list(reads), own)
            if len(results) == len(eqn.outvars):
                return results
        inside = {
            self.arrays[number]
            for called in calls.programs
            for number in _marked(called.program)
            if number in self.arrays
        }
        others = [value for value in reads if not value.arrays <= (own | inside)]
        self.read(others, f"by {eqn.primitive.name}")
        return [made_of(*others)] * len(eqn.outvars)


def _marked(program: ClosedJaxpr) -> set[int]:
    """The numbers of the calls that are marked in a program."""
    found: set[int] = set()
    for eqn in program.jaxpr.eqns:
        if eqn.primitive is mark_p and eqn.params["end"] == INPUT:
            found.add(eqn.params["number"])
        calls = calls_of(eqn)
        for called in calls.programs if calls is not None else ():
            found |= _marked(called.program)
    return found
