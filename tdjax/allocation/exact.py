"""One choice for each layer whose costs add up to what is asked for, all combinations considered.

The least that any combination loses is computed for every total cost at once, layer by layer. As
with `tdjax.allocation.search`, on the host; it is slower than that, and finds what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tdjax.allocation.search import Table

# Totals that are told apart at most, and at least however much there is to choose from.
MOST_CELLS, LEAST_CELLS = 1 << 18, 1 << 12
# Entries times totals, about a second's work. Beyond it totals share cells.
WORK = 1 << 28


def distinct(cost: Int[np.ndarray, " n"], error: Float[np.ndarray, " n"]) -> Table:
    """The entries of least error at every cost.

    Entries that a cheaper one beats are among them: it may take one of those to meet a budget.
    """
    order = np.lexsort((error, cost))
    _, first = np.unique(cost[order], return_index=True)
    kept = order[first]
    return Table(cost[kept], error[kept], kept)


class _Cells(NamedTuple):
    """What the best combination of some layers' entries loses and costs, by total cost.

    Arguments:
        lost: what is made least; infinite where no combination has this cost.
        summed: the sum of the errors, which decides between equal ones.
        spent: the cost itself, as neighbouring ones may share a cell.
    """

    lost: Float[np.ndarray, " n"]
    summed: Float[np.ndarray, " n"]
    spent: Int[np.ndarray, " n"]


def nearest(tables: Sequence[Table], least: int, budget: int, together: np.ufunc) -> list[int]:
    """The choices that lose least of all whose total cost lies in [least, budget].

    Where no combination does, those with the greatest cost below. Exact as long as the distances
    between costs, over what divides them all, and the number of entries stay within `WORK`;
    beyond that, totals within a small part of the budget count as one, and of them one is kept.

    Arguments:
        tables: one for each layer; the cheapest choices must fit the budget.
        together: how errors become what is to be small, `np.add` or `np.maximum`.

    Returns: a place in each table.
    """
    room = budget - sum(int(table.cost[0]) for table in tables)
    cells, chosen, unit = _filled(tables, room, together)
    spent = cells.spent + (budget - room)
    fits = np.isfinite(cells.lost) & (spent <= budget)
    inside = np.flatnonzero(fits & (spent >= least))
    if inside.size:
        cell = inside[np.lexsort((cells.summed[inside], cells.lost[inside]))[0]]
    else:
        cell = np.argmax(np.where(fits, spent, -1))
    return _back(tables, chosen, int(cell), unit)


def smallest(tables: Sequence[Table], most: float) -> list[int]:
    """The choices of the least total cost whose errors add up to no more than `most`.

    As exact as `nearest`.

    Arguments:
        tables: one for each layer, from `frontier`; the dearest choices must lose no more.

    Returns: a place in each table.
    """
    room = sum(int(table.cost[-1] - table.cost[0]) for table in tables)
    cells, chosen, unit = _filled(tables, room, np.add)
    spent = np.where(cells.lost <= most, cells.spent, room + 1)
    return _back(tables, chosen, int(np.argmin(spent)), unit)


def _filled(
    tables: Sequence[Table], room: int, together: np.ufunc
) -> tuple[_Cells, list[Int[np.ndarray, " n"]], int]:
    """The cells of all layers, the entry of each layer in each of them, and what a cell stands for.

    Arguments:
        room: what the choices may cost beyond the cheapest ones.
    """
    unit = _unit(tables, room)
    # Each layer's cost may be rounded up by half a unit.
    count = room // unit + len(tables) // 2 + 1
    cells = _Cells(np.full(count, np.inf), np.full(count, np.inf), np.zeros(count, np.int64))
    cells.lost[0] = cells.summed[0] = 0.0
    chosen = []
    for table in tables:
        cells, places = _with_layer(cells, table, unit, together)
        chosen.append(places)
    return cells, chosen, unit


def _unit(tables: Sequence[Table], room: int) -> int:
    """The cost that a cell stands for; exact where it is what divides all differences of costs."""
    divisor = np.gcd.reduce([np.gcd.reduce(np.diff(table.cost), initial=0) for table in tables])
    divisor = max(int(divisor), 1)
    entries = sum(len(table.cost) for table in tables)
    cells = min(max(WORK // entries, LEAST_CELLS), MOST_CELLS)
    return divisor * max(-(-room // (divisor * cells)), 1)


def _steps(table: Table, unit: int) -> Int[np.ndarray, " n"]:
    """The cells by which each entry is dearer than the first."""
    return (table.cost - table.cost[0] + unit // 2) // unit


def _with_layer(
    cells: _Cells, table: Table, unit: int, together: Any
) -> tuple[_Cells, Int[np.ndarray, " n"]]:
    """The cells once a layer more is chosen, and its entry in each."""
    count = len(cells.lost)
    empty = np.full(count, np.inf)
    found = _Cells(empty, empty.copy(), np.zeros(count, np.int64))
    chosen = np.zeros(count, np.int32)
    more = table.cost - table.cost[0]
    for place, step in enumerate(_steps(table, unit).tolist()):
        if step >= count:
            break
        rest = count - step
        lost = together(cells.lost[:rest], table.error[place])
        summed = cells.summed[:rest] + table.error[place]
        spent = cells.spent[:rest] + more[place]
        better = lost < found.lost[step:]
        better |= (lost == found.lost[step:]) & (summed < found.summed[step:])
        for before, now in zip(found, (lost, summed, spent), strict=True):
            np.copyto(before[step:], now, where=better)
        chosen[step:][better] = place
    return found, chosen


def _back(
    tables: Sequence[Table], chosen: Sequence[Int[np.ndarray, " n"]], cell: int, unit: int
) -> list[int]:
    """The entries that led to a cell, from the last layer to the first."""
    places = []
    for table, of_cells in zip(reversed(tables), reversed(chosen), strict=True):
        place = int(of_cells[cell])
        places.append(place)
        cell -= int(_steps(table, unit)[place])
    return places[::-1]
