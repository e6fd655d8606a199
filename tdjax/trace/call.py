"""Calls of a model: its arguments from one batch, and pytrees without their arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def call_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model call from one batch, see `make_plan`."""
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample), {}) if isinstance(sample, tuple) else ((sample,), {})


@dataclasses.dataclass(frozen=True)
class Frame:
    """A pytree without its arrays; hashable where the leaves that are left are.

    Arguments:
        structure: of the whole.
        leaves: in order, None in place of each array.
        places: where the arrays belong.
    """

    structure: Any
    leaves: tuple[Any, ...]
    places: tuple[int, ...]

    def join(self, arrays: Sequence[Any]) -> Any:
        """The pytree with `arrays` in their places."""
        whole = list(self.leaves)
        for place, array in zip(self.places, arrays, strict=True):
            whole[place] = array
        return jax.tree.unflatten(self.structure, whole)


def batch_size(arrays: Sequence[Any]) -> int:
    """Number of examples: the first axis of the first array that has one."""
    return next((array.shape[0] for array in arrays if array.shape), 1)


def split_arrays(tree: Any) -> tuple[list[Any], Frame]:
    """The arrays (or shapes) of a pytree, and the rest: a flag `train=False` is not traced."""
    leaves, structure = jax.tree.flatten(tree)
    places = tuple(k for k, leaf in enumerate(leaves) if hasattr(leaf, "shape"))
    rest = tuple(None if k in places else leaf for k, leaf in enumerate(leaves))
    return [leaves[place] for place in places], Frame(structure, rest, places)
