"""Sums over the processes of `jax.distributed`, each of which has batches of its own.

Processes meet but a few times: when they know their first batch, and when they are through with
all of theirs. So they may have as many batches as they like, and where one fails all hear of it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from tdjax.files import one_line

Found = TypeVar("Found")
Tree = TypeVar("Tree")
# What a process has for its first batch: none, one of its own, one that all share.
NONE, OWN, SHARED = range(3)


def together(function: str, work: Callable[[], Found]) -> Found:
    """What comes of some work, in each process its own; of an error in one all processes hear.

    Arguments:
        function: for messages.

    Raises what the work raises, and RuntimeError where that of another process raised.
    """
    if jax.process_count() == 1:
        return work()
    problem: Exception | None = None
    try:
        found = work()
    except Exception as error:
        problem = error
    told = gathered(None if problem is None else f"{type(problem).__name__}: {one_line(problem)}")
    if problem is not None:
        raise problem
    for number, text in enumerate(told):
        if text is not None:
            raise RuntimeError(f"{function}: process {number} of {len(told)} failed with {text}")
    return found


def are_apart(function: str, first: Any) -> bool:
    """Whether processes have batches of their own, which are to be summed over them.

    Not where the arrays of a batch lie on devices of several: its sums are those of all processes.

    Arguments:
        first: the first batch, None where this process has none.

    Raises ValueError, in all processes, where they differ in that.
    """
    if jax.process_count() == 1:
        return False
    leaves = jax.tree.leaves(first)
    shared = any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves)
    kinds = gathered(NONE if first is None else SHARED if shared else OWN)
    if SHARED in kinds and len(set(kinds)) > 1:
        others = [number for number, kind in enumerate(kinds) if kind != SHARED]
        raise ValueError(
            f"{function}: some processes give batches that lie on devices of all, but process "
            f"{others[0]} does not: give each process batches of its own, or all the same"
        )
    return SHARED not in kinds


def gathered(own: Any) -> list[Any]:
    """What each process has, as JSON keeps it."""
    if jax.process_count() == 1:
        return [own]
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([text.size], np.int32)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.int32)
    padded[: text.size] = text
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [
        json.loads(row[:length].astype(np.uint8).tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]


def summed(sums: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays by name, each summed over all processes; some may have none of that name.

    Raises ValueError, in all processes, where they have other shapes.
    """
    if jax.process_count() == 1:
        return dict(sums)
    own = {name: (list(array.shape), str(array.dtype)) for name, array in sums.items()}
    known: dict[str, Any] = {}
    for number, some in enumerate(gathered(own)):
        for name, kind in some.items():
            if known.setdefault(name, kind) != kind:
                raise ValueError(
                    f"process {number} has sums of shape {tuple(kind[0])} where others have "
                    f"{tuple(known[name][0])}: all processes need the same network"
                )
    return {
        name: _over_processes(sums[name] if name in sums else np.zeros(*known[name]))
        for name in sorted(known)
    }


def everywhere(tree: Tree) -> Tree:
    """A pytree whose arrays lie whole on every device of all processes, which have equal ones."""
    whole = NamedSharding(mesh_of_all(), PartitionSpec())

    def laid(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            # Keys are free to move.
            return leaf
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, whole, lambda index: values[index])

    return cast(Tree, jax.tree.map(laid, tree))


@functools.cache
def mesh_of_all() -> Mesh:
    """All devices, those of one process behind those of another; as many of each."""
    of = [[d for d in jax.devices() if d.process_index == k] for k in range(jax.process_count())]
    least = min(map(len, of))
    devices = [device for own in of for device in own[:least]]
    return Mesh(np.array(devices), ("devices",), axis_types=(AxisType.Auto,))


def _over_processes(array: Any) -> Array:
    """The sum of the arrays that processes have, free to move."""
    mesh = _process_mesh()
    split = NamedSharding(mesh, PartitionSpec("processes"))
    own = jax.device_put(np.asarray(array)[None], mesh.local_devices[0])
    shape = (mesh.size, *own.shape[1:])
    whole = jax.make_array_from_single_device_arrays(shape, split, [own])
    return jnp.asarray(np.asarray(_added_up(mesh)(whole)))


@functools.cache
def _process_mesh() -> Mesh:
    """One device of each process."""
    first: dict[int, jax.Device] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    return Mesh(np.array([first[number] for number in sorted(first)]), ("processes",))


@functools.cache
def _added_up(mesh: Mesh) -> Callable[[Array], Array]:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda arrays: jnp.sum(arrays, axis=0), out_shardings=whole)
