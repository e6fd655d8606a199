"""Whether parameters are those of a plan's factorised model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from tdjax.params.corrections import given
from tdjax.params.factorize import Params
from tdjax.params.kernels import INDICES, VALUES, stack_axes
from tdjax.params.partitioning import unboxed
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.stage import CORRECTION

# Of more layers that do not fit, the first say enough.
SHOWN = 5

Names = tuple[str, ...]
Shape = tuple[int, ...]


def check_params(params: Params, plan: Plan) -> None:
    """Check that parameters are those of a plan's factorised model.

    Every factorised layer must have the kernels of exactly its stages, and the values and indices
    of its sparse correction if it has one, every other layer its dense array, with the shapes of
    the plan, and no other layer may be there. Biases,
    normalisation and other small parameters are not in a plan, and not checked.

    Arguments:
        params: nested mapping of arrays or shapes, or a dict of variables with such a "params",
            which sparse corrections need.
        plan: from `tdjax.make_plan`.

    Raises ValueError that names each layer that does not fit, what the plan expects there and
    what was found.
    """
    params = given(params, plan).params
    found = [problem for entry in plan.layers for problem in _problems(params, entry)]
    known = {tuple(filter(None, entry.layer.path.split("/"))) for entry in plan.layers}
    for entry in plan.factorised:
        # Whatever a factorised layer has below it was looked at with the layer.
        known |= {(*_names(entry), name) for name in _factors(params, entry)}
    for path in _weight_owners(params):
        if path not in known:
            found.append(f"layer {'/'.join(path)!r} is not in the plan")
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(
            f"the parameters are not those of the plan: {'; '.join(found[:SHOWN])}{more}"
        )


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


def _problems(params: Params, entry: PlannedLayer) -> Iterator[str]:
    layer, name = entry.layer, f"layer {entry.layer.path!r}"
    own = _own(params, entry)
    if own is None:
        yield f"{name} is missing"
        return
    factors = _factors(params, entry)
    if entry.method is None:
        if layer.obstacle is not None:
            # Of a module that no method takes the plan knows one array, not its name.
            if layer.kernel_shape not in [_shape(leaf) for leaf in own.values()]:
                yield f"{name} has no array of shape {layer.kernel_shape}"
            return
        weight, expected = layer.storage.name, layer.storage.whole_shape
        if weight not in own:
            there = f"factors {', '.join(factors)}" if factors else _listed(own)
            yield f"{name} is dense in the plan: expected {weight} {expected}, found {there}"
        elif _shape(own[weight]) != expected:
            yield f"{name}: expected {weight} of shape {expected}, found {_shape(own[weight])}"
        return
    if layer.storage.name in own:
        yield (
            f"{name} is factorised in the plan ({entry.method}), "
            f"found a dense {layer.storage.name} of shape {_shape(own[layer.storage.name])}"
        )
    stages = factor_shapes(entry)
    for stage, expected in stages.items():
        if stage not in factors:
            there = ", ".join(factors) or "none"
            yield f"{name}: expected factor {stage} of shape {expected}, found factors: {there}"
        elif factors[stage] != expected:
            yield f"{name}: expected factor {stage} of shape {expected}, found {factors[stage]}"
    for extra in factors.keys() - stages.keys():
        yield f"{name}: no factor {extra} expected, found one of shape {factors[extra]}"
    if CORRECTION in stages and CORRECTION in factors:
        yield from _index_problems(own[CORRECTION].get(INDICES), stages[CORRECTION], entry)


def _index_problems(indices: Any, expected: Shape, entry: PlannedLayer) -> Iterator[str]:
    """What is wrong with the indices of a sparse correction, as far as it can be seen."""
    name = f"layer {entry.layer.path!r}"
    if indices is None:
        yield (
            f"{name}: the indices of its sparse correction are missing: give all variables, not "
            "the parameters alone"
        )
        return
    if _shape(indices) != expected or not np.issubdtype(indices.dtype, np.integer):
        yield (
            f"{name}: expected integer indices of shape {expected}, found {indices.dtype} of "
            f"shape {_shape(indices)}"
        )
        return
    if isinstance(indices, (jax.ShapeDtypeStruct, jax.core.Tracer)):
        return
    storage, size = entry.layer.storage, math.prod(entry.layer.kernel_shape)
    axis = 0 if storage.stack is None else 1 - stack_axes(entry)[INDICES]
    rising = np.asarray(indices)
    if not ((rising >= 0) & (rising < size)).all() or (np.diff(rising, axis=axis) <= 0).any():
        yield f"{name}: the indices of its sparse correction do not rise from 0 to {size} at most"


def _factors(params: Params, entry: PlannedLayer) -> dict[str, Shape | None]:
    """Shapes of the factors below a layer, by name; a layer of Flax has nothing else there."""
    own = _own(params, entry)
    if own is None or entry.layer.obstacle is not None:
        return {}
    return {
        name: _shape(below[array])
        for name, below in own.items()
        for array in ("kernel", VALUES)
        if isinstance(below, Mapping) and array in below
    }


def _own(params: Params, entry: PlannedLayer) -> Params | None:
    """The parameters of a layer; None where there are none at its path."""
    own: Any = params
    for name in _names(entry):
        if not isinstance(own, Mapping) or name not in own:
            return None
        own = own[name]
    return own if isinstance(own, Mapping) else None


def _names(entry: PlannedLayer) -> Names:
    return tuple(filter(None, entry.layer.path.split("/")))


def _shape(leaf: Any) -> Shape | None:
    shape = getattr(unboxed(leaf), "shape", None)
    return None if shape is None else tuple(shape)


def _listed(own: Params) -> str:
    return ", ".join(own) or "nothing"


def _weight_owners(params: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> Iterator[Names]:
    """Paths of the mappings that hold an array of two axes or more, which a plan lists."""
    if any(
        not isinstance(leaf, Mapping) and len(_shape(leaf) or ()) > 1 for leaf in params.values()
    ):
        yield path
    for name, below in params.items():
        if isinstance(below, Mapping):
            yield from _weight_owners(below, (*path, name))
