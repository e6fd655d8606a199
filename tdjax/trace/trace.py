"""A model traced once: its program with marks at the layers, and what each call says of one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tdjax.plan.layers import (
    Layer,
    numbers_obstacle,
    of_all_calls,
    stacked_along,
    with_products,
)
from tdjax.trace.call import Call
from tdjax.trace.names import Names
from tdjax.trace.products import OTHER, products_of
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
    """

    layer: Layer
    call: Call | None = None
    array: Names | None = None
    indexed: bool = False


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
    """

    jaxpr: Any
    calls: Mapping[int, TracedCall]
    outputs: Any
    batch: int
    arrays: Sequence[Names] = ()
    kept: Sequence[Names] = ()
    asked: Collection[Names] = frozenset()

    @cached_property
    def survey(self) -> Survey:
        """How often the calls run."""
        return survey_of(self.jaxpr)

    @cached_property
    def products(self) -> Counter[int]:
        """Multiply-accumulates by number of the call; see `products_of`."""
        return products_of(self.jaxpr)

    @property
    def other_macs(self) -> int:
        """Multiply-accumulates for one example that belong to no layer."""
        return -(-self.products[OTHER] // max(self.batch, 1))

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The entries of the layer table by path, in the order of the calls."""
        by_path: dict[str, list[tuple[Layer, int]]] = defaultdict(list)
        for number, made in sorted(self.calls.items()):
            runs = self.survey.runs[number] if made.call is not None else 1
            if made.indexed:
                # Of all layers that pass its marks it is one.
                runs //= made.layer.copies
            by_path[made.layer.path].append(
                (made.layer, runs)
                if made.layer.stored is not None or made.call is None
                else (with_products(made.layer, self.products[number]), 1)
            )
        layers = {path: of_all_calls(calls, self.batch) for path, calls in by_path.items()}
        return {path: self._read(layer) for path, layer in layers.items()}

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
                reads.others.setdefault(place, "the model asks for it, or its shape")
        return reads
