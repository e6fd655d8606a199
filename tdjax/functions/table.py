"""The layer table of a function: the arrays of its parameters that products go into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tdjax.allocation.auto import best_format
from tdjax.functions.program import Apply
from tdjax.functions.read import Read, read
from tdjax.params.leaves import leaf_tree
from tdjax.plan.decide import plan_layers
from tdjax.plan.layers import Inventory, Layer
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule
from tdjax.trace.call import split_arrays
from tdjax.trace.trace import Trace


def make_plan(
    apply: Apply, params: Any, rules: Sequence[Rule], sample: Any, method: None = None
) -> Plan:
    """Decide for every array of a function's parameters which format it gets.

    Arguments:
        apply: of parameters and inputs; any pure function that JAX can trace.
        params: pytree of arrays or shapes. Method "auto" needs arrays.
        rules: the first whose path matches an array decides; see `tdjax.Rule`.
        sample: one batch as the function takes it, arrays or shapes: the input, a tuple of
            positional or a dict of keyword arguments. The first axis is the batch.
        method: of modules alone.

    Raises ValueError for a rule that matches no array, asks for ranks out of range or for a sparse
    correction.
    """
    for rule in rules:
        if rule.sparse is not None:
            raise ValueError(
                f"{rule}: a function's parameters have no place for the indices of a sparse "
                "correction; give it a rule without sparse"
            )
    found = inventory(apply, params, sample)
    choose = best_format(found.array_of)
    return plan_layers(found.layers, rules, found.other, choose, found.other_macs, found.work)


def inventory(apply: Apply, params: Any, sample: Any, method: None = None) -> Inventory:
    """The layers of a function with the arrays that they are. Arguments as `make_plan`."""
    found, arrays = read(apply, params, sample), arrays_of(params)
    table = _table(found)
    total = sum(math.prod(array.shape) for array in arrays.values())
    return Inventory(
        table,
        total - sum(layer.size for layer in table),
        lambda layer: arrays[layer.path],
        found.trace.other_macs,
        found.trace.branched,
    )


def layer_table(apply: Apply, params: Any, sample: Any, method: None = None) -> tuple[Layer, ...]:
    """All arrays that are layers, in the order of their calls.

    No arithmetic is done: the function is traced with shapes. Arguments and errors as `make_plan`.
    Other arrays of two axes or more are listed last, with the obstacle, unless they are read as
    vectors, as those of a stack are.
    """
    return _table(read(apply, params, sample))


def trace(apply: Apply, params: Any, sample: Any, method: None = None) -> Trace:
    """The calls of all layers, as they are in the traced program.

    The program takes `leaves(apply, params)`, then the arrays of the sample.
    """
    return read(apply, params, sample).trace


def leaves(apply: Apply, params: Any) -> list[Any]:
    """What the program of `trace` takes in front of the arrays of the sample."""
    return split_arrays(params)[0]


def keeps_batch_stats(apply: Apply, params: Any) -> bool:
    """Whether statistics of batches are known: never."""
    return False


def arrays_of(params: Any) -> dict[str, Any]:
    """The arrays of a function's parameters by path."""
    tree, (arrays, static) = leaf_tree(params), split_arrays(params)
    return {tree.paths[place]: x for place, x in zip(static.places, arrays, strict=True)}


def _table(found: Read) -> tuple[Layer, ...]:
    return (*found.trace.layers.values(), *found.others)
