"""Where the batches of training come from: a set that is on the device, or files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from experiments.data.splits import DataSplits
from experiments.data.stored_images import StoredImages
from experiments.network.steps import Epoch

Place = Callable[[Any], Any]


def on_device(arrays: Any) -> Any:
    """A pytree of arrays on the device that computes."""
    return jax.tree.map(jnp.asarray, arrays)


def feed_of(splits: DataSplits, size: int, place: Place = on_device) -> Feed:
    """What training takes its batches of `size` images from.

    Arguments:
        place: puts arrays where the steps are computed.
    """
    train, images = splits.train, splits.train.images
    # The padding of random crops.
    fill = place(splits.black)
    if isinstance(images, StoredImages):
        return FromFiles(images, train.labels, size, fill, place)
    images, labels = place((images, train.labels))
    return FromDevice(images, labels, fill)


@dataclass(frozen=True, eq=False)
class FromDevice:
    """All examples at once: each step takes its own out of them."""

    images: Any
    labels: Array
    fill: Array

    def steps(self, order: Int[Array, "runs n"], keys: Array, places: range) -> Iterable[Epoch]:
        """What some steps of an epoch are taken on, each; see `Epoch`."""
        return repeat(Epoch(self.images, self.labels, order, keys, self.fill), len(places))


@dataclass(frozen=True, eq=False)
class FromFiles:
    """The images of one step at a time, those of all runs one behind the other."""

    images: StoredImages
    labels: np.ndarray
    size: int
    fill: Float32[Array, " c"]
    place: Place

    def steps(self, order: Int[Array, "runs n"], keys: Array, places: range) -> Iterator[Epoch]:
        """What some steps of an epoch are taken on, each; the same images as from the device."""
        runs, size = len(order), self.size
        part = np.asarray(order)[:, places.start * size : places.stop * size]
        chosen = part.reshape(runs, len(places), size).swapaxes(0, 1).reshape(-1, runs * size)
        own = self.place(np.arange(runs * size).reshape(runs, size))
        read = self.images.batches(chosen.ravel(), runs * size)
        for step, images in zip(chosen, read, strict=True):
            images, labels = self.place((images, self.labels[step]))
            yield Epoch(images, labels, own, keys, self.fill)


Feed = FromDevice | FromFiles
