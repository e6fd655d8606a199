"""What a value of a program is of an array: the array itself in another place, or made of it.

Slices of a stack, casts, axes of length 1 and axes moved leave the numbers of an array as they
are: such a value is a view of it. What else is computed of it is made of it, and no view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn


@dataclass(frozen=True)
class Value:
    """What is known of one value of a program.

    Arguments:
        arrays: places, among the arguments of the program, of the arrays that it was made of.
        axes: of a view, for each axis the array's own, None for one of length 1 that the array
            has not; None for what is no view.
        turns: scans, by the id of their equation, of which each turn has another slice, and the
            axis that is sliced.
        cut: axes of the array of which it has a part.
    """

    arrays: frozenset[int] = frozenset()
    axes: tuple[int | None, ...] | None = None
    turns: tuple[tuple[int, int | None], ...] = ()
    cut: frozenset[int | None] = frozenset()

    @property
    def array(self) -> int | None:
        """The array that it is a view of; None where it is none."""
        return None if self.axes is None else next(iter(self.arrays))

    def on_axes(self, axes: Sequence[int | None], cut: Sequence[int | None] = ()) -> Value:
        """The view with other axes, some of them cut."""
        return replace(self, axes=tuple(axes), cut=self.cut | set(cut))

    def slice_of_turn(self, scan: int) -> Value:
        """Of what a scan runs over, the slice of one turn."""
        if self.axes is None:
            return self
        first, *rest = self.axes
        return replace(self, axes=tuple(rest), turns=(*self.turns, (scan, first)))

    def of_all_turns(self, scan: int) -> Value:
        """Of what a scan gives in each turn, all of it along a new axis in front."""
        if self.axes is None:
            return self
        sliced = [axis for turn, axis in self.turns if turn == scan]
        if len(sliced) != 1:
            return made_of(self)
        turns = tuple(turn for turn in self.turns if turn[0] != scan)
        return replace(self, axes=(sliced[0], *self.axes), turns=turns)


NOTHING = Value()


def view_of(array: int, ndim: int) -> Value:
    """An array itself."""
    return Value(frozenset([array]), tuple(range(ndim)))


def made_of(*values: Value) -> Value:
    """What was computed of some values."""
    arrays = frozenset().union(*(value.arrays for value in values))
    return Value(arrays) if arrays else NOTHING


def either(one: Value, other: Value) -> Value:
    """What is known of a value that is one of two."""
    return one if one == other else made_of(one, other)


def passed_on(eqn: JaxprEqn, reads: Sequence[Value]) -> list[Value] | None:
    """The results of an equation that leaves a view a view; None of any other equation."""
    name = eqn.primitive.name
    if name in UNCHANGED and len(eqn.outvars) == len(reads):
        return list(reads)
    if not reads or reads[0].axes is None or any(value.arrays for value in reads[1:]):
        return None
    value, axes = reads[0], reads[0].axes
    if name == "convert_element_type":
        numbers = jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact)
        return [value] if numbers else None
    if name == "split":
        cut = [axes[eqn.params["axis"]]] if len(eqn.outvars) > 1 else []
        return [value.on_axes(axes, cut) for _ in eqn.outvars]
    if name == "transpose":
        return [value.on_axes([axes[axis] for axis in eqn.params["permutation"]])]
    if name == "squeeze":
        gone = {axis % len(axes) for axis in eqn.params["dimensions"]}
        return [value.on_axes([axis for k, axis in enumerate(axes) if k not in gone])]
    shape = SHAPED.get(name)
    return None if shape is None else shape(eqn, value, axes)


def _reshaped(eqn: Any, value: Value, axes: Sequence[int | None]) -> list[Value] | None:
    """Axes of length 1 come and go."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if before == after:
        return [value]
    kept = [axis for axis, size in zip(axes, before, strict=True) if size != 1]
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    left = iter(kept)
    return [value.on_axes([None if size == 1 else next(left) for size in after])]


def _broadcast(eqn: Any, value: Value, axes: Sequence[int | None]) -> list[Value] | None:
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    places = dict(zip(eqn.params["broadcast_dimensions"], range(len(axes)), strict=True))
    alike = all(size == (before[places[k]] if k in places else 1) for k, size in enumerate(after))
    if not alike:
        return None
    return [value.on_axes([axes[places[k]] if k in places else None for k in range(len(after))])]


def _sliced(eqn: Any, value: Value, axes: Sequence[int | None]) -> list[Value] | None:
    if any(step != 1 for step in eqn.params.get("strides") or ()):
        return None
    shapes = zip(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, strict=True)
    cut = [axis for axis, (before, after) in zip(axes, shapes, strict=True) if before != after]
    return [value.on_axes(axes, cut)]


def _gathered(eqn: Any, value: Value, axes: Sequence[int | None]) -> list[Value] | None:
    """One slice along some axes, as `array[index]` takes it."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone, whole = numbers.collapsed_slice_dims, eqn.invars[0].aval.shape
    batched = math.prod(eqn.invars[1].aval.shape) > 1 or numbers.operand_batching_dims
    full = all(sizes[k] == (1 if k in gone else whole[k]) for k in range(len(axes)))
    if batched or not full or len(eqn.outvars[0].aval.shape) != len(axes) - len(gone):
        return None
    return [value.on_axes([axis for k, axis in enumerate(axes) if k not in gone])]


# Each result is the operand at its place.
UNCHANGED = frozenset({
    "copy", "copy_p", "device_put", "layout_constraint", "mesh_cast", "name",
    "optimization_barrier", "pcast", "pvary", "reshard", "sharding_constraint",
})  # fmt: skip
SHAPED = {
    "reshape": _reshaped,
    "broadcast_in_dim": _broadcast,
    "slice": _sliced,
    "dynamic_slice": _sliced,
    "gather": _gathered,
}
