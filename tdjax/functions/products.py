"""Products that an array goes into: which kernel it is there, of which rows, read off an equation.

A layer computes y = x W with rows x (..., D), the kernel W (D, T) or (*window, C, T), and y
(..., T). A program has the axes of all three in any order. What is read here brings them into
that order, and back, so that a chain of thin layers can take the place of W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Float, Shaped

from tdjax.functions.chains import AnyChain, convolved, multiplied
from tdjax.functions.sides import Side
from tdjax.plan.layers import LEAF, Layer, Storage
from tdjax.trace.call import Call
from tdjax.trace.convolutions import Window
from tdjax.trace.views import Axis, Value, is_plain

Shape = tuple[int, ...]
Kernels = Sequence[Float[Array, "*_"]]


class Unreadable(Exception):
    """A product that no chain can take the place of, and why; empty for what is no product."""


@dataclass(frozen=True)
class Place:
    """A view of an array, and where in an equation it goes.

    Arguments:
        operand: of the equation.
        value: what is known of the view.
        shape, dtype: of the whole array, and of the view's numbers.
    """

    operand: int
    value: Value
    shape: Shape
    dtype: Any

    @property
    def parts(self) -> tuple[Axis, ...]:
        """What each axis of the view is."""
        assert self.value.parts is not None
        return self.value.parts


@runtime_checkable
class Product(Protocol):
    """One product with a kernel.

    Attributes:
        layer: the entry of a layer table that it makes of the array, without path.
        place: of the array.
        batch: axis of the rows along which they meet the layers of a stack, each its own.
    """

    @property
    def layer(self) -> Layer:
        """See above."""

    @property
    def place(self) -> Place:
        """See above."""

    @property
    def batch(self) -> int | None:
        """See above."""

    def call(self, attends: bool, rows: Any, columns: Any) -> Call:
        """The call that it is of a layer, from the shapes at its ends."""
        ...

    def rows(self, reads: Sequence[Any]) -> Array:
        """What goes in, of what the equation reads."""
        ...

    def kernel(self, view: Array) -> Array:
        """The kernel, of the view; of all layers of a stack where `batch` says that."""
        ...

    def multiply(self, chain: AnyChain, kernels: Kernels, rows: Array, attends: bool) -> Array:
        """Rows times the kernel that a chain stands for."""
        ...

    def result(self, y: Array) -> Array:
        """What the equation gives, of what comes out."""
        ...


def product_of(eqn: JaxprEqn, place: Place) -> Product:
    """The product that an equation is. Raises `Unreadable` where it is none, or no plain one."""
    read = READERS.get(eqn.primitive.name)
    if read is None:
        raise Unreadable("")
    return read(eqn, place)


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

    def multiply(self, chain: AnyChain, kernels: Kernels, rows: Array, attends: bool) -> Array:
        """See `Product.multiply`."""
        return multiplied(chain, kernels, rows, dict(self.settings), transposed=attends)

    def result(self, y: Array) -> Array:
        """See `Product.result`."""
        y, own = self.outputs.spread(y), len(self.outputs.view)
        if self.place.operand == 0:
            y = jnp.moveaxis(y, range(y.ndim - own, y.ndim), range(self.both, self.both + own))
        return y.astype(self.dtype)


def _matrix_product(eqn: Any, place: Place) -> MatrixProduct:
    contract, batch = eqn.params["dimension_numbers"]
    own, other = place.operand, 1 - place.operand
    parts, ndim = place.parts, eqn.invars[other].aval.ndim
    free = [k for k in range(len(parts)) if k not in (*contract[own], *batch[own])]
    inputs, outputs = (Side(tuple(parts[k] for k in axes)) for axes in (contract[own], free))
    stack = _batch_stack([parts[k] for k in batch[own]])
    storage, by_batch = _storage(place, (inputs.axes, outputs.axes), stack)
    if not (inputs.whole and outputs.whole):
        raise Unreadable("along a part of an axis")
    if place.value.flipped:
        raise Unreadable("turned round")
    used = (*contract[other], *batch[other])
    kept = (*batch[other], *(k for k in range(ndim) if k not in used))
    shape = eqn.invars[other].aval.shape
    number = math.prod(shape[k] for k in kept) // (storage.copies if by_batch else 1)
    kernel = (inputs.size, outputs.size)
    settings = {name: eqn.params[name] for name in ("precision", "preferred_element_type")}
    return MatrixProduct(
        Layer("", "dense", kernel, positions=number, stored=storage),
        place,
        [bool(parts[k]) for k in batch[own]].index(True) if by_batch else None,
        kept,
        len(batch[other]),
        tuple(contract[other]),
        inputs,
        outputs,
        (*batch[own], *contract[own], *free),
        tuple(settings.items()),
        eqn.outvars[0].aval.dtype,
    )


def _batch_stack(axes: Sequence[Axis]) -> int | None:
    """The array's axis among those that both operands of a product have."""
    found = [own for own in axes if own]
    if len(found) > 1 or not all(map(is_plain, found)):
        raise Unreadable("along several axes of a stack")
    return found[0][0].axis if found else None


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

    def multiply(self, chain: AnyChain, kernels: Kernels, rows: Array, attends: bool) -> Array:
        """See `Product.multiply`."""
        return convolved(self.layer, self.window, chain, kernels, rows, dict(self.settings))

    def result(self, y: Array) -> Array:
        """See `Product.result`."""
        examples, channels, *window = self.numbers[1]
        order = (examples, *window, channels)
        back = sorted(range(len(order)), key=order.__getitem__)
        return jnp.transpose(y, back).astype(self.dtype)


def _convolution(eqn: Any, place: Place) -> Convolution:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    dilated = any(step > 1 for step in params["lhs_dilation"])
    groups = params["feature_group_count"]
    if place.operand != 1 or params["batch_group_count"] > 1:
        raise Unreadable("not as its kernel")
    if dilated and (groups > 1 or any(step > 1 for step in params["window_strides"])):
        raise Unreadable("over a dilated input with strides or groups")
    if not all(map(is_plain, place.parts)):
        raise Unreadable("its axes merged or split")
    features, channels, *spatial = numbers.rhs_spec
    order = (*spatial, channels, features)
    storage, _ = _storage(place, [Side((place.parts[k],)).axes for k in order], None)
    flipped = {own[0].axis for k in spatial if (own := place.parts[k]) and own[0].size > 1}
    if place.value.flipped not in (set(), flipped):
        raise Unreadable("partly turned round")
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    layer = Layer(
        "",
        "conv_transpose" if dilated else "conv",
        tuple(eqn.invars[1].aval.shape[k] for k in order),
        groups,
        in_spatial=tuple(before[k] for k in numbers.lhs_spec[2:]),
        out_spatial=tuple(after[k] for k in numbers.out_spec[2:]),
        positions=before[numbers.lhs_spec[0]],
        stored=replace(storage, flipped=bool(place.value.flipped)),
    )
    names = ("precision", "preferred_element_type")
    settings = tuple((name, params[name]) for name in names)
    window = Window(
        layer.kernel_shape[:-2],
        tuple(params["lhs_dilation" if dilated else "window_strides"]),
        tuple((int(low), int(high)) for low, high in params["padding"]),
        tuple(params["rhs_dilation"]),
        groups,
    )
    specs = (tuple(numbers.lhs_spec), tuple(numbers.out_spec))
    return Convolution(layer, place, specs, order, window, settings, eqn.outvars[0].aval.dtype)


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

    def multiply(self, chain: AnyChain, kernels: Kernels, rows: Array, attends: bool) -> Array:
        """See `Product.multiply`."""
        last = self.layer.kernel_shape[0] - 1
        taken = chain.take_rows(kernels, jnp.clip(rows, 0, last))
        if self.mode != jax.lax.GatherScatterMode.FILL_OR_DROP:
            return taken
        inside = (rows >= 0) & (rows <= last)
        return jnp.where(inside[..., None], taken, jnp.nan if self.fill is None else self.fill)

    def result(self, y: Array) -> Array:
        """See `Product.result`."""
        y, own = self.outputs.spread(y), len(self.outputs.view)
        return jnp.moveaxis(y, range(y.ndim - own, y.ndim), self.offsets).astype(self.dtype)


def _lookup(eqn: Any, place: Place) -> Lookup:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    parts, (table, ids) = place.parts, (operand.aval.shape for operand in eqn.invars)
    (axis, *more) = numbers.collapsed_slice_dims or (None,)
    rest = [k for k in range(len(parts)) if k != axis]
    if (
        place.operand != 0
        or axis is None
        or more
        or numbers.operand_batching_dims
        or tuple(numbers.start_index_map) != (axis,)
        or any(params["slice_sizes"][k] != table[k] for k in rest)
    ):
        raise Unreadable("of more than rows along one axis")
    inputs, outputs = Side((parts[axis],)), Side(tuple(parts[k] for k in rest))
    storage, _ = _storage(place, (inputs.axes, outputs.axes), None)
    if not (inputs.whole and outputs.whole) or place.value.flipped:
        raise Unreadable("along a part of an axis")
    if storage.stack is not None:
        raise Unreadable("from one of a stack of tables")
    kernel = (inputs.size, outputs.size)
    number = math.prod(ids[:-1])
    return Lookup(
        Layer("", "embed", kernel, positions=0, lookups=number, stored=storage),
        place,
        axis,
        outputs,
        tuple(numbers.offset_dims),
        params["mode"],
        params["fill_value"],
        eqn.outvars[0].aval.dtype,
    )


def _storage(
    place: Place, sides: Sequence[Sequence[int]], batch: int | None
) -> tuple[Storage, bool]:
    """How an array holds the kernel, and whether the product meets all layers of a stack at once.

    Arguments:
        sides: the array's axes in the order of the kernel's.
        batch: the array's axis that both operands have.
    """
    value, present = place.value, {axis for own in sides for axis in own}
    turned = {own[0].axis for _, own in value.turns if own}
    absent = [axis for axis in range(len(place.shape)) if axis not in present]
    stacks = [k for k in absent if k == batch or k in turned or place.shape[k] > 1]
    if len(stacks) > 1:
        raise Unreadable("from a stack along several axes")
    if value.cut:
        raise Unreadable("in part")
    stack = stacks[0] if stacks else None
    # Axes of length 1 that the view has lost lie anywhere.
    ones = [axis for axis in absent if axis != stack]
    order = [*ones, *(axis for own in sides for axis in own)]
    shape = tuple(size for axis, size in enumerate(place.shape) if axis != stack)
    if stack is not None:
        order = [axis - (axis > stack) for axis in order]
    copies = 1 if stack is None else place.shape[stack]
    found = Storage(LEAF, shape, tuple(order), stack=stack, copies=copies)
    return found, stack is not None and stack == batch


READERS: dict[str, Any] = {
    "dot_general": _matrix_product,
    "conv_general_dilated": _convolution,
    "gather": _lookup,
}
