"""IDX files, the format in which MNIST and Fashion-MNIST are published."""

import gzip
import math
import os
import zlib
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Int32, UInt8

from experiments.data.errors import data_error
from tdjax.files import open_regular

MNIST_HOME = "http://yann.lecun.com/exdb/mnist/"
FASHION_MNIST_HOME = "https://github.com/zalandoresearch/fashion-mnist"
NUM_CLASSES = 10

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
# So many bytes one of gzip stands for at most.
_MOST_PACKED = 1032


def read_idx(path: str | Path, ndim: int, home: str) -> UInt8[np.ndarray, "..."]:
    """Read one IDX file of unsigned bytes, plain or gzip.

    Args:
        path: the file; whether it is gzip is told by its content, not by its name.
        ndim: number of dimensions the file must have.
        home: the data set's home page, for the error message.

    Returns:
        uint8 array of the shape in the file's header.

    Raises:
        DataError: the file cannot be read, its gzip stream is damaged, the magic number is another
            one, it holds no element, or its length is not the one its header asks for.

    Source: the format's description on the MNIST home page (`MNIST_HOME`).
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            # Browsers may decompress a download and keep the name, so the suffix says little.
            if file.peek(2).startswith(_GZIP_MAGIC):
                return _read_packed(file, path, ndim, home)
            size = os.fstat(file.fileno()).st_size
            shape, expected = _read_header(file, path, ndim, home)
            if size != expected:
                _refuse_size(path, f"has {size} bytes", shape, expected, home)
            return _array(file.read(), shape)
    except OSError as error:
        raise data_error(path, f"cannot be read ({error.strerror or error})", home) from error


def _read_packed(
    file: BufferedReader, path: Path, ndim: int, home: str
) -> UInt8[np.ndarray, "..."]:
    """The array of a gzip stream, of which no more is unpacked than its header says."""
    packed = os.fstat(file.fileno()).st_size
    try:
        with gzip.open(file) as stream:
            shape, expected = _read_header(stream, path, ndim, home)
            if expected > packed * _MOST_PACKED:
                _refuse_size(path, f"is gzip data of {packed} bytes", shape, expected, home)
            header = expected - math.prod(shape)
            # One more, to see the end, where the checksum is compared.
            content = stream.read(expected - header + 1)
    except (EOFError, OSError, zlib.error) as error:
        problem = f"truncated or damaged gzip data ({error}); expected one whole gzip stream"
        raise data_error(path, problem, home) from error
    found = header + len(content)
    if found != expected:
        more = "more than " if found > expected else ""
        _refuse_size(path, f"has {more}{min(found, expected)} bytes", shape, expected, home)
    return _array(content, shape)


def _read_header(
    stream: BufferedIOBase, path: Path, ndim: int, home: str
) -> tuple[tuple[int, ...], int]:
    """The shape of the array, and the bytes that a file with it has."""
    size = 4 + 4 * ndim
    header = stream.read(size)
    magic = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if header[:4] != magic:
        raise data_error(
            path,
            f"starts with the bytes 0x{header[:4].hex()}; expected the magic number "
            f"0x{magic.hex()} (IDX, unsigned bytes, {ndim} dimensions) or gzip data of such a file",
            home,
        )
    if len(header) < size:
        problem = f"has {len(header)} bytes; expected a header of {size} bytes"
        raise data_error(path, problem, home)
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, size, 4))
    if not math.prod(shape):
        raise data_error(path, f"holds no data (shape {shape}); expected at least one entry", home)
    return shape, size + math.prod(shape)


def _refuse_size(
    path: Path, found: str, shape: tuple[int, ...], expected: int, home: str
) -> NoReturn:
    header = expected - math.prod(shape)
    raise data_error(
        path,
        f"{found}; expected {expected} bytes (a header of {header} and an array of shape {shape})",
        home,
    )


def _array(content: bytes, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_folder(
    folder: str | Path, home: str
) -> tuple[
    UInt8[np.ndarray, "n h w 1"],
    Int32[np.ndarray, "n"],
    UInt8[np.ndarray, "m h w 1"],
    Int32[np.ndarray, "m"],
]:
    """Read the four IDX files of MNIST or Fashion-MNIST.

    Args:
        folder: folder that holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same
            of `t10k`, each also with `.gz` or with `.idx` in place of `-idx`.
        home: the data set's home page, for the error message.

    Returns:
        Training images, training labels, test images, test labels: images uint8 of one channel,
        labels int32.

    Raises:
        DataError: a file is missing or damaged, images and labels differ in number, a label is
            above 9, or training and test images differ in size.

    Source: `MNIST_HOME`, `FASHION_MNIST_HOME`.
    """
    folder = Path(folder)
    train_images, train_labels = _read_part(folder, "train", home)
    test_images, test_labels = _read_part(folder, "t10k", home)
    if test_images.shape[1:] != train_images.shape[1:]:
        raise data_error(
            _find(folder, "t10k-images", 3, home),
            f"images of {test_images.shape[1:3]} pixels; expected {train_images.shape[1:3]} "
            "as in the training images",
            home,
        )
    return train_images, train_labels, test_images, test_labels


def _read_part(
    folder: Path, part: str, home: str
) -> tuple[UInt8[np.ndarray, "n h w 1"], Int32[np.ndarray, "n"]]:
    images_path = _find(folder, f"{part}-images", 3, home)
    labels_path = _find(folder, f"{part}-labels", 1, home)
    images = read_idx(images_path, 3, home)
    labels = read_idx(labels_path, 1, home)
    if len(images) != len(labels):
        raise data_error(
            labels_path,
            f"has {len(labels)} labels; expected {len(images)}, one for each image of "
            f"{images_path.name}",
            home,
        )
    if labels.max() >= NUM_CLASSES:
        problem = f"has the label {labels.max()}; expected labels 0 to {NUM_CLASSES - 1}"
        raise data_error(labels_path, problem, home)
    return images[..., None], labels.astype(np.int32)


def _find(folder: Path, stem: str, ndim: int, home: str) -> Path:
    names = [
        f"{stem}{separator}idx{ndim}-ubyte{suffix}" for separator in "-." for suffix in ("", ".gz")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    problem = f"no such file; expected one of {', '.join(names)} in the folder {folder}"
    raise data_error(folder / names[0], problem, home)
