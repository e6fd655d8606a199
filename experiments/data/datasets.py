"""The data sets by name, as published: unsigned bytes, channels last."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from experiments.data import cifar, idx, image_folder
from experiments.data.errors import DataError
from experiments.data.image_arrays import DecodedWhenTaken, ImageArray
from experiments.data.image_folder import ImageFiles
from experiments.data.stratify import stratified_split

_DIGITS_TEST_SHARE = 0.2
_DIGITS_SEED = 0


@dataclass(frozen=True, eq=False)
class RawDataset:
    """Images and labels of a data set as published: images uint8 NHWC, labels int32 from 0.

    Images are arrays, or stay in their files until they are taken: see `ImageArray`.
    """

    name: str
    train_images: ImageArray
    train_labels: Int32[np.ndarray, "n"]
    test_images: ImageArray
    test_labels: Int32[np.ndarray, "m"]
    num_classes: int


def load(name: str, folder: str | Path | None = None) -> RawDataset:
    """Load a data set by name.

    Args:
        name: "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet" (the test set
            is its validation part) or "fgvc_aircraft" (the training set is its "trainval").
        folder: folder that holds the published files; not used for "digits", which comes with
            scikit-learn and whose test set is a fixed stratified fifth of it.

    Returns:
        The data set, images uint8 (n, h, w, c), labels int32 (n,). Those of "imagenet" and
        "fgvc_aircraft" are views of 224x224 pixels, decoded where they are taken.

    Raises:
        ValueError: the name is unknown.
        DataError: a file is missing or damaged, or `folder` is not given for a set that needs it.
        ImportError: "digits" without scikit-learn.

    Source: `idx.MNIST_HOME`, `idx.FASHION_MNIST_HOME`, `cifar.CIFAR10_HOME`, `cifar.CIFAR100_HOME`,
    `image_folder.IMAGENET_HOME`, `image_folder.AIRCRAFT_HOME`; for "digits" the test part of UCI's
    "Optical Recognition of Handwritten Digits", as scikit-learn holds it.
    """
    if name == "digits":
        return _digits()
    if name not in _HOMES:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    if folder is None:
        raise DataError(
            f"{name} is read from files: give the folder that holds them. "
            f"The data set is published at {_HOMES[name]}"
        )
    if name in _TREES:
        list_files, train, test = _TREES[name]
        return _photographs(name, list_files(folder, train), list_files(folder, test))
    read, num_classes = _READERS[name]
    return RawDataset(name, *read(folder), num_classes=num_classes)


_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _photographs(name: str, train: ImageFiles, test: ImageFiles) -> RawDataset:
    return RawDataset(
        name,
        DecodedWhenTaken(train),
        train.labels,
        DecodedWhenTaken(test),
        test.labels,
        len(train.classes),
    )


_HOMES = {
    "mnist": idx.MNIST_HOME,
    "fashion_mnist": idx.FASHION_MNIST_HOME,
    "cifar10": cifar.CIFAR10_HOME,
    "cifar100": cifar.CIFAR100_HOME,
    "imagenet": image_folder.IMAGENET_HOME,
    "fgvc_aircraft": image_folder.AIRCRAFT_HOME,
}
DATASETS = ("digits", *_HOMES)
# Reader of all arrays, number of classes.
_READERS: dict[str, tuple[Callable[[str | Path], _Arrays], int]] = {
    "mnist": (partial(idx.read_idx_folder, home=idx.MNIST_HOME), idx.NUM_CLASSES),
    "fashion_mnist": (partial(idx.read_idx_folder, home=idx.FASHION_MNIST_HOME), idx.NUM_CLASSES),
    "cifar10": (cifar.read_cifar10, cifar.CIFAR10_LABELS[-1]),
    "cifar100": (cifar.read_cifar100, cifar.CIFAR100_LABELS[-1]),
}
# Lister of a part's photographs, the parts for training and test.
_TREES: dict[str, tuple[Callable[[str | Path, str], ImageFiles], str, str]] = {
    "imagenet": (image_folder.imagenet_files, "train", "val"),
    "fgvc_aircraft": (image_folder.aircraft_files, "trainval", "test"),
}


def _digits() -> RawDataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "the data set digits comes with scikit-learn: install the extra 'experiments'"
        raise ImportError(message) from error
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = stratified_split(labels, _DIGITS_TEST_SHARE, _DIGITS_SEED)
    return RawDataset("digits", images[train], labels[train], images[test], labels[test], 10)
