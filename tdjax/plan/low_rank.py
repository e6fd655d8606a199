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
from jaxtyping import Array, Float, Int

from tdjax.decompose.formats import Format, GroupedLowRank, LowRank
from tdjax.plan.form import FOLDS
from tdjax.plan.stage import INPUT, Stage, TableChain, spanned


def obstacle(window: Sequence[int], channels: int, splits: int, fold: str) -> str | None:
    """Why a kernel with such a window and so many input channels cannot be folded so, and a remedy.

    None where it can.
    """
    if fold in ("rows", "columns") and len(window) != 2:
        return f"fold {fold!r} needs a window of two axes, got {tuple(window)}; use 'window'"
    if splits < 1 or channels % splits:
        small = [k for k in range(1, math.isqrt(channels) + 1) if channels % k == 0]
        divisors = sorted({*small, *(channels // k for k in small)})
        return (
            f"{splits} splits do not divide its {channels} input channels; "
            f"use one of {', '.join(map(str, divisors))}"
        )
    return None


def folds_of(window: Sequence[int]) -> tuple[str, ...]:
    """The folds that differ for a window, the one with all of it in the rows first."""
    found: dict[tuple[int, ...], str] = {}
    for fold in FOLDS:
        if obstacle(window, 1, 1, fold) is None:
            axes = _input_axes(fold, len(window))
            found.setdefault(tuple(axis for axis in axes if window[axis] > 1), fold)
    return tuple(found.values())


class LowRankChain(TableChain):
    """Two thin layers with the rank, or the ranks of all splits, between them."""

    @property
    def rank_shape(self) -> tuple[int, ...]:
        """(rows, columns) of the folded kernel, or of one split of it."""
        *window, c, t = self.layer.group_shape
        rows = math.prod(window[axis] for axis in _input_axes(self.form.fold, len(window))) * c
        return rows // self.form.splits, math.prod(window) * c * t // rows

    @property
    def channel_blocks(self) -> int:
        """The splits lie in front of the window."""
        return self.form.splits

    @property
    def mixes(self) -> bool:
        """The window is folded with the outputs, all of it or an axis, but for one fold."""
        return self.form.fold != "channel"

    def tensor_view(self, kernel: Any) -> Any:
        """The folded kernel, whose rows are ordered by split, window, channel."""
        sizes, order = self._axes
        rows, _ = self.rank_shape
        return kernel.reshape(sizes).transpose(order).reshape(self.form.splits * rows, -1)

    def kernel_view(self, tensor: Float[Array, "_ _"]) -> Float[Array, "*_"]:
        """The inverse of `tensor_view`."""
        sizes, order = self._axes
        back = sorted(range(len(order)), key=order.__getitem__)
        ordered = tensor.reshape([sizes[axis] for axis in order])
        return ordered.transpose(back).reshape(self.layer.group_shape)

    def take_rows(
        self, kernels: Sequence[Float[Array, "*_"]], index: Int[Array, "*b"]
    ) -> Float[Array, "*b n"]:
        """Rows of the product of the two matrices."""
        rows, columns = kernels
        return jnp.dot(jnp.take(rows, index, axis=0), columns)

    def attend(
        self, kernels: Sequence[Float[Array, "*_"]], query: Float[Array, "*b n"]
    ) -> Float[Array, "*b m"]:
        """Queries times the transposed matrices."""
        rows, columns = kernels
        return jnp.dot(jnp.dot(query, columns.T), rows.T)

    def _stages(self) -> tuple[Stage, ...]:
        *window, c, t = self.layer.kernel_shape
        (rank,), groups, splits = self.form.ranks, self.layer.groups, self.form.splits
        first = _input_axes(self.form.fold, len(window))
        second = tuple(axis for axis in range(len(window)) if axis not in first)
        inner = groups * splits
        return (
            Stage(INPUT, (*spanned(window, first), c // splits, inner * rank), inner, first),
            Stage("output", (*spanned(window, second), splits * rank, t), groups, second),
        )

    def _to_kernels(self, part: Format) -> list[Any]:
        assert isinstance(part, LowRank | GroupedLowRank)
        left, right = part.left, part.right
        if isinstance(part, GroupedLowRank):
            # Outputs of the first layer are ordered by split, then rank.
            left = left.swapaxes(0, 1).reshape(left.shape[1], -1)
            right = right.reshape(-1, right.shape[-1])
        window = self.stages[1].kernel_shape[:-2]
        # The rank between the window and the outputs.
        order = (*range(1, len(window) + 1), 0, len(window) + 1)
        return [left, right.reshape(len(right), *window, -1).transpose(order)]

    def _from_kernels(self, kernels: Sequence[Float[Array, "*_"]]) -> LowRank | GroupedLowRank:
        first, last = kernels
        left = first.reshape(-1, first.shape[-1])
        right = jnp.moveaxis(last, -2, 0).reshape(last.shape[-2], -1)
        splits = self.form.splits
        if splits == 1:
            return LowRank(left, right)
        left = jnp.moveaxis(left.reshape(len(left), splits, -1), 1, 0)
        return GroupedLowRank(left, right.reshape(splits, -1, right.shape[-1]))

    @property
    def _axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shape of a kernel with its splits as an axis, and the order of the axes in the matrix."""
        *window, c, t = self.layer.group_shape
        splits, split = self.form.splits, len(window)
        first = _input_axes(self.form.fold, split)
        second = (axis for axis in range(split) if axis not in first)
        return (*window, splits, c // splits, t), (split, *first, split + 1, *second, split + 2)


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
