"""Where the nonzeros of sparse corrections lie, apart from the parameters that are trained.

Integers among parameters would break gradients and optimisers, so Linen's variables hold them in
a collection of their own, in mappings like those of "params". A tree of factors, with which the
library works inside, has both in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tdjax.params.arrays import INDICES
from tdjax.params.tree import Tree, copied, find, join_path, put, remove, split_path
from tdjax.plan.plan import Plan
from tdjax.plan.stage import CORRECTION

# Of Linen's variables; a layer's correction has one name in it and in "params".
COLLECTION = "sparsity"


class Unpacked(NamedTuple):
    """Parameters, taken out of the variables that they may have come in.

    Arguments:
        params: the parameters, the indices of a plan's sparse corrections among them.
        variables: what they came in, with all of its collections; None for parameters alone.
    """

    params: Tree
    variables: Tree | None


def unpacked(params: Tree, plan: Plan) -> Unpacked:
    """Tell parameters from a dict of variables with such a "params"."""
    own = params.get("params")
    # A model may have a layer of that name.
    named = any("params" in split_path(entry.layer.path)[:1] for entry in plan.layers)
    if named or not isinstance(own, Mapping):
        return Unpacked(params, None)
    found = params.get(COLLECTION)
    if not isinstance(found, Mapping):
        return Unpacked(own, params)
    tree = copied(own)
    for path in _corrections(plan):
        indices = find(found, path)
        if find(tree, path) is not None and indices is not None and INDICES in indices:
            put(tree, path, {INDICES: indices[INDICES]})
    return Unpacked(tree, params)


def with_params(variables: Tree, tree: Tree, plan: Plan) -> dict[str, Any]:
    """Variables with other parameters, the indices of a plan's corrections in their collection."""
    params = copied(tree)
    collection = copied(variables.get(COLLECTION, {}))
    for path in _corrections(plan):
        sparse = find(params, path)
        if sparse is not None and INDICES in sparse:
            put(collection, path, {INDICES: sparse[INDICES]})
            remove(params, join_path(path, INDICES))
    result = {**variables, "params": params}
    result.pop(COLLECTION, None)
    return {**result, COLLECTION: collection} if collection else result


def without_indices(variables: Tree, plan: Plan) -> dict[str, Any]:
    """Variables without the indices of a plan's corrections."""
    collection = copied(variables.get(COLLECTION, {}))
    for path in _corrections(plan):
        remove(collection, path)
    result = {name: own for name, own in variables.items() if name != COLLECTION}
    return {**result, COLLECTION: collection} if collection else result


def _corrections(plan: Plan) -> list[str]:
    """The paths of a plan's sparse corrections, in parameters and collection alike."""
    return [join_path(e.layer.path, CORRECTION) for e in plan.factorised if e.nonzeros]
