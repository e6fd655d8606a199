"""Training, validation and test examples, standardised and ready for a network."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, UInt8

from experiments.data.datasets import RawDataset
from experiments.data.image_arrays import DecodedWhenTaken, ImageArray
from experiments.data.parts import Parts, mapped
from experiments.data.stored_images import StoredImages
from experiments.data.stratify import stratified_split, stratified_subset

# Of a network: an array, or a tuple or mapping of arrays where it takes several.
Inputs = Any
# Images per step of a pass over a set: bounds the memory of the wider integers in it.
_CHUNK = 1024


def check_finite(images: Float32[np.ndarray, "n h w c"]) -> None:
    """Raise ValueError if a pixel of `images`, float32 (n, h, w, c), is NaN or infinite."""
    # Both extremes carry a NaN on, and neither needs a second array of this size.
    if np.isfinite(images.min()) and np.isfinite(images.max()):
        return
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
    raise ValueError(f"{len(bad)} of {len(images)} images hold NaN or Inf, the first is {bad[0]}")


def rows(inputs: Inputs, chosen: Any) -> Inputs:
    """Some examples of inputs."""
    return jax.tree.map(lambda own: own[chosen], inputs)


def arguments(inputs: Inputs) -> Inputs:
    """Inputs as the arguments of a call, which beside labels are taken for nothing else."""
    return inputs if isinstance(inputs, tuple | Mapping) else (inputs,)


@dataclass(frozen=True, eq=False)
class Examples:
    """Images float32 (n, h, w, c) and labels int32 (n,); ValueError if empty or not finite.

    The images are an array, or stay in their files until some of them are wanted.
    """

    images: Float32[np.ndarray, "n h w c"] | StoredImages
    labels: Int32[np.ndarray, "n"]

    def __post_init__(self) -> None:
        """Check that there are examples, as many images as labels, and finite pixels only."""
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")
        if not math.prod(self.images.shape):
            raise ValueError(f"no pixels: images of shape {self.images.shape}")
        # Bytes that are standardised when they are read are finite.
        if not isinstance(self.images, StoredImages):
            check_finite(self.images)

    def taken(self, chosen: np.ndarray) -> Self:
        """Those at some places."""
        if isinstance(self.images, StoredImages):
            return replace(self, images=self.images.taken(chosen), labels=self.labels[chosen])
        images = jax.tree.map(np.ascontiguousarray, rows(self.images, chosen))
        return replace(self, images=images, labels=self.labels[chosen])

    def parts(self, size: int, count: int | None = None) -> Parts[tuple[Inputs, np.ndarray]]:
        """Inputs and labels of the first `count` examples, or of all, `size` of them at a time.

        Those in files are read when they are wanted, by a pass over all parts ahead of that.
        """
        images, labels = self.images, self.labels[:count]
        starts = range(0, len(labels), size)

        def part(place: int) -> tuple[Inputs, np.ndarray]:
            own = slice(starts[place], min(starts[place] + size, len(labels)))
            return rows(images, own), labels[own]

        def read_ahead(stored: StoredImages) -> Iterator[tuple[Inputs, np.ndarray]]:
            read = stored.batches(np.arange(len(labels)), size)
            for start, found in zip(starts, read, strict=True):
                yield found, labels[start : start + size]

        ahead = partial(read_ahead, images) if isinstance(images, StoredImages) else None
        return Parts(len(starts), part, ahead)

    def batches(self, size: int, count: int | None = None) -> Parts[tuple[Inputs, np.ndarray]]:
        """`parts` as arguments of calls, with their labels."""
        return mapped(lambda part: (arguments(part[0]), part[1]), self.parts(size, count))


@dataclass(frozen=True, eq=False)
class DataSplits:
    """The three sets of examples, with the training set's channel means and deviations (c,).

    `mean` and `std` are float64 in units of the raw pixel values (0 to 255).
    """

    train: Examples
    validation: Examples
    test: Examples
    mean: Float64[np.ndarray, "c"]
    std: Float64[np.ndarray, "c"]
    num_classes: int

    @property
    def black(self) -> Float32[np.ndarray, "c"]:
        """A black pixel after standardisation, float32 (c,): the padding of random crops."""
        return (-self.mean / self.std).astype(np.float32)


def prepare(
    raw: RawDataset,
    validation_share: float = 0.1,
    seed: int = 0,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
) -> DataSplits:
    """Split off a validation set, take subsets if asked, and standardise.

    The split depends on `validation_share` and `seed` only: subsets of other sizes come from the
    same training and the same validation examples. All three sets are standardised by channel mean
    and (population) deviation of the training examples that are kept.

    Args:
        raw: the data set; photographs stay in their files, and are read when they are wanted. Of
            `statistics` of their own all those of the training set are read here, once.
        validation_share: share of the training examples to hold out for validation.
        seed: seed of the split and the subsets.
        train_size: number of training examples to keep, by class shares; None keeps all.
        validation_size: the same of the validation examples.
        test_size: the same of the test examples.
        statistics: mean and deviation of each channel in units of the raw pixel values, to
            standardise by in place of those of the training examples.

    Returns:
        The sets, images float32 (n, h, w, c), labels int32 (n,).

    Raises:
        ValueError: images and labels differ in number, a label is out of range, a share or size is
            out of range, a set is empty, a class is absent from a set, images are not uint8
            NHWC or do not fit in the machine's memory as float32, where they are held in it, a
            channel is constant, or
            `statistics` do not have a mean and a deviation above 0 for each channel.
        DataError: a file that is decoded is missing or damaged.
    """
    classes = raw.num_classes
    _check_raw(raw.train_images, raw.train_labels, classes, f"training part of {raw.name}")
    _check_raw(raw.test_images, raw.test_labels, classes, f"test part of {raw.name}")

    train, validation, test = split_indices(
        raw.train_labels,
        raw.test_labels,
        classes,
        validation_share,
        seed,
        (train_size, validation_size, test_size),
    )
    _check_memory(raw, len(train) + len(validation) + len(test))

    if statistics is None:
        mean, std = _channel_statistics(raw.train_images, train)
    else:
        mean, std = _given_statistics(statistics, raw.train_images.shape[-1])
    finish = partial(standardise, mean=mean, std=std)

    def examples(
        images: ImageArray, labels: Int32[np.ndarray, "n"], chosen: np.ndarray
    ) -> Examples:
        if isinstance(images, DecodedWhenTaken):
            return Examples(StoredImages(images, chosen, finish, images.shape[1:]), labels[chosen])
        return Examples(finish(images[chosen]), labels[chosen])

    return DataSplits(
        examples(raw.train_images, raw.train_labels, train),
        examples(raw.train_images, raw.train_labels, validation),
        examples(raw.test_images, raw.test_labels, test),
        mean,
        std,
        classes,
    )


def split_indices(
    train_labels: Int32[np.ndarray, "n"],
    test_labels: Int32[np.ndarray, "m"],
    num_classes: int,
    validation_share: float,
    seed: int,
    sizes: tuple[int | None, int | None, int | None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the training examples are kept and held out, and which of the test examples kept.

    Arguments and what is raised are those of `prepare`; `sizes` are of the three results.
    """
    kept, held_out = stratified_split(train_labels, validation_share, seed)
    chosen = partial(take, seed=seed, num_classes=num_classes)
    return (
        chosen(train_labels, kept, sizes[0], split="train"),
        chosen(train_labels, held_out, sizes[1], split="validation"),
        chosen(test_labels, np.arange(len(test_labels)), sizes[2], split="test"),
    )


def _check_raw(images: ImageArray, labels: np.ndarray, num_classes: int, part: str) -> None:
    if len(images.shape) != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"the {part} has images {images.dtype} {images.shape}; expected uint8 (n, h, w, c)"
        )
    if len(images) != len(labels):
        raise ValueError(f"the {part} has {len(images)} images but {len(labels)} labels")
    if not len(images):
        raise ValueError(f"the {part} is empty")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"the {part} has labels {labels.min()} to {labels.max()}; "
            f"expected 0 to {num_classes - 1}"
        )


def _check_memory(raw: RawDataset, count: int) -> None:
    """Refuse what the machine cannot hold before it is decoded, where it is to hold it."""
    if isinstance(raw.train_images, DecodedWhenTaken):
        return
    needed, present = 4 * count * math.prod(raw.train_images.shape[1:]), installed_memory()
    if present is not None and needed > present:
        raise ValueError(
            f"{count} images of {raw.name} need {needed / 1e9:.0f} GB of memory as float32, this "
            f"machine has {present / 1e9:.0f} GB: set train_size, validation_size or test_size"
        )


def installed_memory() -> int | None:
    """Bytes of memory that the machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def take(
    labels: Int32[np.ndarray, "n"],
    indices: np.ndarray,
    size: int | None,
    *,
    seed: int,
    num_classes: int,
    split: str,
) -> np.ndarray:
    """Some of the examples at `indices`, by class shares, every class among them; all of None."""
    if size is not None:
        if not 1 <= size <= len(indices):
            raise ValueError(
                f"{split}_size is {size}; the {split} split has {len(indices)} examples to take "
                "from, expected 1 to that number"
            )
        indices = indices[stratified_subset(labels[indices], size, seed)]
    counts = np.bincount(labels[indices], minlength=num_classes)
    if not counts.all():
        absent = ", ".join(map(str, np.flatnonzero(counts == 0)))
        raise ValueError(
            f"no example of class {absent} in the {split} split of {len(indices)} examples: "
            "the class has too few examples, or the split is too small"
        )
    return indices


def _given_statistics(
    statistics: tuple[Sequence[float], Sequence[float]], channels: int
) -> tuple[Float64[np.ndarray, "c"], Float64[np.ndarray, "c"]]:
    mean, std = (np.asarray(values, np.float64) for values in statistics)
    if mean.shape != (channels,) or std.shape != (channels,) or not (std > 0).all():
        raise ValueError(
            f"mean {mean} and deviation {std}: one of each for each of {channels} channels is "
            "needed, deviations above 0"
        )
    return mean, std


def _channel_statistics(
    images: ImageArray, chosen: Int[np.ndarray, "k"]
) -> tuple[Float64[np.ndarray, "c"], Float64[np.ndarray, "c"]]:
    # From the histogram of the 256 pixel values: exact counts, one pass, no float copy of the set.
    channels = images.shape[-1]
    histogram = np.zeros((channels, 256))
    for start in range(0, len(chosen), _CHUNK):
        chunk = images[chosen[start : start + _CHUNK]]
        for channel in range(channels):
            histogram[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    constant = np.flatnonzero((histogram > 0).sum(axis=1) < 2)
    if len(constant):
        raise ValueError(
            f"channel {', '.join(map(str, constant))} of the training images is constant: "
            "it cannot be standardised"
        )
    values = np.arange(256.0)
    total = histogram.sum(axis=1)
    mean = histogram @ values / total
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / total
    return mean, np.sqrt(variance)


def standardise(
    images: UInt8[np.ndarray, "n h w c"],
    mean: Float64[np.ndarray, "c"],
    std: Float64[np.ndarray, "c"],
) -> Float32[np.ndarray, "n h w c"]:
    """Raw pixel values less the mean over the deviation, both (c,); float32 (n, h, w, c)."""
    # 256 values per channel: a table rounds each once, from float64.
    table = ((np.arange(256.0)[:, None] - mean) / std).astype(np.float32)
    out = np.empty(images.shape, np.float32)
    for channel in range(images.shape[-1]):
        out[..., channel] = table[:, channel][images[..., channel]]
    return out
