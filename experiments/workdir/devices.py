"""The devices of this process: which there are, and arrays that lie on one or on all of them.

A training is spread over all of them: its arrays lie whole on each, and each computes its part of
a batch. Tasks of measuring are dealt out: each has a device of its own, on which it computes what
it would compute alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

_asked: list[int] = []
# Programs of all devices wait for each other: two that are begun at once may do so for ever.
_alone = threading.RLock()


def use_devices(number: int | None) -> None:
    """Compute on so many of the devices of this process; on all where None.

    Raises ValueError for more than there are.
    """
    _asked.clear()
    if number is None:
        return
    there = len(jax.local_devices())
    if not 1 <= number <= there:
        raise ValueError(f"--devices is {number}: this process has {there}")
    _asked.append(number)


def own_devices() -> list[jax.Device]:
    """The devices that this process computes on.

    Raises ValueError where it is one of several of `jax.distributed`.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"this is process {jax.process_index()} of {jax.process_count()} of jax.distributed: "
            "the processes of an experiment share nothing but files; start it without"
        )
    return jax.local_devices()[: _asked[0] if _asked else None]


def check_divides(batch_size: int) -> str | None:
    """What is wrong with batches that are to be split over all devices; None where nothing is."""
    number = len(own_devices())
    if batch_size % number == 0:
        return None
    fewer = max(k for k in range(1, number) if batch_size % k == 0)
    return (
        f"it cannot be split over the {number} devices of this process: use a multiple of "
        f"{number}, or --devices={fewer}"
    )


@contextmanager
def on_all_devices() -> Iterator[None]:
    """A block that computes on all devices at once, which but one thread may at a time."""
    with nullcontext() if len(own_devices()) == 1 else _alone:
        yield


def spread(tree: Tree) -> Tree:
    """A pytree whose arrays lie whole on each device; as it is where there is but one."""
    devices = tuple(own_devices())
    if len(devices) == 1:
        return tree
    return cast(Tree, jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec())))


def gathered(tree: Tree) -> Tree:
    """A pytree that was spread, on one device and free to move."""
    if parts_of(tree) is None:
        return tree
    return cast(Tree, jax.tree.map(_free, tree))


def here(tree: Tree) -> Tree:
    """A pytree of arrays that are free to move, on the device of this thread's task."""
    return tree if len(own_devices()) == 1 else cast(Tree, _as_it_is(tree))


def parts_of(tree: Any) -> NamedSharding | None:
    """How examples are split over the devices that a pytree is spread over; None for no such."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
            return NamedSharding(cast(Any, leaf.sharding).mesh, PartitionSpec("examples"))
    return None


def in_parts(tree: Tree, parts: NamedSharding) -> Tree:
    """Arrays of examples split over devices, filled up with the first one to equal parts."""

    def laid(own: Any) -> jax.Array:
        lacking = -len(own) % parts.mesh.size
        full = np.concatenate([own, np.repeat(own[:1], lacking, axis=0)]) if lacking else own
        return jax.device_put(full, parts)

    return cast(Tree, jax.tree.map(laid, tree))


def _free(leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # NumPy has no name for keys of random numbers.
        words = jnp.asarray(np.asarray(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    return jnp.asarray(np.asarray(leaf))


# Under another default device a program moves what is free to move.
_as_it_is = jax.jit(lambda tree: tree)


@cache
def _mesh(devices: tuple[jax.Device, ...]) -> Mesh:
    return Mesh(np.array(devices), ("examples",), axis_types=(AxisType.Auto,))
