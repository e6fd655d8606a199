"""Ranks rounded up, so that one compiled program serves many of them.

A rank is the shape of an array, and each shape is a program of its own. Where many layers with a
rank each are decomposed once, compiling takes longer than computing. Inside a padded decomposition
factors have more columns than the rank; those behind it are zero, and are cut off at the end.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from tdjax.decompose.inputs import is_at_hand, placed_like

# How many of the columns count, traced; None for all.
Kept = int | Int[Array, ""] | None

# Ranks are rounded up to multiples of this, or of an eighth of the full rank if that is more: what
# the further columns cost is less than compiling.
STEP = 64
STEPS = 8
# Multiply-accumulates of a sweep from which on a program is worth compiling.
LARGE = 5 * 10**8


def is_small(rows: int, rank: int, window: int = 0) -> bool:
    """Whether sweeps in the norm of a moment of so many rows take NumPy no time worth a program.

    The moment is multiplied by a factor of that rank; a factor of a window of so many positions is
    solved for.
    """
    return rows * rank * (rows + rank * window) < LARGE


def rounded_up(rank: int, size: int) -> int:
    """The rank at which a padded decomposition works, for a full rank of `size`."""
    step = max(STEP, -(-size // STEPS))
    return min(size, -(-rank // step) * step)


def in_steps(rank: int) -> int:
    """The rank rounded up by an eighth at most, or to a multiple of 8.

    For methods whose time grows with the rank, or its square.
    """
    step = max(8, 1 << (rank - 1).bit_length() >> 4)
    return -(-rank // step) * step


def first(kept: int | Int[Array, ""], size: int) -> Bool[Array, " size"]:
    """Which of `size` columns count."""
    return jnp.arange(size) < kept


def widened(array: Array, shape: tuple[int, ...]) -> Array:
    """An array with zeros behind its own entries along every axis, up to a shape."""
    more = [(0, size - own) for size, own in zip(shape, array.shape, strict=True)]
    if not is_at_hand(array):
        return jnp.pad(array, more)
    return placed_like(array, np.pad(np.asarray(array), more))


def cut(
    arrays: tuple[Array | None, ...], sizes: tuple[tuple[int | None, ...], ...]
) -> tuple[Any, ...]:
    """The first so many entries along the first axes of each array; None for all of them."""
    return tuple(
        None if array is None else _cut(array, tuple(map(slice, own)))
        for array, own in zip(arrays, sizes, strict=True)
    )


def _cut(array: Array, places: tuple[slice, ...]) -> Array:
    if not is_at_hand(array):
        return array[places]
    # As sizes differ from layer to layer, a program for each would take longer than a copy.
    return placed_like(array, np.asarray(array)[places])
