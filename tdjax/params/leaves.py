"""Parameters of any pytree, whose arrays are layers by themselves, as nested mappings by path.

A layer's path is then the '/'-joined path of its array, and its factors are a mapping in the
array's place. Inside, an array is the mapping {"array": it} at its path, which all that works on
the parameters of a module's layers takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tdjax.params.quantised import is_quantised
from tdjax.params.tree import Tree, join_path, layer_params, put, split_path
from tdjax.plan.layers import LEAF, Layer
from tdjax.plan.plan import Plan
from tdjax.trace.names import Names, names_of


def array_names(layer: Layer) -> Names:
    """The names along the path of a layer's array among the parameters."""
    names, own = split_path(layer.path), layer.storage.name
    return names if own == LEAF else (*names, own)


def of_leaves(plan: Plan) -> bool:
    """Whether the layers of a plan are the arrays of a function."""
    layers = (entry.layer for entry in plan.layers)
    return any(own.storage.name == LEAF and not own.is_member for own in layers)


def with_members(tree: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Nested mappings in which arrays that are members of modules lie where these have them."""
    for entry in plan.factorised:
        *front, name = split_path(entry.layer.path) or ("",)
        if entry.layer.is_member:
            put(tree, join_path(*front), {name: layer_params(tree, entry.layer.path)[LEAF]})
    return tree


@dataclass(frozen=True, eq=False)
class LeafTree:
    """A pytree taken apart.

    Arguments:
        structure: of the pytree, with the mapping of a layer's factors as one leaf.
        paths: of the leaves.
        leaves: arrays, or mappings of factors.
    """

    structure: Any
    paths: tuple[str, ...]
    leaves: Sequence[Any]

    @property
    def mapping(self) -> dict[str, Any]:
        """The leaves as nested mappings by path."""
        tree: dict[str, Any] = {}
        for path, leaf in zip(self.paths, self.leaves, strict=True):
            put(tree, path, leaf if isinstance(leaf, Mapping) else {LEAF: leaf})
        return tree

    def filled(self, mapping: Tree, plan: Plan) -> Any:
        """A pytree like this with what nested mappings hold: arrays, or factors of a plan."""
        factors = {e.layer.path: [stage.name for stage in e.stages] for e in plan.factorised}

        def leaf(path: str) -> Any:
            own = layer_params(mapping, path)
            return own[LEAF] if LEAF in own else {name: own[name] for name in factors[path]}

        return jax.tree.unflatten(self.structure, list(map(leaf, self.paths)))


def leaf_tree(tree: Any, factorised: Collection[str] = ()) -> LeafTree:
    """Take a pytree apart.

    Arguments:
        tree: whose leaves are arrays.
        factorised: paths at which mappings are factors.

    Raises ValueError for two arrays at one path.
    """

    def is_factors(key_path: Any, value: Any) -> bool:
        own = isinstance(value, Mapping) and join_path(*names_of(key_path)) in factorised
        return own or is_quantised(value)

    found, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=is_factors, is_leaf_takes_path=True
    )
    paths = tuple(join_path(*names_of(key_path)) for key_path, _ in found)
    twice = [path for path, number in Counter(paths).items() if number > 1]
    if twice:
        raise ValueError(
            f"two arrays of the parameters have the path {twice[0]!r}: rename one of them"
        )
    return LeafTree(structure, paths, [leaf for _, leaf in found])


def tree_of_plan(params: Any, plan: Plan) -> LeafTree:
    """Parameters of a plan's layers taken apart, dense or factorised."""
    return leaf_tree(params, {entry.layer.path for entry in plan.factorised})


def as_mappings(params: Any, plan: Plan) -> dict[str, Any]:
    """Parameters of a plan's layers, dense or factorised, as nested mappings that are saved.

    Raises ValueError for an array at whose path there are others too, and for one dense array.
    """
    own, tree = tree_of_plan(params, plan), dict[str, Any]()
    if own.paths == ("",):
        (whole,) = own.leaves
        if not isinstance(whole, Mapping):
            raise ValueError("the parameters are one dense array, in which nothing is factorised")
        return dict(whole)
    for path, leaf in zip(own.paths, own.leaves, strict=True):
        *front, last = split_path(path)
        try:
            below: Any = tree
            for name in front:
                below = below.setdefault(name, {})
            taken = last in below
        except AttributeError:
            taken = True
        if taken:
            raise ValueError(f"two arrays of the parameters lie at {path!r}: rename one of them")
        below[last] = leaf
    return tree


def like_tree(like: Any, mapping: Tree, plan: Plan) -> Any:
    """A pytree like another with the arrays, or factors, that nested mappings have at its paths.

    Raises ValueError that names an array that is not there.
    """
    own = tree_of_plan(like, plan)

    def leaf(path: str) -> Any:
        found: Any = mapping
        for name in split_path(path):
            if not isinstance(found, Mapping) or name not in found:
                raise ValueError(f"load_factorised: nothing was saved for {path!r} of like")
            found = found[name]
        return found

    return jax.tree.unflatten(own.structure, list(map(leaf, own.paths)))
