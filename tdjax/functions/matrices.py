"""Products of matrices, with any axes, read off their equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from tdjax.functions.chains import AnyChain, multiplied
from tdjax.functions.place import Kernels, Place, Shape, Unreadable, storage_of
from tdjax.functions.sides import Side
from tdjax.plan.layers import Layer
from tdjax.trace.call import Call
from tdjax.trace.views import Axis, is_plain


@dataclass(frozen=True)
class MatrixProduct:
    """A product of matrices, with any axes; see `Product`.

    Arguments:
        kept: axes of the other operand that stay, those that both have first.
        both: number of those.
        contracted: axes of the other operand that are summed over.
        inputs, outputs: axes of the view that are summed over, and that stay.
        order: places of the view's axes: those that both have, inputs, outputs.
        settings: of the products.
        dtype: of the result.
    """

    layer: Layer
    place: Place
    batch: int | None
    kept: Shape
    both: int
    contracted: Shape
    inputs: Side
    outputs: Side
    order: Shape
    settings: Any
    dtype: Any

    def call(self, attends: bool, rows: Any, columns: Any) -> Call:
        """See `Product.call`."""
        return Call(None, "attend" if attends else "__call__", rows, columns, None)

    def rows(self, reads: Sequence[Any]) -> Array:
        """See `Product.rows`."""
        x = jnp.transpose(reads[1 - self.place.operand], (*self.kept, *self.contracted))
        return self.inputs.merged(x)

    def kernel(self, view: Array) -> Array:
        """See `Product.kernel`."""
        x = self.outputs.merged(jnp.transpose(view, self.order))
        x = jnp.moveaxis(x, -1, self.both)
        x = jnp.swapaxes(self.inputs.merged(x), -1, -2)
        front = () if self.batch is None else (self.layer.copies,)
        return x.reshape(*front, *x.shape[-2:])

    def multiply(
        self,
        chain: AnyChain,
        kernels: Kernels,
        rows: Array,
        attends: bool,
        convolutions: Sequence[Any] = (),
    ) -> Array:
        """See `Product.multiply`."""
        return multiplied(chain, kernels, rows, dict(self.settings), transposed=attends)

    def result(self, y: Array) -> Array:
        """See `Product.result`."""
        y, own = self.outputs.spread(y), len(self.outputs.view)
        if self.place.operand == 0:
            y = jnp.moveaxis(y, range(y.ndim - own, y.ndim), range(self.both, self.both + own))
        return y.astype(self.dtype)


def matrix_product(eqn: Any, place: Place) -> MatrixProduct:
    """The product of matrices that an equation is. Raises `Unreadable` for one of another kind."""
    contract, batch = eqn.params["dimension_numbers"]
    own, other, parts = place.operand, 1 - place.operand, place.parts
    free = [k for k in range(len(parts)) if k not in (*contract[own], *batch[own])]
    inputs, outputs = (Side(tuple(parts[k] for k in axes)) for axes in (contract[own], free))
    stack = _batch_stack([parts[k] for k in batch[own]])
    storage, by_batch = storage_of(place, (inputs.axes, outputs.axes), stack)
    if not (inputs.whole and outputs.whole):
        raise Unreadable("along a part of an axis")
    if place.value.flipped:
        raise Unreadable("turned round")
    shape, used = eqn.invars[other].aval.shape, (*contract[other], *batch[other])
    kept = (*batch[other], *(k for k in range(len(shape)) if k not in used))
    number = math.prod(shape[k] for k in kept) // (storage.copies if by_batch else 1)
    names = ("precision", "preferred_element_type")
    return MatrixProduct(
        Layer("", "dense", (inputs.size, outputs.size), positions=number, stored=storage),
        place,
        [bool(parts[k]) for k in batch[own]].index(True) if by_batch else None,
        kept,
        len(batch[other]),
        tuple(contract[other]),
        inputs,
        outputs,
        (*batch[own], *contract[own], *free),
        tuple((name, eqn.params[name]) for name in names),
        eqn.outvars[0].aval.dtype,
    )


def _batch_stack(axes: Sequence[Axis]) -> int | None:
    """The array's axis among those that both operands of a product have."""
    found = [own for own in axes if own]
    if len(found) > 1 or not all(map(is_plain, found)):
        raise Unreadable("along several axes of a stack")
    return found[0][0].axis if found else None
