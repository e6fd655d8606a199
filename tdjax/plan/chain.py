"""Which chain a layer becomes, and the chains of convolutions: CP, Tucker and tensor train.

Sources: Lebedev et al. 2015 (CP), Kim et al. 2016 (Tucker-2), Garipov et al. 2016 (TT);
`tdjax.plan.low_rank` and `tdjax.plan.tt_matrix` name theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.formats import CP, TT, Format, Tucker
from tdjax.plan import low_rank
from tdjax.plan.form import PAIRED, Form
from tdjax.plan.layers import Layer
from tdjax.plan.low_rank import LowRankChain
from tdjax.plan.pair import PairChain, paired_obstacle
from tdjax.plan.stage import Chain, FormatChain, Stage, spanned
from tdjax.plan.tt_matrix import TTMatrixChain


def chain_of(layer: Layer, form: Form) -> Chain:
    """The chain that a layer becomes in a form.

    Raises ValueError, with a remedy, for a form that the layer cannot have.
    """
    problem = _obstacle(layer, form)
    if problem is not None:
        raise ValueError(f"layer {layer.path!r}: {problem}")
    if form.method in PAIRED:
        return PairChain(layer, form)
    if form.method == "svd":
        return LowRankChain(layer, form)
    return TTMatrixChain(layer, form) if layer.is_matrix else CHAINS[form.method](layer, form)


def _obstacle(layer: Layer, form: Form) -> str | None:
    if form.method == "svd":
        if form.splits > 1 and layer.kind == "embed":
            return "an embedding has no input channels to split; give it a rule without splits"
        *window, channels, _ = layer.group_shape
        return low_rank.obstacle(window, channels, form.splits, form.fold)
    if form.method in PAIRED:
        return paired_obstacle(layer, form)
    if form.method != "tt" and layer.is_matrix:
        return f"{form.method!r} of a matrix is a product of two: use 'svd'"
    return None


class ConvolutionChain(FormatChain):
    """1x1 from the input channels, layers that span the window, 1x1 to the output channels."""

    @property
    def window(self) -> tuple[int, ...]:
        """The layer's window."""
        return self.layer.kernel_shape[:-2]

    @property
    def axes(self) -> tuple[int, ...]:
        """All axes of the window."""
        return tuple(range(len(self.window)))

    def stage(self, name: str, axes: tuple[int, ...], fan_in: int, fan_out: int) -> Stage:
        """A thin layer that spans these axes, between so many channels of each feature group."""
        groups = self.layer.groups
        return Stage(name, (*spanned(self.window, axes), fan_in, groups * fan_out), groups, axes)

    def ends(self, first_rank: int, last_rank: int) -> tuple[Stage, Stage]:
        """The two 1x1 layers."""
        *_, channels, features = self.layer.group_shape
        return (
            self.stage("input", (), channels, first_rank),
            self.stage("output", (), last_rank, features),
        )


class CPChain(ConvolutionChain):
    """Between the ends, depthwise layers along each axis of the window, or one over all of it."""

    @property
    def rank_shape(self) -> tuple[int, ...]:
        """(*window, C, T), or (window, C, T) where its axes are merged."""
        if self.form.spatial == "merged":
            return math.prod(self.window), *self.layer.group_shape[-2:]
        return self.layer.group_shape

    def tensor_view(self, kernel: Any) -> Any:
        """As it is, or with all axes of the window as one mode where they are merged."""
        if self.form.spatial == "merged":
            return kernel.reshape(-1, *kernel.shape[-2:])
        return kernel

    def _stages(self) -> tuple[Stage, ...]:
        (rank,) = self.form.ranks
        first, last = self.ends(rank, rank)
        if self.form.spatial == "merged":
            return first, self._depthwise("spatial", self.axes, rank), last
        along = (self._depthwise(f"spatial_{axis}", (axis,), rank) for axis in self.axes)
        return first, *along, last

    def _depthwise(self, name: str, axes: tuple[int, ...], rank: int) -> Stage:
        width = self.layer.groups * rank
        return Stage(name, (*spanned(self.window, axes), 1, width), width, axes)

    def _to_kernels(self, part: Format) -> list[Any]:
        assert isinstance(part, CP)
        *spatial, inputs, outputs = part.factors
        return [inputs, *spatial, outputs.T]

    def _from_kernels(self, kernels: Sequence[Float[Array, "*_"]]) -> CP:
        inputs, *spatial, outputs = (_matrix(kernel) for kernel in kernels)
        return CP((*spatial, inputs, outputs.T))


class TuckerChain(ConvolutionChain):
    """Between the ends, a smaller convolution with the whole window: Tucker of the channels."""

    def _stages(self) -> tuple[Stage, ...]:
        first, last = self.ends(*self.form.ranks)
        return first, self.stage("core", self.axes, *self.form.ranks), last

    def _to_kernels(self, part: Format) -> list[Any]:
        assert isinstance(part, Tucker)
        inputs, outputs = (factor for factor in part.factors if factor is not None)
        return [inputs, part.core, outputs.T]

    def _from_kernels(self, kernels: Sequence[Float[Array, "*_"]]) -> Tucker:
        inputs, core, outputs = kernels
        whole: tuple[None, ...] = (None,) * len(self.window)
        return Tucker(core, (*whole, _matrix(inputs), _matrix(outputs).T))


class TTChain(ConvolutionChain):
    """Between the ends, a convolution along each axis of the window: over (C, *window, T)."""

    @property
    def channel_blocks(self) -> int:
        """All channels: they are the first mode."""
        return self.layer.kernel_shape[-2]

    def tensor_view(self, kernel: Any) -> Any:
        """With the input channels in front of the window."""
        window = tuple(range(kernel.ndim - 2))
        return kernel.transpose(kernel.ndim - 2, *window, kernel.ndim - 1)

    def kernel_view(self, tensor: Float[Array, "*_"]) -> Float[Array, "*_"]:
        """The inverse of `tensor_view`."""
        return jnp.moveaxis(tensor, 0, -2)

    def _stages(self) -> tuple[Stage, ...]:
        ranks = self.form.ranks
        first, last = self.ends(ranks[0], ranks[-1])
        links = (
            self.stage(f"spatial_{axis}", (axis,), *pair)
            for axis, pair in enumerate(pairwise(ranks))
        )
        return first, *links, last

    def _to_kernels(self, part: Format) -> list[Any]:
        assert isinstance(part, TT)
        first, *links, last = part.cores
        # A link (r, n, s) is a kernel with n taps from r to s channels.
        return [first[0], *(link.swapaxes(0, 1) for link in links), last[:, :, 0]]

    def _from_kernels(self, kernels: Sequence[Float[Array, "*_"]]) -> TT:
        first, *middle, last = kernels
        links = [jnp.moveaxis(kernel.reshape(-1, *kernel.shape[-2:]), 0, 1) for kernel in middle]
        return TT((_matrix(first)[None], *links, _matrix(last)[:, :, None]))


def _matrix(kernel: Float[Array, "*_"]) -> Float[Array, "_ _"]:
    return kernel.reshape(-1, kernel.shape[-1])


CHAINS: dict[str, type[FormatChain]] = {"cp": CPChain, "tucker": TuckerChain, "tt": TTChain}
