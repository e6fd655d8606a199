"""A model traced once: its program with marks at the layers, and what each call says of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tdjax.plan.layers import (
    Layer,
    numbers_obstacle,
    of_all_calls,
    stacked_along,
)
from tdjax.plan.work import Count, Use, Work, exact, joined, one_of
from tdjax.trace.call import Call
from tdjax.trace.names import Names
from tdjax.trace.products import OTHER, Counts, counts_of
from tdjax.trace.reads import Reads, reads_of
from tdjax.trace.survey import Survey, survey_of


@dataclass(frozen=True, eq=False)
class TracedCall:
    """One call of a layer.

    Arguments:
        layer: what it says of the layer, with the positions and lookups of this call alone.
        call: module and arrays; None where the layer cannot be factorised anyway, and has no marks.
        array: names of the layer's array among those of the model, where they are known.
        indexed: whether its array is taken out of a stack by its number: the marks then have the
            axis of a stack in front, on which all but one are zero.
        product: of an array that is a layer by itself, the equation that multiplies by it.
    """

    layer: Layer
    call: Call | None = None
    array: Names | None = None
    indexed: bool = False
    product: Any = None


@dataclass(frozen=True, eq=False)
class Trace:
    """A traced model.

    Arguments:
        jaxpr: the program, with a mark of the call's number at both ends of every call.
        calls: by number. Those that the trace threw away are in no program.
        outputs: what the model returns, as shapes. The program's results are its leaves, and
            behind them what the model keeps.
        batch: number of examples.
        arrays: names of the model's arrays, which the program takes first.
        kept: names of what the model keeps.
        asked: see `tdjax.trace.recorder.Recorder`.
        held: how many of the program's arguments, the first ones, the model holds.
    """

    jaxpr: Any
    calls: Mapping[int, TracedCall]
    outputs: Any
    batch: int
    arrays: Sequence[Names] = ()
    kept: Sequence[Names] = ()
    asked: Mapping[Names, str] = field(default_factory=dict)
    held: int = 0

    @cached_property
    def survey(self) -> Survey:
        """How often the calls run."""
        return survey_of(self.jaxpr, self.held)

    @cached_property
    def work(self) -> Work:
        """What one example runs."""
        return self._work(counts_of(self.jaxpr))

    @property
    def branched(self) -> Work | None:
        """The same where it depends on conditions; None where all layers run."""
        return self.work if self.work.conditions else None

    @property
    def other_macs(self) -> Count:
        """Multiply-accumulates for one example that belong to no layer."""
        return self.work.at_most.other

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The entries of the layer table by path, in the order of the calls."""
        by_path: dict[str, list[TracedCall]] = defaultdict(list)
        for _, made in sorted(self.calls.items()):
            by_path[made.layer.path].append(made)
        uses = {use.path: use for use in self.work.at_most.uses}
        layers = {}
        for path, calls in by_path.items():
            known = any(made.call is not None for made in calls)
            use = uses.get(path, Use(path, 0, 0)) if known else None
            layers[path] = of_all_calls([made.layer for made in calls], use)
        return {path: self._read(layer) for path, layer in layers.items()}

    def _work(self, counts: Counts) -> Work:
        """The work of a program, from its counts."""
        other: Count = counts.products[OTHER]
        uses = []
        for number, made in self.calls.items():
            if made.call is None:
                continue
            layer = made.layer
            # Of all layers that pass the marks of one that is taken by its number it is one.
            runs = exact(counts.runs[number], layer.copies if made.indexed else 1)
            positions, lookups = runs * layer.positions, runs * layer.lookups
            once = replace(layer, positions=1).macs
            if layer.stored is None:
                # Its array is no plain kernel: its products are what is known of it.
                positions = exact(counts.products[number], max(once, 1))
            else:
                forward = exact(positions * once, layer.copies)
                other += max(counts.derived[number] - forward, 0)
            among = max(self.batch, 1) * layer.copies
            if positions or lookups:
                uses.append(Use(layer.path, exact(positions, among), exact(lookups, among)))
        branches = [one_of([self._work(own) for own in each]) for each in counts.conditions]
        own = [Work(0, (use,), ()) for use in uses]
        return joined([Work(exact(other, max(self.batch, 1)), (), ()), *own, *branches])

    def _read(self, layer: Layer) -> Layer:
        """A layer with what is known of its array, and of who reads it."""
        array = self._places.get(layer.path)
        if array is None or layer.obstacle is not None:
            return layer
        name, dtype = layer.storage.name, self.jaxpr.jaxpr.invars[array].aval.dtype
        obstacle = numbers_obstacle(name, dtype) or self._reads.obstacle(array, name)
        stacks = self._reads.stacks.get(array, ())
        return replace(stacked_along(layer, stacks), obstacle=obstacle)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Places of the layers' arrays among those of the model, by path."""
        places = {names: place for place, names in enumerate(self.arrays)}
        return {
            made.layer.path: places[made.array]
            for made in self.calls.values()
            if made.array in places
        }

    @cached_property
    def _reads(self) -> Reads:
        paths = {number: made.layer.path for number, made in self.calls.items()}
        arrays = {
            number: self._places[path] for number, path in paths.items() if path in self._places
        }
        returned = [None] * (len(self.jaxpr.jaxpr.outvars) - len(self.kept))
        reads = reads_of(self.jaxpr, arrays, paths, [*returned, *self.kept], self.arrays)
        for place in self._places.values():
            if self.arrays[place] in self.asked:
                reads.others.setdefault(place, self.asked[self.arrays[place]])
        return reads
