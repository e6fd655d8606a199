"""Choices that are stored in fewer bits: what they take in bytes, and what rounding loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from tdjax.allocation.choices import COUNTED, PARAMS, Choices
from tdjax.decompose.inputs import as_numpy
from tdjax.params.arrays import Factors, reconstruct_array
from tdjax.params.stored import evened, rounded
from tdjax.plan.chain import chain_of
from tdjax.plan.costs import BYTES
from tdjax.plan.dtypes import FLOAT32, LARGEST, dtype_problem, stored_bytes
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage, is_depthwise
from tdjax.plan.tt_matrix import TTMatrixChain

# What a change of kernels loses, (p, *window, C, T) as of `parts_of`.
Lost = Callable[[np.ndarray], float]
# Of ranks the shapes of all arrays, whose sizes grow by as much from each rank to the next.
Shapes = Callable[[tuple[int, ...]], Sequence[tuple[int, ...]]]
# Bytes of choices that are stored in other numbers.
Stored = Callable[[Choices, str], Int[np.ndarray, " n"]]
# Strategies that know what rounding loses.
ROUNDED = ("energy", "loss")
# What rounding loses is no less than this share of all, so that it has a logarithm.
LEAST = 1e-30


def in_dtypes(layer: Layer, every: Sequence[Choices], dtypes: Sequence[str]) -> list[Choices]:
    """Choices for a layer in each of the numbers that it may be stored in.

    Those with more parameters than the dense layer are left out, as it is stored in fewer bits
    too; that in float32 is what stays where nothing is chosen.
    """
    found = list(every) if FLOAT32 in dtypes else []
    dense = _dense(layer)

    def stored(own: Choices, dtype: str) -> Int[np.ndarray, " n"]:
        return bytes_of(layer, own.form, own.ranks, dtype)

    for dtype in (own for own in dtypes if own != FLOAT32):
        if dtype_problem(layer, dtype, dense=False) is None:
            found += smaller_in(layer, every, dtype, stored)
        if dtype_problem(layer, dtype, dense=True) is None:
            found.append(_in(dense, dtype, stored))
    return found


def smaller_in(layer: Layer, every: Sequence[Choices], dtype: str, stored: Stored) -> list[Choices]:
    """The choices with fewer parameters than the dense layer, stored in other numbers."""
    smaller = (own.where(own.costs[:, COUNTED.index(PARAMS)] < layer.size) for own in every)
    return [_in(own, dtype, stored) for own in smaller if len(own.costs)]


def _dense(layer: Layer) -> Choices:
    """The dense layer as the only choice."""
    costs = np.array([[layer.size, math.ceil(layer.macs), 0]], np.int64)
    return Choices(None, np.zeros((1, 0), np.int64), costs)


def _in(own: Choices, dtype: str, stored: Stored) -> Choices:
    costs = own.costs.copy()
    costs[:, COUNTED.index(BYTES)] = stored(own, dtype)
    return own._replace(costs=costs, dtype=dtype)


def bytes_of(
    layer: Layer, form: Form | None, ranks: Int[np.ndarray, "n r"], dtype: str
) -> Int[np.ndarray, " n"]:
    """Bytes of a layer in one form at many ranks."""
    if form is None:
        return np.full(len(ranks), layer.copies * stored_bytes(layer.storage.shape, dtype))

    def shapes(ranks: tuple[int, ...]) -> list[tuple[int, ...]]:
        assert form is not None
        return [stage.kernel_shape for stage in chain_of(layer, replace(form, ranks=ranks)).stages]

    return layer.copies * _bytes_of_arrays(shapes, ranks, dtype)


def stored_as_one(shapes: Shapes, copies: int) -> Stored:
    """Bytes of choices for layers that are one to a budget, from the arrays of all of them."""
    return lambda own, dtype: copies * _bytes_of_arrays(shapes, own.ranks, dtype)


def _bytes_of_arrays(
    shapes: Shapes, ranks: Int[np.ndarray, "n r"], dtype: str
) -> Int[np.ndarray, " n"]:
    def sizes(ranks: Int[np.ndarray, " r"]) -> list[Int[np.ndarray, " d"]]:
        return [np.array(shape, np.int64) for shape in shapes(tuple(ranks.tolist()))]

    ones = np.ones(ranks.shape[1], np.int64)
    first, steps = sizes(ones), [sizes(ones + unit) for unit in np.eye(len(ones), dtype=np.int64)]
    total = np.zeros(len(ranks), np.int64)
    for number, shape in enumerate(first):
        slopes = np.stack([step[number] - shape for step in steps])
        total += stored_bytes(list((shape + (ranks - 1) @ slopes).T), dtype)
    return total


class Sample(NamedTuple):
    """One choice, decomposed.

    Arguments:
        entry: stored as floats.
        size: its parameters.
        factors: see `tdjax.params.arrays`.
    """

    entry: PlannedLayer
    size: int
    factors: Factors


def rounding_losses(
    many: Choices,
    samples: Sequence[Sample],
    lost: Lost,
) -> Float[np.ndarray, " n"]:
    """What rounding makes the choices lose beyond what their ranks do.

    Rounding errors of factors do not depend on what the factors leave out: that is found at some
    ranks, and its logarithm interpolated by that of the number of parameters.

    Arguments:
        lost: of a change of the kernels, see `parts_of`.
    """
    assert many.dtype is not None
    found = []
    for entry, _, factors in samples:
        found.append(lost(_change(factors, replace(entry, dtype=many.dtype))))
    sizes = [sample.size for sample in samples]
    return between(sizes, found, many.costs[:, COUNTED.index(PARAMS)])


def between(
    sizes: Sequence[int] | Int[np.ndarray, " k"],
    lost: Sequence[float],
    asked: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """What is lost at sizes between some: its logarithm interpolated by that of the size."""
    logs = np.log(np.maximum(lost, LEAST))
    return np.exp(np.interp(np.log(asked), np.log(sizes), logs))


def _change(factors: Factors, entry: PlannedLayer) -> Float[np.ndarray, "*_"]:
    """What rounding changes in the kernels that factors stand for."""
    assert entry.dtype is not None
    stacked = entry.layer.storage.stack is not None
    kernels = {name: np.asarray(kernel, np.float32) for name, kernel in factors.items()}
    kernels = evened([kernels], [entry])[0] if entry.dtype in LARGEST else kernels
    after = {name: rounded(own, entry.dtype, stacked=stacked) for name, own in kernels.items()}
    return dense_parts(kernels, entry) - dense_parts(after, entry)


def dense_parts(factors: Mapping[str, Any], entry: PlannedLayer) -> Float[np.ndarray, "*_"]:
    """The kernels that factors stand for, (p, *window, C, T), one for each feature group."""
    groups, stages = entry.layer.groups, entry.stages
    alone = entry.layer.storage.stack is None and not entry.nonzeros
    known = stages[0].groups == groups and not isinstance(entry.chain, TTMatrixChain)
    known = known and all(own.groups == groups or _is_depthwise(own) for own in stages)
    if not (alone and known):
        own = jax.tree.map(jnp.asarray, dict(factors))
        return parts_of(reconstruct_array(own, entry), entry.layer)
    # Thin layers one after the other, each over its own axes of the window: a program for each
    # shape would take longer.
    split = [np.split(as_numpy(factors[stage.name]), groups, axis=-1) for stage in stages]
    times = [np.multiply if stage.groups > groups else np.matmul for stage in stages]
    parts = []
    for first, *others in zip(*split, strict=True):
        pairs = zip(times[1:], others, strict=True)
        parts.append(reduce(lambda before, own: own[0](before, own[1]), pairs, first))
    return np.stack(parts)


def _is_depthwise(stage: Stage) -> bool:
    return is_depthwise(stage.kernel_shape, stage.groups)


def dense_loss(array: Any, layer: Layer, dtype: str, lost: Lost) -> float:
    """What rounding makes the dense layer lose; `lost` as of `rounding_losses`."""
    before = np.asarray(array, np.float32)
    after = rounded(before, dtype, stacked=layer.storage.stack is not None)
    return lost(parts_of(before - after, layer))


def parts_of(array: Any, layer: Layer) -> Float[np.ndarray, "*_"]:
    """The kernels of all layers of a stack and all feature groups, (p, *window, C, T)."""
    storage, array = layer.storage, as_numpy(array).astype(np.float32)
    stack = array[None] if storage.stack is None else np.moveaxis(array, storage.stack, 0)
    # A program of its own would turn an array of NumPy into one of JAX, but for this way.
    arrays = map(jax.device_put, stack)
    kernels = (as_numpy(storage.to_kernel(own, layer.kernel_shape)) for own in arrays)
    return np.stack([part for own in kernels for part in np.split(own, layer.groups, axis=-1)])
