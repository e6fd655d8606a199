"""Arrays as a plan stores them: rounded to half precision, or to integers with scales.

What is stored as integers is a pytree of two arrays among the parameters, which stands for an array
of float32 numbers; where a layer multiplies, they are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.inputs import is_at_hand
from tdjax.params.partitioning import is_boxed, unboxed
from tdjax.params.quantised import Quantised, array_of
from tdjax.plan.dtypes import BFLOAT16, FLOAT32, INT4, INT8, LARGEST
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.tt_matrix import TTMatrixChain

# Shares of the largest number at which the few integers of four bits may end: what lies beyond is
# cut off where that makes the errors of all others smaller.
CUTS = tuple(k / 20 for k in range(20, 9, -1))


def stored_dtype(leaf: Any) -> str:
    """In what numbers a leaf is stored."""
    leaf = unboxed(leaf)
    if isinstance(leaf, Quantised) and leaf.scale is None:
        return BFLOAT16
    if isinstance(leaf, Quantised):
        return INT4 if leaf.values.dtype == jnp.uint8 else INT8
    return str(jnp.dtype(leaf.dtype))


def bare(leaf: Any) -> Any:
    """The array of a leaf without what is around it, or what it stands for."""
    return array_of(unboxed(leaf))


def is_around(leaf: Any) -> bool:
    """Whether a leaf is more than an array."""
    return is_boxed(leaf) or isinstance(leaf, Quantised)


def stored_kernels(
    kernels: Sequence[Mapping[str, Any]], unit: Sequence[PlannedLayer], *, anew: bool = True
) -> list[dict[str, Any]]:
    """The kernels of the stages of a layer, or of layers that share, as their plan stores them.

    Arguments:
        kernels: of each layer by name, float32; of a stack with its axis.
        unit: the lender in front, and all stored in the same numbers.
        anew: whether factors may be scaled against each other first.

    Raises ValueError for numbers that are no float32, or have names of axes around them.
    """
    plain = not any(is_boxed(kernel) for own in kernels for kernel in own.values())
    made = list(map(dict, kernels))
    if anew and plain and unit[0].dtype in LARGEST:
        made = evened(made, unit)
    return [
        {name: stored(kernel, entry) for name, kernel in own.items()}
        for own, entry in zip(made, unit, strict=True)
    ]


def stored(array: Any, entry: PlannedLayer) -> Any:
    """An array of a layer as its plan stores it; see `stored_kernels`."""
    dtype = entry.dtype
    if dtype in (None, FLOAT32):
        return array
    check_storable(array, entry)
    if dtype == BFLOAT16:
        return jnp.asarray(array).astype(jnp.bfloat16)
    assert dtype is not None
    return quantised(array, dtype, stacked=entry.layer.storage.stack is not None)


def check_storable(array: Any, entry: PlannedLayer) -> None:
    """Refuse, with a ValueError, an array that cannot be stored as the plan says of its layer."""
    path, dtype = entry.layer.path, entry.dtype
    if dtype in (None, FLOAT32):
        return
    if is_boxed(array):
        raise ValueError(
            f"layer {path!r}: arrays whose axes have names are not stored as {dtype}: take the "
            "names off, nn.unbox(variables)"
        )
    if array.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"layer {path!r}: only float32 is stored as {dtype}, not {array.dtype}")


def quantised(
    array: Float[Array | np.ndarray, "*_"], dtype: str, *, stacked: bool = False
) -> Quantised:
    """An array rounded to integers, with the scale of each entry of the last axis.

    Arguments:
        dtype: "int8" or "int4".
        stacked: whether the layers of a stack lie along the first axis.
    """
    xp = _library(array)
    x = xp.asarray(array)
    values, scale = _values(x, dtype, stacked, xp)
    values = values.astype(xp.int8)
    if dtype == INT4:
        odd = [(0, 0)] * (x.ndim - 1) + [(0, x.shape[-1] % 2)]
        pairs = xp.pad(values, odd).astype(xp.uint8) & 15
        values = pairs[..., ::2] | (pairs[..., 1::2] << 4)
    return Quantised(jnp.asarray(values), jnp.asarray(scale))


def rounded(array: Float[np.ndarray, "*_"], dtype: str, *, stacked: bool) -> np.ndarray:
    """What an array of the host stands for once it is stored as `dtype`; see `quantised`."""
    if dtype == BFLOAT16:
        return array.astype(jnp.bfloat16).astype(np.float32)
    values, scale = _values(array, dtype, stacked, np)
    return np.asarray(values * scale, np.float32)


def _values(x: Any, dtype: str, stacked: bool, xp: Any) -> tuple[Any, Any]:
    """Whole numbers, and the scales that they are times."""
    axes = tuple(range(int(stacked), x.ndim - 1))
    largest = LARGEST[dtype]
    scale = xp.max(xp.abs(x), axis=axes, keepdims=True) / largest
    if dtype == INT4:
        scale = _cut(x, scale, axes, largest, xp)
    scale = xp.where(scale > 0, scale, 1.0).astype(xp.float32)
    return _rounded(x, scale, largest, xp), scale


def _library(array: Any) -> Any:
    """What computes with an array: on the host a program for each shape would take longer."""
    return np if isinstance(array, np.ndarray) or is_at_hand(array) else jnp


def _rounded(x: Any, scale: Any, largest: int, xp: Any) -> Any:
    return xp.clip(xp.rint(x / scale), -largest, largest)


def _cut(x: Any, scale: Any, axes: tuple[int, ...], largest: int, xp: Any) -> Any:
    """The scales at which the squares of the errors add up to the least."""
    best, least = scale, xp.full_like(scale, xp.inf)
    for share in CUTS:
        own = xp.where(scale > 0, share * scale, 1.0)
        lost = xp.sum((x - own * _rounded(x, own, largest, xp)) ** 2, axis=axes, keepdims=True)
        best, least = xp.where(lost < least, own, best), xp.minimum(lost, least)
    return best


def evened(
    kernels: Sequence[Mapping[str, Any]], unit: Sequence[PlannedLayer]
) -> list[dict[str, Any]]:
    """Factors that stand for the same kernels, the inputs of each after the first of one size.

    The outputs of a stage have a scale each, its inputs share them: a small one would drown in the
    errors of a large one. What sizes they had goes into the stage before, whose outputs they are;
    those of a shared input factor are inputs of all that read it.
    """
    made, (lender, *_) = list(map(dict, kernels)), unit
    if isinstance(lender.chain, TTMatrixChain):
        return made
    stacked = lender.layer.storage.stack is not None
    for before, stage in reversed(list(zip(lender.stages, lender.stages[1:], strict=False))):
        first, seconds = made[0][before.name], [own[stage.name] for own in made]
        if stage.groups > 1 or first.shape[-1] != seconds[0].shape[-2]:
            continue
        xp = _library(seconds[0])
        first, *seconds = map(xp.asarray, (first, *seconds))
        size = _size_of_inputs(seconds, stacked, xp)
        for own, second in zip(made, seconds, strict=True):
            own[stage.name] = second / size
        front = size.shape[:1] if stacked else ()
        made[0][before.name] = first * size.reshape(
            *front, *[1] * (first.ndim - len(front) - 1), -1
        )
    return made


def _size_of_inputs(kernels: Sequence[Any], stacked: bool, xp: Any) -> Any:
    """Root mean squares over all but inputs, and layers of a stack; 1 where all are zero."""
    ndim = kernels[0].ndim
    axes = tuple(axis for axis in range(int(stacked), ndim) if axis != ndim - 2)
    squares = sum(xp.sum(own**2, axis=axes, keepdims=True) for own in kernels)
    size = xp.sqrt(squares * squares.size / sum(own.size for own in kernels))
    return xp.where(size > 0, size, 1.0)
