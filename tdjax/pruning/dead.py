"""Neurons none of whose outputs is used any more, taken out of the arrays of a traced model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tdjax.plan.layers import Layer
from tdjax.pruning.consumers import Reach, followed, reach_of
from tdjax.trace.trace import Trace


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


class SmallerLeaves(NamedTuple):
    """The leaves of a model without its dead neurons; see `SmallerModel`."""

    leaves: list[Any]
    kept: dict[str, np.ndarray]
    obstacles: dict[str, str]


def remove(
    trace: Trace, leaves: Sequence[Any], places: Mapping[tuple[str, str], int]
) -> SmallerLeaves:
    """Take the dead neurons out of the leaves of a model.

    Arguments:
        leaves: the arrays that the traced program takes first.
        places: of a layer's parameter among them, by the layer's path and the parameter's name.
    """
    reaches, layers = reach_of(trace, leaves), trace.layers
    kernels = {
        path: places[path, layer.storage.name] for path, layer in layers.items() if followed(layer)
    }
    arrays = {path: np.asarray(leaves[place]) for path, place in kernels.items()}
    found = neurons_used(reaches, layers, arrays)
    result = list(leaves)
    kept = {path: np.flatnonzero(own) for path, own in found.items() if not own.all()}
    for path, stay in kept.items():
        *_, outputs = layers[path].storage.order
        _take(result, kernels[path], stay, outputs)
        if (path, "bias") in places:
            _take(result, places[path, "bias"], stay, 0)
        for leaf in reaches[path].leaves:
            _take(result, leaf, stay, 0)
        for consumer in reaches[path].consumers:
            *_, inputs, _ = layers[consumer].storage.order
            copies = arrays[consumer].shape[inputs] // len(found[path])
            _take(result, kernels[consumer], np.flatnonzero(np.tile(found[path], copies)), inputs)
    obstacles = {path: reach.obstacle for path, reach in reaches.items() if reach.obstacle}
    return SmallerLeaves(result, kept, obstacles)


def _take(leaves: list[Any], place: int, stay: np.ndarray, axis: int) -> None:
    leaves[place] = jnp.take(leaves[place], stay, axis=axis)


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
