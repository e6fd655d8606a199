"""The bias of a factorised layer, corrected for what its mean input loses.

With y = W^T x + b and the kernel W~ in place of W, the mean of y stays what it was if the bias
takes (W - W~)^T E[x] on; what is left to approximate is then seen by the covariance around that
mean (Kalle et al., NeurIPS 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.inputs import is_at_hand
from tdjax.decompose.padding import rounded_up, widened
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.second_moment import is_trusted, trust
from tdjax.params.arrays import Factors, reconstruct_array
from tdjax.params.check import factor_shapes
from tdjax.params.kernels import Weights
from tdjax.params.partitioning import is_boxed, unboxed
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.ranks import full_ranks


def can_correct(entry: PlannedLayer, own: Mapping[str, Any]) -> bool:
    """Whether a layer with these parameters has a bias for each column of its kernel."""
    layer = entry.layer
    bias = unboxed(own["bias"]) if "bias" in own else None
    # What a module of one's own does with its bias is not known.
    if bias is None or layer.is_own or layer.kind == "embed":
        return False
    if layer.storage.stack not in (None, 0):
        return False
    # The order of an einsum layer's outputs is that of its equation, unless there is only one.
    one = bias.ndim == (1 if layer.storage.stack is None else 2)
    return bias.size == layer.copies * layer.kernel_shape[-1] and (one or layer.kind != "einsum")


def around_mean(weights: Weights, mean: Float[Array, "*_"] | None) -> Weights:
    """The weights with the covariance around the mean in place of the second moment."""
    inputs = weights.inputs
    if inputs is None or mean is None or inputs.ndim == mean.ndim:
        return weights
    found = covariance(inputs, mean, mean)
    if is_trusted(inputs) and is_trusted(mean):
        # A mean is trusted where it was collected, with the moment that it belongs to.
        trust(found)
    return weights._replace(inputs=found)


@jax.jit
def covariance(
    moment: Float[Array, "*g d d"], left: Float[Array, "*g d"], right: Float[Array, "*g d"]
) -> Float[Array, "*g d d"]:
    """A second moment of two kinds of rows around their means.

    What rounding of the moment may take from the least eigenvalues is given back.
    """
    rounding = jnp.finfo(moment.dtype).eps * jnp.trace(moment, axis1=-2, axis2=-1)
    eye = jnp.eye(moment.shape[-1], dtype=moment.dtype)
    return moment - left[..., :, None] * right[..., None, :] + rounding[..., None, None] * eye


def lost_output(
    array: Float[Array, "*_"], factors: Factors, entry: PlannedLayer, mean: Float[Array, "*_"]
) -> Float[Array, "*_"]:
    """The mean output that a layer's array loses to its factors; see `mean_output`.

    Of factors at hand the ranks are rounded up, by zeros: one program serves many ranks.
    """
    layer, form = entry.layer, entry.form
    assert form is not None
    alike = Layer("", layer.kind, layer.kernel_shape, layer.groups, stored=layer.stored)
    entry = replace(entry, layer=alike)
    apart = layer.groups == form.splits == 1 and not form.nonzeros
    if apart and all(map(is_at_hand, factors.values())):
        entry, factors = _widened(entry, factors)
    return _lost_output(array, factors, mean, entry=entry)


def _widened(entry: PlannedLayer, factors: Factors) -> tuple[PlannedLayer, Factors]:
    """A layer of ranks that are rounded up, and its factors, with zeros behind their own."""
    assert entry.form is not None
    full = full_ranks(entry.form.method, entry.chain.rank_shape)
    ranks = (max(r, rounded_up(r, n)) for r, n in zip(entry.ranks, full, strict=True))
    wide = replace(entry, form=replace(entry.form, ranks=tuple(ranks)))
    shapes = factor_shapes(wide)
    return wide, {name: widened(factors[name], shape) for name, shape in shapes.items()}


@partial(jax.jit, static_argnames=("entry",))
def _lost_output(
    array: Float[Array, "*_"], factors: Factors, mean: Float[Array, "*_"], *, entry: PlannedLayer
) -> Float[Array, "*_"]:
    return mean_output(array - reconstruct_array(factors, entry), entry, mean)


def mean_output(
    array: Float[Array, "*_"], entry: PlannedLayer, mean: Float[Array, "*_"]
) -> Float[Array, "*_"]:
    """The mean of what comes out of a layer, less its bias: (T,), or (copies, T) of a stack.

    Arguments:
        array: that holds the layer's kernel.
        mean: (groups, D) of what goes in, for a stack with its axis in front.
    """
    layer, storage = entry.layer, entry.layer.storage

    def product(array: Float[Array, "*_"], mean: Float[Array, "g d"]) -> Float[Array, " t"]:
        kernel = storage.to_kernel(array, layer.kernel_shape)
        columns = kernel.reshape(mean.shape[1], layer.groups, -1)
        return jnp.einsum("dgt,gd->gt", columns, mean, precision=HIGHEST).reshape(-1)

    return (product if storage.stack is None else jax.vmap(product))(array, mean)


def shifted(bias: Any, shift: Float[Array, "*_"]) -> Any:
    """A layer's bias, as among its parameters, with the mean output that it is to take on."""
    old = unboxed(bias)
    new = (old + shift.reshape(old.shape)).astype(old.dtype)
    return bias.replace_boxed(new) if is_boxed(bias) else new
