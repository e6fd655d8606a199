"""How a factorised layer computes: as a chain of thin layers.

A kernel (*spatial, C / groups, T) is split by group, each group is decomposed alone, and the
factors become the kernels of the chain. `stages` says what the chain looks like from shapes alone;
`to_kernels` and `from_kernels` carry arrays both ways. Stride, padding and dilation of a spatial
axis belong to the stage whose kernel spans that axis. Sources: Lebedev et al. 2015 (CP), Kim et
al. 2016 (Tucker-2), Garipov et al. 2016 (TT).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.formats import CP, TT, Format, LowRank, Tucker

METHODS = ("cp", "tucker", "tt", "svd")
SPATIAL = ("separate", "merged")


@dataclass(frozen=True)
class Stage:
    """One thin layer of a chain.

    Arguments:
        name: its name among the layer's parameters.
        kernel_shape: (*spatial, in / groups, out), with 1 for spatial axes it does not span.
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


def stages(
    kernel_shape: Sequence[int],
    groups: int,
    method: str,
    ranks: Sequence[int],
    spatial: str = "separate",
) -> tuple[Stage, ...]:
    """The chain that replaces a layer, first stage first.

    Arguments:
        kernel_shape: (*spatial, C / groups, T); a dense kernel (C, T) has no spatial axes.
        groups: feature groups of the layer; ranks hold for each of them.
        method: one of `METHODS`.
        ranks: as `tdjax.ranks.ranks_for` gives them.
        spatial: "merged" lets CP treat all spatial axes as one mode.
    """
    *window, c, t = kernel_shape
    every, t = tuple(range(len(window))), t // groups

    def stage(name: str, axes: tuple[int, ...], fan_in: int, fan_out: int) -> Stage:
        shape = tuple(size if axis in axes else 1 for axis, size in enumerate(window))
        return Stage(name, (*shape, fan_in, groups * fan_out), groups, axes)

    def depthwise(name: str, axes: tuple[int, ...], rank: int) -> Stage:
        shape = tuple(size if axis in axes else 1 for axis, size in enumerate(window))
        return Stage(name, (*shape, 1, groups * rank), groups * rank, axes)

    if method == "svd" or not window:
        (rank,) = ranks
        return stage("input", every, c, rank), stage("output", (), rank, t)
    if method == "tucker":
        r_in, r_out = ranks
        return (
            stage("input", (), c, r_in),
            stage("core", every, r_in, r_out),
            stage("output", (), r_out, t),
        )
    if method == "cp":
        (rank,) = ranks
        if spatial == "merged":
            middle = [depthwise("spatial", every, rank)]
        else:
            middle = [depthwise(f"spatial_{axis}", (axis,), rank) for axis in every]
        return stage("input", (), c, rank), *middle, stage("output", (), rank, t)
    if method == "tt":
        links = [stage(f"spatial_{axis}", (axis,), ranks[axis], ranks[axis + 1]) for axis in every]
        return stage("input", (), c, ranks[0]), *links, stage("output", (), ranks[-1], t)
    raise ValueError(f"method {method!r}: known are {', '.join(METHODS)}")


def tensor_view(
    kernel: Float[Array, "*_"], method: str, spatial: str = "separate"
) -> Float[Array, "*_"]:
    """A kernel (*spatial, C, T) of one group as the array that `method` decomposes.

    CP and Tucker take it as it is (CP with all spatial axes as one where they are "merged"), a
    tensor train runs over (C, *spatial, T), low rank takes the (spatial * C, T) matrix.
    """
    if method == "svd" or kernel.ndim == 2:
        return kernel.reshape(-1, kernel.shape[-1])
    if method == "tt":
        return jnp.moveaxis(kernel, -2, 0)
    if method == "cp" and spatial == "merged":
        return kernel.reshape(-1, *kernel.shape[-2:])
    return kernel


def kernel_view(
    tensor: Float[Array, "*_"], kernel_shape: Sequence[int], method: str
) -> Float[Array, "*_"]:
    """The inverse of `tensor_view`."""
    if method == "tt" and len(kernel_shape) > 2:
        return jnp.moveaxis(tensor, 0, -2)
    return tensor.reshape(tuple(kernel_shape))


def split_groups(kernel: Float[Array, "*_"], groups: int) -> list[Float[Array, "*_"]]:
    """The kernels (*spatial, C / groups, T / groups) of each group, in order."""
    return jnp.split(kernel, groups, axis=-1)


def to_kernels(formats: Sequence[Format], chain: Sequence[Stage]) -> dict[str, Float[Array, "*_"]]:
    """Kernels of the stages from the decompositions of all groups."""
    by_group = [_arrays(part) for part in formats]
    return {
        stage.name: jnp.concatenate(
            [_to_stage(arrays[k], stage, len(formats)) for arrays in by_group], axis=-1
        )
        for k, stage in enumerate(chain)
    }


def from_kernels(
    kernels: Mapping[str, Float[Array, "*_"]], chain: Sequence[Stage], method: str, groups: int
) -> list[Format]:
    """The decompositions of all groups from the kernels of the stages."""
    return [
        _format(
            [jnp.split(kernels[stage.name], groups, axis=-1)[group] for stage in chain],
            chain,
            method,
        )
        for group in range(groups)
    ]


def reconstruct(
    kernels: Mapping[str, Float[Array, "*_"]],
    kernel_shape: Sequence[int],
    chain: Sequence[Stage],
    method: str,
    groups: int,
) -> Float[Array, "*_"]:
    """The dense kernel that the chain stands for."""
    *window, c, t = kernel_shape
    parts = [
        kernel_view(part.to_tensor(), (*window, c, t // groups), method)
        for part in from_kernels(kernels, chain, method, groups)
    ]
    return parts[0] if groups == 1 else jnp.concatenate(parts, axis=-1)


def _arrays(part: Format) -> list[Float[Array, "*_"]]:
    """The arrays of a format in the order of its chain, each as (spans..., in, out)."""
    if isinstance(part, LowRank):
        return [part.left, part.right]
    if isinstance(part, CP):
        *spatial, c, t = part.factors
        return [c, *spatial, t.T]
    if isinstance(part, Tucker):
        matrices = [factor for factor in part.factors if factor is not None]
        return [matrices[0], part.core, matrices[1].T]
    assert isinstance(part, TT)
    first, *links, last = part.cores
    # A link (r, n, s) is a kernel with n taps from r to s channels.
    return [first[0], *(jnp.moveaxis(link, 1, 0) for link in links), last[:, :, 0]]


def _to_stage(array: Float[Array, "*_"], stage: Stage, groups: int) -> Float[Array, "*_"]:
    *shape, out = stage.kernel_shape
    return array.reshape(*shape, out // groups)


def _format(kernels: Sequence[Float[Array, "*_"]], chain: Sequence[Stage], method: str) -> Format:
    first, *middle, last = kernels
    matrix_in = first.reshape(-1, first.shape[-1])
    matrix_out = last.reshape(-1, last.shape[-1])
    if method == "svd" or len(kernels) == 2:
        return LowRank(matrix_in, matrix_out)
    if method == "cp":
        spatial = [kernel.reshape(-1, kernel.shape[-1]) for kernel in middle]
        return CP((*spatial, matrix_in, matrix_out.T))
    if method == "tucker":
        (core,) = middle
        whole: tuple[None, ...] = (None,) * (core.ndim - 2)
        return Tucker(core, (*whole, matrix_in, matrix_out.T))
    links = [jnp.moveaxis(kernel.reshape(-1, *kernel.shape[-2:]), 0, 1) for kernel in middle]
    return TT((matrix_in[None], *links, matrix_out[:, :, None]))


def macs(
    chain: Sequence[Stage], in_spatial: Sequence[int], out_spatial: Sequence[int], positions: int
) -> int:
    """Multiply-accumulates of a chain for one example.

    Arguments:
        in_spatial, out_spatial: spatial sizes of the layer's input and output.
        positions: times the layer is applied to such a window, for one example.
    """

    def run(state: tuple[int, tuple[int, ...]], stage: Stage) -> tuple[int, tuple[int, ...]]:
        total, sizes = state
        sizes = tuple(
            out if axis in stage.axes else size
            for axis, (size, out) in enumerate(zip(sizes, out_spatial, strict=True))
        )
        return total + math.prod(sizes) * stage.size, sizes

    total, _ = reduce(run, chain, (0, tuple(in_spatial)))
    return positions * total
