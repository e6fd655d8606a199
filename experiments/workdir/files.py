"""Files of a work directory that are read, whatever became of them, and cleared of leftovers."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.workdir.processes import start_of
from tdjax.files import open_regular, writer_of

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def naming(workdir: Path) -> Iterator[None]:
    """A block in which a work directory is looked at or made.

    Raises ValueError that names it where it cannot be one: a file, a loop of links, a long name.
    """
    if "\0" in str(workdir):
        raise ValueError(f"workdir {str(workdir)!r}: no name holds a NUL; use another workdir")
    try:
        yield
    except OSError as error:
        problem = error.strerror
        if isinstance(error, FileExistsError):
            problem = "it is no folder, or a link that leads to none"
        elif str(error.filename) != str(workdir):
            problem = f"{error.filename}: {problem}"
        raise ValueError(f"workdir {workdir}: {problem}; use another workdir") from error


@contextmanager
def writable(workdir: Path) -> Iterator[None]:
    """A block that writes the first file to a work directory.

    Raises ValueError that names it where nothing can be written to it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        raise ValueError(
            f"workdir {workdir}: nothing can be written to it ({error.strerror}); make it "
            "writable, or use another workdir"
        ) from error


def page_of(workdir: Path) -> Path:
    """The page of a work directory's report."""
    return workdir / "report" / "index.html"


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises OSError for what is no file, such as a pipe."""
    with open_regular(path) as file:
        return file.read()


def parse_json(text: bytes) -> Any:
    """A JSON value. Raises ValueError for anything else."""
    try:
        return json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path))


def append_lines(path: Path, lines: bytes) -> None:
    """Append lines with one write, after cutting off one that is not finished; kept at a kill.

    Raises OSError that names the file; what it held is kept.
    """
    try:
        # Without a buffer: what could not be written would be tried again when it is closed.
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            end = _end_of_lines(file, size)
            if end < size:
                file.truncate(end)
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _end_of_lines(file: io.FileIO, size: int, step: int = 1 << 16) -> int:
    """Where the last whole line of a file ends."""
    end = size
    while end:
        start = max(end - step, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left unfinished in a folder and in those below it."""
    for where, folders, files in os.walk(folder):
        for name in files:
            writer = writer_of(name)
            if writer is not None and (writer == os.getpid() or start_of(writer) is None):
                Path(where, name).unlink(missing_ok=True)
        # Of checkpoints, whose writers are not named.
        for name in [name for name in folders if ".orbax-checkpoint-tmp" in name]:
            folders.remove(name)
            shutil.rmtree(Path(where, name), ignore_errors=True)
