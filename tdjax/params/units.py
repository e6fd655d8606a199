"""Which hidden units to keep: all of them in the order in which they are worth it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tdjax.decompose.threads import one_thread

# After so many units what is left is computed anew, by products of matrices.
BLOCK = 64
# Of so many units, those worth most before a block, it is computed at once what they change.
LIKELY = 128
# Rows of what is left that are computed at a time: few enough for a cache.
ROWS = 256
# Of the largest square, below which what is left of a unit is rounding.
ROUNDING = 1e-12


class Units(NamedTuple):
    """Units in the order in which they are worth it.

    Arguments:
        order: their numbers.
        gains: by how much each makes the squared error less, after those before it.
    """

    order: Int[np.ndarray, " n"]
    gains: Float[np.ndarray, " n"]


def units_in_order(
    moment: Float[np.ndarray, "t t"], target: Float[np.ndarray, "t d"], most: int | None = None
) -> Units:
    """The units, each the one that gains most given those before it.

    With M the moment of the units and A the target, the squared error of M^(1/2) A by the columns
    of M^(1/2) that belong to the units so far becomes least: orthogonal matching pursuit of all
    columns of the target at once (Pati et al. 1993, Chen and Huo 2006).

    Arguments:
        moment: positive definite.
        target: what the units are read by, in the root of the norm of what comes out.
        most: units that are asked for; None for all.
    """
    free, most = np.arange(len(moment)), len(moment) if most is None else most
    rest, read = moment, moment @ target
    least = ROUNDING * np.diag(moment).max()
    order: list[int] = []
    gains: list[float] = []
    while len(order) < most:
        places, columns, rows = _next_units(rest, read, least, most - len(order))
        order += free[places].tolist()
        gains += np.einsum("bd,bd->b", rows, rows).tolist()
        if len(order) < most:
            kept = np.delete(np.arange(len(free)), places)
            rest, read = _rest_of(rest, read, kept, columns[:, kept], rows)
            free = free[kept]
    return Units(np.array(order), np.array(gains))


def _rest_of(
    rest: Float[np.ndarray, "n n"],
    read: Float[np.ndarray, "n d"],
    kept: Int[np.ndarray, " m"],
    columns: Float[np.ndarray, "b m"],
    rows: Float[np.ndarray, "b d"],
) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m d"]]:
    """What units in a block leave of all others."""
    left = np.empty((len(kept), len(kept)))
    for start in range(0, len(kept), ROWS):
        part = slice(start, start + ROWS)
        np.take(rest[kept[part]], kept, axis=1, out=left[part], mode="clip")
        left[part] -= columns[:, part].T @ columns
    return left, read[kept] - columns.T @ rows


def _next_units(
    rest: Float[np.ndarray, "n n"], read: Float[np.ndarray, "n d"], least: float, most: int
) -> tuple[list[int], Float[np.ndarray, "b n"], Float[np.ndarray, "b d"]]:
    """A block of units, and by what the moment and what it reads change for them.

    Arguments:
        rest: the moment of what no unit so far explains.
        read: the same of the moment times the target.
        least: of squares.
    """
    number, turns = len(rest), min(BLOCK, len(rest), most)
    left, gains = np.diag(rest).copy(), np.einsum("nd,nd->n", read, read)
    # What a unit reads meets what all others read: one product for all that are likely to come.
    likely = np.argsort(gains / np.maximum(left, least))[-LIKELY:]
    known = dict(zip(likely.tolist(), read[likely] @ read.T, strict=True))
    columns, met = np.zeros((turns, number)), np.zeros((turns, number))
    rows = np.zeros((turns, read.shape[1]))
    places: list[int] = []
    # Threads would wait for each other at every unit.
    with one_thread():
        for turn in range(turns):
            worth = gains / np.maximum(left, least)
            worth[places] = -np.inf
            best = int(np.argmax(worth))
            meets = known[best] if best in known else read @ read[best]
            root = np.sqrt(max(left[best], least))
            before = columns[:turn]
            own = before[:, best]
            column = (rest[best] - own @ before) / root
            row = (read[best] - own @ rows[:turn]) / root
            met[turn] = (meets - own @ met[:turn]) / root
            # |read - column row|^2 without writing out what is left of `read`.
            rest_met = met[turn] - (rows[:turn] @ row) @ before
            gains += column * (column * (row @ row) - 2 * rest_met)
            left -= column**2
            columns[turn], rows[turn] = column, row
            places.append(best)
    return places, columns, rows
