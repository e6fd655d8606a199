"""Neurons none of whose outputs is used any more, taken out of the arrays of a traced model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tdjax.plan.layers import Layer
from tdjax.pruning.consumers import Reach, followed, reach_of
from tdjax.pruning.literals import numbers_in
from tdjax.trace.trace import Trace

# Layers that a text names, at most.
NAMED = 8


class SmallerModel(NamedTuple):
    """A model without its dead neurons.

    Arguments:
        model: that runs the smaller arrays.
        variables: of a Linen model; None for NNX.
        kept: by path of each layer that is narrower now, the places of the neurons that stay.
        obstacles: by path of each layer whose neurons were left alone, the reason.
    """

    model: Any
    variables: Any
    kept: dict[str, np.ndarray]
    obstacles: dict[str, str]

    def __repr__(self) -> str:
        """How many neurons are left of which layers, and no array."""
        own = [f"{path or '(model)'} {len(places)}" for path, places in self.kept.items()]
        kept = f"neurons kept: {_named(own)}" if own else "no dead neurons"
        left = f"; left alone: {_named(list(self.obstacles))}" if self.obstacles else ""
        return f"SmallerModel({type(self.model).__name__}; {kept}{left})"


def _named(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(text or "(model)" for text in texts[:NAMED]) + more


class SmallerLeaves(NamedTuple):
    """The leaves of a model without its dead neurons; see `SmallerModel`."""

    leaves: Sequence[Any]
    kept: dict[str, np.ndarray]
    obstacles: dict[str, str]


@dataclass(frozen=True)
class Network:
    """A traced network and its arrays.

    Arguments:
        trace: of its program.
        leaves: the arrays that the program takes first.
        places: of a layer's parameter among them, by the layer's path and the parameter's name.
    """

    trace: Trace
    leaves: Sequence[Any]
    places: Mapping[tuple[str, str], int]

    def kernel(self, path: str) -> int:
        """The place of a layer's kernel."""
        return self.places[path, self.trace.layers[path].storage.name]


# From the smaller leaves of a network and the neurons kept to the trace of its program.
Retrace = Callable[[Sequence[Any], Mapping[str, np.ndarray]], Trace]


def remove(network: Network, retrace: Retrace) -> SmallerLeaves:
    """Take the dead neurons out of the leaves of a model.

    The smaller model is traced: layers with which it cannot run, or computes with other numbers
    as it asks for its sizes, are left alone.
    """
    reaches = reach_of(network.trace, network.leaves, network.places)
    while True:
        kept = _kept(network, reaches)
        leaves = _smaller(network, reaches, kept)
        why = _difference(network.trace, leaves, kept, retrace) if kept else None
        if why is None:
            obstacles = {path: reach.obstacle for path, reach in reaches.items() if reach.obstacle}
            return SmallerLeaves(leaves, kept, obstacles)
        alone = {}
        for path, stay in kept.items():
            only = {path: stay}
            smaller = _smaller(network, reaches, only)
            alone[path] = _difference(network.trace, smaller, only, retrace)
        found = {path: own for path, own in alone.items() if own is not None}
        for path, own in (found or dict.fromkeys(kept, why)).items():
            reaches[path].obstacle = own


def _kept(network: Network, reaches: Mapping[str, Reach]) -> dict[str, np.ndarray]:
    """Of each layer with dead neurons, by path, the places of those that stay."""
    layers = network.trace.layers
    arrays = {
        path: np.asarray(network.leaves[network.kernel(path)])
        for path, layer in layers.items()
        if followed(layer)
    }
    used = neurons_used(reaches, layers, arrays)
    return {path: np.flatnonzero(own) for path, own in used.items() if not own.all()}


def _smaller(
    network: Network, reaches: Mapping[str, Reach], kept: Mapping[str, np.ndarray]
) -> list[Any]:
    """The leaves once neurons are taken out."""
    layers, places, result = network.trace.layers, network.places, list(network.leaves)
    for path, stay in kept.items():
        *_, outputs = layers[path].storage.order
        features = layers[path].kernel_shape[-1]
        vectors = [
            *reaches[path].leaves,
            *([places[path, "bias"]] if (path, "bias") in places else []),
        ]
        for place, axis in ((network.kernel(path), outputs), *((vector, 0) for vector in vectors)):
            result[place] = _taken(result[place], stay, features, axis, path)
        for consumer in reaches[path].consumers:
            *_, inputs, _ = layers[consumer].storage.order
            place = network.kernel(consumer)
            result[place] = _taken(result[place], stay, features, inputs, path)
    return result


def _taken(array: Any, stay: np.ndarray, features: int, axis: int, path: str) -> Any:
    """An array without some neurons along an axis, on which each of them lies as often.

    Raises ValueError where they do not.
    """
    copies, rest = divmod(array.shape[axis], features)
    if rest or not copies:
        raise ValueError(
            f"layer {path!r}: its {features} neurons do not lie along axis {axis} of an array of "
            f"shape {array.shape}"
        )
    places = (features * np.arange(copies)[:, None] + stay).ravel()
    return jnp.take(array, places, axis=axis)


def _difference(
    trace: Trace, leaves: Sequence[Any], kept: Mapping[str, np.ndarray], retrace: Retrace
) -> str | None:
    """Why a smaller model is not the same function; None where its program says nothing else."""
    try:
        smaller = retrace(leaves, kept)
    except Exception as error:  # Whatever the user's own code raises.
        first, *_ = str(error).splitlines() or [""]
        return f"the model cannot run with fewer of its neurons: {type(error).__name__}: {first}"
    if numbers_in(smaller.jaxpr) != numbers_in(trace.jaxpr):
        return "the model computes with the number of its neurons"
    return None


def neurons_used(
    reaches: Mapping[str, Reach], layers: Mapping[str, Layer], arrays: Mapping[str, Any]
) -> dict[str, Any]:
    """Of each layer whose neurons can be taken away, those that any layer still uses.

    Arguments:
        arrays: by path that hold the layers' kernels, in NumPy.

    Returns: boolean arrays by path; of a layer all of whose neurons are dead the first stays, as
    there are no arrays without entries in a network.
    """
    kernels = {}
    for path, array in arrays.items():
        *_, inputs, outputs = layers[path].storage.order
        kernel = np.moveaxis(np.asarray(array) != 0, (inputs, outputs), (-2, -1))
        kernels[path] = kernel.reshape(-1, *kernel.shape[-2:]).any(axis=0)
    used = {
        path: np.ones(layers[path].kernel_shape[-1], bool)
        for path, reach in reaches.items()
        if reach.obstacle is None
    }
    going = True
    while going:
        going = False
        for path, own in used.items():
            taken = np.zeros_like(own)
            for consumer in reaches[path].consumers:
                rows = kernels[consumer]
                rows = rows[:, used[consumer]] if consumer in used else rows
                taken |= rows.any(axis=1).reshape(-1, len(own)).any(axis=0)
            if not taken.any():
                taken[0] = True
            going |= bool((taken != own).any())
            used[path] = taken
    return used
