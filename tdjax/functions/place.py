"""Products that an array goes into: which kernel it is there, of which rows, read off an equation.

A layer computes y = x W with rows x (..., D), the kernel W (D, T) or (*window, C, T), and y
(..., T). A program has the axes of all three in any order. What is read here brings them into
that order, and back, so that a chain of thin layers can take the place of W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from tdjax.functions.chains import AnyChain
from tdjax.plan.layers import LEAF, Layer, Storage
from tdjax.trace.call import Call
from tdjax.trace.views import Axis, Value

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

    def multiply(
        self,
        chain: AnyChain,
        kernels: Kernels,
        rows: Array,
        attends: bool,
        convolutions: Sequence[Any] = (),
    ) -> Array:
        """Rows times the kernel that a chain stands for.

        Arguments:
            convolutions: see `tdjax.functions.chains.convolved`.
        """
        ...

    def result(self, y: Array) -> Array:
        """What the equation gives, of what comes out."""
        ...


def storage_of(
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
