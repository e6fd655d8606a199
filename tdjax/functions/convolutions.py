"""Convolutions, in any layout, read off their equation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from tdjax.functions.chains import AnyChain, convolved
from tdjax.functions.place import Kernels, Place, Shape, Unreadable, storage_of
from tdjax.functions.sides import Side
from tdjax.plan.layers import Layer
from tdjax.trace.call import Call
from tdjax.trace.convolutions import Window
from tdjax.trace.views import is_plain


@dataclass(frozen=True)
class Convolution:
    """A convolution; see `Product`.

    Arguments:
        numbers: axes of the input and of the result, examples, channels, then the window's.
        order: places of the view's axes: window, channels, features.
        window: strides, padding and dilation.
        settings: of the products.
        dtype: of the result.
    """

    layer: Layer
    place: Place
    numbers: tuple[Shape, Shape]
    order: Shape
    window: Window
    settings: Any
    dtype: Any
    batch: None = None

    def call(self, attends: bool, rows: Any, columns: Any) -> Call:
        """See `Product.call`."""
        return Call(self.window, "__call__", rows, columns, None)

    def rows(self, reads: Sequence[Any]) -> Array:
        """See `Product.rows`."""
        examples, channels, *window = self.numbers[0]
        return jnp.transpose(reads[0], (examples, *window, channels))

    def kernel(self, view: Array) -> Array:
        """See `Product.kernel`."""
        return jnp.transpose(view, self.order)

    def multiply(
        self,
        chain: AnyChain,
        kernels: Kernels,
        rows: Array,
        attends: bool,
        convolutions: Sequence[Any] = (),
    ) -> Array:
        """See `Product.multiply`."""
        settings = dict(self.settings)
        return convolved(self.layer, self.window, chain, kernels, rows, settings, convolutions)

    def result(self, y: Array) -> Array:
        """See `Product.result`."""
        examples, channels, *window = self.numbers[1]
        order = (examples, *window, channels)
        back = sorted(range(len(order)), key=order.__getitem__)
        return jnp.transpose(y, back).astype(self.dtype)


def convolution(eqn: Any, place: Place) -> Convolution:
    """The convolution that an equation is. Raises `Unreadable` for one of another kind."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    _check(eqn, place)
    features, channels, *spatial = numbers.rhs_spec
    order = (*spatial, channels, features)
    storage, _ = storage_of(place, [Side((place.parts[k],)).axes for k in order], None)
    flipped = {axis for axis in place.value.flipped if place.shape[axis] > 1}
    along = {part.axis for k in spatial for part in place.parts[k] if part.size > 1}
    if flipped not in (set(), along):
        raise Unreadable("partly turned round")
    window = _window(params, tuple(eqn.invars[1].aval.shape[k] for k in spatial))
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    layer = Layer(
        "",
        "conv_transpose" if _is_dilated(params) else "conv",
        tuple(eqn.invars[1].aval.shape[k] for k in order),
        window.feature_group_count,
        in_spatial=tuple(before[k] for k in numbers.lhs_spec[2:]),
        out_spatial=tuple(after[k] for k in numbers.out_spec[2:]),
        positions=before[numbers.lhs_spec[0]],
        stored=replace(storage, flipped=bool(flipped)),
    )
    names = ("precision", "preferred_element_type")
    settings = tuple((name, params[name]) for name in names)
    specs = (tuple(numbers.lhs_spec), tuple(numbers.out_spec))
    return Convolution(layer, place, specs, order, window, settings, eqn.outvars[0].aval.dtype)


def _check(eqn: Any, place: Place) -> None:
    """Refuse convolutions that are no layer's."""
    params = eqn.params
    if place.operand != 1 or params["batch_group_count"] > 1:
        raise Unreadable("not as its kernel")
    strided = any(step > 1 for step in params["window_strides"])
    if _is_dilated(params) and (strided or params["feature_group_count"] > 1):
        raise Unreadable("over a dilated input with strides or groups")
    if not all(map(is_plain, place.parts)):
        raise Unreadable("its axes merged or split")


def _is_dilated(params: Mapping[str, Any]) -> bool:
    """Whether the input is dilated, as that of a transposed convolution."""
    return any(step > 1 for step in params["lhs_dilation"])


def _window(params: Mapping[str, Any], sizes: Shape) -> Window:
    return Window(
        sizes,
        tuple(params["lhs_dilation" if _is_dilated(params) else "window_strides"]),
        tuple((int(low), int(high)) for low, high in params["padding"]),
        tuple(params["rhs_dilation"]),
        params["feature_group_count"],
    )
