"""Examples in memory, from which steps take theirs, and the rows of these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from tdjax.moments.collect import RowWeights
from tdjax.moments.weighing import without_lost_padding
from tdjax.trace.call import Reading, StaticPart, batch_size, split_arrays


@dataclass(frozen=True, eq=False)
class Pool:
    """Examples that lie in memory together: some batches, or all of them.

    Arguments:
        arrays: of the model's input.
        frame: the input without them.
        number: of examples, the first ones; what lies behind them fills up.
        weights: of rows, (examples, ...).
        shardings: how the arrays of a batch lie, None for those on one device.
        targets: what the dense network makes of them, where it is known already; else None.
        origins: for each row the number of its batch, the first being 1; None where several
            processes gave them.
    """

    arrays: list[Any]
    frame: StaticPart
    number: int
    weights: Array
    shardings: tuple[NamedSharding | None, ...]
    targets: Any = None
    origins: Int[np.ndarray, " n"] | None = None

    @property
    def size(self) -> int:
        """Number of examples, with those that fill up."""
        return len(self.weights)

    @property
    def layout(self) -> Layout:
        """What is static of it."""
        shared = tuple(not array.shape or len(array) != self.size for array in self.arrays)
        return Layout(self.frame, shared, self.shardings)


@dataclass(frozen=True)
class Layout:
    """How examples are taken from a pool.

    Arguments:
        frame: the input without its arrays.
        shared: for each array whether all examples have it in common.
        shardings: see `Pool`.
    """

    frame: StaticPart
    shared: tuple[bool, ...]
    shardings: tuple[NamedSharding | None, ...]

    def inputs(self, arrays: Sequence[Array], rows: Int[Array, " b"]) -> Any:
        """The model's input of some examples."""
        own = [
            array if shared else taken(array, rows, sharding)
            for array, shared, sharding in zip(arrays, self.shared, self.shardings, strict=True)
        ]
        return self.frame.join(own)

    @property
    def devices(self) -> int:
        """Over how many the examples are spread: their number is a multiple of it."""
        spread = [1]
        for sharding in self.shardings:
            if sharding is not None and sharding.spec and sharding.spec[0] is not None:
                names = sharding.spec[0]
                names = (names,) if isinstance(names, str) else names
                spread.append(math.prod(sharding.mesh.shape[name] for name in names))
        return math.lcm(*spread)


def taken(array: Array, rows: Int[Array, " b"], sharding: NamedSharding | None = None) -> Array:
    """Some rows of an array, laid out as the batches were."""
    own = jnp.take(array, rows, axis=0)
    return own if sharding is None else jax.lax.with_sharding_constraint(own, sharding)


def read_pools(
    batches: Iterable[Any],
    reading: Reading,
    row_weights: RowWeights | None,
    memory: int,
) -> list[Pool]:
    """All batches as one pool where they fit together, else each as its own.

    Arguments:
        reading: what of a batch the model gets.
        memory: bytes up to which they are put together.
    """
    pools = []
    for turn, batch in enumerate(batches, 1):
        arrays, frame = split_arrays(reading.inputs(batch))
        number = batch_size(arrays)
        weights = jnp.ones(number) if row_weights is None else row_weights(batch)
        shardings = tuple(map(_sharding, arrays))
        own = [_numbers(array) for array in arrays]
        if row_weights is not None:
            own = [without_lost_padding(array, weights) for array in own]
        origins = np.full(len(weights), turn)
        pools.append(Pool(own, frame, number, weights, shardings, origins=origins))
    if not pools:
        return []
    if len({_form(pool) for pool in pools}) > 1 or any(pools[0].layout.shared):
        return pools
    size = sum(sum(array.nbytes for array in pool.arrays) for pool in pools)
    return [joined(pools)] if size <= memory else _of_one_size(pools)


def joined(pools: Sequence[Pool]) -> Pool:
    """Pools of one form as one."""
    if len(pools) == 1:
        return pools[0]
    columns = zip(*(pool.arrays for pool in pools), strict=True)
    return replace(
        pools[0],
        arrays=[jnp.concatenate(column) for column in columns],
        number=sum(pool.number for pool in pools),
        weights=jnp.concatenate([pool.weights for pool in pools]),
        origins=np.concatenate([pool.origins for pool in pools if pool.origins is not None]),
    )


def split_off(pools: Sequence[Pool], share: float, key: Array) -> tuple[list[Pool], list[Pool]]:
    """Some for training, and a share that is held out: of one pool examples, of several pools.

    Both have at least one, unless the share is 0.
    """
    whole = pools[0].number if len(pools) == 1 else len(pools)
    if share == 0 or whole < 2:
        return list(pools), []
    out = min(max(1, round(share * whole)), whole - 1)
    order = np.asarray(jax.random.permutation(key, whole))
    if len(pools) > 1:
        return [pools[k] for k in sorted(order[out:])], [pools[k] for k in sorted(order[:out])]
    (pool,) = pools
    if any(pool.layout.shared):
        return [pool], []
    return [rows_in(pool, np.sort(order[out:]))], [rows_in(pool, np.sort(order[:out]))]


def rows_of(pool: Pool, size: int, key: Array | None) -> tuple[np.ndarray, np.ndarray]:
    """The examples of each step, (steps, size), and which of these count.

    Arguments:
        key: of their order; None for the one that they have.
    """
    order = np.arange(pool.number)
    if key is not None:
        order = np.asarray(jax.random.permutation(key, pool.number))
    places = steps_in(pool, size) * size
    rows = np.zeros(places, np.int32)
    rows[: pool.number] = order
    counts = (np.arange(places) < pool.number).astype(np.float32)
    return rows.reshape(-1, size), counts.reshape(-1, size)


def steps_in(pool: Pool, size: int) -> int:
    """How many steps its examples make."""
    return -(-pool.number // size)


def size_of_steps(pools: Sequence[Pool], batch_size: int) -> int:
    """Examples of each step: no more than there are, and a multiple of the devices."""
    devices = pools[0].layout.devices
    return -(-min(batch_size, max(pool.size for pool in pools)) // devices) * devices


def rows_in(pool: Pool, chosen: Int[np.ndarray, " b"]) -> Pool:
    """A pool of some rows of another, which lie as those do.

    Those that are split over devices are filled up to equal parts.
    """
    devices = pool.layout.devices
    rows = np.resize(chosen, -(-len(chosen) // devices) * devices)
    arrays = [
        _laid(array, rows, sharding)
        for array, sharding in zip(pool.arrays, pool.shardings, strict=True)
    ]
    weights = _laid(pool.weights, rows, None)
    origins = None if pool.origins is None else pool.origins[rows]
    return replace(pool, arrays=arrays, number=len(chosen), weights=weights, origins=origins)


@partial(jax.jit, static_argnums=2)
def _laid(array: Array, rows: Array, sharding: NamedSharding | None) -> Array:
    return taken(array, rows, sharding)


def _of_one_size(pools: Sequence[Pool]) -> list[Pool]:
    """Pools filled up to the size of the largest, which then share their programs."""
    size = max(pool.size for pool in pools)
    return list(_filled_up(pools, size))


def _filled_up(pools: Sequence[Pool], size: int) -> Iterator[Pool]:
    for pool in pools:
        rows = np.arange(size) % pool.size
        yield pool if pool.size == size else replace(rows_in(pool, rows), number=pool.number)


def _numbers(array: Any) -> Any:
    return array if isinstance(array, jax.Array) else jnp.asarray(array)


def _form(pool: Pool) -> Any:
    arrays = tuple((array.shape[1:], str(array.dtype)) for array in pool.arrays)
    return pool.frame, arrays, pool.weights.shape[1:]


def _sharding(array: Any) -> NamedSharding | None:
    own = getattr(array, "sharding", None)
    spread = isinstance(own, NamedSharding) and len(own.device_set) > 1
    return own if spread else None
