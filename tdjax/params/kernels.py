"""One layer's kernel decomposed, group by group, in the form that a plan gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
from tdjax.decompose.padding import is_small
from tdjax.decompose.second_moment import check_moment, is_trusted, trust
from tdjax.decompose.sparse import Corrected, Operator, alternate
from tdjax.params.options import DEFAULTS, Options
from tdjax.plan.form import METHODS, Form
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import FormatChain, format_chain


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
        inputs = (
            jnp.ones((size,))
            if self.inputs is None
            else _moment(self.inputs, group, "second_moment")
        )
        if self.outputs is None:
            return Covariance(inputs)
        return Kronecker(inputs, _moment(self.outputs, group, "gradient_moment"))


def _moment(moments: Float[Array, "*_"], group: int, name: str) -> Float[Array, "*_"]:
    """The moment of one group; those of all groups are checked once, whatever they are for."""
    own = moments[group]
    if isinstance(moments, jax.Array) and not isinstance(moments, jax.core.Tracer):
        if not is_trusted(moments):
            for each in moments:
                check_moment(each, name)
            trust(moments)
        trust(own)
    return own


def decompose_kernel(
    kernel: Float[Array, "*_"],
    entry: PlannedLayer,
    options: Options = DEFAULTS,
    *,
    weights: Weights | None = None,
    starts: Sequence[Format] | None = None,
) -> list[Format]:
    """The decompositions of one kernel, one for each feature group.

    Arguments:
        kernel: (*window, C / groups, T) or (in, out); see `tdjax.plan.layers.Storage.to_kernel`.
        entry: with the form; it must not be kept dense.
        options: key, init, max_iters and tol.
        weights: for the norm of what comes out of the layer in place of the Frobenius norm.
        starts: for each feature group where CP starts, in place of `init`.
    """
    chain, size = format_chain(entry.chain), math.prod(kernel.shape[:-1])
    return [
        _decompose_group(
            tensor,
            chain,
            options.of_part(group),
            None if weights is None else weights.of_group(group, size),
            None if starts is None else starts[group],
        )
        for group, tensor in enumerate(chain.tensor_views(kernel))
    ]


def _decompose_group(
    tensor: Float[Array, "*_"],
    chain: FormatChain,
    options: Options,
    norm: Covariance | Kronecker | None,
    start: Format | None,
) -> Format:
    """The decomposition of one feature group's array."""
    decompose = DECOMPOSE[chain.form.method]
    if norm is None or not chain.mixes:
        own = None if norm is None else _in_view(norm, chain)
        return decompose(tensor, chain.form, options, own, start)

    def weigh(tensor: Float[Array, "*_"]) -> Float[Array, "*_"]:
        return chain.tensor_view(norm.weigh(chain.kernel_view(tensor)))

    # The norm tells inputs and outputs apart, the modes do not.
    first = decompose(tensor, chain.form, options, None, start)
    return weighted_als(tensor, first, weigh, max_iters=options.max_iters, tol=options.tol)[0]


def _in_view(norm: Covariance | Kronecker, chain: FormatChain) -> Norm:
    """A norm of kernels as one of the array that `chain.tensor_view` makes of them."""
    *window, channels, _ = chain.layer.kernel_shape
    ahead = chain.channel_blocks
    if ahead == 1 or not window:
        return norm
    rows = jnp.arange(math.prod(window) * channels)
    order = jnp.moveaxis(rows.reshape(*window, ahead, channels // ahead), -2, 0).reshape(-1)
    moment = jnp.asarray(norm.second_moment)
    moved = moment[order] if moment.ndim == 1 else moment[order][:, order]
    return replace(norm, second_moment=moved)


def _svd(tensor: Array, form: Form, options: Options, norm: Norm | None, _: Any) -> Format:
    (rank,) = form.ranks
    if form.splits == 1:
        return truncated_svd(tensor, rank, norm=norm, pad=_padded(tensor))
    return grouped_svd(
        tensor, rank, form.splits, norm=norm, max_iters=options.max_iters, tol=options.tol,
        pad=_padded(tensor),
    )[0]  # fmt: skip


def _tucker(tensor: Array, form: Form, options: Options, norm: Norm | None, _: Any) -> Format:
    ranks = (*(None,) * (tensor.ndim - 2), *form.ranks)
    return tucker_als(
        tensor, ranks, norm=norm, pad=_padded(tensor), max_iters=options.max_iters, tol=options.tol
    )[0]


def _tt(tensor: Array, form: Form, options: Options, norm: Norm | None, _: Any) -> Format:
    if norm is None:
        return tt_svd(tensor, form.ranks, pad=_padded(tensor))
    return tt_als(
        tensor, form.ranks, norm=norm, pad=_padded(tensor), max_iters=options.max_iters,
        tol=options.tol,
    )[0]  # fmt: skip


def _cp(
    tensor: Array, form: Form, options: Options, norm: Norm | None, start: Format | None
) -> Format:
    (rank,) = form.ranks
    assert start is None or isinstance(start, CP)
    return cp_als(
        tensor, rank, key=options.key, init=options.init if start is None else start, norm=norm,
        max_iters=options.max_iters, tol=options.tol, pad=_padded(tensor),
    )[0]  # fmt: skip


DECOMPOSE: dict[str, Callable[..., Format]] = {
    "svd": _svd,
    "tucker": _tucker,
    "tt": _tt,
    "cp": _cp,
}


def is_by_numpy(entry: PlannedLayer, *, weighted: bool) -> bool:
    """Whether NumPy decomposes a layer whose arrays lie in a CPU's memory, or nearly does."""
    alone = entry.layer.storage.stack is None and not entry.nonzeros
    if not alone or entry.method not in METHODS:
        return False
    return not weighted or entry.method in ("svd", "tucker") or are_few(entry.layer, entry.ranks)


def are_few(layer: Layer, ranks: Sequence[int]) -> bool:
    """Whether CP and TT at such ranks are small enough for NumPy in the norm of moments."""
    *window, channels, _ = layer.kernel_shape
    return is_small(math.prod(window) * channels, max(ranks), max(window, default=1))


def _padded(tensor: Array) -> bool:
    """Whether ranks are padded, so that several share a compiled program."""
    # Inside another program, which is compiled for these ranks alone, padding shares nothing.
    return not isinstance(tensor, jax.core.Tracer)


def correct_kernel(
    kernel: Float[Array, "*_"],
    entry: PlannedLayer,
    options: Options = DEFAULTS,
    *,
    weights: Weights | None = None,
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
    alike = replace(entry, layer=Layer("", layer.kind, layer.kernel_shape, layer.groups))
    return _corrected(
        as_float(kernel), options.key, weights, options.tol,
        entry=alike, init=options.init, max_iters=options.max_iters,
    )  # fmt: skip


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
    own = Options(max_iters=max_iters, tol=tol)

    def decompose(rest: Array, before: list[Format]) -> list[Format]:
        return decompose_kernel(rest, entry, own, weights=weights, starts=before)

    def untouched() -> list[Format]:
        return decompose_kernel(kernel, entry, Options(key=key, init=init, max_iters=1))

    if entry.method == "cp":
        start = untouched()
    else:
        # All others start by themselves, and need the shapes alone.
        shapes = jax.eval_shape(untouched)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    chain = format_chain(entry.chain)
    operator = None if weights is None else _operator(kernel, weights, chain)
    return alternate(
        kernel, entry.nonzeros, decompose, chain.dense, start, operator=operator, tol=tol
    )


def _operator(kernel: Float[Array, "*_"], weights: Weights, chain: FormatChain) -> Operator:
    """The norm of a whole kernel, whose feature groups do not meet."""
    size = math.prod(kernel.shape[:-1])
    norms = [weights.of_group(group, size) for group in range(chain.layer.groups)]

    def weigh(x: Array) -> Array:
        parts = zip(norms, chain.split_groups(x), strict=True)
        return jnp.concatenate([norm.weigh(part) for norm, part in parts], axis=-1)

    parts = zip(norms, chain.split_groups(kernel), strict=True)
    diagonal = jnp.concatenate([norm.diagonal(part) for norm, part in parts], axis=-1)
    return Operator(weigh, diagonal)
