"""An array of a function's parameters as it flows through the program: a view, and what holds it.

These are pytrees, so that loops, conditions and transformations of JAX carry them like arrays;
some of those put other things in the arrays' places for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from tdjax.functions.place import Place
from tdjax.params.arrays import stack_axes
from tdjax.plan.plan import PlannedLayer
from tdjax.trace.programs import bind
from tdjax.trace.views import Value, is_plain

# What is done to an array is done to the kernels of its chain.
ENTRYWISE = ("convert_element_type", "stop_gradient")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Held:
    """An array that is there as it is.

    Arguments:
        content: the numbers of the view.
        path: of the array.
        shape: of the array.
        value: what is known of the view.
        numbers: by axis of the array, which slice along it the view is of, where it is of one that
            was taken by its number.
    """

    content: Any
    path: str = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})
    value: Value = field(metadata={"static": True})
    numbers: dict[int, Any] = field(default_factory=dict)

    def place(self, operand: int) -> Place:
        """The view as an operand of an equation."""
        return Place(operand, self.value, self.shape, self.content.dtype)

    def viewed(self, eqn: JaxprEqn, value: Value, number: int, reads: list[Any]) -> Held:
        """What an equation that leaves a view a view gives as its result of that number."""
        content = bind(eqn, [self.content, *reads[1:]])[number]
        lost = set(_axes(self.value)) - set(_axes(value))
        taken = {}
        for axis in lost:
            place = _axis_of(self.value, axis)
            assert place is not None
            taken[axis] = jnp.asarray(_index(eqn, place, number, reads)[0])
        return replace(self, content=content, value=value, numbers={**self.numbers, **taken})

    def in_turns(self) -> Held:
        """With the axis in front that a scan slices."""
        length = self.content.shape[0]
        every = {axis: jnp.broadcast_to(own, (length,)) for axis, own in self.numbers.items()}
        return replace(self, numbers=every)

    def of_turn(self, scan: int) -> Held:
        """The slice of one turn, of what `in_turns` gave."""
        return replace(self, value=self.value.slice_of_turn(scan))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factorised:
    """An array that is there as the kernels of a chain.

    Arguments:
        kernels: by name of the stage; with the stack's axis until the view has one layer of it.
        entry: of the plan.
        value: what is known of the view.
    """

    kernels: dict[str, Any]
    entry: PlannedLayer = field(metadata={"static": True})
    value: Value = field(metadata={"static": True})

    @property
    def path(self) -> str:
        """Of the array."""
        return self.entry.layer.path

    def place(self, operand: int) -> Place:
        """The view as an operand of an equation."""
        dtype = next(iter(self.kernels.values())).dtype
        return Place(operand, self.value, self.entry.layer.storage.whole_shape, dtype)

    def viewed(self, eqn: JaxprEqn, value: Value, number: int, reads: list[Any]) -> Factorised:
        """What an equation that leaves a view a view gives as its result of that number."""
        kernels, stack = self.kernels, self.entry.layer.storage.stack
        if eqn.primitive.name in ENTRYWISE:
            kernels = {name: bind(eqn, [kernel])[0] for name, kernel in kernels.items()}
        before = _axis_of(self.value, stack)
        if before is not None and _axis_of(value, stack) is None:
            index, mode = _index(eqn, before, number, reads)
            axes = stack_axes(self.entry)
            kernels = {
                name: jnp.take(kernel, index, axis=axes[name], mode=mode)
                for name, kernel in kernels.items()
            }
        return replace(self, kernels=kernels, value=value)

    def in_turns(self) -> Factorised:
        """With the axis in front that a scan slices."""
        stack = self.entry.layer.storage.stack
        if _axis_of(self.value, stack) == 0:
            axes = stack_axes(self.entry)
            moved = {name: jnp.moveaxis(own, axes[name], 0) for name, own in self.kernels.items()}
        else:
            # An axis of length 1 that is none of a stack.
            moved = {name: own[None] for name, own in self.kernels.items()}
        return replace(self, kernels=moved)

    def of_turn(self, scan: int) -> Factorised:
        """The slice of one turn, of what `in_turns` gave."""
        return replace(self, value=self.value.slice_of_turn(scan))


AnyHeld = Held | Factorised


@dataclass(frozen=True)
class Beside:
    """Views side by side, as kernels that are multiplied at once.

    Arguments:
        parts: the views, or arrays in place of some.
        axis: along which they lie.
    """

    parts: tuple[Any, ...]
    axis: int

    def joined(self, parts: Sequence[Any]) -> Any:
        """Others side by side; an array where none of them is a view."""
        if any(map(is_held, parts)):
            return Beside(tuple(parts), self.axis)
        return jnp.concatenate(parts, self.axis)

    def axis_of_product(self, eqn: Any, operand: int) -> int | None:
        """Where a product with them has their axis; None where it sums over that, or both have it.

        Arguments:
            eqn: `dot_general`.
            operand: which they are.
        """
        contract, batch = eqn.params["dimension_numbers"]
        free = [
            [k for k in range(len(own.aval.shape)) if k not in (*summed, *both)]
            for own, summed, both in zip(eqn.invars, contract, batch, strict=True)
        ]
        if self.axis not in free[operand]:
            return None
        return len(batch[0]) + operand * len(free[0]) + free[operand].index(self.axis)


def is_held(value: Any) -> bool:
    """Whether something that a program computes with is an array's view."""
    return isinstance(value, Held | Factorised)


def can_turn(held: AnyHeld) -> bool:
    """Whether a scan over the first axis of a view has views in its turns."""
    parts = held.value.parts
    return parts is not None and parts != () and is_plain(parts[0])


def _axes(value: Value) -> list[int]:
    """The axes of the array that a view has."""
    return [part.axis for own in value.parts or () for part in own]


def _axis_of(value: Value, axis: int | None) -> int | None:
    """Which axis of a view is one of the array's; None where it has not got it."""
    if axis is None or value.parts is None:
        return None
    found = [k for k, own in enumerate(value.parts) if any(part.axis == axis for part in own)]
    return found[0] if found else None


def _index(eqn: Any, axis: int, number: int, reads: list[Any]) -> tuple[Any, Any]:
    """Which slice of a stack an equation takes along an axis of the view, and the mode of that."""
    name, mode = eqn.primitive.name, "clip"
    if name == "slice":
        return eqn.params["start_indices"][axis], mode
    if name == "dynamic_slice":
        return reads[1 + axis], mode
    if name == "split":
        return sum(eqn.params["sizes"][:number]), mode
    if name == "gather":
        return reads[1].reshape(()), eqn.params["mode"]
    # An axis of length 1 is left out.
    return 0, mode
