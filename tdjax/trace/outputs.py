"""What is known of values that come of layers' outputs, and behind which equations it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from tdjax.trace.axes import reshaped
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
        bent: whether anything but sums over other axes was done to it.
    """

    layers: frozenset[str]
    axes: tuple[int, ...]
    heads: int = 1
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
    heads, bent = max(value.heads for value in own), any(value.bent for value in own)
    name = eqn.primitive.name
    varies = frozenset().union(*(v.varies for v in reads if isinstance(v, Other)))
    met = varies & set(first.axes)
    scales = name == "mul" or (name == "div" and reads[0] is first)
    # Whole numbers are rounded.
    whole = not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)
    if len(own) > 1 or whole or not (name in LINEAR or scales):
        return None if met else Outputs(layers, first.axes, heads, True)
    found = Outputs(layers, first.axes, heads, bent)
    return _met(found, eqn.outvars[0].aval.shape, met)


def _met(value: Outputs, shape: Sequence[int], met: Any) -> Outputs | None:
    """Outputs that others met which vary along some of their axes."""
    last = max((value.axes.index(axis) for axis in met), default=-1)
    parts = math.prod(shape[axis] for axis in value.axes[: last + 1])
    heads = max(parts, value.heads)
    # Parts of parts are whole parts.
    return None if heads % parts or heads % value.heads else replace(value, heads=heads)


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
        found = reshaped(before, after, value.axes)
        return None if found is None else replace(value, axes=found)
    if name in ("slice", "dynamic_slice"):
        return value if all(before[axis] == after[axis] for axis in value.axes) else None
    return None
