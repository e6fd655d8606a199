"""What a value of a program is of an array: the array itself in another place, or made of it.

Slices of a stack, casts, axes of length 1, axes moved, turned round, merged and split leave the
numbers of an array as they are: such a value is a view of it. What else is computed of it is made
of it, and no view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn


@dataclass(frozen=True)
class Part:
    """A part of an axis of an array, as a factor of its length.

    Arguments:
        axis: of the array.
        length: of the axis, or of what a slice left of it.
        size: number of steps.
        stride: entries of the axis from one step to the next.
    """

    axis: int
    length: int
    size: int
    stride: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is all of the axis."""
        return self.size == self.length


# One axis of a view: the parts that it merges, the slowest first; none where its length is 1.
Axis = tuple[Part, ...]


@dataclass(frozen=True)
class Value:
    """What is known of one value of a program.

    Arguments:
        arrays: places, among the arguments of the program, of the arrays that it was made of.
        parts: of a view, what each of its axes is of the array; None for what is no view.
        turns: scans, by the id of their equation, of which each turn has another slice, and the
            axis that is sliced.
        cut: axes of the array of which it has a part.
        flipped: axes of the array along which it runs backwards.
    """

    arrays: frozenset[int] = frozenset()
    parts: tuple[Axis, ...] | None = None
    turns: tuple[tuple[int, Axis], ...] = ()
    cut: frozenset[int] = frozenset()
    flipped: frozenset[int] = frozenset()

    @property
    def array(self) -> int | None:
        """The array that it is a view of; None where it is none."""
        return None if self.parts is None else next(iter(self.arrays))

    @property
    def axes(self) -> tuple[int | None, ...] | None:
        """For each axis the array's own, None for one of length 1 that the array has not.

        None of what is no view, or merges or splits axes.
        """
        if self.parts is None or not all(map(is_plain, self.parts)):
            return None
        return tuple(own[0].axis if own else None for own in self.parts)

    def with_parts(self, parts: Iterable[Axis], cut: Iterable[int] = ()) -> Value:
        """The view with other axes, some of the array's cut."""
        return replace(self, parts=tuple(parts), cut=self.cut | set(cut))

    def slice_of_turn(self, scan: int) -> Value:
        """Of what a scan runs over, the slice of one turn."""
        if self.parts is None:
            return self
        first, *rest = self.parts
        if not is_plain(first):
            return made_of(self)
        return replace(self, parts=tuple(rest), turns=(*self.turns, (scan, first)))

    def of_all_turns(self, scan: int) -> Value:
        """Of what a scan gives in each turn, all of it along a new axis in front."""
        if self.parts is None:
            return self
        sliced = [axis for turn, axis in self.turns if turn == scan]
        if len(sliced) != 1:
            return made_of(self)
        turns = tuple(turn for turn in self.turns if turn[0] != scan)
        return replace(self, parts=(*sliced, *self.parts), turns=turns)


NOTHING = Value()


def is_plain(axis: Axis) -> bool:
    """Whether an axis of a view is one of the array's, or one of length 1."""
    return not axis or (len(axis) == 1 and axis[0].whole)


def view_of(array: int, shape: Sequence[int]) -> Value:
    """An array itself."""
    return Value(frozenset([array]), tuple((Part(k, size, size),) for k, size in enumerate(shape)))


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
    if not reads or reads[0].parts is None or any(value.arrays for value in reads[1:]):
        return None
    value, parts = reads[0], reads[0].parts
    if name == "stop_gradient":
        return [value]
    if name == "convert_element_type":
        numbers = jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact)
        return [value] if numbers else None
    if name == "transpose":
        return [value.with_parts(parts[axis] for axis in eqn.params["permutation"])]
    if name == "squeeze":
        gone = {axis % len(parts) for axis in eqn.params["dimensions"]}
        return [value.with_parts(own for k, own in enumerate(parts) if k not in gone)]
    shape = SHAPED.get(name)
    return None if shape is None else shape(eqn, value, parts)


def reshaped(axes: Iterable[Axis], shape: Sequence[int]) -> tuple[Axis, ...] | None:
    """The axes of a view in another shape; None where one would hold a part of a step."""
    left = [part for axis in axes for part in axis if part.size > 1][::-1]
    found = []
    for size in shape:
        own: list[Part] = []
        while size > 1:
            part = left.pop()
            if size % part.size == 0:
                own.append(part)
                size //= part.size
            elif part.size % size == 0:
                rest = part.size // size
                own.append(Part(part.axis, part.length, size, part.stride * rest))
                left.append(Part(part.axis, part.length, rest, part.stride))
                size = 1
            else:
                return None
        found.append(_joined(own))
    return tuple(found)


def _joined(parts: Sequence[Part]) -> Axis:
    """Parts, those as one that follow each other along one axis of the array."""
    found: list[Part] = []
    for part in parts:
        before = found[-1] if found else None
        if before and (before.axis, before.stride) == (part.axis, part.size * part.stride):
            found[-1] = replace(part, size=before.size * part.size)
        else:
            found.append(part)
    return tuple(found)


def _reshaped(eqn: Any, value: Value, parts: Sequence[Axis]) -> list[Value] | None:
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if before == after:
        return [value]
    found = reshaped(parts, after)
    return None if found is None else [value.with_parts(found)]


def _broadcast(eqn: Any, value: Value, parts: Sequence[Axis]) -> list[Value] | None:
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    places = dict(zip(eqn.params["broadcast_dimensions"], range(len(parts)), strict=True))
    alike = all(size == (before[places[k]] if k in places else 1) for k, size in enumerate(after))
    if not alike:
        return None
    return [value.with_parts(parts[places[k]] if k in places else () for k in range(len(after)))]


def _reversed(eqn: Any, value: Value, parts: Sequence[Axis]) -> list[Value] | None:
    turned = [parts[axis] for axis in eqn.params["dimensions"]]
    if not all(map(is_plain, turned)):
        return None
    return [replace(value, flipped=value.flipped ^ {own[0].axis for own in turned if own})]


def _sliced(eqn: Any, value: Value, parts: Sequence[Axis]) -> list[Value] | None:
    if any(step != 1 for step in eqn.params.get("strides") or ()):
        return None
    return _shorter(value, parts, eqn.outvars[0].aval.shape)


def _split(eqn: Any, value: Value, parts: Sequence[Axis]) -> list[Value] | None:
    found = [_shorter(value, parts, out.aval.shape) for out in eqn.outvars]
    return None if None in found else [own for (own,) in found]  # type: ignore[misc]


def _shorter(value: Value, parts: Sequence[Axis], shape: Sequence[int]) -> list[Value] | None:
    """A part of a view, along some of its axes."""
    found, cut = [], []
    for own, size in zip(parts, shape, strict=True):
        if math.prod(part.size for part in own) == size:
            found.append(own)
        elif not is_plain(own):
            return None
        else:
            found.append((Part(own[0].axis, size, size),) if size > 1 else ())
            cut += [own[0].axis] if size > 1 else []
    return [value.with_parts(found, cut)]


def _gathered(eqn: Any, value: Value, parts: Sequence[Axis]) -> list[Value] | None:
    """One slice along some axes, as `array[index]` takes it."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone, whole = numbers.collapsed_slice_dims, eqn.invars[0].aval.shape
    batched = math.prod(eqn.invars[1].aval.shape) > 1 or numbers.operand_batching_dims
    full = all(sizes[k] == (1 if k in gone else whole[k]) for k in range(len(parts)))
    if batched or not full or len(eqn.outvars[0].aval.shape) != len(parts) - len(gone):
        return None
    return [value.with_parts(own for k, own in enumerate(parts) if k not in gone)]


# Each result is the operand at its place.
UNCHANGED = frozenset({
    "copy", "copy_p", "device_put", "layout_constraint", "mesh_cast", "name",
    "optimization_barrier", "pcast", "pvary", "reshard", "sharding_constraint",
})  # fmt: skip
SHAPED = {
    "reshape": _reshaped,
    "broadcast_in_dim": _broadcast,
    "rev": _reversed,
    "slice": _sliced,
    "split": _split,
    "dynamic_slice": _sliced,
    "gather": _gathered,
}
