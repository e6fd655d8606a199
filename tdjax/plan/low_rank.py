"""Two thin layers in place of one: the kernel folded to a matrix of low rank.

A fold says which axes of the window go into the rows, beside the input channels; the first layer
spans these, the second the others. With splits, groups of consecutive input channels are folded
and factorised each for itself: a convolution with so many groups, and one layer that adds up what
comes out of them. Source: Liebenwein et al., "Compressing neural networks: towards determining the
optimal layer-wise decomposition" (ALDS, and the foldings of ALDS+), NeurIPS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.formats import GroupedLowRank, LowRank
from tdjax.plan.stage import Stage, spanned

# Of a window (kh, kw): (kh kw C | T), (kh C | kw T), (kw C | kh T), (C | kh kw T).
FOLDS = ("channel", "rows", "columns", "window")


def obstacle(window: Sequence[int], channels: int, splits: int, fold: str) -> str | None:
    """Why a kernel with such a window and so many input channels cannot be folded so, and a remedy.

    None where it can.
    """
    if fold in ("rows", "columns") and len(window) != 2:
        return f"fold {fold!r} needs a window of two axes, got {tuple(window)}; use 'window'"
    if splits < 1 or channels % splits:
        divisors = [k for k in range(1, channels + 1) if channels % k == 0]
        return (
            f"{splits} splits do not divide its {channels} input channels; "
            f"use one of {', '.join(map(str, divisors))}"
        )
    return None


def matrix_shape(kernel_shape: Sequence[int], splits: int, fold: str) -> tuple[int, int]:
    """(rows, columns) of what gets a rank: the folded kernel, or one split of it."""
    *window, c, t = kernel_shape
    rows = math.prod(window[axis] for axis in _input_axes(fold, len(window))) * c
    return rows // splits, math.prod(window) * c * t // rows


def stages(
    kernel_shape: Sequence[int], groups: int, rank: int, splits: int, fold: str
) -> tuple[Stage, ...]:
    """The two thin layers.

    Arguments:
        kernel_shape: (*window, C / groups, T).
        groups: feature groups of the layer; splits and rank hold for each of them.
        rank: of each split.
        splits: a divisor of C / groups.
        fold: one of `FOLDS`.
    """
    *window, c, t = kernel_shape
    first = _input_axes(fold, len(window))
    second = tuple(axis for axis in range(len(window)) if axis not in first)
    inner = groups * splits
    return (
        Stage("input", (*spanned(window, first), c // splits, inner * rank), inner, first),
        Stage("output", (*spanned(window, second), splits * rank, t), groups, second),
    )


def form(chain: Sequence[Stage]) -> tuple[int, str]:
    """Splits and fold of a chain that `stages` made."""
    first, last = chain
    axes = len(first.kernel_shape) - 2
    fold = next(fold for fold in FOLDS if _input_axes(fold, axes) == first.axes)
    return first.groups // last.groups, fold


def to_matrix(kernel: Float[Array, "*_"], splits: int, fold: str) -> Float[Array, "_ _"]:
    """A kernel (*window, C, T) as a matrix whose rows are ordered by split, window, channel."""
    sizes, order = _axes(kernel.shape, splits, fold)
    rows, _ = matrix_shape(kernel.shape, splits, fold)
    return kernel.reshape(sizes).transpose(order).reshape(splits * rows, -1)


def to_kernel(
    matrix: Float[Array, "_ _"], kernel_shape: Sequence[int], splits: int, fold: str
) -> Float[Array, "*_"]:
    """The inverse of `to_matrix`."""
    sizes, order = _axes(kernel_shape, splits, fold)
    back = sorted(range(len(order)), key=order.__getitem__)
    ordered = matrix.reshape([sizes[axis] for axis in order])
    return ordered.transpose(back).reshape(tuple(kernel_shape))


def to_kernels(part: LowRank | GroupedLowRank, chain: Sequence[Stage]) -> list[Float[Array, "*_"]]:
    """Kernels of both layers, (*window, in, out) each, from the format of one feature group."""
    left, right = part.left, part.right
    if isinstance(part, GroupedLowRank):
        # Outputs of the first layer are ordered by split, then rank.
        left = jnp.moveaxis(left, 0, 1).reshape(left.shape[1], -1)
        right = right.reshape(-1, right.shape[-1])
    window = chain[1].kernel_shape[:-2]
    return [left, jnp.moveaxis(right.reshape(len(right), *window, -1), 0, -2)]


def from_kernels(
    first: Float[Array, "*_"], last: Float[Array, "*_"], splits: int
) -> LowRank | GroupedLowRank:
    """The inverse of `to_kernels`."""
    left = first.reshape(-1, first.shape[-1])
    right = jnp.moveaxis(last, -2, 0).reshape(last.shape[-2], -1)
    if splits == 1:
        return LowRank(left, right)
    left = jnp.moveaxis(left.reshape(len(left), splits, -1), 1, 0)
    return GroupedLowRank(left, right.reshape(splits, -1, right.shape[-1]))


def split_inputs(x: Float[Array, "*_"], splits: int) -> Float[Array, "*_"]:
    """Rows (..., C) as a thin layer between matrices takes them: (..., k, C / k) with splits."""
    return x if splits == 1 else x.reshape(*x.shape[:-1], splits, -1)


@dataclass(frozen=True)
class BlockProduct:
    """A `dot_general` for dense layers: rows times a block-diagonal matrix.

    It does between matrices what a convolution with feature groups does.

    Arguments:
        dot_general: that of the layer, for the products of the blocks.
    """

    dot_general: Callable[..., Any]

    def __call__(
        self,
        x: Float[Array, "*b k m"],
        kernel: Float[Array, "m _"],
        dimension_numbers: Any,
        **settings: Any,
    ) -> Float[Array, "*b _"]:
        """The product (..., n); the kernel (C / k, n) has the blocks side by side."""
        *batch, splits, inputs = x.shape
        blocks = kernel.reshape(inputs, splits, -1)
        axes = (((x.ndim - 1,), (0,)), ((x.ndim - 2,), (1,)))
        products = self.dot_general(x, blocks, axes, **settings)  # (k, ..., n / k)
        return jnp.moveaxis(products, 0, -2).reshape(*batch, -1)


def _input_axes(fold: str, axes: int) -> tuple[int, ...]:
    """The axes of the window that are folded with the input channels."""
    if fold == "channel":
        return tuple(range(axes))
    return {"rows": (0,), "columns": (1,), "window": ()}[fold]


def _axes(
    kernel_shape: Sequence[int], splits: int, fold: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of a kernel with its splits as an axis, and the order of the axes in the matrix."""
    *window, c, t = kernel_shape
    split = len(window)
    first = _input_axes(fold, split)
    second = (axis for axis in range(split) if axis not in first)
    return (*window, splits, c // splits, t), (split, *first, split + 1, *second, split + 2)
