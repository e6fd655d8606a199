"""The bias of a factorised layer, corrected for what its mean input loses.

With y = W^T x + b and the kernel W~ in place of W, the mean of y stays what it was if the bias
takes (W - W~)^T E[x] on; what is left to approximate is then seen by the covariance around that
mean (Kalle et al., NeurIPS 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.boxes import is_boxed, unboxed
from tdjax.formats import HIGHEST
from tdjax.kernels import Weights
from tdjax.moments import LayerMoments
from tdjax.plan import PlannedLayer


def can_correct(entry: PlannedLayer, own: Mapping[str, Any]) -> bool:
    """Whether a layer with these parameters has a bias for each column of its kernel."""
    layer = entry.layer
    bias = unboxed(own["bias"]) if "bias" in own else None
    if bias is None or layer.kind == "embed" or layer.storage.stack not in (None, 0):
        return False
    # The order of an einsum layer's outputs is that of its equation, unless there is only one.
    one = bias.ndim == (1 if layer.storage.stack is None else 2)
    return bias.size == layer.copies * layer.kernel_shape[-1] and (one or layer.kind != "einsum")


def around_mean(weights: Weights, moments: LayerMoments) -> Weights:
    """The weights with the covariance around the mean in place of the second moment."""
    inputs, mean = weights.inputs, moments.mean
    if inputs is None or mean is None or inputs.ndim == mean.ndim:
        return weights
    return weights._replace(inputs=inputs - mean[..., :, None] * mean[..., None, :])


def with_lost_mean(
    bias: Any, lost: Float[Array, "*_"], entry: PlannedLayer, moments: LayerMoments
) -> Any:
    """The bias with what the mean input loses.

    Arguments:
        bias: as among the parameters.
        lost: the layer's array less what its factors stand for.
    """
    layer, storage = entry.layer, entry.layer.storage
    if moments.mean is None:
        return bias

    def shift(lost: Float[Array, "*_"], mean: Float[Array, "g d"]) -> Float[Array, " t"]:
        kernel = storage.to_kernel(lost, layer.kernel_shape)
        columns = kernel.reshape(mean.shape[1], layer.groups, -1)
        return jnp.einsum("dgt,gd->gt", columns, mean, precision=HIGHEST).reshape(-1)

    stacked = storage.stack is not None
    change = (jax.vmap(shift) if stacked else shift)(lost, moments.mean)
    old = unboxed(bias)
    new = (old + change.reshape(old.shape)).astype(old.dtype)
    return bias.replace_boxed(new) if is_boxed(bias) else new
