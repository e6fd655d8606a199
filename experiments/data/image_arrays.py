"""What holds a data set's images: an array in memory, or files that are decoded when taken."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from experiments.data.image_folder import ImageFiles
from experiments.data.photographs import evaluation_view


@runtime_checkable
class ImageArray(Protocol):
    """Images uint8 (n, h, w, c) of which some are taken by an array of indices."""

    @property
    def shape(self) -> Any:
        """(n, h, w, c)."""

    @property
    def dtype(self) -> Any:
        """Of the images that are taken."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, indices: Any, /) -> Any:
        """The images of an integer array (k,), uint8 (k, h, w, c)."""


@dataclass(frozen=True, eq=False)
class DecodedWhenTaken:
    """The evaluation views of photographs, decoded by a pool of threads where they are taken.

    Args:
        files: the photographs.
        size, resize: see `evaluation_view`.
        threads: at once; None for one on each processor that the process may use.

    `images[indices]`, with integers (k,) from 0 to n - 1, is uint8 (k, size, size, 3).

    Raises IndexError for an index out of range, and as `ImageFiles` and `evaluation_view` do.
    """

    files: ImageFiles
    size: int = 224
    resize: int = 256
    threads: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, size, size, 3)."""
        return (len(self.files), self.size, self.size, 3)

    @property
    def dtype(self) -> np.dtype:
        """Unsigned bytes."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, indices: Int[np.ndarray, "k"], /) -> UInt8[np.ndarray, "k h w 3"]:
        """The images of an integer array."""
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            image = self.files[int(indices[place])]
            images[place] = evaluation_view(image, self.size, self.resize)

        if len(indices) == 1:
            # Where threads ask for one each, a pool in each of them would only cost time.
            fill(0)
            return images
        with ThreadPoolExecutor(self.threads or processors()) as pool:
            # Exhausting the results raises what a thread raised, and gives up on the rest.
            for _ in pool.map(fill, range(len(indices))):
                pass
        return images


def processors() -> int:
    """How many processors this process may use, which on a shared machine are not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
