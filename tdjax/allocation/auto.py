"""The format of a layer that fits its kernel best at a given size: method "auto" of a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.dealing import on_one_device
from tdjax.decompose.inputs import is_finite
from tdjax.decompose.scale import relative_error
from tdjax.params.arrays import decompose_array, reconstruct_array
from tdjax.params.options import Options
from tdjax.plan.decide import plan_layer
from tdjax.plan.form import METHODS, spatial_of
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.rules import Rule


def best_format(
    array_of: Callable[[Layer], Any], *, key: Array | None = None, max_iters: int = 100
) -> Callable[[Layer, Rule], PlannedLayer]:
    """A function that plans a layer in the format with the least relative weight error.

    All methods are tried at the compression that the rule asks for, CP also with the axes of the
    window as one mode; of equal errors the earlier
    of `tdjax.plan.form.METHODS` wins. Formats that would save nothing are left out where others
    do.

    Arguments:
        array_of: the array that holds a layer's kernel; shapes alone are refused.
        key: PRNG key for the random start of CP.
        max_iters: sweeps of CP and Tucker.

    The function raises ValueError for shapes in place of arrays, and for NaN or Inf.
    """
    key = jax.random.key(0) if key is None else key

    def choose(layer: Layer, rule: Rule) -> PlannedLayer:
        if layer.obstacle is not None:
            return PlannedLayer(layer, reason=layer.obstacle)
        array = array_of(layer)
        if isinstance(array, jax.ShapeDtypeStruct):
            raise ValueError(f"{rule}: layer {layer.path!r}: needs the kernel, not its shape alone")
        array, own_key = on_one_device((jnp.asarray(array), key))
        if not is_finite(array):
            raise ValueError(f"{rule}: layer {layer.path!r}: the kernel holds NaN or Inf")
        window = layer.kernel_shape[:-2]
        planned = dict.fromkeys(
            plan_layer(layer, replace(rule, method=method, spatial=spatial))
            for method in METHODS
            for spatial in spatial_of(window, method)
        )
        smaller = [entry for entry in planned if entry.size < layer.size] or list(planned)
        if len(smaller) == 1:
            return smaller[0]
        errors = [_weight_error(array, entry, own_key, max_iters) for entry in smaller]
        return smaller[int(jnp.argmin(jnp.stack(errors)))]

    return choose


def _weight_error(
    array: Array, entry: PlannedLayer, key: Array, max_iters: int
) -> Float[Array, ""]:
    factors = decompose_array(array, entry, Options(key=key, max_iters=max_iters))
    return relative_error(array, reconstruct_array(factors, entry))
