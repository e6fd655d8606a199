"""The arrays of a model's parameters that can be pruned, as units of weights side by side.

Pure functions on pytrees: nested mappings of Linen, with metadata around arrays or without, and
states of NNX (`nnx.state(model, nnx.Param)`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from tdjax.decompose.inputs import all_finite
from tdjax.params.leaves import array_names
from tdjax.params.tree import join_path
from tdjax.plan.layers import Layer, Storage, is_weight
from tdjax.plan.patterns import matches
from tdjax.trace.names import names_of

# Whose weights are compared with each other.
SCOPES = ("neuron", "layer", "global")
# The parameters that hold the kernels of Flax's layers.
WEIGHTS = ("kernel", "embedding")


@dataclass(frozen=True)
class Leaf:
    """An array that can be pruned.

    Arguments:
        place: among the leaves of the parameters.
        path: '/'-joined path of its layer.
        kernel_shape, storage: see `tdjax.plan.layers.Layer`.
    """

    place: int
    path: str
    kernel_shape: tuple[int, ...]
    storage: Storage

    def to_units(self, array: Shaped[Array, "*_"], scope: str) -> Shaped[Array, "d n"]:
        """The array with one neuron in each column, or one layer where scope is not "neuron"."""
        stack = self.storage.stack
        array = array[None] if stack is None else jnp.moveaxis(array, stack, 0)
        kernels = jax.vmap(lambda one: self.storage.to_kernel(one, self.kernel_shape))(array)
        kernels = kernels.reshape(len(kernels), -1, self.kernel_shape[-1])
        if scope == "neuron":
            return jnp.moveaxis(kernels, 1, 0).reshape(kernels.shape[1], -1)
        return kernels.reshape(len(kernels), -1).T

    def from_units(self, units: Shaped[Array, "d n"], scope: str) -> Shaped[Array, "*_"]:
        """The inverse of `to_units`."""
        copies, features = self.storage.copies, self.kernel_shape[-1]
        if scope == "neuron":
            units = jnp.moveaxis(units.reshape(len(units), copies, features), 1, 0)
        else:
            units = units.T
        kernels = units.reshape(copies, *self.kernel_shape)
        array = jax.vmap(self.storage.from_kernel)(kernels)
        return (
            array[0] if self.storage.stack is None else jnp.moveaxis(array, 0, self.storage.stack)
        )


def prunable(
    params: Any, layers: Sequence[Layer] | None, paths: str | Sequence[str]
) -> tuple[Leaf, ...]:
    """The arrays of a pytree of parameters that can be pruned.

    Arguments:
        params: pytree of arrays.
        layers: the layer table, which says how each array holds its kernel. None for all arrays
            named "kernel" or "embedding" of two axes or more, neurons along the last.
        paths: patterns for `re.fullmatch` on the layers' paths.

    Raises ValueError where there are none, for patterns that match none, for arrays that are not
    those of the layer table, and for NaN or Inf; all but the first name the layers.
    """
    found = _named(params) if layers is None else _listed(params, layers)
    if not found:
        raise ValueError("the parameters hold no kernel that can be pruned")
    chosen = tuple(leaf for leaf in found if matches(leaf.path, paths))
    if not chosen:
        known = ", ".join(leaf.path or "(model)" for leaf in found)
        raise ValueError(f"paths {paths!r} match no layer that can be pruned; layers are: {known}")
    arrays = jax.tree.leaves(params)
    for leaf in chosen:
        array = arrays[leaf.place]
        if not isinstance(array, jax.core.Tracer) and not all_finite(array):
            raise ValueError(f"layer {leaf.path!r}: the {leaf.storage.name} holds NaN or Inf")
    return chosen


def _named(params: Any) -> list[Leaf]:
    found = []
    for place, (key_path, array) in enumerate(jax.tree.leaves_with_path(params)):
        *path, name = names_of(key_path) or ("",)
        if name in WEIGHTS and is_weight(name, array.shape):
            stored = Storage(name, array.shape, tuple(range(array.ndim)))
            found.append(Leaf(place, join_path(*path), array.shape, stored))
    return found


def _listed(params: Any, layers: Sequence[Layer]) -> list[Leaf]:
    places = {
        names_of(key_path): (place, array.shape)
        for place, (key_path, array) in enumerate(jax.tree.leaves_with_path(params))
    }
    found = []
    for layer in layers:
        if layer.obstacle is not None:
            continue
        stored = layer.storage
        names = array_names(layer)
        if names not in places:
            raise ValueError(f"layer {layer.path!r}: the parameters have no {stored.name} there")
        place, shape = places[names]
        if shape != stored.whole_shape:
            raise ValueError(
                f"layer {layer.path!r}: {stored.name} of shape {shape}, but the layer table says "
                f"{stored.whole_shape}"
            )
        found.append(Leaf(place, layer.path, layer.kernel_shape, stored))
    return found
