"""Calls: of a model, its arguments from one batch; of a layer, as a shape-only pass sees it."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


def call_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model call from one batch, see `make_plan`."""
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample), {}) if isinstance(sample, tuple) else ((sample,), {})


class Reading(enum.Enum):
    """What of a batch is the model's input; see `tdjax.arguments.batches`."""

    WHOLE = "all of it"
    FIRST = "the first entry of the tuple"

    def inputs(self, batch: Any) -> Any:
        """The model's input from a batch, as `call_arguments` takes it."""
        return batch if self is Reading.WHOLE else batch[0]


def peeked(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, None where there is none, and all of them."""
    turns = iter(batches)
    first = next(turns, None)
    if turns is not batches:
        return first, batches
    return first, turns if first is None else itertools.chain([first], turns)


class Call(NamedTuple):
    """A call of a layer as the shape-only pass sees it.

    Arguments:
        module: the layer.
        method: name of its method that was called.
        inputs, output: its first argument and its result, as shapes.
        equation: the second argument, for einsum layers.
    """

    module: Any
    method: str
    inputs: Any
    output: Any
    equation: str | None


@dataclasses.dataclass(frozen=True)
class StaticPart:
    """The static part of a pytree: all but its arrays. Hashable where the leaves left are.

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


def split_arrays(tree: Any) -> tuple[list[Any], StaticPart]:
    """The arrays (or shapes) of a pytree, and the rest: a flag `train=False` is not traced."""
    leaves, structure = jax.tree.flatten(tree)
    places = tuple(k for k, leaf in enumerate(leaves) if hasattr(leaf, "shape"))
    rest = tuple(None if k in places else leaf for k, leaf in enumerate(leaves))
    return [leaves[place] for place in places], StaticPart(structure, rest, places)
