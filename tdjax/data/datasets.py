"""The data sets by name, as published: unsigned bytes, channels last."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from tdjax.data import cifar, idx
from tdjax.data.errors import DataError
from tdjax.data.stratify import stratified_split

_DIGITS_TEST_SHARE = 0.2
_DIGITS_SEED = 0


@dataclass(frozen=True, eq=False)
class RawDataset:
    """Images and labels of a data set as published: images uint8 NHWC, labels int32 from 0."""

    name: str
    train_images: UInt8[np.ndarray, "n h w c"]
    train_labels: Int32[np.ndarray, "n"]
    test_images: UInt8[np.ndarray, "m h w c"]
    test_labels: Int32[np.ndarray, "m"]
    num_classes: int


def load(name: str, folder: str | Path | None = None) -> RawDataset:
    """Load a data set by name.

    Args:
        name: "digits", "mnist", "fashion_mnist", "cifar10" or "cifar100".
        folder: folder that holds the published files; not used for "digits", which comes with
            scikit-learn and whose test set is a fixed stratified fifth of it.

    Returns:
        The data set, images uint8 (n, h, w, c), labels int32 (n,).

    Raises:
        ValueError: the name is unknown.
        DataError: a file is missing or damaged, or `folder` is not given for a set that needs it.
        ImportError: "digits" without scikit-learn.

    Source: `idx.MNIST_HOME`, `idx.FASHION_MNIST_HOME`, `cifar.CIFAR10_HOME`, `cifar.CIFAR100_HOME`;
    for "digits" the test part of UCI's "Optical Recognition of Handwritten Digits", as scikit-learn
    holds it.
    """
    if name == "digits":
        return _digits()
    if name not in _READERS:
        known = ", ".join(["digits", *_READERS])
        raise ValueError(f"unknown data set {name!r}; known are {known}")
    read, home, num_classes = _READERS[name]
    if folder is None:
        raise DataError(
            f"{name} is read from files: give the folder that holds them. "
            f"The data set is published at {home}"
        )
    return RawDataset(name, *read(folder), num_classes=num_classes)


_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _mnist(folder: str | Path) -> _Arrays:
    return idx.read_idx_folder(folder, idx.MNIST_HOME)


def _fashion_mnist(folder: str | Path) -> _Arrays:
    return idx.read_idx_folder(folder, idx.FASHION_MNIST_HOME)


_READERS: dict[str, tuple[Callable[[str | Path], _Arrays], str, int]] = {
    "mnist": (_mnist, idx.MNIST_HOME, idx.NUM_CLASSES),
    "fashion_mnist": (_fashion_mnist, idx.FASHION_MNIST_HOME, idx.NUM_CLASSES),
    "cifar10": (cifar.read_cifar10, cifar.CIFAR10_HOME, cifar.CIFAR10_LABELS[-1]),
    "cifar100": (cifar.read_cifar100, cifar.CIFAR100_HOME, cifar.CIFAR100_LABELS[-1]),
}


def _digits() -> RawDataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "the data set digits comes with scikit-learn: install tdjax[study]"
        raise ImportError(message) from error
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = stratified_split(labels, _DIGITS_TEST_SHARE, _DIGITS_SEED)
    return RawDataset("digits", images[train], labels[train], images[test], labels[test], 10)
