"""Seconds of one layer, dense and in forms at some ranks, and between those ranks.

In between, seconds are interpolated: linearly in the rank, for Tucker in both, for TT in the number
of parameters. Processors compute whole vectors, so a rank counts as the next multiple of 16, or as
the next that was measured. Below the least rank seconds are those of that rank, beyond the largest
they grow in proportion: nothing is promised that was not seen. It is not assumed that they grow
with the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from tdjax.plan.form import Form
from tdjax.plan.ranks import tt_order, tt_size
from tdjax.plan.ways import SHIFTED, XLA

Ranks = tuple[int, ...]
# Numbers that a processor computes at once, in a wide one.
VECTOR = 16
Seconds = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class FormTimings:
    """One form of one layer at some ranks.

    Arguments:
        form: without ranks.
        ranks: those measured, in order; for Tucker all pairs of some r_C and some r_T.
        seconds: for each, of the fastest way.
        ways: for each, the ways of its stages that were fastest, as `tdjax.PlannedLayer` has
            them; () for a matrix.

    Raises ValueError for numbers that no clock shows, and where they are not as many as the ranks.
    """

    form: Form
    ranks: tuple[Ranks, ...]
    seconds: tuple[float, ...]
    ways: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """Refuse what cannot have been measured."""
        if self.form != _plain(self.form):
            raise ValueError(f"form {self.form}: give it without ranks and nonzeros")
        if not self.ranks or len({len(self.ranks), len(self.seconds), len(self.ways)}) > 1:
            raise ValueError(f"form {self.form}: give seconds and ways for each of the ranks")
        check_seconds(f"form {self.form}", self.seconds)
        if len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"form {self.form}: ranks are given twice")
        if len({len(own) for own in self.ranks}) > 1 or min(map(min, self.ranks), default=1) < 1:
            raise ValueError(f"form {self.form}: ranks {self.ranks} are none of one layer")
        if self.form.method == "tucker" and set(self.ranks) != _pairs(self.ranks):
            raise ValueError(f"form {self.form}: ranks must be all pairs of some r_C and some r_T")

    def at(self, ranks: Int[np.ndarray, "n r"], shape: Sequence[int]) -> Seconds:
        """Seconds at any ranks, interpolated; see `LayerTimings.seconds`.

        Arguments:
            shape: of the kernel of one feature group.
        """
        if self.form.method == "tucker":
            return self._between_pairs(ranks)
        places, wanted = _places(self.form, np.array(self.ranks), shape), ranks
        order = np.argsort(places)
        if self.form.method != "tt":
            wanted = _in_vectors(ranks, places[order])
        between = _Between(_places(self.form, wanted, shape), places[order])
        known = np.array(self.seconds)[order]
        return between.mean(known[between.low], known[between.high]) * between.beyond

    def nearest(self, ranks: Sequence[int]) -> int:
        """The number of those ranks of all measured that are nearest, by their ratios."""
        away = np.abs(np.log(np.array(self.ranks) / np.asarray(ranks))).sum(axis=1)
        return int(away.argmin())

    def _between_pairs(self, ranks: Int[np.ndarray, "n 2"]) -> Seconds:
        first, second = (np.unique([pair[k] for pair in self.ranks]) for k in (0, 1))
        known = dict(zip(self.ranks, self.seconds, strict=True))
        table = np.array([[known[a, b] for b in second.tolist()] for a in first.tolist()])
        modes = zip(ranks.T, (first, second), strict=True)
        along, across = (_Between(_in_vectors(own, places), places) for own, places in modes)
        found: Seconds = along.mean(
            across.mean(table[along.low, across.low], table[along.low, across.high]),
            across.mean(table[along.high, across.low], table[along.high, across.high]),
        )
        return found * along.beyond * across.beyond


@dataclass(frozen=True)
class LayerTimings:
    """One layer, dense and in some forms.

    Arguments:
        dense: seconds in one call of the network.
        forms: those measured.
        shape: of the kernel of one feature group, (*window, C / groups, T / groups): by it a layer
            knows its own.

    Raises ValueError for seconds that no clock shows.
    """

    dense: float
    forms: tuple[FormTimings, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot have been measured."""
        check_seconds("dense", [self.dense])
        if len({own.form for own in self.forms}) < len(self.forms):
            raise ValueError("a form is given twice")

    @cached_property
    def by_form(self) -> Mapping[Form, FormTimings]:
        """Those measured, by their form without ranks."""
        return {own.form: own for own in self.forms}

    def seconds(self, form: Form, ranks: Int[np.ndarray, "n r"]) -> Seconds:
        """What the layer takes in a form at some ranks, in one call of the network.

        Arguments:
            form: its own ranks do not count. A sparse correction takes what the dense layer does,
                on top.

        Raises ValueError for a form that was not measured.
        """
        correction = self.dense if form.nonzeros else 0.0
        return self._of(form).at(np.asarray(ranks), self.shape) + correction

    def ways_of(self, form: Form, ranks: Sequence[int]) -> tuple[str, ...]:
        """The ways of a form's stages that were fastest at the nearest ranks measured.

        () for a matrix. Raises ValueError for a form that was not measured.
        """
        own = self._of(form)
        ways = own.ways[own.nearest(ranks)]
        if form.method == "cp" and tuple(ranks) == (1,):
            # Of a single channel no stage is depthwise.
            return tuple(XLA if way == SHIFTED else way for way in ways)
        return ways

    def _of(self, form: Form) -> FormTimings:
        found = self.by_form.get(_plain(form))
        if found is None:
            known = ", ".join(str(own) for own in self.by_form) or "none"
            raise ValueError(f"form {_plain(form)} was not measured; measured: {known}")
        return found


def _plain(form: Form) -> Form:
    """A form without ranks and nonzeros."""
    return replace(form, ranks=(), nonzeros=0)


def _pairs(ranks: Sequence[Ranks]) -> set[Ranks]:
    """All pairs of first and second ranks."""
    first, second = ({pair[k] for pair in ranks} for k in (0, 1))
    return {(a, b) for a in first for b in second}


def check_seconds(what: str, seconds: Sequence[float]) -> None:
    """Raise ValueError for seconds that no clock shows."""
    if not all(0 < own < math.inf for own in seconds):
        raise ValueError(f"{what}: seconds that no clock shows: {', '.join(map(str, seconds))}")


def _places(form: Form, ranks: Int[np.ndarray, "n r"], shape: Sequence[int]) -> Seconds:
    """Numbers in which seconds are interpolated."""
    if form.method != "tt":
        return ranks[:, 0].astype(float)
    dims = tt_order(shape)
    return np.array([tt_size(dims, own) for own in ranks.tolist()], float)


def _in_vectors(ranks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Ranks as whole vectors of them compute, no higher than the next that was measured."""
    following = np.append(places, np.inf)[np.searchsorted(places, ranks)]
    whole = np.minimum(-(-ranks // VECTOR) * VECTOR, following)
    return np.where(ranks > VECTOR, whole, ranks).astype(int)


class _Between:
    """Where numbers lie among places, which rise.

    Attributes:
        low, high: for each the places on both sides, by number; the nearest for those outside.
        beyond: its ratio to the last place, where it is beyond that, else 1.
    """

    def __init__(self, wanted: np.ndarray, places: np.ndarray) -> None:
        """Look them up."""
        inside = np.clip(wanted, places[0], places[-1])
        self.high = np.searchsorted(places, inside)
        self.low = np.maximum(self.high - 1, 0)
        apart = np.maximum(places[self.high] - places[self.low], 1)
        self._share = (inside - places[self.low]) / apart
        self.beyond = np.maximum(wanted / places[-1], 1.0)

    def mean(self, low: Seconds, high: Seconds) -> Seconds:
        """Between what is known on both sides."""
        found: Seconds = low + self._share * (high - low)
        return found
