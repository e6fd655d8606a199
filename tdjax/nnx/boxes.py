"""Sharding metadata of NNX parameters, in the boxes that `tdjax.params.partitioning` reads."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax.core.meta import Partitioned
from jax.sharding import PartitionSpec

from tdjax.nnx.graph import array_of
from tdjax.params.partitioning import unboxed
from tdjax.params.quantised import Quantised
from tdjax.plan.layers import Storage

# What the versions of Flax call the names of a parameter's axes.
KEYS = ("out_sharding", "sharding", "sharding_names")


def boxed(variable: Any, storage: Storage) -> Any:
    """The array of a parameter, in a box where names of its axes are known."""
    array, names = array_of(variable), _names(variable)
    if names is None:
        return array
    if _lacks_stack(variable, storage):
        assert storage.stack is not None
        names.insert(storage.stack, None)
    names += [None] * (array.ndim - len(names))
    return Partitioned(array, names=tuple(names))


def variable_like(variable: Any, value: Any, storage: Storage) -> Any:
    """A parameter of the same class and metadata as another, names taken from the value's box."""
    metadata = dict(variable.get_metadata())
    for key in KEYS:
        given = metadata.pop(key, None)
        if given is None or not isinstance(value, Partitioned):
            continue
        names = list(value.names)
        if _lacks_stack(variable, storage):
            assert storage.stack is not None
            names.pop(storage.stack)
        metadata[key] = PartitionSpec(*names) if isinstance(given, PartitionSpec) else tuple(names)
    if _is_halved(unboxed(value), variable):
        # Layers are to read of it what they did before.
        value = Quantised(unboxed(value), None)
    return type(variable)(unboxed(value), **metadata)


def _is_halved(array: Any, before: Any) -> bool:
    """Whether an array is stored in half of the bits of the one before."""
    return bool(array.dtype == jnp.bfloat16 and array_of(before).dtype == jnp.float32)


def _names(variable: Any) -> list[Any] | None:
    metadata = variable.get_metadata()
    given = next((metadata[key] for key in KEYS if metadata.get(key) is not None), None)
    # Anything else names no axes: its factors lie as JAX puts them.
    return list(given) if isinstance(given, (tuple, list, PartitionSpec)) else None


def _lacks_stack(variable: Any, storage: Storage) -> bool:
    """Whether the axis along which layers are stacked has no place among the names."""
    # `nnx.vmap` and `nnx.scan` add it only where they are told its name.
    names = _names(variable)
    return storage.stack is not None and names is not None and len(names) < variable.ndim
