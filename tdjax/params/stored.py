"""Arrays as a plan stores them: rounded to half precision, or to integers with scales.

What is stored as integers is a pytree of two arrays among the parameters, which stands for an array
of float32 numbers; where a layer multiplies, they are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from tdjax.decompose.inputs import is_at_hand
from tdjax.params.partitioning import is_boxed, unboxed
from tdjax.plan.dtypes import BFLOAT16, FLOAT32, INT4, INT8, LARGEST
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.tt_matrix import TTMatrixChain

# Shares of the largest number at which the few integers of four bits may end: what lies beyond is
# cut off where that makes the errors of all others smaller.
CUTS = tuple(k / 20 for k in range(20, 9, -1))
ARRAYS = ("values", "scale")


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Quantised:
    """An array of float32 numbers as integers times scales.

    Its parts are arrays, or what JAX puts in their place.

    Arguments:
        values: (*front, T) int8; or (*front, ceil(T / 2)) uint8, two numbers of four bits to a
            byte, the first one in the lower half. In NNX models also bfloat16.
        scale: (*ones, T) float32; of a stack with its axis in front. None beside bfloat16.
    """

    values: Any
    scale: Any

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        """For JAX."""
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in ARRAYS], None

    @classmethod
    def tree_unflatten(cls, _: None, arrays: Any) -> Quantised:
        """For JAX."""
        return cls(*arrays)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it stands for."""
        if self.scale is None:
            return tuple(self.values.shape)
        return (*self.values.shape[:-1], self.scale.shape[-1])

    @property
    def ndim(self) -> int:
        """Number of axes of that array."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Numbers of that array."""
        return jnp.dtype(jnp.float32)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self))

    def to_array(self) -> Float[Array, "*_"]:
        """The array that it stands for."""
        if self.scale is None:
            return jnp.asarray(self.values).astype(jnp.float32)
        return integers(self).astype(jnp.float32) * self.scale

    def __jax_array__(self) -> Float[Array, "*_"]:
        """That array, as functions of JAX ask for it."""
        return self.to_array()

    def __getitem__(self, index: Any) -> Float[Array, "*_"]:
        """A part of that array, as a variable of NNX asks for it."""
        return self.to_array()[index]


def integers(stored: Quantised) -> Integer[Array, "*_"]:
    """The integers themselves, one to a byte, (*front, T) int8."""
    values, last = jnp.asarray(stored.values), stored.scale.shape[-1]
    if values.dtype != jnp.uint8:
        return values
    halves = jnp.stack([values & 15, values >> 4], axis=-1).astype(jnp.int8)
    whole = halves.reshape(*values.shape[:-1], -1)[..., :last]
    return whole - 16 * (whole > 7).astype(jnp.int8)


def array_of(leaf: Any) -> Any:
    """The array that a leaf stands for; other leaves as they are."""
    return leaf.to_array() if isinstance(leaf, Quantised) else leaf


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


def is_quantised(leaf: Any) -> bool:
    """Whether a leaf is stored as integers."""
    return isinstance(leaf, Quantised)


def stored_kernels(
    kernels: Mapping[str, Any], entry: PlannedLayer, *, anew: bool = True
) -> dict[str, Any]:
    """The kernels of a layer's stages as its plan stores them.

    Arguments:
        kernels: by name, float32; of a stack with its axis.
        anew: whether factors may be scaled against each other first.

    Raises ValueError for numbers that are no float32, or have names of axes around them.
    """
    if entry.dtype in (None, FLOAT32):
        return dict(kernels)
    if anew and entry.dtype in LARGEST and not any(map(is_boxed, kernels.values())):
        kernels = evened(kernels, entry)
    return {name: stored(kernel, entry) for name, kernel in kernels.items()}


def stored(array: Any, entry: PlannedLayer) -> Any:
    """An array of a layer as its plan stores it; see `stored_kernels`."""
    path, dtype = entry.layer.path, entry.dtype
    if dtype in (None, FLOAT32):
        return array
    if is_boxed(array):
        raise ValueError(
            f"layer {path!r}: arrays whose axes have names are not stored as {dtype}: take the "
            "names off, nn.unbox(variables)"
        )
    if array.dtype != jnp.float32:
        raise ValueError(f"layer {path!r}: only float32 is stored as {dtype}, not {array.dtype}")
    if dtype == BFLOAT16:
        return jnp.asarray(array).astype(jnp.bfloat16)
    assert dtype is not None
    return quantised(array, dtype, stacked=entry.layer.storage.stack is not None)


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


def evened(kernels: Mapping[str, Any], entry: PlannedLayer) -> dict[str, Any]:
    """Factors that stand for the same kernel, the inputs of each after the first of one size.

    The outputs of a stage have a scale each, its inputs share them: a small one would drown in the
    errors of a large one. What sizes they had goes into the stage before, whose outputs they are.
    """
    made = dict(kernels)
    if isinstance(entry.chain, TTMatrixChain):
        return made
    stacked = entry.layer.storage.stack is not None
    for before, stage in reversed(list(zip(entry.stages, entry.stages[1:], strict=False))):
        first, second = made[before.name], made[stage.name]
        if stage.groups > 1 or first.shape[-1] != second.shape[-2]:
            continue
        xp = _library(second)
        first, second = xp.asarray(first), xp.asarray(second)
        axes = tuple(axis for axis in range(int(stacked), second.ndim) if axis != second.ndim - 2)
        size = xp.sqrt(xp.mean(second**2, axis=axes, keepdims=True))
        size = xp.where(size > 0, size, 1.0)
        made[stage.name] = second / size
        front = size.shape[:1] if stacked else ()
        made[before.name] = first * size.reshape(*front, *[1] * (first.ndim - len(front) - 1), -1)
    return made
