"""The files of a data set in the forms in which it is published: a folder, or an archive of it."""

import gzip
import tarfile
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from experiments.data.errors import data_error, read_bytes
from tdjax.files import open_regular

# Far more than any of the sets has.
_MOST_MEMBERS = 1000


class Form(NamedTuple):
    """One of the forms in which a set is published.

    Args:
        folder, archive, files: their names.
        most: bytes of one of its files at most.
    """

    folder: str
    archive: str
    files: Sequence[str]
    most: int


class File(NamedTuple):
    """Where a file's bytes come from, for messages, and the bytes themselves."""

    origin: str
    content: bytes


def read_published(
    folder: Path, forms: Sequence[Form], home: str, expected: str
) -> tuple[Form, list[File]]:
    """Read the files of the first form that `folder` holds.

    Args:
        folder: the folder of a form itself, or the one that holds it or its archive. Archives are
            read in place, nothing is written.
        forms: those to look for.
        home: the page where the set is published, for messages.
        expected: what is said if no form is there.

    Returns:
        The form, and its files in their order.

    Raises:
        DataError: no form is there, a file of it is missing, or an archive is damaged.
    """
    for form in forms:
        if (folder / form.folder).is_dir():
            return form, _read_folder(folder / form.folder, form, home)
        if any((folder / file).is_file() for file in form.files):
            return form, _read_folder(folder, form, home)
    for form in forms:
        if (folder / form.archive).is_file():
            return form, _read_archive(folder / form.archive, form, home)
    for form in forms:
        if folder.name == form.folder:
            return form, _read_folder(folder, form, home)
    raise data_error(folder, expected, home)


def _read_folder(folder: Path, form: Form, home: str) -> list[File]:
    for name in form.files:
        if not (folder / name).is_file():
            problem = f"no such file; expected {', '.join(form.files)} in the folder"
            raise data_error(folder / name, problem, home)
    return [
        File(str(folder / name), read_bytes(folder / name, home, form.most)) for name in form.files
    ]


def _read_archive(path: Path, form: Form, home: str) -> list[File]:
    names = [f"{form.folder}/{file}" for file in form.files]
    try:
        with open_regular(path) as file, gzip.open(file) as stream:
            contents = _members(stream, names, form.most)
    # Damaged headers fail in the reader with nearly any type of exception.
    except Exception as error:
        problem = f"truncated or damaged archive ({error}); expected a whole tar.gz file"
        raise data_error(path, problem, home) from error
    for name in names:
        if name not in contents:
            problem = f"no file {name} in the archive; expected {', '.join(names)}"
            raise data_error(path, problem, home)
    return [File(f"{path} ({name})", contents[name]) for name in names]


class _Bounded:
    """A stream of which no more than `most` bytes are read; raises tarfile.ReadError beyond."""

    def __init__(self, stream: BufferedIOBase, most: int) -> None:
        self._stream, self._most, self._left = stream, most, most

    def read(self, size: int) -> bytes:
        content = self._stream.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise tarfile.ReadError(f"it is unpacked to more than {self._most:,} bytes")
        return content


def _members(stream: BufferedIOBase, names: Sequence[str], most: int) -> dict[str, bytes]:
    """The files of a tar archive that have these names, each of `most` bytes at most."""
    contents: dict[str, bytes] = {}
    # What else is in an archive is less than another of its files.
    bounded = _Bounded(stream, (len(names) + 1) * most)
    with tarfile.open(fileobj=bounded, mode="r|") as archive:  # type: ignore[call-overload]
        for number, member in enumerate(archive):
            if number == _MOST_MEMBERS:
                raise tarfile.ReadError(f"it has more than {_MOST_MEMBERS} members")
            name = str(PurePosixPath(member.name))
            if name not in names or not member.isfile():
                continue
            # Of a sparse file the archive holds less than its size says.
            if member.issparse() or member.size > most:
                raise tarfile.ReadError(f"{name} has {member.size:,} bytes")
            file = archive.extractfile(member)
            assert file is not None
            contents[name] = file.read()
    # gzip compares its checksum at the end of the stream only, tar stops before it.
    while bounded.read(1 << 20):
        pass
    return contents
