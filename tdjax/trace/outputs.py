"""What is known of values that come of layers' outputs, and behind which equations it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from tdjax.trace.axes import joined, reshaped
from tdjax.trace.elementwise import ELEMENTWISE

# What multiplies all outputs of a head by one number, or moves them.
LINEAR = frozenset({"convert_element_type", "copy", "neg", "optimization_barrier",
                    "reduce_precision", "sharding_constraint"})  # fmt: skip
REDUCTIONS = frozenset(["reduce_sum", "reduce_max", "reduce_min", "reduce_prod"])


@dataclass(frozen=True)
class Other:
    """A value that is no layer's output.

    Arguments:
        varies: the axes along which its entries may differ.
    """

    varies: frozenset[int]


@dataclass(frozen=True)
class Outputs:
    """A value of which each entry comes of one output of layers.

    Arguments:
        layers: paths.
        axes: along which the outputs lie, the slowest first.
        heads: in how many equal parts, one after the other, other values met them; 1 for none.
        repeats: how often each of these heads lies there, one after the other, as where several
            heads of queries share one of values: sums of its own each.
        bent: whether anything but sums over other axes was done to it.
    """

    layers: frozenset[str]
    axes: tuple[int, ...]
    heads: int = 1
    repeats: int = 1
    bent: bool = False


Value = Other | Outputs


def varies_after(eqn: Any, reads: Sequence[Value]) -> frozenset[int] | None:
    """Along which axes a result may vary of which no operand is a layer's output."""
    every = [value.varies for value in reads if isinstance(value, Other)]
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return frozenset().union(*every)
    if name == "broadcast_in_dim":
        dims, after = eqn.params["broadcast_dimensions"], eqn.outvars[0].aval.shape
        before = eqn.invars[0].aval.shape
        return frozenset(int(dims[k]) for k in every[0] if after[dims[k]] == before[k])
    if name == "transpose":
        return frozenset(list(eqn.params["permutation"]).index(k) for k in every[0])
    return None


def after_elementwise(eqn: Any, reads: Sequence[Value], own: Sequence[Outputs]) -> Outputs | None:
    """Outputs behind an equation that computes entry by entry.

    Arguments:
        own: the operands that come of layers' outputs, of which there is one at least.
    """
    first = own[0]
    if any(value.axes != first.axes for value in own):
        return None
    layers = frozenset().union(*(value.layers for value in own))
    name = eqn.primitive.name
    varies = frozenset().union(*(v.varies for v in reads if isinstance(v, Other)))
    met = varies & set(first.axes)
    scales = name == "mul" or (name == "div" and reads[0] is first)
    # Whole numbers are rounded.
    whole = not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)
    if len(own) > 1 or whole or not (name in LINEAR or scales):
        heads, repeats = (max(value.heads for value in own), max(value.repeats for value in own))
        return None if met else Outputs(layers, first.axes, heads, repeats, True)
    return _met(first, eqn.outvars[0].aval.shape, met)


def _met(value: Outputs, shape: Sequence[int], met: Any) -> Outputs | None:
    """Outputs that others met which vary along some of their axes."""
    last = max((value.axes.index(axis) for axis in met), default=-1)
    parts = math.prod(shape[axis] for axis in value.axes[: last + 1])
    if value.repeats > 1:
        return None if value.heads * value.repeats % parts else value
    heads = max(parts, value.heads)
    # Parts of parts are whole parts.
    return None if heads % parts or heads % value.heads else replace(value, heads=heads)


def along(value: Outputs, axes: Sequence[int], shape: Sequence[int]) -> Outputs | None:
    """Outputs along these axes; None where they lie otherwise.

    There may be one more run of axes among them than the value's own: each head, of those in front
    of the run, then lies there so often.
    """
    own, new = value.axes, [axis for axis in axes if axis not in value.axes]
    if not new:
        return value if own == tuple(axes) else None
    first = list(axes).index(new[0])
    heads = math.prod(shape[axis] for axis in axes[:first])
    if tuple(axes) != (*own[:first], *new, *own[first:]) or heads % value.heads:
        return None
    if value.repeats > 1:
        return None
    often = math.prod(shape[axis] for axis in new)
    return replace(value, axes=tuple(axes), heads=heads, repeats=often)


def after_product(eqn: Any, reads: Sequence[Value]) -> Outputs | None:
    """Outputs that were summed up over other axes, with weights."""
    place = 0 if isinstance(reads[0], Outputs) else 1
    value = reads[place]
    assert isinstance(value, Outputs)
    contract, batch = eqn.params["dimension_numbers"]
    if set(contract[place]) & set(value.axes):
        return None
    shapes = [operand.aval.shape for operand in eqn.invars]
    free = [
        [k for k in range(len(shape)) if k not in (*contract[side], *batch[side])]
        for side, shape in enumerate(shapes)
    ]
    places = {k: number for number, k in enumerate(batch[place])}
    start = len(batch[place]) + (len(free[0]) if place else 0)
    places |= {k: start + number for number, k in enumerate(free[place])}
    found = _met(value, shapes[place], set(batch[place]) & set(value.axes))
    return found and replace(found, axes=tuple(places[axis] for axis in value.axes))


def shared_heads(
    eqn: Any, first: Outputs, second: Outputs, *, swapped: bool
) -> tuple[int, int] | None:
    """In how many heads outputs are multiplied with each other, and how many meet one.

    Arguments:
        first, second: the operands of a product.
        swapped: whether several heads of the second meet one of the first, in place of the other
            way round.

    Returns: heads of those of which there are fewer, and how many of the others meet each; None
        where outputs are multiplied otherwise.
    """
    contract, batch = eqn.params["dimension_numbers"]
    shape, shared = (operand.aval.shape for operand in eqn.invars)
    left, right = ((*batch[k], *contract[k]) for k in (0, 1))
    query, found, summed = first, second, contract[0]
    if swapped:
        query, found, summed = second, first, contract[1]
        left, right, shape, shared = right, left, shared, shape
    partner = dict(zip(left, right, strict=True))
    alone = [axis for axis in query.axes if axis not in partner]
    number = len(query.axes) - len(summed)
    front = query.axes[: number - len(alone)]
    # Axes of heads, those of heads that share a key, what is summed up.
    if tuple(query.axes[len(front) : number]) != tuple(alone):
        return None
    if tuple(sorted(query.axes[number:])) != tuple(sorted(summed)):
        return None
    key = along(found, [partner[axis] for axis in (*front, *query.axes[number:])], shared)
    if key is None:
        return None
    heads = math.prod(shape[axis] for axis in front)
    repeats = math.prod(shape[axis] for axis in alone)
    if key.repeats > 1:
        if repeats > 1 or heads != key.heads * key.repeats:
            return None
        heads, repeats = key.heads, key.repeats
    if query.repeats > 1 or heads * repeats % query.heads or heads % key.heads:
        return None
    return heads, repeats


def moved(eqn: Any, value: Outputs) -> Outputs | None:
    """Outputs behind an equation that moves them, or sums over other axes."""
    name, params = eqn.primitive.name, eqn.params
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if name in REDUCTIONS:
        gone = sorted(params["axes"])
        if set(gone) & set(value.axes):
            return None
        axes = tuple(axis - sum(k < axis for k in gone) for axis in value.axes)
        return replace(value, axes=axes, bent=value.bent or name != "reduce_sum")
    if name == "transpose":
        order = list(params["permutation"])
        return replace(value, axes=tuple(map(order.index, value.axes)))
    if name == "broadcast_in_dim":
        axes = tuple(int(params["broadcast_dimensions"][axis]) for axis in value.axes)
        same = all(after[k] == before[axis] for k, axis in zip(axes, value.axes, strict=True))
        return replace(value, axes=axes) if same else None
    if name in ("reshape", "squeeze", "expand_dims"):
        found = along(value, joined(before, after, value.axes), before)
        places = None if found is None else reshaped(before, after, found.axes)
        return None if found is None or places is None else replace(found, axes=places)
    if name == "tile":
        return value if all(params["reps"][axis] == 1 for axis in value.axes) else None
    if name in ("slice", "dynamic_slice"):
        return value if all(before[axis] == after[axis] for axis in value.axes) else None
    return None
