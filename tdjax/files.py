"""Files that readers, and a kill, see whole: the old content or the new, never a part."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place at `path` when all is written.

    Raises OSError that names `path`.
    """
    partial = partial_file(path)
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        # A full disk is told of without a name.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file at once. Raises OSError that names it."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def partial_file(path: Path) -> Path:
    """Where a file is while it is being written.

    A name of this process's own: two that write one file must not meet in a partial one.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def writer_of(name: str) -> int | None:
    """The number of the process that wrote a partial file; None for other names."""
    found = re.fullmatch(r"\..+\.([0-9]{1,18})\.partial", name, re.DOTALL)
    return int(found[1]) if found else None
