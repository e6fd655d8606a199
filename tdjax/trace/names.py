"""The names along the paths of a pytree's leaves, as one leaf has them in every tree like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

Names = tuple[str, ...]
# Where wrappers of Flax, Linen's metadata and NNX's variables, keep their array.
WRAPPED = ("value", "raw_value")


def names_of(key_path: Sequence[Any]) -> Names:
    """The names along the path of a leaf, without those of wrappers around its array."""
    names = []
    for key in key_path:
        if isinstance(key, DictKey | FlattenedIndexKey):
            names.append(str(key.key))
        elif isinstance(key, SequenceKey):
            names.append(str(key.idx))
        elif isinstance(key, GetAttrKey):
            names.append(key.name)
    wrapped = names and key_path and not isinstance(key_path[-1], DictKey | SequenceKey)
    return tuple(names[:-1] if wrapped and names[-1] in WRAPPED else names)


def leaf_names(tree: Any) -> tuple[Names, ...]:
    """The names of all leaves of a pytree, in their order."""
    return tuple(names_of(path) for path, _ in jax.tree.leaves_with_path(tree))
