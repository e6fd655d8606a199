"""Work on arrays that lie on several devices, dealt out: each item to one of them.

A program of such arrays runs on all their devices. What cannot be split, as the SVD of a matrix,
is then computed by each of them, to no use. A CPU's devices share its cores: what NumPy computes is
computed in its one memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tdjax.decompose.inputs import as_numpy
from tdjax.decompose.meshes import in_mesh, without_explicit_axes
from tdjax.decompose.second_moment import is_trusted, trust
from tdjax.decompose.threads import configuration, side_by_side

Item = TypeVar("Item")
Found = TypeVar("Found")
Tree = TypeVar("Tree")


def shared_devices(tree: Any) -> tuple[jax.Device, ...]:
    """This process's devices that arrays of a pytree lie on together; none where each has one.

    None inside `jax.jit` either, where arrays lie nowhere yet.
    """
    found: dict[jax.Device, None] = {}
    for leaf in jax.tree.leaves(tree):
        if _is_seen(leaf) and len(leaf.sharding.device_set) > 1:
            # A mesh may lie in other processes alone.
            own = leaf.sharding.addressable_devices or jax.local_devices()[:1]
            found |= dict.fromkeys(own)
    return tuple(sorted(found, key=lambda device: device.id))


def dealt(
    function: Callable[[Item], Found],
    items: Sequence[Item],
    devices: Sequence[jax.Device],
    by_numpy: Callable[[Item], bool] = lambda _: True,
    size: Callable[[Item], int] = lambda _: 0,
) -> list[Found]:
    """[function(item) for item in items], the arrays of an item all on one of some devices.

    So are those of what is found for it. A thread for each device runs what was dealt to it.

    Arguments:
        items: pytrees.
        devices: from `shared_devices`; where there are none, arrays stay where they are.
        by_numpy, size: see `side_by_side`; of items on one device.
    """
    if not devices:
        return side_by_side(function, items, by_numpy, size)
    # All processes take part, and so in one order.
    items = [jax.tree.map(in_this_process, item) for item in items]
    host = [place for place, item in enumerate(items) if by_numpy(item)]
    rest = [place for place in range(len(items)) if place not in set(host)]
    run = partial(_on_device, function)
    with _on(devices[0]):
        own = [items[place] for place in host]
        found = dict(zip(host, side_by_side(partial(run, devices[0]), own, size=size), strict=True))
    turns = _turns({place: size(items[place]) for place in rest}, len(devices))

    def turn(device: jax.Device, places: Sequence[int]) -> dict[int, Found]:
        with _on(device):
            return {place: run(device, items[place]) for place in places}

    for some in _at_once(turn, devices[: len(turns)], turns):
        found |= some
    return [found[place] for place in range(len(items))]


def on_one_device(tree: Tree) -> Tree:
    """A pytree whose arrays lie on one device, the first of those that they shared."""
    devices = shared_devices(tree)
    if not devices:
        return tree
    return jax.tree.map(lambda leaf: _moved(in_this_process(leaf), devices[0]), tree)


def in_this_process(leaf: Any) -> Any:
    """An array that other processes hold parts of, whole in this one's memory, and free to move.

    All processes are to call it for the same arrays in the same order.
    """
    if not _is_seen(leaf) or leaf.is_fully_addressable:
        return leaf
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended):
        # Keys of random numbers, which NumPy has no name for.
        return leaf.addressable_shards[0].data
    values = np.asarray(leaf) if leaf.is_fully_replicated else as_numpy(leaf)
    return _trusted_as(leaf, jax.numpy.asarray(values))


def _on_device(function: Callable[[Any], Found], device: jax.Device, item: Any) -> Found:
    return function(jax.tree.map(lambda leaf: _moved(leaf, _place(device)), item))


def _place(device: jax.Device) -> jax.Device | NamedSharding:
    """A device; where a mesh is set, as a mesh of its own, as arrays belong to the one set."""
    if jax.sharding.get_abstract_mesh().empty:
        return device
    return NamedSharding(_alone(device), PartitionSpec())


def _alone(device: jax.Device) -> Mesh:
    return Mesh(np.array([device]), ("alone",))


def _moved(leaf: Any, place: jax.Device | NamedSharding) -> Any:
    if not _is_seen(leaf):
        return leaf
    if not isinstance(place, NamedSharding) and leaf.sharding.device_set == {place}:
        return leaf
    # An array of explicit axes would have them still, on a single device.
    return _trusted_as(leaf, jax.device_put(without_explicit_axes(leaf), place))


def _trusted_as(leaf: jax.Array, copy: jax.Array) -> jax.Array:
    if is_trusted(leaf):
        trust(copy)
    return copy


def _is_seen(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


def _on(device: jax.Device) -> Any:
    """In which arrays of one device are taken, whatever mesh is set outside."""
    if jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return in_mesh(_alone(device))


def _turns(sizes: dict[int, int], number: int) -> list[list[int]]:
    """Places by device, the largest first, each to that which has least to do."""
    turns: list[list[int]] = [[] for _ in range(min(number, len(sizes)))]
    work = [0] * len(turns)
    for place in sorted(sizes, key=lambda place: -sizes[place]):
        least = work.index(min(work))
        turns[least].append(place)
        work[least] += max(1, sizes[place])
    return turns


def _at_once(
    turn: Callable[[jax.Device, Sequence[int]], Found],
    devices: Sequence[jax.Device],
    turns: Sequence[Sequence[int]],
) -> list[Found]:
    """The turns of all devices; one after the other where JAX is configured for a thread alone."""
    if len(turns) < 2:
        return list(map(turn, devices, turns))
    with ThreadPoolExecutor(len(turns)) as pool:
        if pool.submit(configuration).result() != configuration():
            return list(map(turn, devices, turns))
        return list(pool.map(turn, devices, turns))
