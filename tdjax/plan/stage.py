"""One thin layer of the chain that computes a factorised layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

# The name of a layer's sparse correction, beside the stages of its chain.
CORRECTION = "sparse"


@dataclass(frozen=True)
class Stage:
    """One thin layer of a chain.

    Arguments:
        name: its name among the layer's parameters.
        kernel_shape: (*spatial, in / groups, out), with 1 for spatial axes it does not span;
            (r, in, out, s) for a core of a TT-matrix.
        groups: number of feature groups of its convolution.
        axes: the spatial axes it spans, whose stride, padding and dilation it takes on.
    """

    name: str
    kernel_shape: tuple[int, ...]
    groups: int
    axes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.kernel_shape)


def spanned(window: Sequence[int], axes: Collection[int]) -> tuple[int, ...]:
    """The window of a stage that spans only these axes of a layer's window."""
    return tuple(size if axis in axes else 1 for axis, size in enumerate(window))
