"""Which hidden units to keep: all of them in the order in which they are worth it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# After so many units what is left is computed anew, by products of matrices.
BLOCK = 64
# Of the largest square, below which what is left of a unit is rounding.
ROUNDING = 1e-12


def units_in_order(
    moment: Float[np.ndarray, "t t"], target: Float[np.ndarray, "t d"]
) -> Int[np.ndarray, " t"]:
    """The units, each the one that gains most given those before it.

    With M the moment of the units and A the target, the squared error of M^(1/2) A by the columns
    of M^(1/2) that belong to the units so far becomes least: orthogonal matching pursuit of all
    columns of the target at once (Pati et al. 1993, Chen and Huo 2006).

    Arguments:
        moment: positive definite.
        target: what the units are read by, in the root of the norm of what comes out.
    """
    free = np.arange(len(moment))
    rest, read = moment.copy(), moment @ target
    least = ROUNDING * np.diag(moment).max()
    order: list[int] = []
    while len(free):
        places, columns, rows = _next_units(rest, read, least)
        order += free[places].tolist()
        # What units in the block explain of all others is taken off.
        kept = np.delete(np.arange(len(free)), places)
        columns = columns[kept]
        rest = rest[np.ix_(kept, kept)] - columns @ columns.T
        read = read[kept] - columns @ rows
        free = free[kept]
    return np.array(order)


def _next_units(
    rest: Float[np.ndarray, "n n"], read: Float[np.ndarray, "n d"], least: float
) -> tuple[list[int], Float[np.ndarray, "n b"], Float[np.ndarray, "b d"]]:
    """A block of units, and by what the moment and what it reads change for them.

    Arguments:
        rest: the moment of what no unit so far explains.
        read: the same of the moment times the target.
        least: of squares.
    """
    number, turns = len(rest), min(BLOCK, len(rest))
    columns = np.zeros((number, turns))
    rows = np.zeros((turns, read.shape[1]))
    left, gains = np.diag(rest).copy(), np.einsum("nd,nd->n", read, read)
    places: list[int] = []
    for turn in range(turns):
        worth = gains / np.maximum(left, least)
        worth[places] = -np.inf
        best = int(np.argmax(worth))
        root = np.sqrt(max(left[best], least))
        before = columns[:, :turn]
        column = (rest[:, best] - before @ before[best]) / root
        row = (read[best] - before[best] @ rows[:turn]) / root
        # |read - column row|^2 without writing out what is left of `read`.
        met = read @ row - before @ (rows[:turn] @ row)
        gains += column * (column * (row @ row) - 2 * met)
        left -= column**2
        columns[:, turn], rows[turn] = column, row
        places.append(best)
    return places, columns, rows
