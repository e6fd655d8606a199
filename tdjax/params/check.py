"""Whether parameters are those of a plan's factorised model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tdjax.params.arrays import INDICES, VALUES, stack_axes
from tdjax.params.corrections import unpacked
from tdjax.params.leaves import of_leaves, tree_of_plan
from tdjax.params.partitioning import unboxed
from tdjax.params.stored import stored_dtype
from tdjax.params.tree import Tree, find, join_path, listed, mappings
from tdjax.plan.dtypes import LARGEST
from tdjax.plan.layers import LEAF, Storage, is_tied, is_weight
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.stage import CORRECTION

# Of more layers that do not fit, the first say enough.
SHOWN = 5

Shape = tuple[int, ...]


def check_params(params: Tree, plan: Plan) -> None:
    """Check that parameters are those of a plan's factorised model.

    Every factorised layer must have the kernels of exactly its stages, and the values and indices
    of its sparse correction if it has one, every other layer its dense array, with the shapes of
    the plan, and no other layer may be there. Biases,
    normalisation and other small parameters are not in a plan, and not checked.

    Arguments:
        params: nested mapping of arrays or shapes, or a dict of variables with such a "params",
            which sparse corrections need; with the plan of a function mappings to its arrays.
        plan: from `tdjax.make_plan`.

    Raises ValueError that names each layer that does not fit, what the plan expects there and
    what was found.
    """
    if of_leaves(plan):
        params = tree_of_plan(params, plan).mapping
    else:
        params = unpacked(params, plan).params
    found = [
        f"layer {entry.layer.path!r}{problem}"
        for entry in plan.layers
        for problem in _problems(find(params, entry.layer.path), entry)
    ]
    # Whatever a layer has below it was looked at with the layer.
    known = (
        {entry.layer.path for entry in plan.layers}
        | _owners(plan)
        | {
            join_path(entry.layer.path, name)
            for entry in plan.factorised
            for name in _factors(find(params, entry.layer.path))
        }
    )
    # Of a function's arrays it lists those alone that may be weights.
    found += [
        f"layer {path!r} is not in the plan"
        for path, own in mappings(params)
        if not of_leaves(plan) and path not in known and _holds_weight(own)
    ]
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(
            f"the parameters are not those of the plan: {'; '.join(found[:SHOWN])}{more}"
        )


def _owners(plan: Plan) -> set[str]:
    """Paths of modules whose arrays a plan lists one by one."""
    return {own.path.rpartition("/")[0] for own in (e.layer for e in plan.layers) if own.is_member}


def factor_shapes(entry: PlannedLayer) -> dict[str, Shape]:
    """Shapes of a layer's factors, with the axis of a stack.

    By stage name those of the kernels, and that of the values of a sparse correction.
    """
    shapes = {stage.name: stage.kernel_shape for stage in entry.stages}
    if entry.nonzeros:
        shapes[CORRECTION] = (entry.nonzeros,)
    storage = entry.layer.storage
    if storage.stack is None:
        return shapes
    axes = stack_axes(entry)
    axes[CORRECTION] = axes.get(VALUES, 0)
    return {
        name: (*shape[: axes[name]], storage.copies, *shape[axes[name] :])
        for name, shape in shapes.items()
    }


def _problems(own: Tree | None, entry: PlannedLayer) -> Iterator[str]:
    """What is wrong with the parameters of a layer, as it goes on behind the layer's name."""
    if is_tied(entry.layer) and entry.layer.storage.name not in (own or {}):
        return
    # An array where a module's parameters should be.
    other = LEAF in (own or {}) and entry.layer.storage.name != LEAF
    if own is None or (other and entry.layer.obstacle is None):
        yield " is missing"
    elif entry.layer.obstacle is not None and entry.layer.stored is None:
        # Of a module that no method takes the plan knows one array, not its name.
        if entry.layer.kernel_shape not in [_shape(leaf) for leaf in own.values()]:
            yield f" has no array of shape {entry.layer.kernel_shape}"
    elif entry.form is None:
        yield from _dense_problems(own, entry.layer.storage)
        yield from _dtype_problems(own, entry, [entry.layer.storage.name])
    else:
        yield from factor_problems(own, entry)
        for stage in entry.stages:
            yield from _dtype_problems(own.get(stage.name, {}), entry, ["kernel"])


def _dtype_problems(own: Tree, entry: PlannedLayer, names: Sequence[str]) -> Iterator[str]:
    """What is stored in other numbers than the plan says."""
    for leaf in (own[name] for name in names if name in own):
        found, wanted = stored_dtype(leaf), entry.dtype
        if wanted is None and found in LARGEST:
            yield f" is stored as {found}, but the plan says nothing of that"
        elif wanted is not None and found != wanted:
            yield (
                f" is stored as {found}, but the plan says {wanted}: "
                "tdjax.quantize(params, plan) stores it so"
            )


def _dense_problems(own: Tree, storage: Storage) -> Iterator[str]:
    name, expected = storage.name, storage.whole_shape
    if name not in own:
        factors = _factors(own)
        there = f"factors {listed(factors)}" if factors else listed(own)
        yield f" is dense in the plan: expected {name} {expected}, found {there}"
    elif _shape(own[name]) != expected:
        yield f": expected {name} of shape {expected}, found {_shape(own[name])}"


def factor_problems(own: Tree, entry: PlannedLayer) -> Iterator[str]:
    """What is wrong with a factorised layer's parameters, as it goes on behind its name.

    Shapes tell all forms apart that mean different kernels: a factor has the axes of the window
    that it spans.
    """
    dense, factors, expected = entry.layer.storage.name, _factors(own), factor_shapes(entry)
    if dense in own:
        yield (
            f" is factorised in the plan ({entry.method}), "
            f"found a dense {dense} of shape {_shape(own[dense])}"
        )
    for name, shape in expected.items():
        if name not in factors:
            there = listed(factors, "none")
            yield f": expected factor {name} of shape {shape}, found factors: {there}"
        elif factors[name] != shape:
            yield f": expected factor {name} of shape {shape}, found {factors[name]}"
    for extra in factors.keys() - expected.keys():
        yield f": no factor {extra} expected, found one of shape {factors[extra]}"
    if CORRECTION in expected and CORRECTION in factors:
        yield from _index_problems(own[CORRECTION].get(INDICES), expected[CORRECTION], entry)


def _index_problems(indices: Any, expected: Shape, entry: PlannedLayer) -> Iterator[str]:
    """What is wrong with the indices of a sparse correction, as far as it can be seen."""
    if indices is None:
        yield (
            ": the indices of its sparse correction are missing: give all variables, not the "
            "parameters alone"
        )
        return
    if _shape(indices) != expected or not np.issubdtype(indices.dtype, np.integer):
        yield (
            f": expected integer indices of shape {expected}, found {indices.dtype} of "
            f"shape {_shape(indices)}"
        )
        return
    if isinstance(indices, (jax.ShapeDtypeStruct, jax.core.Tracer)):
        return
    storage, size = entry.layer.storage, math.prod(entry.layer.kernel_shape)
    axis = 0 if storage.stack is None else 1 - stack_axes(entry)[INDICES]
    rising = np.asarray(indices)
    if not ((rising >= 0) & (rising < size)).all() or (np.diff(rising, axis=axis) <= 0).any():
        yield f": the indices of its sparse correction do not rise from 0 to {size} at most"


def _factors(own: Tree | None) -> dict[str, Shape | None]:
    """Shapes of the factors below a layer, by name; a layer of Flax has nothing else there."""
    return {
        name: _shape(below[array])
        for name, below in (own or {}).items()
        for array in ("kernel", VALUES)
        if isinstance(below, Mapping) and array in below
    }


def _holds_weight(own: Tree) -> bool:
    """Whether a mapping holds a weight, which a plan lists."""
    leaves = ((name, leaf) for name, leaf in own.items() if not isinstance(leaf, Mapping))
    return any(is_weight(str(name), _shape(leaf) or ()) for name, leaf in leaves)


def _shape(leaf: Any) -> Shape | None:
    shape = getattr(unboxed(leaf), "shape", None)
    return None if shape is None else tuple(shape)
