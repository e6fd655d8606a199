"""CIFAR-10 and CIFAR-100 in their published formats, as folders or as archives.

CIFAR-10 as binary or Python batches, CIFAR-100 in its binary version.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Int32, UInt8

from experiments.data.errors import data_error
from experiments.data.published import Form, read_published
from experiments.data.unpickle import PickledArray, load_batch

# Both sets are on the same page.
CIFAR10_HOME = CIFAR100_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
# The numbers of classes, one for each label of an image; the last label is the one that is read.
CIFAR10_LABELS = (10,)
# Superclasses and classes, "coarse" and "fine".
CIFAR100_LABELS = (20, 100)

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE

_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
# Images of the largest file: a batch of CIFAR-10, the training set of CIFAR-100.
_MOST, _MOST_100 = 10_000, 50_000
_BINARY = Form(
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    tuple(f"{batch}.bin" for batch in _BATCHES),
    _MOST * (1 + _PIXELS),
)
# As text, in which Python 3 writes bytes in the protocol of the published files, half as much more.
_PYTHON = Form("cifar-10-batches-py", "cifar-10-python.tar.gz", _BATCHES, _MOST * 2 * _PIXELS)
_BINARY_100 = Form(
    "cifar-100-binary",
    "cifar-100-binary.tar.gz",
    ("train.bin", "test.bin"),
    _MOST_100 * (2 + _PIXELS),
)
# So many training images are published for each test image.
_RATIO_100 = 5

Batch = tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, "n"]]
# Training images and labels, test images and labels.
_Arrays = tuple[
    UInt8[np.ndarray, "n 32 32 3"],
    Int32[np.ndarray, "n"],
    UInt8[np.ndarray, "m 32 32 3"],
    Int32[np.ndarray, "m"],
]


def read_cifar10(folder: str | Path) -> _Arrays:
    """Read CIFAR-10 from the first of its published forms that `folder` holds.

    Args:
        folder: the folder `cifar-10-batches-bin` or `cifar-10-batches-py` itself, or the folder
            that holds one of them or an archive `cifar-10-binary.tar.gz` or
            `cifar-10-python.tar.gz`. Archives are read in place, nothing is written.

    Returns:
        Training images (the five batches in order), training labels, test images, test labels:
        images uint8, channels last (red, green, blue), labels int32.

    Raises:
        DataError: no form of the set is there, a batch is missing or damaged, or the five training
            batches differ in size.

    Source: the format's description on `CIFAR10_HOME`.
    """
    form, files = read_published(
        Path(folder),
        (_BINARY, _PYTHON),
        CIFAR10_HOME,
        "CIFAR-10 is not in this folder; expected "
        f"{_BINARY.folder} (with {_BINARY.files[0]} to 5 and {_BINARY.files[-1]}), "
        f"{_PYTHON.folder} (with {_BATCHES[0]} to 5 and {_BATCHES[-1]}), "
        f"{_BINARY.archive} or {_PYTHON.archive}",
    )
    parse = parse_binary_batch if form is _BINARY else parse_python_batch
    batches = [parse(file.content, file.origin) for file in files]
    first = len(batches[0][1])
    for file, (_, labels) in zip(files[1:5], batches[1:5], strict=True):
        # A file cut off between two records is whole by any check of its own.
        if len(labels) != first:
            _refuse(
                file.origin,
                f"holds {len(labels)} images, {_BATCHES[0]} holds {first}; "
                "expected the same number in each of the five training batches",
            )
    *train, (test_images, test_labels) = batches
    return (
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        test_images,
        test_labels,
    )


def read_cifar100(folder: str | Path) -> _Arrays:
    """Read CIFAR-100, with the labels of its 100 classes, from the binary version in `folder`.

    Args:
        folder: the folder `cifar-100-binary` itself, or the folder that holds it or the archive
            `cifar-100-binary.tar.gz`. An archive is read in place, nothing is written.

    Returns:
        Training images, training labels, test images, test labels: images uint8, channels last
        (red, green, blue), labels int32.

    Raises:
        DataError: the set is not there, a file is missing or damaged, or there are not five times
            as many training images as test images.

    Source: the format's description on `CIFAR100_HOME`.
    """
    names = _BINARY_100.files
    _, files = read_published(
        Path(folder),
        (_BINARY_100,),
        CIFAR100_HOME,
        f"CIFAR-100 is not in this folder; expected {_BINARY_100.folder} (with {names[0]} and "
        f"{names[1]}) or {_BINARY_100.archive}",
    )
    (images, labels), (test_images, test_labels) = (
        parse_binary_batch(file.content, file.origin, CIFAR100_LABELS) for file in files
    )
    # A file cut off between two records is whole by any check of its own.
    if len(labels) != _RATIO_100 * len(test_labels):
        _refuse(
            files[0].origin,
            f"holds {len(labels)} images, {names[1]} holds {len(test_labels)}; "
            f"expected {_RATIO_100} times as many",
        )
    return images, labels, test_images, test_labels


def parse_binary_batch(
    content: bytes, origin: str, classes: Sequence[int] = CIFAR10_LABELS
) -> Batch:
    """Return images and labels of one file in the binary format.

    Args:
        content: records of the label bytes and 3072 pixel bytes (planes red, green, blue).
        origin: name of the file, for the error message.
        classes: number of classes of each label byte, `CIFAR10_LABELS` or `CIFAR100_LABELS`.

    Returns:
        Images uint8 (n, 32, 32, 3) and the last of their labels, int32 (n,).

    Raises:
        DataError: the length is no positive multiple of a record's, or a label has no class.

    Source: `CIFAR10_HOME`, "Binary version".
    """
    record = len(classes) + _PIXELS
    if not content or len(content) % record:
        head = "one label byte" if len(classes) == 1 else f"{len(classes)} label bytes"
        _refuse(
            origin,
            f"has {len(content)} bytes; expected a positive multiple of {record}, records of "
            f"{head} and {_PIXELS} pixel bytes",
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels, pixels = np.split(records, [len(classes)], axis=1)
    for column, number in zip(labels.T, classes, strict=True):
        _check_labels(0, int(column.max()), number, origin)
    return _images(pixels), labels[:, -1].astype(np.int32)


def parse_python_batch(content: bytes, origin: str) -> Batch:
    """Return images and labels of one batch in the Python (pickle) format.

    The unpickler knows lists, dicts, strings, numbers and uint8 arrays only: it neither imports nor
    calls anything that the file names.

    Args:
        content: pickle of a dict with `data`, uint8 (n, 3072), and `labels`, a list of n ints.
        origin: name of the file, for the error message.

    Returns:
        Images uint8 (n, 32, 32, 3) and labels int32 (n,).

    Raises:
        DataError: the pickle is truncated, asks for anything else, or does not hold such a dict.

    Source: `CIFAR10_HOME`, "Python / Matlab versions".
    """
    try:
        loaded = load_batch(content)
    # Damaged pickles fail in the unpickler with nearly any type of exception.
    except Exception as error:
        problem = f"not a readable batch ({error}); expected a pickle of a dict of data and labels"
        raise data_error(origin, problem, CIFAR10_HOME) from error

    if not isinstance(loaded, dict):
        _refuse(origin, f"holds a {type(loaded).__name__}; expected a dict of data and labels")
    # Keys are bytes as published, str in a copy that Python 3 has pickled.
    data = loaded.get(b"data", loaded.get("data"))
    labels = loaded.get(b"labels", loaded.get("labels"))
    pixels = data.array if isinstance(data, PickledArray) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not len(pixels):
        found = type(data).__name__ if pixels is None else f"shape {pixels.shape}"
        _refuse(origin, f"data is {found}; expected a uint8 array of shape (n, {_PIXELS}), n > 0")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        _refuse(origin, f"labels is no list of integers; expected {len(pixels)} of them")
    if len(labels) != len(pixels):
        _refuse(origin, f"has {len(labels)} labels; expected {len(pixels)}, one for each image")
    # Before the cast, in which a label beyond int32 would overflow.
    _check_labels(min(labels), max(labels), CIFAR10_LABELS[0], origin)
    return _images(pixels), np.array(labels, np.int32)


def _images(pixels: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    return np.ascontiguousarray(pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


def _check_labels(lowest: int, highest: int, classes: int, origin: str) -> None:
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        _refuse(origin, f"has the label {wrong}; expected labels 0 to {classes - 1}")


def _refuse(origin: str, problem: str) -> NoReturn:
    raise data_error(origin, problem, CIFAR10_HOME)
