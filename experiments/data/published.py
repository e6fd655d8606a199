"""The files of a data set in the forms in which it is published: a folder, or an archive of it."""

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from experiments.data.errors import data_error, read_bytes


class Form(NamedTuple):
    """One of the forms in which a set is published: names of its folder, archive and files."""

    folder: str
    archive: str
    files: Sequence[str]


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
            return form, _read_folder(folder / form.folder, form.files, home)
        if any((folder / file).is_file() for file in form.files):
            return form, _read_folder(folder, form.files, home)
    for form in forms:
        if (folder / form.archive).is_file():
            names = [f"{form.folder}/{file}" for file in form.files]
            return form, _read_archive(folder / form.archive, names, home)
    for form in forms:
        if folder.name == form.folder:
            return form, _read_folder(folder, form.files, home)
    raise data_error(folder, expected, home)


def _read_folder(folder: Path, names: Sequence[str], home: str) -> list[File]:
    for name in names:
        if not (folder / name).is_file():
            problem = f"no such file; expected {', '.join(names)} in the folder"
            raise data_error(folder / name, problem, home)
    return [File(str(folder / name), read_bytes(folder / name, home)) for name in names]


def _read_archive(path: Path, names: Sequence[str], home: str) -> list[File]:
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
        raise data_error(path, problem, home) from error
    for name in names:
        if name not in contents:
            problem = f"no file {name} in the archive; expected {', '.join(names)}"
            raise data_error(path, problem, home)
    return [File(f"{path} ({name})", contents[name]) for name in names]
