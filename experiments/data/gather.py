"""Batches of your own, as loaders give them, gathered into arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.data.splits import Inputs, installed_memory
from tdjax.files import one_line

# The sets of examples; the second need not be there.
SETS = ("train", "validation", "test")


def is_batched(found: Mapping[str, Any]) -> bool:
    """Whether a mapping holds batches in place of arrays."""
    return any(name in found for name in SETS)


def gathered(found: Mapping[str, Any]) -> dict[str, Any]:
    """Sets of batches as the arrays of `experiments.data.prepare_arrays`.

    Arguments:
        found: "train", "test" and perhaps "validation": each an iterable of batches (inputs,
            labels), a function that returns one, or one such pair. Inputs are an array, or a tuple
            or mapping of arrays.

    Raises ValueError, in one line, for a set that is missing or has no batches, for what is no
    such pair, for batches that do not fit each other, and for more of them than memory can hold.
    """
    for name in ("train", "test"):
        if name not in found:
            raise ValueError(f"batches of {name!r} are missing, there are those of {list(found)}")
    more = [name for name in found if name not in SETS]
    if more:
        raise ValueError(f"of batches {', '.join(SETS)} are known, not {more[0]!r}")
    arrays = {}
    for name, batches in found.items():
        arrays[f"{name}_inputs"], arrays[f"{name}_labels"] = _joined(name, batches)
    return arrays


def shown_inputs(inputs: Inputs, what: str = "shape") -> Any:
    """The shapes of single examples, or the dtypes, of arrays in whatever tuples and dicts."""
    one = {"shape": lambda own: own.shape[1:], "dtype": lambda own: str(own.dtype)}[what]
    return jax.tree.map(one, inputs)


def _joined(name: str, batches: Any) -> tuple[Inputs, np.ndarray]:
    """All inputs and all labels of a set."""
    parts = list(_pairs(name, batches))
    if not parts:
        raise ValueError(
            f"{name} has no batches; an iterator gives them once: return a list, or a function "
            "that makes it anew"
        )
    joined: Any = jax.tree.map(lambda *own: np.concatenate(own), *parts)
    return joined


def _pairs(name: str, batches: Any) -> Iterator[tuple[Inputs, np.ndarray]]:
    """The batches of a set, arrays each, once they fit each other and memory."""
    first, held, most = None, 0, installed_memory()
    for number, batch in enumerate(_turns(name, batches)):
        where = f"{name}, batch {number}"
        pair = _pair(where, batch)
        found = [shown_inputs(own) for own in pair]
        first = found if first is None else first
        for what, own, other in zip(("inputs", "labels"), found, first, strict=True):
            if own != other:
                raise ValueError(
                    f"{where}: single {what} have shape {own}, those of batch 0 {other}: one shape "
                    "is needed; pad them, or leave the others out"
                )
        held += sum(leaf.nbytes for leaf in jax.tree.leaves(pair))
        if most is not None and held > most:
            raise ValueError(
                f"{name}: {number + 1} batches have {held / 1e9:.3g} GB, more than this machine's "
                "memory, and there are more: do not repeat them without end, or take fewer"
            )
        yield pair


def _turns(name: str, batches: Any) -> Iterable[Any]:
    batches = batches() if callable(batches) else batches
    if isinstance(batches, tuple) and len(batches) == 2 and hasattr(batches[1], "shape"):
        return [batches]
    if isinstance(batches, Mapping | str) or not isinstance(batches, Iterable):
        what = type(batches).__name__
        raise ValueError(
            f"{name} is {what}: a list of batches (inputs, labels) is needed, or a function that "
            "returns one"
        )
    return batches


def _pair(where: str, batch: Any) -> tuple[Inputs, np.ndarray]:
    if isinstance(batch, Mapping):
        raise ValueError(
            f"{where} is a dict of {', '.join(map(str, batch))}: (inputs, labels) is needed, the "
            "dict without the labels and these"
        )
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"{len(batch)} entries" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(f"{where} is {what}: (inputs, labels) is needed")
    try:
        inputs, labels = _arrays(batch[0]), np.asarray(batch[1])
    except ValueError as error:
        raise ValueError(f"{where} cannot be made arrays: {one_line(error)}") from error
    for leaf in jax.tree.leaves((inputs, labels)):
        if not leaf.ndim or leaf.dtype == object:
            raise ValueError(f"{where} holds {leaf.dtype} of shape {leaf.shape}: arrays are needed")
    return inputs, labels


def _arrays(inputs: Any) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: _arrays(own) for name, own in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map(_arrays, inputs))
    return np.asarray(inputs)
