"""CIFAR-10 in its published formats: binary and Python batches, as folders or as archives."""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int32, UInt8

from tdjax.data.errors import data_error, read_bytes

CIFAR10_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
NUM_CLASSES = 10

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_RECORD = 1 + _PIXELS

_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BINARY_NAMES = tuple(f"{batch}.bin" for batch in _BATCHES)
_BINARY_FOLDER, _BINARY_ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
_PYTHON_FOLDER, _PYTHON_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"

Batch = tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, "n"]]
# Where the bytes come from (for messages) and the bytes themselves.
_File = tuple[str, bytes]


def read_cifar10(
    folder: str | Path,
) -> tuple[
    UInt8[np.ndarray, "n 32 32 3"],
    Int32[np.ndarray, "n"],
    UInt8[np.ndarray, "m 32 32 3"],
    Int32[np.ndarray, "m"],
]:
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
    files, parse = _locate(Path(folder))
    batches = [parse(content, origin) for origin, content in files]
    first = len(batches[0][1])
    for (origin, _), (_, labels) in zip(files[1:5], batches[1:5], strict=True):
        # A file cut off between two records is whole by any check of its own.
        if len(labels) != first:
            _refuse(
                origin,
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


def parse_binary_batch(content: bytes, origin: str) -> Batch:
    """Return images and labels of one batch in the binary format.

    Args:
        content: records of one label byte and 3072 pixel bytes (planes red, green, blue).
        origin: name of the file, for the error message.

    Returns:
        Images uint8 (n, 32, 32, 3) and labels int32 (n,).

    Raises:
        DataError: the length is no positive multiple of 3073, or a label is above 9.

    Source: `CIFAR10_HOME`, "Binary version".
    """
    if not content or len(content) % _RECORD:
        raise data_error(
            origin,
            f"has {len(content)} bytes; expected a positive multiple of {_RECORD}, records of one "
            f"label byte and {_PIXELS} pixel bytes (the published files have {10_000 * _RECORD})",
            CIFAR10_HOME,
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return _batch(records[:, 1:], records[:, 0].astype(np.int32), origin)


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
        loaded = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    # Damaged pickles fail in the unpickler with nearly any type of exception.
    except Exception as error:
        problem = f"not a readable batch ({error}); expected a pickle of a dict of data and labels"
        raise data_error(origin, problem, CIFAR10_HOME) from error

    if not isinstance(loaded, dict):
        _refuse(origin, f"holds a {type(loaded).__name__}; expected a dict of data and labels")
    # Keys are bytes as published, str in a copy that Python 3 has pickled.
    data = loaded.get(b"data", loaded.get("data"))
    labels = loaded.get(b"labels", loaded.get("labels"))
    pixels = data.array if isinstance(data, _PickledArray) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not len(pixels):
        found = type(data).__name__ if pixels is None else f"shape {pixels.shape}"
        _refuse(origin, f"data is {found}; expected a uint8 array of shape (n, {_PIXELS}), n > 0")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        _refuse(origin, f"labels is no list of integers; expected {len(pixels)} of them")
    if len(labels) != len(pixels):
        _refuse(origin, f"has {len(labels)} labels; expected {len(pixels)}, one for each image")
    # Before the cast, in which a label beyond int32 would overflow.
    _check_labels(min(labels), max(labels), origin)
    return _batch(pixels, np.array(labels, np.int32), origin)


def _batch(
    pixels: UInt8[np.ndarray, "n 3072"], labels: Int32[np.ndarray, "n"], origin: str
) -> Batch:
    _check_labels(int(labels.min()), int(labels.max()), origin)
    images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _check_labels(lowest: int, highest: int, origin: str) -> None:
    if lowest < 0 or highest >= NUM_CLASSES:
        wrong = lowest if lowest < 0 else highest
        _refuse(origin, f"has the label {wrong}; expected labels 0 to {NUM_CLASSES - 1}")


def _refuse(origin: str, problem: str) -> NoReturn:
    raise data_error(origin, problem, CIFAR10_HOME)


def _locate(folder: Path) -> tuple[list[_File], Callable[[bytes, str], Batch]]:
    forms: tuple[tuple[str, str, Sequence[str], Callable[[bytes, str], Batch]], ...] = (
        (_BINARY_FOLDER, _BINARY_ARCHIVE, _BINARY_NAMES, parse_binary_batch),
        (_PYTHON_FOLDER, _PYTHON_ARCHIVE, _BATCHES, parse_python_batch),
    )
    for name, _, files, parse in forms:
        if (folder / name).is_dir():
            return _read_folder(folder / name, files), parse
        if folder.name == name or any((folder / file).is_file() for file in files):
            return _read_folder(folder, files), parse
    for name, archive, files, parse in forms:
        if (folder / archive).is_file():
            return _read_archive(folder / archive, [f"{name}/{file}" for file in files]), parse
    _refuse(
        str(folder),
        f"CIFAR-10 is not in this folder; expected {_BINARY_FOLDER} (with {_BINARY_NAMES[0]} to 5 "
        f"and {_BINARY_NAMES[-1]}), {_PYTHON_FOLDER} (with {_BATCHES[0]} to 5 and {_BATCHES[-1]}), "
        f"{_BINARY_ARCHIVE} or {_PYTHON_ARCHIVE}",
    )


def _read_folder(folder: Path, names: Sequence[str]) -> list[_File]:
    for name in names:
        if not (folder / name).is_file():
            _refuse(str(folder / name), f"no such file; expected {', '.join(names)} in the folder")
    return [(str(folder / name), read_bytes(folder / name, CIFAR10_HOME)) for name in names]


def _read_archive(path: Path, names: Sequence[str]) -> list[_File]:
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                name = str(PurePosixPath(member.name))
                if name in names and member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None
                    contents[name] = file.read()
            # gzip compares its checksum at the end of the stream only, tar stops before it.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        problem = f"truncated or damaged archive ({error}); expected a whole tar.gz file"
        raise data_error(path, problem, CIFAR10_HOME) from error
    for name in names:
        if name not in contents:
            _refuse(str(path), f"no file {name} in the archive; expected {', '.join(names)}")
    return [(f"{path} ({name})", contents[name]) for name in names]


class _PickledDtype:
    # Stands in for numpy.dtype: the published files hold unsigned bytes and nothing else.
    def __init__(self, code: Any, *_flags: Any) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"it holds an array of dtype {code!r} in place of uint8")

    def __setstate__(self, state: Any) -> None:
        pass


class _PickledArray:
    # Stands in for numpy.ndarray, whose own state setter trusts the shape and dtype it is given.
    array: UInt8[np.ndarray, "..."]

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array that is no plain array of bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_arguments: Any) -> _PickledArray:
    return _PickledArray()


def _encode(text: Any, encoding: Any) -> bytes:
    # How Python 3 writes bytes in the protocol of the published files.
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it encodes text otherwise than as latin1")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return _ALLOWED[module, name]
