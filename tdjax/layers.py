"""The layer table: which modules of a model hold weights, and what a plan needs to know of them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One module that holds a weight array, as a shape-only pass sees it.

    Arguments:
        path: '/'-joined module path; empty where the model itself is the layer.
        kind: "conv", "dense", or the class name of a module that cannot be factorised.
        kernel_shape: (*spatial, C / groups, T) for conv, (in, out) for dense; of the largest
            weight array for other kinds.
        groups: feature groups of a convolution, else 1.
        in_spatial: spatial sizes of its input; () for dense.
        out_spatial: spatial sizes of its output; () for dense.
        positions: how often one example applies it to such a window (calls, sequence positions).
        other: parameters beside the weight array, such as a bias.
        obstacle: why no method can take it; None where one may.
    """

    path: str
    kind: str
    kernel_shape: tuple[int, ...]
    groups: int = 1
    in_spatial: tuple[int, ...] = ()
    out_spatial: tuple[int, ...] = ()
    positions: int = 1
    other: int = 0
    obstacle: str | None = None

    @property
    def size(self) -> int:
        """Number of weight parameters, without the bias."""
        return math.prod(self.kernel_shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer for one example."""
        if self.kind not in ("conv", "dense"):
            return 0
        return self.positions * math.prod(self.out_spatial) * self.size

    @property
    def group_shape(self) -> tuple[int, ...]:
        """Kernel shape of one feature group, (*spatial, C / groups, T / groups)."""
        *front, t = self.kernel_shape
        return (*front, t // self.groups)
