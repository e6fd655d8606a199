"""Files that readers, and a kill, see whole: the old content or the new, never a part.

And files from elsewhere, of which no more is read than they can be asked for.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import numpy as np

# That a disk, or a share of one, is full.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of a message from elsewhere, as much as a person reads.
LONGEST_MESSAGE = 600


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place at `path` when all is written.

    Raises OSError that names `path`.
    """
    partial = partial_file(path)
    try:
        with writing(path):
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes a file or a folder.

    Raises OSError that names it, in one line: a full disk is told of without a name, and by other
    libraries as an error of another type.
    """
    try:
        yield
    except Exception as error:
        full = next((number for number in FULL if os.strerror(number) in str(error)), None)
        if isinstance(error, OSError):
            number, text = error.errno or errno.EIO, error.strerror or one_line(error)
        elif full is not None:
            number, text = full, os.strerror(full)
        else:
            raise
        raise OSError(number, text, str(path)) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file at once. Raises OSError that names it."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A file opened for reading, or a link to one.

    Raises OSError for anything else: opening a pipe would wait for a writer, a device may never
    end.
    """
    # Without the flag a pipe waits before it can be told from a file.
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def one_line(error: object) -> str:
    """What an error says, in one line of a length that people read."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."


def array_digest(array: Any) -> str:
    """SHA-256 of an array's dtype, shape and bytes, in hexadecimal digits."""
    # No copy where it lies in order; of a scalar the shape () would become (1,).
    plain, shape = np.ascontiguousarray(array), np.shape(array)
    found = hashlib.sha256(f"{plain.dtype} {shape} ".encode())
    found.update(plain.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


@dataclass(frozen=True)
class Member:
    """An array in an npz file, as its header says; `read` gives it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def opened_npz(path: str | os.PathLike[str]) -> Iterator[Mapping[str, Member]]:
    """The arrays of an npz file by name, none of them read yet.

    Nothing in it is run, and an array takes the memory that its header says, which its size in the
    file agrees with.

    Raises OSError for a file that cannot be opened, and nearly any type of exception for one that
    is damaged, here or where an array is read.
    """
    with open_regular(path) as raw, zipfile.ZipFile(raw) as archive:
        members = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise ValueError(f"{name!r} is there twice")
            members[name] = _member(archive, info)
        yield members


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        # Later versions are for structured arrays, and have headers of any length.
        if version != (1, 0):
            raise ValueError(f"{info.filename!r} is of version {version}")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if dtype.hasobject or dtype.names is not None:
        raise ValueError(f"{info.filename!r} holds {dtype}, which is no plain array")
    size = start + math.prod(shape) * dtype.itemsize
    if size != info.file_size or min(shape, default=0) < 0:
        raise ValueError(f"{info.filename!r} has {info.file_size} bytes, its header says {size}")

    def read() -> np.ndarray:
        # To the end, where the checksum is compared.
        content = archive.read(info)
        flat = np.frombuffer(content, dtype, offset=start)
        return flat.reshape(shape, order="F" if by_columns else "C")

    return Member(tuple(shape), dtype, read)


def partial_file(path: Path) -> Path:
    """Where a file is while it is being written.

    A name of this process's own: two that write one file must not meet in a partial one.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def writer_of(name: str) -> int | None:
    """The number of the process that wrote a partial file; None for other names."""
    found = re.fullmatch(r"\..+\.([0-9]{1,18})\.partial", name, re.DOTALL)
    return int(found[1]) if found else None
