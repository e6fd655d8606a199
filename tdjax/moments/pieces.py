"""Pairs of pixels under two offsets of a window, cut into pieces that the same offsets meet.

Along one axis of a convolution, with its stride, dilation and padding.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass

# One axis: taps[k][p] is the pixel under offset k at position p, OUTSIDE where there is none.
Taps = tuple[tuple[int, ...], ...]
OUTSIDE = -1


def taps_of(
    size: int,
    out: int,
    window: int,
    *,
    stride: int = 1,
    low: int = 0,
    dilation: int = 1,
    input_dilation: int = 1,
    border: str = "zeros",
) -> Taps:
    """The taps of one axis of a convolution.

    Arguments:
        size, out: of the input and the output along the axis.
        window: of the kernel.
        low: padding in front, of the dilated input.
        dilation, input_dilation: of the kernel and of the input.
        border: what padding holds, "zeros", or the input's own pixels: "circular", "reflect".
    """
    span = (size - 1) * input_dilation + 1

    def tap(place: int) -> int:
        if border == "circular":
            place %= span
        elif border == "reflect":
            place = span - 1 - abs(span - 1 - abs(place))
        inside = 0 <= place < span and place % input_dilation == 0
        return place // input_dilation if inside else OUTSIDE

    return tuple(
        tuple(tap(p * stride + k * dilation - low) for p in range(out)) for k in range(window)
    )


@dataclass(frozen=True)
class Piece:
    """Pairs of pixels along one axis, and which pairs of offsets meet them, how often."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    offsets: tuple[tuple[tuple[int, int], int], ...]

    @property
    def turned(self) -> Piece:
        """The pairs in the other order."""
        offsets = tuple(sorted(((b, a), times) for (a, b), times in self.offsets))
        order = sorted(range(len(self.first)), key=self.second.__getitem__)
        return Piece(
            tuple(self.second[k] for k in order), tuple(self.first[k] for k in order), offsets
        )


def pieces_of(taps: Taps) -> list[Piece]:
    """The pieces of one axis: every pair of pixels in one of them."""
    met: dict[tuple[int, int], Counter[tuple[int, int]]] = defaultdict(Counter)
    offsets = range(len(taps))
    for k, m in itertools.product(offsets, offsets):
        for i, j in zip(taps[k], taps[m], strict=True):
            if OUTSIDE not in (i, j):
                met[i, j][k, m] += 1
    together: dict[tuple[int, tuple], list[tuple[int, int]]] = defaultdict(list)
    for (i, j), by in sorted(met.items()):
        together[j - i, tuple(sorted(by.items()))].append((i, j))
    return [
        Piece(tuple(i for i, _ in pairs), tuple(j for _, j in pairs), by)
        for (_, by), pairs in together.items()
    ]
