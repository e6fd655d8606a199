"""Where axes lie behind a reshape."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence


def longer(axes: Iterable[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Axes of more than one entry."""
    return tuple(axis for axis in axes if shape[axis] > 1)


def joined(before: Sequence[int], after: Sequence[int], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Axes with those among them that a reshape makes one with some of them."""
    found: dict[int, None] = {}
    for axis in axes:
        run = next(old for old, _ in _alike(before, after) if axis in old)
        found |= dict.fromkeys(longer(run, before))
    return tuple(found)


def reshaped(
    before: Sequence[int], after: Sequence[int], axes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Where outputs lie behind a reshape; None where they get mixed up with other axes."""
    found = []
    for old, new in _alike(before, after):
        own = [axis for axis in old if axis in axes]
        if not own:
            continue
        # All of these axes, one after the other, in the order in which the outputs lie.
        first = axes.index(own[0])
        if list(axes[first : first + len(own)]) != [axis for axis in old if before[axis] > 1]:
            return None
        found.append((first, longer(new, after)))
    return tuple(itertools.chain.from_iterable(new for _, new in sorted(found)))


def _alike(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The least runs of axes that have as many entries before as after."""
    groups: list[tuple[list[int], list[int]]] = []
    old = new = 0
    while old < len(before) and new < len(after):
        own, other, left, right = [old], [new], before[old], after[new]
        while left != right:
            if left < right:
                own.append(own[-1] + 1)
                left *= before[own[-1]]
            else:
                other.append(other[-1] + 1)
                right *= after[other[-1]]
        groups.append((own, other))
        old, new = own[-1] + 1, other[-1] + 1
    # Behind them are axes of one entry.
    return groups
