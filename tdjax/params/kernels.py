"""One layer's array: decomposed into the kernels of its stages, and multiplied out again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from tdjax.decompose import (
    cp_als,
    grouped_svd,
    truncated_svd,
    tt_als,
    tt_svd,
    tucker_als,
    weighted_als,
)
from tdjax.decompose.formats import CP, Format
from tdjax.decompose.inputs import as_float
from tdjax.decompose.norms import Covariance, Kronecker, Norm
from tdjax.decompose.sparse import Corrected, Operator, alternate, scattered
from tdjax.plan import chain, tt_matrix
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer

# Names among a layer's factors of its sparse correction; no stage has them.
VALUES, INDICES = "values", "indices"

# By name: the kernels of a layer's stages, floating, and the values and the places, int32, of the
# nonzeros of its sparse correction.
Factors = dict[str, Shaped[Array, "*_"]]


class Weights(NamedTuple):
    """What a layer's kernel is weighed by.

    A stack of layers has an axis of them in front.

    Arguments:
        inputs: (groups, D, D), second moment of what goes in, or its diagonal (groups, D); None
            for the identity.
        outputs: (groups, T, T), that of the loss gradient at what comes out; None likewise.
    """

    inputs: Float[Array, "*_"] | None
    outputs: Float[Array, "*_"] | None

    def of_group(self, group: int, size: int) -> Covariance | Kronecker:
        """The norm of one feature group's kernel, whose columns have `size` entries."""
        inputs = jnp.ones((size,)) if self.inputs is None else self.inputs[group]
        if self.outputs is None:
            return Covariance(inputs)
        return Kronecker(inputs, self.outputs[group])


def decompose_array(
    array: Float[Array, "*_"],
    entry: PlannedLayer,
    *,
    key: Array | None = None,
    weights: Weights | None = None,
    **options: Any,
) -> Factors:
    """The kernels of a layer's stages from the array that holds its kernel.

    With a sparse correction also the values of its nonzeros, and their places in the flattened
    kernel, rising.

    The layers of a stack are decomposed side by side, under `jax.vmap`; their factors are stacked
    along the same axis.

    Arguments:
        array: as among the parameters, shape `entry.layer.storage.whole_shape`.
        key, weights, options: see `decompose_kernel`.
    """
    layer, storage = entry.layer, entry.layer.storage

    def one(array: Array, key: Array | None, weights: Weights | None) -> Factors:
        kernel = storage.to_kernel(array, layer.kernel_shape)
        if entry.nonzeros:
            found = correct_kernel(kernel, entry, key=key, weights=weights, **options)
            kernels = chain.to_kernels(found.part, entry.stages)
            return {**kernels, VALUES: found.values, INDICES: found.indices}
        parts = decompose_kernel(kernel, entry, key=key, weights=weights, **options)
        return chain.to_kernels(parts, entry.stages)

    if storage.stack is None:
        return one(array, key, weights)
    keys = None if key is None else jax.random.split(key, storage.copies)
    stacked = (storage.stack, None if keys is None else 0, None if weights is None else 0)
    return jax.vmap(one, in_axes=stacked, out_axes=stack_axes(entry))(array, keys, weights)


def stack_axes(entry: PlannedLayer) -> dict[str, int]:
    """By name, the axes of a stack's factors along which its layers lie."""
    axis = entry.layer.storage.stack
    assert axis is not None
    axes = {stage.name: axis for stage in entry.stages}
    # Vectors, like a bias: they have no further axis.
    return {**axes, VALUES: min(axis, 1), INDICES: min(axis, 1)} if entry.nonzeros else axes


def decompose_kernel(
    kernel: Float[Array, "*_"],
    entry: PlannedLayer,
    *,
    key: Array | None = None,
    weights: Weights | None = None,
    init: str = "normal",
    max_iters: int = 100,
    tol: float | Float[Array, ""] = 1e-8,
    starts: Sequence[Format] | None = None,
) -> list[Format]:
    """The decompositions of one kernel, one for each feature group.

    Arguments:
        kernel: (*spatial, C / groups, T) or (in, out); see `tdjax.plan.layers.Storage.to_kernel`.
        entry: method and ranks; it must not stay dense.
        weights: for the norm of what comes out of the layer in place of the Frobenius norm.
        key, init, max_iters, tol: see `tdjax.factorize_params`.
        starts: for each feature group where CP starts, in place of `init`.
    """
    method, ranks = str(entry.method), entry.ranks
    options: dict[str, Any] = {"max_iters": max_iters, "tol": tol}
    # Inside another program, which is compiled for these ranks alone, padding shares nothing.
    pad = not isinstance(kernel, jax.core.Tracer)

    def decompose(
        part: Float[Array, "*_"], key: Array | None, norm: Norm | None, start: str | Format
    ) -> Format:
        tensor = _view(part, entry)
        mixed = tt_matrix.is_train(entry.stages) or entry.fold != "channel"
        if norm is not None and mixed:
            alone = decompose(part, key, None, start)
            return _mixed_in(norm, tensor, alone, part.shape, entry, options)
        if norm is not None:
            norm = _in_view(norm, part.shape, entry)
        if method == "svd" and entry.splits > 1:
            return grouped_svd(tensor, ranks[0], entry.splits, norm=norm, **options)[0]
        if method == "svd":
            return truncated_svd(tensor, ranks[0], norm=norm, pad=pad)
        if method == "tucker":
            whole = (None,) * (tensor.ndim - 2)
            return tucker_als(tensor, (*whole, *ranks), norm=norm, pad=pad, **options)[0]
        if method == "tt":
            if norm is None:
                return tt_svd(tensor, ranks)
            return tt_als(tensor, ranks, norm=norm, **options)[0]
        assert method == "cp", method
        assert isinstance(start, str | CP)
        return cp_als(tensor, ranks[0], key=key, init=start, norm=norm, **options)[0]

    size = math.prod(kernel.shape[:-1])
    return [
        decompose(
            part,
            None if key is None else jax.random.fold_in(key, group),
            None if weights is None else weights.of_group(group, size),
            init if starts is None else starts[group],
        )
        for group, part in enumerate(chain.split_groups(kernel, entry.layer.groups))
    ]


def correct_kernel(
    kernel: Float[Array, "*_"],
    entry: PlannedLayer,
    *,
    key: Array | None = None,
    weights: Weights | None = None,
    init: str = "normal",
    max_iters: int = 100,
    tol: float | Float[Array, ""] = 1e-8,
) -> Corrected:
    """The decompositions of one kernel, one for each feature group, and a sparse correction.

    Arguments as `decompose_kernel`, for an entry with nonzeros; these may lie in any group. See
    `tdjax.decompose.sparse.alternate`.
    """
    layer = entry.layer
    if weights is not None:
        # Inside a program their values are not seen any more.
        for group in range(layer.groups):
            weights.of_group(group, math.prod(kernel.shape[:-1]))
    # One program for all layers of this form, wherever they are in the model.
    form = replace(entry, layer=Layer("", layer.kind, layer.kernel_shape, layer.groups))
    return _corrected(
        as_float(kernel), key, weights, tol, entry=form, init=init, max_iters=max_iters
    )


@partial(jax.jit, static_argnames=("entry", "init", "max_iters"))
def _corrected(
    kernel: Float[Array, "*_"],
    key: Array | None,
    weights: Weights | None,
    tol: float | Float[Array, ""],
    *,
    entry: PlannedLayer,
    init: str,
    max_iters: int,
) -> Corrected:
    def decompose(rest: Array, before: list[Format]) -> list[Format]:
        return decompose_kernel(
            rest, entry, weights=weights, max_iters=max_iters, tol=tol, starts=before
        )

    def untouched() -> list[Format]:
        return decompose_kernel(kernel, entry, key=key, init=init, max_iters=1)

    def dense(parts: list[Format]) -> Array:
        return reconstruct_kernel(chain.to_kernels(parts, entry.stages), replace(entry, nonzeros=0))

    if entry.method == "cp":
        start = untouched()
    else:
        # All others start by themselves, and need the shapes alone.
        shapes = jax.eval_shape(untouched)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    operator = None if weights is None else _operator(kernel, weights, entry.layer.groups)
    return alternate(kernel, entry.nonzeros, decompose, dense, start, operator=operator, tol=tol)


def _operator(kernel: Float[Array, "*_"], weights: Weights, groups: int) -> Operator:
    """The norm of a whole kernel, whose feature groups do not meet."""
    size = math.prod(kernel.shape[:-1])
    norms = [weights.of_group(group, size) for group in range(groups)]

    def weigh(x: Array) -> Array:
        parts = zip(norms, chain.split_groups(x, groups), strict=True)
        return jnp.concatenate([norm.weigh(part) for norm, part in parts], axis=-1)

    parts = zip(norms, chain.split_groups(kernel, groups), strict=True)
    diagonal = jnp.concatenate([norm.diagonal(part) for norm, part in parts], axis=-1)
    return Operator(weigh, diagonal)


def _view(part: Float[Array, "*_"], entry: PlannedLayer) -> Float[Array, "*_"]:
    """One feature group's kernel as the array that is decomposed."""
    return chain.tensor_view(part, str(entry.method), entry.spatial, entry.splits, entry.fold)


def _in_view(norm: Norm, kernel_shape: tuple[int, ...], entry: PlannedLayer) -> Norm:
    """A norm of kernels as one of the array that `_view` makes of them."""
    *window, channels, _ = kernel_shape
    # In front of the window a tensor train has the channels, low rank their splits.
    ahead = channels if entry.method == "tt" else entry.splits
    if ahead == 1 or not window:
        return norm
    rows = jnp.arange(math.prod(window) * channels)
    order = jnp.moveaxis(rows.reshape(*window, ahead, channels // ahead), -2, 0).reshape(-1)

    def moved(moment: Array) -> Array:
        return moment[order] if moment.ndim == 1 else moment[order][:, order]

    assert isinstance(norm, Covariance | Kronecker)
    return replace(norm, second_moment=moved(jnp.asarray(norm.second_moment)))


def _mixed_in(
    norm: Norm,
    tensor: Float[Array, "*_"],
    start: Format,
    kernel_shape: tuple[int, ...],
    entry: PlannedLayer,
    options: Any,
) -> Format:
    """A format whose modes mix the inputs and outputs of a kernel, in a norm that tells them apart.

    Arguments:
        tensor: what `_view` makes of a kernel of that shape.
    """

    def weigh(tensor: Float[Array, "*_"]) -> Float[Array, "*_"]:
        kernel = chain.kernel_view(
            tensor, kernel_shape, str(entry.method), entry.splits, entry.fold
        )
        return _view(norm.weigh(kernel), entry)

    return weighted_als(tensor, start, weigh, **options)[0]


def reconstruct_array(
    factors: Mapping[str, Shaped[Array, "*_"]], entry: PlannedLayer
) -> Float[Array, "*_"]:
    """The inverse of `decompose_array`: the array that held the kernel."""
    storage = entry.layer.storage

    def one(factors: Mapping[str, Array]) -> Array:
        return storage.from_kernel(reconstruct_kernel(factors, entry))

    if storage.stack is None:
        return one(factors)
    axes = stack_axes(entry)
    own = {name: factors[name] for name in axes}
    return jax.vmap(one, in_axes=(axes,), out_axes=storage.stack)(own)


def reconstruct_kernel(
    factors: Mapping[str, Shaped[Array, "*_"]], entry: PlannedLayer
) -> Float[Array, "*_"]:
    """The dense kernel that a layer's factors stand for, shape `entry.layer.kernel_shape`."""
    layer = entry.layer
    kernels = {stage.name: factors[stage.name] for stage in entry.stages}
    kernel = chain.reconstruct(
        kernels, layer.kernel_shape, entry.stages, str(entry.method), layer.groups
    )
    if not entry.nonzeros:
        return kernel
    return kernel + scattered(factors[VALUES], factors[INDICES], layer.kernel_shape)
