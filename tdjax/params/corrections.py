"""Where the nonzeros of sparse corrections lie, apart from the parameters that are trained.

Integers among parameters would break gradients and optimisers, so Linen's variables hold them in
a collection of their own, in mappings like those of "params". A tree of factors, with which the
library works inside, has both in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tdjax.params.kernels import INDICES
from tdjax.plan.plan import Plan
from tdjax.plan.stage import CORRECTION

Tree = Mapping[str, Any]

# Of Linen's variables; a layer's correction has one name in it and in "params".
COLLECTION = "sparsity"


class Given(NamedTuple):
    """What a function on parameters was handed.

    Arguments:
        params: the parameters, the indices of a plan's sparse corrections among them.
        variables: what they came in, with all of its collections; None for parameters alone.
    """

    params: Tree
    variables: Tree | None


def given(params: Tree, plan: Plan) -> Given:
    """Tell parameters from a dict of variables with such a "params"."""
    own = params.get("params")
    # A model may have a layer of that name.
    named = any(entry.layer.path.split("/")[0] == "params" for entry in plan.layers)
    if named or not isinstance(own, Mapping):
        return Given(params, None)
    found = params.get(COLLECTION)
    if not isinstance(found, Mapping):
        return Given(own, params)
    tree = copied(own)
    for names in _corrections(plan):
        sparse, indices = _at(tree, names), _at(found, names)
        if sparse is not None and indices is not None and INDICES in indices:
            sparse[INDICES] = indices[INDICES]
    return Given(tree, params)


def with_params(variables: Tree, tree: Tree, plan: Plan) -> dict[str, Any]:
    """Variables with other parameters, the indices of a plan's corrections in their collection."""
    params = copied(tree)
    collection = copied(variables.get(COLLECTION, {}))
    for names in _corrections(plan):
        sparse = _at(params, names)
        if sparse is not None and INDICES in sparse:
            own = collection
            for name in names:
                own = own.setdefault(name, {})
            own[INDICES] = sparse.pop(INDICES)
    result = {**variables, "params": params}
    result.pop(COLLECTION, None)
    return {**result, COLLECTION: collection} if collection else result


def without_indices(variables: Tree, plan: Plan) -> dict[str, Any]:
    """Variables without the indices of a plan's corrections."""
    collection = copied(variables.get(COLLECTION, {}))
    for names in _corrections(plan):
        _remove(collection, names)
    result = {name: own for name, own in variables.items() if name != COLLECTION}
    return {**result, COLLECTION: collection} if collection else result


def copied(tree: Tree) -> dict[str, Any]:
    """A copy of the mappings that shares the arrays."""
    return {k: copied(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _corrections(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Where the sparse corrections of a plan are, in parameters and collection alike."""
    for entry in plan.factorised:
        if entry.nonzeros:
            yield (*filter(None, entry.layer.path.split("/")), CORRECTION)


def _at(tree: Any, names: tuple[str, ...]) -> Any:
    """The mapping at a path; None where there is none."""
    for name in names:
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree if isinstance(tree, Mapping) else None


def _remove(tree: dict[str, Any], names: tuple[str, ...]) -> None:
    """Take out what is at a path, and the mappings that are empty then."""
    first, *rest = names
    if rest and isinstance(tree.get(first), dict):
        _remove(tree[first], tuple(rest))
    if not rest or not tree.get(first):
        tree.pop(first, None)
