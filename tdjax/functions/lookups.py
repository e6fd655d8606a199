"""Rows of a table, taken by their numbers, read off their equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from tdjax.functions.chains import AnyChain, rows_taken
from tdjax.functions.place import Kernels, Place, Shape, Unreadable, storage_of
from tdjax.functions.sides import Side
from tdjax.plan.layers import Layer
from tdjax.trace.call import Call


@dataclass(frozen=True)
class Lookup:
    """Rows of a table, by their numbers; see `Product`.

    Arguments:
        axis: of the view, along which rows lie.
        outputs: axes of the view that a row has.
        offsets: where these are in the result.
        mode: what becomes of numbers out of range.
        fill: what takes the place of those, where that is the mode.
        dtype: of the result.
    """

    layer: Layer
    place: Place
    axis: int
    outputs: Side
    offsets: Shape
    mode: Any
    fill: Any
    dtype: Any
    batch: None = None

    def call(self, attends: bool, rows: Any, columns: Any) -> Call:
        """See `Product.call`."""
        return Call(None, "__call__", rows, columns, None)

    def rows(self, reads: Sequence[Any]) -> Shaped[Array, "*b"]:
        """See `Product.rows`."""
        return reads[1][..., 0]

    def kernel(self, view: Array) -> Array:
        """See `Product.kernel`."""
        return self.outputs.merged(jnp.moveaxis(view, self.axis, 0))

    def multiply(
        self,
        chain: AnyChain,
        kernels: Kernels,
        rows: Array,
        attends: bool,
        convolutions: Sequence[Any] = (),
    ) -> Array:
        """See `Product.multiply`."""
        last = self.layer.kernel_shape[0] - 1
        taken = rows_taken(chain, kernels, jnp.clip(rows, 0, last))
        if self.mode != jax.lax.GatherScatterMode.FILL_OR_DROP:
            return taken
        inside = (rows >= 0) & (rows <= last)
        return jnp.where(inside[..., None], taken, jnp.nan if self.fill is None else self.fill)

    def result(self, y: Array) -> Array:
        """See `Product.result`."""
        y, own = self.outputs.spread(y), len(self.outputs.view)
        return jnp.moveaxis(y, range(y.ndim - own, y.ndim), self.offsets).astype(self.dtype)


def lookup(eqn: Any, place: Place) -> Lookup:
    """The lookup that an equation is. Raises `Unreadable` for one of more than rows."""
    params, parts = eqn.params, place.parts
    axis = _axis(eqn, place)
    rest = [k for k in range(len(parts)) if k != axis]
    inputs, outputs = Side((parts[axis],)), Side(tuple(parts[k] for k in rest))
    storage, _ = storage_of(place, (inputs.axes, outputs.axes), None)
    if not (inputs.whole and outputs.whole) or place.value.flipped:
        raise Unreadable("along a part of an axis")
    if storage.stack is not None:
        raise Unreadable("from one of a stack of tables")
    kernel, number = (inputs.size, outputs.size), math.prod(eqn.invars[1].aval.shape[:-1])
    return Lookup(
        Layer("", "embed", kernel, positions=0, lookups=number, stored=storage),
        place,
        axis,
        outputs,
        tuple(params["dimension_numbers"].offset_dims),
        params["mode"],
        params["fill_value"],
        eqn.outvars[0].aval.dtype,
    )


def _axis(eqn: Any, place: Place) -> int:
    """The axis of a table along which its rows lie."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    table, (axis, *more) = eqn.invars[0].aval.shape, numbers.collapsed_slice_dims or (None,)
    plain = place.operand == 0 and axis is not None and not more
    plain = (
        plain and tuple(numbers.start_index_map) == (axis,) and not numbers.operand_batching_dims
    )
    if not plain or any(n != sizes[k] for k, n in enumerate(table) if k != axis):
        raise Unreadable("of more than rows along one axis")
    assert axis is not None
    return int(axis)
