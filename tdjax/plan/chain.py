"""How a factorised layer computes: as a chain of thin layers.

A kernel (*spatial, C / groups, T) is split by group, each group is decomposed alone, and the
factors become the kernels of the chain. `stages` says what the chain looks like from shapes alone;
`to_kernels` and `from_kernels` carry arrays both ways. Stride, padding and dilation of a spatial
axis belong to the stage whose kernel spans that axis. Sources: Lebedev et al. 2015 (CP), Kim et
al. 2016 (Tucker-2), Garipov et al. 2016 (TT); `tdjax.plan.low_rank` and
`tdjax.plan.tt_matrix` name theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.formats import CP, TT, Format, GroupedLowRank, LowRank, Tucker
from tdjax.plan import low_rank, tt_matrix
from tdjax.plan.stage import Stage, spanned

METHODS = ("cp", "tucker", "tt", "svd")
SPATIAL = ("separate", "merged")


def stages(
    kernel_shape: Sequence[int],
    groups: int,
    method: str,
    ranks: Sequence[int],
    spatial: str = "separate",
    splits: int = 1,
    fold: str = "channel",
) -> tuple[Stage, ...]:
    """The chain that replaces a layer, first stage first.

    Arguments:
        kernel_shape: (*spatial, C / groups, T); a dense kernel (C, T) has no spatial axes.
        groups: feature groups of the layer; ranks hold for each of them.
        method: one of `METHODS`.
        ranks: as `tdjax.plan.ranks.ranks_for` gives them.
        spatial: "merged" lets CP treat all spatial axes as one mode.
        splits: number of groups of input channels that "svd" factorises each for itself.
        fold: how "svd" folds the kernel, one of `tdjax.plan.low_rank.FOLDS`.
    """
    *window, c, t = kernel_shape
    if method == "tt" and not window:
        return tt_matrix.stages(c, t, ranks)
    if method == "svd" or not window:
        (rank,) = ranks
        return low_rank.stages(kernel_shape, groups, rank, splits, fold)
    every, t = tuple(range(len(window))), t // groups

    def stage(name: str, axes: tuple[int, ...], fan_in: int, fan_out: int) -> Stage:
        return Stage(name, (*spanned(window, axes), fan_in, groups * fan_out), groups, axes)

    def depthwise(name: str, axes: tuple[int, ...], rank: int) -> Stage:
        return Stage(name, (*spanned(window, axes), 1, groups * rank), groups * rank, axes)

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
    kernel: Float[Array, "*_"],
    method: str,
    spatial: str = "separate",
    splits: int = 1,
    fold: str = "channel",
) -> Float[Array, "*_"]:
    """A kernel (*spatial, C, T) of one group as the array that `method` decomposes.

    CP and Tucker take it as it is (CP with all spatial axes as one where they are "merged"), a
    tensor train runs over the modes of `tdjax.plan.ranks.tt_order`, low rank takes the matrix of
    `tdjax.plan.low_rank.to_matrix`.
    """
    if method == "tt" and kernel.ndim == 2:
        return tt_matrix.to_tensor(kernel)
    if method == "svd" or kernel.ndim == 2:
        return low_rank.to_matrix(kernel, splits, fold)
    if method == "tt":
        return jnp.moveaxis(kernel, -2, 0)
    if method == "cp" and spatial == "merged":
        return kernel.reshape(-1, *kernel.shape[-2:])
    return kernel


def kernel_view(
    tensor: Float[Array, "*_"],
    kernel_shape: Sequence[int],
    method: str,
    splits: int = 1,
    fold: str = "channel",
) -> Float[Array, "*_"]:
    """The inverse of `tensor_view`."""
    if method == "tt" and len(kernel_shape) > 2:
        return jnp.moveaxis(tensor, 0, -2)
    if method == "tt":
        return tt_matrix.to_matrix(tensor, *kernel_shape)
    if method == "svd":
        return low_rank.to_kernel(tensor, kernel_shape, splits, fold)
    return tensor.reshape(tuple(kernel_shape))


def split_groups(kernel: Float[Array, "*_"], groups: int) -> list[Float[Array, "*_"]]:
    """The kernels (*spatial, C / groups, T / groups) of each group, in order."""
    return jnp.split(kernel, groups, axis=-1)


def to_kernels(formats: Sequence[Format], chain: Sequence[Stage]) -> dict[str, Float[Array, "*_"]]:
    """Kernels of the stages from the decompositions of all groups."""
    by_group = [_arrays(part, chain) for part in formats]
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
    form = low_rank.form(chain) if method == "svd" else ()
    parts = [
        kernel_view(part.to_tensor(), (*window, c, t // groups), method, *form)
        for part in from_kernels(kernels, chain, method, groups)
    ]
    return parts[0] if groups == 1 else jnp.concatenate(parts, axis=-1)


def _arrays(part: Format, chain: Sequence[Stage]) -> list[Float[Array, "*_"]]:
    """The arrays of a format in the order of its chain, each as (spans..., in, out)."""
    if isinstance(part, LowRank | GroupedLowRank):
        return low_rank.to_kernels(part, chain)
    if isinstance(part, CP):
        *spatial, c, t = part.factors
        return [c, *spatial, t.T]
    if isinstance(part, Tucker):
        matrices = [factor for factor in part.factors if factor is not None]
        return [matrices[0], part.core, matrices[1].T]
    assert isinstance(part, TT)
    if tt_matrix.is_train(chain):
        return list(part.cores)
    first, *links, last = part.cores
    # A link (r, n, s) is a kernel with n taps from r to s channels.
    return [first[0], *(jnp.moveaxis(link, 1, 0) for link in links), last[:, :, 0]]


def _to_stage(array: Float[Array, "*_"], stage: Stage, groups: int) -> Float[Array, "*_"]:
    *shape, out = stage.kernel_shape
    return array.reshape(*shape, out // groups)


def _format(kernels: Sequence[Float[Array, "*_"]], chain: Sequence[Stage], method: str) -> Format:
    if tt_matrix.is_train(chain):
        return TT(tuple(core.reshape(core.shape[0], -1, core.shape[-1]) for core in kernels))
    first, *middle, last = kernels
    if not middle:
        splits, _ = low_rank.form(chain)
        return low_rank.from_kernels(first, last, splits)
    matrix_in = first.reshape(-1, first.shape[-1])
    matrix_out = last.reshape(-1, last.shape[-1])
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
    chain: Sequence[Stage],
    in_spatial: Sequence[int],
    out_spatial: Sequence[int],
    positions: int,
    lookups: int = 0,
    transposed: bool = False,
) -> int:
    """Multiply-accumulates of a chain for one example.

    Arguments:
        in_spatial, out_spatial: spatial sizes of the layer's input and output.
        positions: times the layer is applied to such a window, for one example.
        lookups: times a row of the matrix is taken, for one example.
        transposed: whether a window is one of the input's, as in a transposed convolution; for a
            matrix, whether it is the transposed one that multiplies.
    """
    if tt_matrix.is_train(chain):
        products = positions * tt_matrix.product_macs(chain, transposed)
        return products + lookups * tt_matrix.row_macs(chain)

    def run(state: tuple[int, tuple[int, ...]], stage: Stage) -> tuple[int, tuple[int, ...]]:
        total, before = state
        after = tuple(
            out if axis in stage.axes else size
            for axis, (size, out) in enumerate(zip(before, out_spatial, strict=True))
        )
        return total + math.prod(before if transposed else after) * stage.size, after

    total, _ = reduce(run, chain, (0, tuple(in_spatial)))
    # The first factor of a taken row is taken, not computed.
    return positions * total + lookups * sum(stage.size for stage in chain[1:])
