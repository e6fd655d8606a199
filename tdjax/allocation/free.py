"""Layers of which there is something to choose, and what is known of that beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tdjax.allocation.choices import ChoiceOptions, Choices
from tdjax.allocation.rounding import Shapes, smaller_in, stored_as_one
from tdjax.plan.dtypes import FLOAT32
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.listing import ranks_text
from tdjax.plan.planned import PlannedLayer
from tdjax.plan.wishes import BudgetRule


class FreeLayer(NamedTuple):
    """A layer of which there is something to choose.

    Arguments:
        choices: by format.
        dense: the layer as it is; None where a rule asks for less.
        costs: (n, k), of all choices, then of the dense layer.
    """

    choices: tuple[Choices, ...]
    dense: PlannedLayer | None
    layer: Layer
    costs: Int[np.ndarray, "n k"]

    def entry(self, number: int) -> PlannedLayer:
        """What a plan says of the layer for one of the choices."""
        for own in self.choices:
            if number < len(own.costs):
                return own.entry(self.layer, number)
            number -= len(own.costs)
        assert self.dense is not None
        return self.dense


class Given(NamedTuple):
    """What is to be chosen for layers that are one to a budget, beside leaving them dense.

    Arguments:
        form: without its rank, of which one more costs as much as the one before.
        ranks: (n, 1).
        dtypes: numbers that all of them may be stored in.
        shapes: of all the arrays that they hold, one layer's of a stack, at some rank.
        lost: what choices lose; None where that is measured as of any layer.
    """

    form: Form
    ranks: Int[np.ndarray, "n 1"]
    dtypes: Sequence[str]
    shapes: Shapes
    lost: Callable[[Choices], Float[np.ndarray, " n"]] | None = None

    def choices(self, layer: Layer, options: ChoiceOptions) -> list[Choices]:
        """The ranks with what they cost, in each of the numbers; those that spare nothing not."""
        one = options.costs_of(PlannedLayer(layer, replace(self.form, ranks=(1,))))
        every = [Choices(self.form, self.ranks, self.ranks * one)]
        found = list(every) if FLOAT32 in self.dtypes else []
        stored = stored_as_one(self.shapes, layer.copies)
        for dtype in self.dtypes:
            if dtype != FLOAT32:
                found += smaller_in(layer, every, dtype, stored)
        smaller = (own.where(options.spared(layer, own, options.costs)) for own in found)
        return [own for own in smaller if len(own.costs)]


def within(choices: Sequence[Choices], layer: Layer, rule: BudgetRule) -> list[Choices]:
    """The choices within the shares of a rule."""
    least, most = rule.min_share or 0.0, rule.max_share or 1.0
    # In floating point 0.29 of 100 is less than 29.
    slack = 1e-12
    found = []
    for own in choices:
        share = own.costs[:, 0] / layer.size
        found.append(own.where((share >= least - slack) & (share <= most + slack)))
    return [own for own in found if len(own.costs)]


def nearest(shares: Float[np.ndarray, " n"], least: float, most: float) -> str:
    """The shares next to an interval that has none, in words."""
    ends = [*shares[shares < least][-1:], *shares[shares > most][:1]]
    return f"the nearest keep {' and '.join(f'{share:.4g}' for share in ends)}"


def in_words(path: str, own: FreeLayer | PlannedLayer) -> str:
    """What may become of a layer, in words."""
    name = path or "(model)"
    if isinstance(own, FreeLayer):
        shares = own.costs[:, 0] / own.layer.size
        return f"{name} keeps {shares.min():.3g} to {shares.max():.3g}"
    if own.form is None:
        return f"{name} stays dense"
    return f"{name} is {own.format} at rank {ranks_text(own.ranks)}"
