"""Where the batches of training come from: a set that is on the device, or files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from experiments.data.splits import DataSplits, Examples
from experiments.data.stored_images import StoredImages
from experiments.network.steps import Epoch


def feed_of(splits: DataSplits, size: int) -> Feed:
    """What training takes its batches of `size` images from."""
    # The padding of random crops.
    fill = jnp.asarray(splits.black)
    if isinstance(splits.train.images, StoredImages):
        return FromFiles(splits.train, splits.train.images, size, fill)
    images = jax.tree.map(jnp.asarray, splits.train.images)
    return FromDevice(images, jnp.asarray(splits.train.labels), fill)


@dataclass(frozen=True, eq=False)
class FromDevice:
    """All examples at once: each step takes its own out of them."""

    images: Any
    labels: Array
    fill: Array

    def steps(self, order: Int[Array, "runs n"], keys: Array, count: int) -> Iterable[Epoch]:
        """What each step of an epoch is taken on; see `Epoch`."""
        return repeat(Epoch(self.images, self.labels, order, keys, self.fill), count)


@dataclass(frozen=True, eq=False)
class FromFiles:
    """The images of one step at a time, those of all runs one behind the other."""

    train: Examples
    images: StoredImages
    size: int
    fill: Float32[Array, " c"]

    def steps(self, order: Int[Array, "runs n"], keys: Array, count: int) -> Iterator[Epoch]:
        """What each step of an epoch is taken on, the same images as from the device."""
        runs = len(order)
        turns = np.asarray(order)[:, : count * self.size].reshape(runs, count, self.size)
        chosen = turns.swapaxes(0, 1).reshape(count, runs * self.size)
        places = jnp.arange(runs * self.size).reshape(runs, self.size)
        read = self.images.batches(chosen.ravel(), runs * self.size)
        for own, images in zip(chosen, read, strict=True):
            yield Epoch(images, self.train.labels[own], places, keys, self.fill)


Feed = FromDevice | FromFiles
