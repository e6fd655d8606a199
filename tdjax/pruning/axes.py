"""Where the axis of a layer's neurons lies after an equation that treats each of them by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

REDUCTIONS = frozenset(
    ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"]
)
WINDOWS = frozenset(
    ["reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"]
)


def axis_after(eqn: Any, axis: int) -> int | None:
    """Where the axis of the neurons is in the result; None where they are mixed or not all.

    Arguments:
        eqn: that computes something itself, other than entry by entry.
        axis: of its first operand.
    """
    name, params = eqn.primitive.name, eqn.params
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if name in REDUCTIONS:
        axes = params["axes"]
        return None if axis in axes else axis - sum(gone < axis for gone in axes)
    if name in WINDOWS:
        alone = params["window_dimensions"][axis] == 1 and before[axis] == after[axis]
        return axis if alone else None
    if name == "broadcast_in_dim":
        place = params["broadcast_dimensions"][axis]
        return place if after[place] == before[axis] else None
    if name == "transpose":
        return list(params["permutation"]).index(axis)
    if name == "squeeze":
        gone = params["dimensions"]
        return None if axis in gone else axis - sum(dim < axis for dim in gone)
    if name == "reshape":
        return _after_reshape(before, after, axis)
    if name == "rev":
        return None if axis in params["dimensions"] else axis
    if name == "pad":
        return axis if tuple(params["padding_config"][axis]) == (0, 0, 0) else None
    if name in ("slice", "dynamic_slice"):
        return axis if before[axis] == after[axis] else None
    return None


def _after_reshape(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    size = before[axis]
    if math.prod(before) == size:
        return next((k for k, length in enumerate(after) if length == size), None)
    if axis != len(before) - 1 or not after or after[-1] % size:
        return None
    # Axes in front that are flattened into it run slower.
    return len(after) - 1
