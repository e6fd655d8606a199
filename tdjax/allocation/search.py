"""One choice for each layer under a budget, from tables of what each choice costs and loses.

Plain arrays on the host: the tables hold some thousand entries a layer, and looking through them
takes milliseconds, however long it took to make them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Costs = Int[np.ndarray, " n"]
Errors = Float[np.ndarray, "*_"]
# Places up and down a table that an exchange looks at.
REACH = 12


class Table(NamedTuple):
    """What may become of one layer, the cheapest first.

    Arguments:
        cost: increasing.
        error: what the layer loses; decreasing in the tables of `frontier`.
        which: the entry's place in the arrays that it was taken from.
    """

    cost: Costs
    error: Errors
    which: Int[np.ndarray, " n"]


def frontier(cost: Costs, error: Errors) -> Table:
    """The entries that no other one beats in both, cost and error; of equal ones the first."""
    order = np.lexsort((error, cost))
    before = np.concatenate([[np.inf], np.minimum.accumulate(error[order])[:-1]])
    kept = order[error[order] < before]
    return Table(cost[kept], error[kept], kept)


def least_maximum(tables: Sequence[Table], budget: int) -> list[int]:
    """The choices whose greatest error is the least, within a total cost.

    Exact: for every error that some choice has, each layer's cheapest choice within it is known,
    and the total falls as the error rises. What is left of the budget then lowers the errors of
    the layers, the worst first.

    Arguments:
        tables: one for each layer, from `frontier`; the cheapest choices must fit the budget.

    Returns: a place in each table.
    """
    levels = np.unique(np.concatenate([table.error for table in tables]))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        places = _cheapest_within(tables, levels[middle])
        fits = places is not None and total(tables, places) <= budget
        low, high = (low, middle) if fits else (middle + 1, high)
    places = _cheapest_within(tables, levels[low])
    assert places is not None, "the highest level is within reach of every table"
    return _worst_lowered(tables, places, budget)


def _cheapest_within(tables: Sequence[Table], level: float) -> list[int] | None:
    """Each layer's cheapest choice of at most this error; None where a layer has none."""
    places = [int(np.searchsorted(-table.error, -level)) for table in tables]
    inside = all(place < len(table.cost) for place, table in zip(places, tables, strict=True))
    return places if inside else None


def _worst_lowered(tables: Sequence[Table], places: Sequence[int], budget: int) -> list[int]:
    """The choices once the worst layer that can still be bettered has been, as long as one can."""
    places = list(places)
    left = budget - total(tables, places)
    while True:
        steps = [
            (table.error[place], k)
            for k, (place, table) in enumerate(zip(places, tables, strict=True))
            if place + 1 < len(table.cost) and table.cost[place + 1] - table.cost[place] <= left
        ]
        if not steps:
            return places
        _, worst = max(steps)
        table = tables[worst]
        left -= table.cost[places[worst] + 1] - table.cost[places[worst]]
        places[worst] += 1


def least_sum(tables: Sequence[Table], budget: int) -> list[int]:
    """The choices whose errors add up to little, within a total cost.

    On the lower convex hulls of the tables the steps that gain most for their cost are taken
    first, which is the optimum for the Lagrange multiplier that the last of them stands for. What
    is left of the budget is spent step by step, on whatever gains most for its cost among all
    choices that still fit.

    Arguments and result as `least_maximum`.
    """
    return _best_steps_taken(tables, _along_hulls(tables, budget), budget)


def _along_hulls(tables: Sequence[Table], budget: int) -> list[int]:
    """The choices after the steps along the lower convex hulls that gain most for their cost."""
    hulls = [_lower_hull(table) for table in tables]
    pairs = list(zip(tables, hulls, strict=True))
    layer = np.repeat(np.arange(len(tables)), [len(hull) - 1 for hull in hulls])
    price = np.concatenate([np.diff(table.cost[hull]) for table, hull in pairs])
    gain = np.concatenate([-np.diff(table.error[hull]) for table, hull in pairs])
    order = np.argsort(-gain / price, kind="stable")
    room = budget - total(tables, [0] * len(tables))
    taken = order[: np.searchsorted(np.cumsum(price[order]), room, side="right")]
    steps = np.bincount(layer[taken], minlength=len(tables))
    return [int(hull[step]) for hull, step in zip(hulls, steps, strict=True)]


def _best_steps_taken(tables: Sequence[Table], places: Sequence[int], budget: int) -> list[int]:
    """The choices once no change of one layer that gains still fits, the best ones made first."""
    places = list(places)
    left = budget - total(tables, places)
    while True:
        best = (0.0, -1, -1)
        for k, (table, place) in enumerate(zip(tables, places, strict=True)):
            more = table.cost[place + 1 :] - table.cost[place]
            inside = int(np.searchsorted(more, left, side="right"))
            if inside:
                ratio = (table.error[place] - table.error[place + 1 :][:inside]) / more[:inside]
                step = int(np.argmax(ratio))
                best = max(best, (float(ratio[step]), k, place + 1 + step))
        _, k, place = best
        if k < 0:
            return places
        left -= tables[k].cost[place] - tables[k].cost[places[k]]
        places[k] = place


def exchanged(
    tables: Sequence[Table],
    places: Sequence[int],
    least: int,
    budget: int,
    lost: Callable[[Errors], Errors],
) -> list[int] | None:
    """The choices with two layers changed, one for less and one for more, so that costs fit.

    For small networks, whose steps may all be too large for what is left.

    Arguments:
        places: the choices so far.
        least, budget: the bounds of the total cost.
        lost: from errors (..., layers) to what is to be small.

    Returns: the best exchange, or None where none fits.
    """
    spent = total(tables, places)
    now = np.array([table.error[place] for table, place in zip(tables, places, strict=True)])
    best, found = np.inf, None
    for down, up in permutations(range(len(tables)), 2):
        lower = np.arange(max(0, places[down] - REACH), places[down] + 1)
        higher = np.arange(places[up], min(len(tables[up].cost), places[up] + REACH + 1))
        less = tables[down].cost[lower] - tables[down].cost[places[down]]
        more = tables[up].cost[higher] - tables[up].cost[places[up]]
        sums = spent + less[:, None] + more
        errors = np.broadcast_to(now, (*sums.shape, len(now))).copy()
        errors[..., down] = tables[down].error[lower][:, None]
        errors[..., up] = tables[up].error[higher]
        values = np.where((least <= sums) & (sums <= budget), lost(errors), np.inf)
        at = np.unravel_index(np.argmin(values), values.shape)
        if values[at] < best:
            best, found = values[at], list(places)
            found[down], found[up] = int(lower[at[0]]), int(higher[at[1]])
    return found


def total(tables: Sequence[Table], places: Sequence[int]) -> int:
    """The cost of a choice for every layer."""
    return int(sum(table.cost[place] for table, place in zip(tables, places, strict=True)))


def _lower_hull(table: Table) -> Int[np.ndarray, " m"]:
    """The places of a table that lie on its lower convex hull, from the first to the last."""
    hull: list[int] = []
    for place in range(len(table.cost)):
        while len(hull) > 1 and _slope(table, hull[-2], hull[-1]) >= _slope(table, hull[-1], place):
            hull.pop()
        hull.append(place)
    return np.array(hull)


def _slope(table: Table, start: int, end: int) -> float:
    change = table.error[end] - table.error[start]
    return float(change / (table.cost[end] - table.cost[start]))
