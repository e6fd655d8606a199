"""Photographs that stay in their files until a batch of them is wanted; read ahead by Grain."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
from jaxtyping import Float32, Int, UInt8

from experiments.data.image_arrays import DecodedWhenTaken, processors


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images as a network takes them, float32 (n, h, w, c), none of which is in memory.

    `images[chosen]`, with an integer, a slice or integers (k,), reads and decodes those that are
    chosen, as an array would give them.

    Args:
        views: the photographs.
        places: which of these the images are, integers (n,).
        finish: what makes float32 (k, h, w, c) of their views, uint8 (k, h, w, c), each for itself.
        sides: (h, w, c) of the images.

    Raises IndexError for a place out of range, `experiments.data.DataError` that names the file for
    one that is missing or damaged, when it is read; at once ImportError without Pillow or Grain.
    """

    views: DecodedWhenTaken
    places: Int[np.ndarray, "n"]
    finish: Callable[[UInt8[np.ndarray, "k ..."]], Float32[np.ndarray, "k h w c"]]
    sides: tuple[int, ...]

    def __post_init__(self) -> None:
        """Ask now for what reads images, not when hours of work are done."""
        for name in ("grain", "PIL"):
            if find_spec(name) is None:
                raise ImportError(
                    f"photographs are read with Pillow and Grain, {name} is missing: install the "
                    "extra 'images'"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, c)."""
        return (len(self.places), *self.sides)

    @property
    def dtype(self) -> np.dtype:
        """Of what is read."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.places)

    def __getitem__(self, chosen: Any, /) -> Float32[np.ndarray, "*k h w c"]:
        """Some images, read now."""
        places = self.places[chosen]
        found = self.finish(self.views[np.atleast_1d(places)])
        return found if np.ndim(places) else found[0]

    def taken(self, chosen: Int[np.ndarray, "k"]) -> Self:
        """Those at some places, in their files still."""
        return replace(self, places=self.places[chosen])

    def then(self, change: Callable[[Any], Any]) -> Self:
        """With a change, of the same shape and dtype, made to each image when it is read."""
        finish = self.finish
        return replace(self, finish=lambda views: change(finish(views)))

    def batches(
        self, order: Int[np.ndarray, "m"], size: int, process: tuple[int, int] = (0, 1)
    ) -> Iterator[Float32[np.ndarray, "b h w c"]]:
        """Images in an order, read ahead of their use by threads: one pass, in batches.

        Three to four batches are held at once: one that is used, one that is put together, and the
        images that are read ahead. Where several processes take the steps of one training together,
        each has its share of every batch, and the shares of a batch are the batch, whatever their
        number. The place in `order` is all that such a pass has of a state: to go on after `s`
        batches, leave out the first `s * size` of it.

            for images in stored.batches(order, 256, (jax.process_index(), jax.process_count())):
                ...

        Args:
            order: places from 0 to n - 1.
            size: images a batch, of all processes together.
            process: the number of this process, from 0, and that of all. Where there are several,
                an incomplete last batch is left out, so that all take as many.

        Raises:
            ValueError: `size` is below 1 or no multiple of the number of processes.

        Source: the pipeline is Grain's, https://google-grain.readthedocs.io.
        """
        number, count = process
        if size < 1 or count < 1 or not 0 <= number < count or size % count:
            raise ValueError(
                f"batches of {size} images for process {number} of {count}: a size of 1 or more is "
                "needed that the number of processes divides"
            )
        if count > 1:
            order = order[: len(order) - len(order) % size]
        return _read_ahead(self, order[number::count], size // count)


def _read_ahead(
    images: StoredImages, order: Int[np.ndarray, "m"], size: int
) -> Iterator[Float32[np.ndarray, "b h w c"]]:
    # Takes seconds, which only those wait for who read.
    import grain

    threads = processors()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(size, threads))
    # Image by image, not batch by batch: of these each thread would hold one.
    read = grain.MapDataset.source(order).map(lambda place: images[int(place)])
    batches = iter(read.to_iter_dataset(options).batch(size))
    try:
        yield from batches
    finally:
        # Its threads would read on after an error, or where a pass is given up.
        batches.close()
