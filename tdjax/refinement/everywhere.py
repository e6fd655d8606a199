"""Examples of all processes of `jax.distributed` as one pool, whose steps all of them take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tdjax.processes import gathered, mesh_of_all
from tdjax.refinement.data import Pool, rows_in


def of_all_processes(pools: Sequence[Pool], what: str) -> list[Pool]:
    """The examples of all processes as one pool, in their order, split over all devices.

    Arguments:
        pools: of this process.
        what: the argument that they come from, for messages.

    Raises ValueError, in all processes, where one has none, or others than can be put together.
    """
    forms = gathered([[pool.number, _form(pool)] for pool in pools])
    for number, own in enumerate(forms):
        if not own:
            raise ValueError(
                f"refine: process {number} of {len(forms)} has no {what}: each needs some"
            )
        if len(own) > 1 or own[0][1] != forms[0][0][1]:
            raise ValueError(
                f"refine: the {what} of process {number} of {len(forms)} cannot be put together "
                "with those of process 0: give each process batches of equal shapes but for the "
                "number of examples, in all no more than memory"
            )
    (pool,), mesh = pools, mesh_of_all()
    counts = [own[0][0] for own in forms]
    # Each process lays out its own, all of them equally many.
    devices = mesh.size // len(counts)
    each = -(-max(counts) // devices) * devices
    valid = np.concatenate([k * each + np.arange(count) for k, count in enumerate(counts)])
    split = NamedSharding(mesh, PartitionSpec("devices"))

    def laid(own: Any) -> jax.Array:
        array = np.asarray(own)
        rest = np.zeros((each - len(array), *array.shape[1:]), array.dtype)
        shape = (each * len(counts), *array.shape[1:])
        full = np.concatenate([array, rest])
        return jax.make_array_from_process_local_data(split, full, shape)

    whole = Pool(
        [laid(array[: pool.number]) for array in pool.arrays], pool.frame, len(valid),
        laid(pool.weights[: pool.number]), (split,) * len(pool.arrays),
    )  # fmt: skip
    return [rows_in(whole, valid)]


def _form(pool: Pool) -> list[Any]:
    leaves = [*pool.arrays, pool.weights]
    return [[list(array.shape[1:]), str(array.dtype)] for array in leaves]
