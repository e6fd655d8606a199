"""Partitioning metadata around parameters: off a kernel, onto its factors, and back.

Flax keeps names of axes in a box around an array (`flax.linen.Partitioned` and its kin). The
first factor of a chain takes the names of the kernel's window and inputs, the last one that of its
outputs; ranks and the inputs of splits have no name, so factors are replicated along them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flax.core.meta import AxisMetadata

from tdjax.plan.layers import Layer, Storage
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage
from tdjax.plan.tt_matrix import TTMatrixChain

Names = list[Any]


def is_boxed(leaf: Any) -> bool:
    """Whether a leaf carries metadata around its array."""
    return isinstance(leaf, AxisMetadata)


def unboxed(leaf: Any) -> Any:
    """The array itself; no sharding constraint is applied."""
    return leaf.value if isinstance(leaf, AxisMetadata) else leaf  # type: ignore[attr-defined]


def box_factor(
    box: Any, factor: Any, entry: PlannedLayer, stage: Stage, *, stacked: bool = True
) -> Any:
    """A factor in a box like that of its kernel, `box`; as it is where that has none.

    Arguments:
        stacked: False inside a transformation that stacks layers, where the axis is not there yet.
    """
    if _names(box) is None:
        return factor
    storage = entry.layer.storage
    if not stacked:
        storage = dataclasses.replace(storage, stack=None)
    own, stack = _without_stack(box, storage, len(storage.order))
    names = factor_names([own[axis] for axis in storage.order], entry, stage)
    return _boxed(box, factor, names, stack, storage)


def factor_names(kernel: Names, entry: PlannedLayer, stage: Stage) -> Names:
    """Names of the axes of a stage's kernel.

    Arguments:
        kernel: names of the axes of the stored array in the order of the kernel: window, inputs,
            outputs.
    """
    if isinstance(entry.chain, TTMatrixChain):
        return [None] * len(stage.kernel_shape)
    window = len(entry.layer.kernel_shape) - 2
    outputs = window + _number_of_inputs(entry.layer)
    # The inputs of a split are fewer than those that are laid out along a name.
    first = stage == entry.chain.stages[0] and stage.groups == entry.layer.groups
    last = stage == entry.chain.stages[-1]
    return [
        *(kernel[axis] if axis in stage.axes else None for axis in range(window)),
        _merged(kernel[window:outputs]) if first else None,
        _merged(kernel[outputs:]) if last else None,
    ]


def box_whole(boxes: Sequence[Any], array: Any, entry: PlannedLayer) -> Any:
    """A kernel in a box like those of its factors; as it is where they have none.

    Of several inputs or outputs only the first is named.
    """
    if any(_names(box) is None for box in boxes):
        return array
    storage = entry.layer.storage
    window = len(entry.layer.kernel_shape) - 2
    front = 0 if storage.stack is None else 1
    found, stack = zip(
        *(_without_stack(box, storage, unboxed(box).ndim - front) for box in boxes), strict=True
    )
    kernel: Names = [None] * len(storage.order)
    if not isinstance(entry.chain, TTMatrixChain):
        for axis in range(window):
            kernel[axis] = next((names[axis] for names in found if names[axis]), None)
        kernel[window] = found[0][-2]
        kernel[window + _number_of_inputs(entry.layer)] = found[-1][-1]
    own: Names = [None] * len(storage.order)
    for name, axis in zip(kernel, storage.order, strict=True):
        own[axis] = name
    return _boxed(boxes[0], array, own, stack[0], storage)


def _names(box: Any) -> Names | None:
    names = getattr(box, "names", None) if isinstance(box, AxisMetadata) else None
    return None if names is None else list(names)


def _without_stack(box: Any, storage: Storage, axes: int) -> tuple[Names, Any]:
    """Names of so many axes of one layer, and that of the axis of a stack of them."""
    names = _names(box) or []
    # Flax leaves axes without names at the end: those of a matrix that attention reshapes.
    names += [None] * (axes + (storage.stack is not None) - len(names))
    return names, None if storage.stack is None else names.pop(storage.stack)


def _boxed(box: Any, array: Any, names: Names, stack: Any, storage: Storage) -> Any:
    if storage.stack is not None:
        names = [*names[: storage.stack], stack, *names[storage.stack :]]
    return dataclasses.replace(box, value=array, names=tuple(names))


def _merged(names: Names) -> Any:
    """The name of axes that are merged: an axis may be split if the others are whole."""
    return names[0] if not any(names[1:]) else None


def _number_of_inputs(layer: Layer) -> int:
    """How many axes of the stored array make up the inputs."""
    storage, window = layer.storage, len(layer.kernel_shape) - 2
    sizes = [storage.shape[axis] for axis in storage.order[window:]]
    return next(k for k in range(1, len(sizes)) if math.prod(sizes[:k]) == layer.kernel_shape[-2])
