"""One choice for each layer under two limits at once, as of parameters and of multiply-adds.

With the two costs weighed against each other there is one cost and one limit, which
`tdjax.allocation.search` knows how to meet; the weights are those at which both limits are used up
alike. That comes near the optimum where steps are small, in networks of many layers. For small
ones all combinations are looked at too, those left out that another beats in everything.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tdjax.allocation.search import Table, frontier, total

# A weighed cost of exactly the limits; whole numbers, as the search takes them.
SCALE = 1 << 40
# Halvings of what is looked for: the weights, and the share of the weighed limit that fits both.
HALVINGS = 12
# Combinations that are kept of all, and entries of all tables up to which they are looked at.
MOST_LABELS, MOST_ENTRIES = 1 << 11, 1 << 10

Search = Callable[[Sequence[Table], int], list[int]]
Costs = Int[np.ndarray, "_ k"]
Limits = Int[np.ndarray, " k"]
Errors = Float[np.ndarray, " _"]
Places = Int[np.ndarray, " _"]


class JointTable(NamedTuple):
    """What may become of one layer; no entry is beaten by another in both costs and the error.

    Arguments:
        costs: one column for each limit.
        error: what the layer loses.
        which: the entry's place in the arrays that it was taken from.
    """

    costs: Costs
    error: Errors
    which: Places


def joint_table(costs: Costs, error: Errors) -> JointTable:
    """The entries that no other one beats."""
    kept = _unbeaten(costs, error, error)
    return JointTable(costs[kept], error[kept], kept)


def within_both(
    tables: Sequence[JointTable], most: Limits, search: Search, together: np.ufunc
) -> list[int] | None:
    """The choices that lose least of those that were found within both limits.

    Arguments:
        tables: one for each layer.
        most: limits of the total costs, not negative.
        search: `tdjax.allocation.search.least_sum` or `least_maximum`.
        together: how errors become what is to be small, `np.add` or `np.maximum`.

    Returns: a place in each table; None where nothing was found to fit.
    """
    found = _weighed(tables, most, search)
    if sum(len(table.error) for table in tables) <= MOST_ENTRIES:
        found += _all_combined(tables, most, together)

    def lost(places: Sequence[int]) -> tuple[float, float]:
        errors = [float(table.error[at]) for table, at in zip(tables, places, strict=True)]
        return float(together.reduce(errors)), sum(errors)

    best = min(found, key=lost, default=None)
    return None if best is None else _filled(tables, best, most)


def _weighed(tables: Sequence[JointTable], most: Limits, search: Search) -> list[list[int]]:
    """Choices within both limits: the best for some weighings, at the end for the most even one."""
    found = []

    def used(places: Sequence[int]) -> tuple[float, float]:
        """The shares of the limits that some choices use; kept where both are within."""
        first, second = _spent(tables, places) / np.maximum(most, 1)
        if (_spent(tables, places) <= most).all():
            found.append(list(places))
        return float(first), float(second)

    def cheapest(weights: Float[np.ndarray, " k"]) -> list[int]:
        return [int(np.argmin(table.costs @ weights)) for table in tables]

    def searched(weights: Float[np.ndarray, " k"], budget: int = SCALE) -> list[int]:
        weighed = [frontier(np.rint(own.costs @ weights).astype(int), own.error) for own in tables]
        if total(weighed, [0] * len(tables)) > budget:
            return cheapest(weights)
        places = search(weighed, budget)
        return [int(table.which[at]) for table, at in zip(weighed, places, strict=True)]

    for choose in (cheapest, searched):
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            second = (low + high) / 2
            weights = SCALE * np.array([1 - second, second]) / np.maximum(most, 1)
            shares = used(choose(weights))
            low, high = (low, second) if shares[0] > shares[1] else (second, high)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2
        low, high = (
            (share, high) if max(used(searched(weights, int(share * SCALE)))) <= 1 else (low, share)
        )
    return found


def _all_combined(tables: Sequence[JointTable], most: Limits, together: Any) -> list[list[int]]:
    """The choices that lose least of all combinations within both limits, if there is one.

    Exact as long as no more than `MOST_LABELS` combinations of the first layers are unbeaten; of
    more than that, those are kept that lose least for about their costs.
    """
    costs, lost, summed = np.zeros((1, len(most)), np.int64), np.zeros(1), np.zeros(1)
    rest = np.sum([table.costs.min(axis=0) for table in tables], axis=0)
    trail = []
    for table in tables:
        rest = rest - table.costs.min(axis=0)
        costs = (costs[:, None] + table.costs).reshape(-1, len(most))
        lost = together(lost[:, None], table.error).ravel()
        summed = (summed[:, None] + table.error).ravel()
        kept = np.flatnonzero((costs + rest <= most).all(axis=1))
        kept = kept[_unbeaten(costs[kept], lost[kept], summed[kept])]
        kept = kept[_spread(costs[kept], lost[kept], summed[kept], most)]
        if not len(kept):
            return []
        trail.append(np.divmod(kept, len(table.error)))
        costs, lost, summed = costs[kept], lost[kept], summed[kept]
    label, places = int(np.lexsort((summed, lost))[0]), []
    for before, chosen in reversed(trail):
        places.append(int(chosen[label]))
        label = int(before[label])
    return [places[::-1]]


def _unbeaten(costs: Costs, lost: Errors, summed: Errors) -> Places:
    """The entries that no other one beats in both costs and in what is lost; of equals the first.

    From the cheapest in the first cost on: of those so far, the least that is lost for each second
    cost stands on a staircase.
    """
    order = np.lexsort((summed, lost, costs[:, 1], costs[:, 0]))
    kept: list[int] = []
    steps: list[int] = []
    heights: list[float] = []
    pairs = zip(costs[order, 1].tolist(), lost[order].tolist(), strict=True)
    for number, (cost, height) in zip(order.tolist(), pairs, strict=True):
        below = bisect_right(steps, cost)
        if below and heights[below - 1] <= height:
            continue
        kept.append(number)
        start = end = bisect_left(steps, cost)
        while end < len(steps) and heights[end] >= height:
            end += 1
        steps[start:end], heights[start:end] = [cost], [height]
    return np.array(kept, np.int64)


def _spread(costs: Costs, lost: Errors, summed: Errors, most: Limits) -> Places:
    """All entries, or of too many those that lose least in each cell of a grid over the costs."""
    if len(lost) <= MOST_LABELS:
        return np.arange(len(lost))
    cells = costs * math.isqrt(MOST_LABELS) // (most + 1)
    order = np.lexsort((summed, lost, cells[:, 1], cells[:, 0]))
    new = (np.diff(cells[order], axis=0, prepend=-1) != 0).any(axis=1)
    return order[new]


def _filled(tables: Sequence[JointTable], places: Sequence[int], most: Limits) -> list[int]:
    """The choices once no change of one layer that gains still fits, the best ones made first."""
    places = list(places)
    while True:
        left = most - _spent(tables, places)
        best = (0.0, -1, -1)
        for k, (table, place) in enumerate(zip(tables, places, strict=True)):
            more = table.costs - table.costs[place]
            gain = table.error[place] - table.error
            price = np.maximum(more / np.maximum(most, 1), 0).sum(axis=1) + 1 / SCALE
            ratio = np.where((more <= left).all(axis=1), gain / price, 0.0)
            step = int(np.argmax(ratio))
            if ratio[step] > best[0]:
                best = (float(ratio[step]), k, step)
        _, k, place = best
        if k < 0:
            return places
        places[k] = place


def _spent(tables: Sequence[JointTable], places: Sequence[int]) -> Limits:
    """The total costs of a choice for every layer."""
    spent: Limits = np.sum(
        [table.costs[place] for table, place in zip(tables, places, strict=True)], axis=0
    )
    return spent
