"""Calls: of a model, its arguments from one batch; of a layer, as a shape-only pass sees it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


def call_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model call from one batch, see `make_plan`."""
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample), {}) if isinstance(sample, tuple) else ((sample,), {})


@dataclasses.dataclass(frozen=True)
class Reading:
    """What of a batch is the model's input; see `tdjax.arguments.batches`.

    Arguments:
        first: the first entry of the tuple, not all of it.
        form: of all batches, as `form_of` names it; None where any may come.
    """

    first: bool = False
    form: str | None = None

    def inputs(self, batch: Any) -> Any:
        """The model's input from a batch, as `call_arguments` takes it.

        Raises ValueError for a batch of another form: it would be read in another way.
        """
        if self.form not in (None, form_of(batch)):
            raise ValueError(
                f"a batch is {form_of(batch)}, but the first was {self.form}: give all batches in "
                "one form"
            )
        return batch[0] if self.first else batch


# Every batch is the model's input.
WHOLE = Reading()


def form_of(batch: Any) -> str:
    """What tells how a batch is read."""
    if isinstance(batch, tuple) and batch:
        return f"a tuple that begins with {_kind(batch[0])}"
    return _kind(batch)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a dict"
    return "a tuple" if isinstance(value, tuple) else "an array"


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
