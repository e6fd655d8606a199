"""Nested mappings of parameters, and the '/'-joined paths of what lies in them.

The empty path stands for the whole tree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from tdjax.plan.layers import LEAF

# With names as keys; others are refused in words where it matters.
Tree = Mapping[Any, Any]
# Of the layers that are looked at, the largest share of a block that is found.
SHARE = 0.25


def split_path(path: str) -> tuple[str, ...]:
    """The names along a '/'-joined path."""
    return tuple(path.split("/")) if path else ()


def join_path(*names: Any) -> str:
    """Names, or paths, joined to one path; empty ones are left out."""
    return "/".join(text for name in names if (text := str(name)))


def inside(path: str, block: str) -> bool:
    """Whether a path is that of a module or of something in it."""
    return not block or path == block or path.startswith(f"{block}/")


def block_around(layer: str, layers: Sequence[str], modules: Collection[str] | None = None) -> str:
    """The largest module around a layer with at most a quarter of the layers; else the layer.

    Arguments:
        layers: the paths of all.
        modules: the paths of modules; None where all that lies around a layer is one.
    """
    names = split_path(layer)
    for depth in range(1, len(names)):
        block = join_path(*names[:depth])
        number = sum(inside(path, block) for path in layers)
        if (modules is None or block in modules) and number <= SHARE * len(layers):
            return block
    return layer


def layer_params(params: Tree, path: str) -> Tree:
    """The parameters of one layer: the mapping at its path, of an array {LEAF: the array}.

    Raises KeyError that names the path as far as there is nothing at it.
    """
    own: Any = params
    names = split_path(path)
    for depth, name in enumerate(names):
        inside = isinstance(own, Mapping)
        if not inside or name not in own:
            near = get_close_matches(name, map(str, own), 1) if inside else []
            hint = f"; did you mean {join_path(*names[:depth], *near)!r}?" if near else ""
            raise KeyError(f"no parameters at {join_path(*names[: depth + 1])!r}{hint}")
        own = own[name]
    return own if isinstance(own, Mapping) else {LEAF: own}


def find(tree: Tree, path: str) -> Tree | None:
    """The mapping at a path; None where there is none."""
    try:
        return layer_params(tree, path)
    except KeyError:
        return None


def copied(tree: Tree) -> dict[str, Any]:
    """A copy of the mappings that shares the arrays."""
    return {k: copied(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def put(tree: dict[str, Any], path: str, values: Tree) -> None:
    """Put values into the mapping at a path, in place; it is made where it is not there.

    An array at the path is that of `LEAF` in it.
    """
    for name in split_path(path):
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            below = tree[name] = {LEAF: below}
        tree = below
    tree.update(values)


def remove(tree: dict[str, Any], path: str) -> None:
    """Take out what is at a path, in place, and the mappings that are empty then."""
    first, *rest = split_path(path)
    below = tree.get(first)
    if rest and isinstance(below, dict):
        remove(below, join_path(*rest))
    if not rest or (isinstance(below, dict) and not below):
        tree.pop(first, None)


def mappings(tree: Tree, path: str = "") -> Iterator[tuple[str, Tree]]:
    """All mappings of a tree with their paths, each in front of those that it holds."""
    yield path, tree
    for name, below in tree.items():
        if isinstance(below, Mapping):
            yield from mappings(below, join_path(path, name))


def map_leaves(function: Callable[[str, Any], Any], tree: Tree, path: str = "") -> dict[str, Any]:
    """A tree of `function(path, leaf)` for everything in a tree that is no mapping.

    Raises ValueError for a key that is no string.
    """
    for name in tree:
        if not isinstance(name, str):
            raise ValueError(f"{path or 'params'}: the key {name!r} is not a string")
    return {
        name: map_leaves(function, below, join_path(path, name))
        if isinstance(below, Mapping)
        else function(join_path(path, name), below)
        for name, below in tree.items()
    }


def listed(names: Iterable[Any], none: str = "nothing") -> str:
    """Names as messages list them."""
    return ", ".join(map(str, names)) or none
