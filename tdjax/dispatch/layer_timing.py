"""What one layer takes on this device, dense and in the fastest of the ways of each form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from tdjax.compute.convolve import is_same, ways_by
from tdjax.compute.rule import differing_ways
from tdjax.dispatch.alone import Alone, Program, inputs_of
from tdjax.plan.form import Form
from tdjax.plan.layers import CONVOLUTIONS
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.ways import RECONSTRUCT, SPLIT
from tdjax.timings.grid import Ranks, forms_of, middle_of, ranks_of
from tdjax.timings.layer import FormTimings, LayerTimings
from tdjax.timings.turns import seconds_of

# Seconds of a program, of which a layer's turns are as many as fill them.
FILLED = 0.004
MOST_TURNS = 2000
# Ways of a form that are so much slower at one rank are not tried at others.
CLOSE = 1.25


@dataclass(frozen=True)
class Wanted:
    """What is measured of a layer; see `tdjax.time_layers`."""

    methods: tuple[str, ...]
    splits: tuple[int, ...]
    ways: bool
    rounds: int


class Candidate(NamedTuple):
    """A layer in a form with ranks, computed in some ways; () leaves them to the rule."""

    form: Form
    ways: tuple[str, ...]

    @property
    def plain(self) -> Form:
        """The form without ranks."""
        return replace(self.form, ranks=())


def layer_timings(layer: Alone, wanted: Wanted) -> LayerTimings:
    """One call of a layer: dense, and in each form at some ranks in the fastest of its ways."""
    plain = layer.layer
    grids = {form: ranks_of(plain, form) for form in forms_of(plain, wanted.methods, wanted.splits)}
    measure = _Measure(layer, wanted.rounds)
    middles = [replace(form, ranks=middle_of(ranks)) for form, ranks in grids.items()]
    tried = [Candidate(form, ways) for form in middles for ways in _ways(layer, form, wanted)]
    probed, _ = measure(tried, lambda own: own.plain)
    best: dict[Form, float] = {}
    for own, seconds in probed.items():
        best[own.plain] = min(seconds, best.get(own.plain, math.inf))
    close = [own for own, seconds in probed.items() if seconds <= CLOSE * best[own.plain]]
    rest = [
        Candidate(replace(own.plain, ranks=ranks), own.ways)
        for own in close
        for ranks in grids[own.plain]
    ]
    rest += [
        Candidate(replace(form, ranks=grid[-1]), (RECONSTRUCT,))
        for form, grid in grids.items()
        if _has_ways(layer, wanted)
    ]
    found, dense = measure(rest, lambda own: own.form)
    forms = [_fastest(form, grid, found, dense) for form, grid in grids.items()]
    return LayerTimings(dense, tuple(forms), plain.group_shape)


def _ways(layer: Alone, form: Form, wanted: Wanted) -> Iterator[tuple[str, ...]]:
    """The ways that a form is tried in, but for the dense kernel multiplied out."""
    if not _has_ways(layer, wanted):
        yield ()
        return
    entry = PlannedLayer(layer.layer, form)
    for way in differing_ways(entry):
        # A convolution for each channel is nothing that could be fast.
        if way != RECONSTRUCT and (way, form.method) != (SPLIT, "cp"):
            yield ways_by(entry, way)


def _has_ways(layer: Alone, wanted: Wanted) -> bool:
    """Whether a layer has ways, which none has that is given a function of its own."""
    given = all(is_same(own.given) for own in layer.calls)
    return wanted.ways and layer.layer.kind in CONVOLUTIONS and given


def _fastest(
    form: Form, grid: Sequence[Ranks], found: Mapping[Candidate, float], dense: float
) -> FormTimings:
    """A form in the fastest of its ways at each of its ranks."""
    # To multiply out the dense kernel takes no longer at lower ranks than at the highest, and has
    # the dense layer in it.
    whole = found.get(Candidate(replace(form, ranks=grid[-1]), (RECONSTRUCT,)), math.inf)
    whole = max(whole, dense)
    seconds, ways = [], []
    for ranks in grid:
        own = {
            candidate.ways: taken
            for candidate, taken in found.items()
            if candidate.form == replace(form, ranks=ranks)
        }
        own[RECONSTRUCT,] = whole
        fastest = min(own, key=own.__getitem__)
        seconds.append(own[fastest])
        ways.append(fastest)
    return FormTimings(form, tuple(grid), tuple(seconds), tuple(ways))


class _Measure:
    """Measures a layer in some forms beside itself, dense.

    Arguments:
        rounds: of each measurement.
    """

    def __init__(self, layer: Alone, rounds: int) -> None:
        """Find out how many turns of the layer fill a program."""
        self.layer, self.rounds = layer, rounds
        self.dense = PlannedLayer(layer.layer)
        self.inputs = inputs_of(layer)
        once = Program(layer, self.dense, 1, self.inputs)
        once()
        taken = seconds_of({None: once}, 3, reference=None, group_of=lambda key: key)[None]
        self.turns = min(MOST_TURNS, max(1, math.ceil(FILLED / taken)))
        self._programs: dict[Candidate | None, Program] = {}

    def __call__(
        self, candidates: Sequence[Candidate], group_of: Callable[[Candidate], Any]
    ) -> tuple[dict[Candidate, float], float]:
        """Seconds of one turn of each, and of the dense layer."""
        keys: list[Candidate | None] = [None, *candidates]
        calls = {key: self._program(key) for key in keys}

        def group(key: Candidate | None) -> Any:
            return key and group_of(key)

        found = seconds_of(calls, self.rounds, reference=None, group_of=group)
        found = {key: seconds / self.turns for key, seconds in found.items()}
        dense = found.pop(None)
        return {key: own for key, own in found.items() if key is not None}, dense

    def _program(self, key: Candidate | None) -> Program:
        if key not in self._programs:
            entry = self.dense if key is None else replace(self.dense, form=key.form, ways=key.ways)
            made = Program(self.layer, entry, self.turns, self.inputs)
            jax.block_until_ready(made())
            self._programs[key] = made
        return self._programs[key]
