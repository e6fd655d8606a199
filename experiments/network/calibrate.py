"""Calibration images, drawn by seed, and the moments of a network's layers on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product, starmap
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from experiments.data import (
    DataError,
    DataSplits,
    DecodedWhenTaken,
    Examples,
    Inputs,
    Parts,
    StoredImages,
    load,
    mapped,
)
from experiments.network.judge import example_scores
from experiments.network.settings import OWN, CalibrationSettings, NetworkSettings
from experiments.workdir.fields import FieldError


@dataclass(frozen=True, order=True)
class Calibration:
    """Images from which moments are collected; of a decomposition that sees none, all empty.

    Arguments:
        source: see `CalibrationSettings`; "" for no data.
        images: their number, 0 for no data.
        subset: which of the random choices; without data, which of the random starts.
    """

    source: str = ""
    images: int = 0
    subset: int = 0


def drawn(settings: CalibrationSettings) -> list[Calibration]:
    """Every subset of every number of images of every source."""
    subsets = range(settings.subsets)
    return [Calibration(*own) for own in product(settings.sources, settings.images, subsets)]


def seen(settings: CalibrationSettings, calibration: Calibration) -> Calibration:
    """The images that a network may look at: its own, or the first if it saw none."""
    if calibration.images:
        return calibration
    return Calibration(settings.sources[0], settings.images[0], calibration.subset)


class Batch(NamedTuple):
    """Calibration images (b, h, w, c), or other inputs, their labels (b,), noise (b, classes).

    The noise is Gumbel's.
    """

    images: Any
    labels: Any
    noise: Any


def highest_pixel(name: str) -> int:
    """The brightest value that a pixel of a data set can have."""
    # scikit-learn's digits have 17 grey levels.
    return 16 if name == "digits" else 255


def source_examples(settings: NetworkSettings, name: str, splits: DataSplits) -> Examples:
    """The images to draw from: the network's own training images, or others made to fit it.

    Other data sets are resized, their pixels brought to the range of the network's data set, and
    standardised as those are.

    Raises ValueError where their channels are not the network's, `experiments.data.DataError` for
    files that are missing or damaged.
    """
    if name in OWN:
        return replace(splits.train, images=altered(splits.train.images, name, settings, splits))
    folder = settings.calibration.folder
    try:
        raw = load(name, folder)
    except DataError as error:
        raise DataError(f"config field 'calibration.folder' is {folder!r}: {error}") from error
    shape = splits.train.images.shape[1:]
    if raw.train_images.shape[-1] != shape[-1]:
        raise FieldError(
            "calibration.sources",
            f"has {name!r}: its images have {raw.train_images.shape[-1]} channels, the network "
            f"takes {shape[-1]}",
        )
    if settings.calibration.labels == "true" and raw.num_classes != splits.num_classes:
        raise FieldError(
            "calibration.labels",
            f"is 'true': {name!r} has {raw.num_classes} classes, the network "
            f"{splits.num_classes}; use 'sampled'",
        )
    scale = highest_pixel(settings.data.name) / highest_pixel(name)

    def fitted(views: np.ndarray) -> Float32[np.ndarray, "n h w c"]:
        resized = _resized(views, shape)
        return ((scale * resized - splits.mean) / splits.std).astype(np.float32)

    # Only as many as can be drawn: a whole data set as floats may not fit in memory.
    most = min(len(raw.train_images), 4 * max(settings.calibration.images))
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(raw.train_images))[:most])
    if isinstance(raw.train_images, DecodedWhenTaken):
        stored = StoredImages(raw.train_images, chosen, fitted, shape)
        return Examples(stored, raw.train_labels[chosen])
    return Examples(fitted(raw.train_images[chosen]), raw.train_labels[chosen])


def altered(images: Inputs, change: str, settings: NetworkSettings, splits: DataSplits) -> Inputs:
    """Standardised images as they are ("same"), "flipped" left to right, or "brighter".

    Rows of a table can only stay as they are.
    """
    if isinstance(images, StoredImages) and change != "same":
        return images.then(lambda read: altered(read, change, settings, splits))
    if change == "flipped":
        return np.ascontiguousarray(images[:, :, ::-1])
    if change == "brighter":
        highest = highest_pixel(settings.data.name)
        shift = settings.calibration.brightness * highest / splits.std
        white = (highest - splits.mean) / splits.std
        return np.minimum(images + shift, white).astype(np.float32)
    return images


def draw(examples: Examples, calibration: Calibration, seed: int) -> Examples:
    """The images of a calibration: a larger number holds those of a smaller one."""
    order = np.random.default_rng([seed, calibration.subset]).permutation(len(examples.labels))
    return examples.taken(np.sort(order[: calibration.images]))


def batches_of(
    settings: NetworkSettings, source: Examples, calibration: Calibration, classes: int
) -> Sequence[Batch]:
    """The images of a calibration in batches, with what their losses need."""
    examples = draw(source, calibration, settings.seed)
    noise = np.random.default_rng([settings.seed, calibration.subset, 1])
    gumbel = noise.gumbel(size=(len(examples.labels), classes)).astype(np.float32)
    size = settings.calibration.batch_size
    parts = examples.parts(size)

    def batch(place: int, part: tuple[Any, Any]) -> Batch:
        return Batch(*part, gumbel[place * size : (place + 1) * size])

    return Parts(
        len(parts),
        lambda place: batch(place, parts[place]),
        lambda: starmap(batch, enumerate(parts)),
    )


def images_of(batches: Sequence[Batch]) -> Sequence[Any]:
    """What the network takes of each batch."""
    return mapped(attrgetter("images"), batches)


def true_loss(
    logits: Float[Array, "b k"], batch: Batch, temperature: float = 1.0
) -> Float[Array, " b"]:
    """Cross-entropy of each example, of the logits divided by a temperature."""
    return example_scores(logits / temperature, batch.labels)[1]


def sampled_loss(
    logits: Float[Array, "b k"], batch: Batch, temperature: float = 1.0
) -> Float[Array, " b"]:
    """As `true_loss`, of labels drawn from the network's own predictions, by Gumbel noise."""
    tempered = logits / temperature
    labels = jnp.argmax(jax.lax.stop_gradient(tempered) + batch.noise, axis=-1)
    return example_scores(tempered, labels)[1]


def _resized(
    images: np.ndarray, shape: tuple[int, ...], chunk: int = 1000
) -> Float[np.ndarray, "n h w c"]:
    parts = np.split(images, range(chunk, len(images), chunk))
    resized = (
        jax.image.resize(jnp.asarray(part, jnp.float32), (len(part), *shape), "linear")
        for part in parts
    )
    return np.concatenate([np.asarray(part) for part in resized])
