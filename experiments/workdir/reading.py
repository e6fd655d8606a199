"""The journals of a work directory, read as one, and only what was added to them since.

Beside `metrics.jsonl` there may be `metrics-0.jsonl` and so on, one of each process of a group, see
`experiments.workdir.group`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from experiments.workdir.record_fields import (
    AT,
    ENVIRONMENT,
    Identity,
    Record,
    Schema,
    identity_of,
    named,
    read_record,
    text_of,
)
from tdjax.files import open_regular

# How often files that change meanwhile are read again.
TIMES = 5


def own_journal(path: Path, number: int) -> Path:
    """The journal of a process of a group, beside that of all."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def own_journals(path: Path) -> dict[int, Path]:
    """Those that are there, by the number of the process."""
    pattern = re.compile(rf"{re.escape(path.stem)}-(0|[1-9]\d{{0,8}}){re.escape(path.suffix)}")
    found = path.parent.iterdir() if path.parent.is_dir() else ()
    numbers = {int(own[1]): file for file in found if (own := pattern.fullmatch(file.name))}
    return dict(sorted(numbers.items()))


@dataclass
class _Read:
    """How far a file is read, and what it says beside its records."""

    file: tuple[int, int] = (0, 0)
    state: tuple[int, int] = (0, 0)
    end: int = 0
    lines: int = 0
    environments: list[Record] = field(default_factory=list)
    times: list[str] = field(default_factory=list)


class Reader:
    """What all journals of a work directory hold; `refresh` reads what is new.

    Arguments:
        path: of the one that all others are merged into.
        schema: the kinds of records by name.
        numbers: of processes whose journals are there, whether the folder's list names them yet: a
            file server may give an old one.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        """Nothing is read yet."""
        self.path, self.schema = path, schema
        self.found: dict[Identity, Record] = {}
        self.numbers: set[int] = set()
        self._files: dict[Path, _Read] = {}
        self._lock = threading.Lock()

    def refresh(self) -> dict[Identity, Record]:
        """Read what is new; all records, in the order in which they were read.

        Raises ValueError that names file and line for a line that cannot be read, and for a second
        record of the same thing that differs from the first; one that is equal counts once.
        """
        with self._lock:
            # A record may rest on one in a file that was read before: again, until none changes.
            for _ in range(TIMES):
                if not sum(self._refresh(file) for file in self._listed()):
                    break
            return dict(self.found)

    def environments(self, *only: Path) -> list[Record]:
        """With which versions records were measured, of some files or all, in their order."""
        found: list[Record] = []
        with self._lock:
            for file, read in self._files.items():
                if not only or file in only:
                    # What was merged stands in two files for a while.
                    found += [
                        one for one in read.environments if file == self.path or one not in found
                    ]
        return found

    def times(self) -> list[str]:
        """When records were appended, where that is known."""
        with self._lock:
            return [time for read in self._files.values() for time in read.times]

    def _listed(self) -> list[Path]:
        known = {number: own_journal(self.path, number) for number in self.numbers}
        others = {**own_journals(self.path), **known}
        return [self.path, *(others[number] for number in sorted(others))]

    def _refresh(self, path: Path) -> bool:
        """Whether there was anything new in a file."""
        read = self._files.get(path, _Read())
        # A link that leads nowhere may lead to what was measured, on a disk that is not there.
        if not os.path.lexists(path):
            return False
        try:
            file = open_regular(path)
        except FileNotFoundError:
            if path == self.path:
                raise
            # Merged in between.
            return False
        with file:
            about = os.fstat(file.fileno())
            name, state = (about.st_dev, about.st_ino), (about.st_size, about.st_mtime_ns)
            if (name, state) == (read.file, read.state):
                return False
            if name != read.file or about.st_size < read.end:
                read = _Read(name)
            file.seek(read.end)
            content = file.read()
        for line in _whole_lines(content):
            read.lines += 1
            read.end += len(line) + 1
            if line.strip():
                try:
                    self._take(read, line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {read.lines}: {error}") from error
        read.state = state
        self._files[path] = read
        return True

    def _take(self, read: _Read, line: bytes) -> None:
        record = read_record(line, self.schema)
        if record["kind"] == ENVIRONMENT:
            read.environments.append(record)
            return
        if isinstance(at := record.pop(AT, None), str):
            read.times.append(at)
        identity = identity_of(record["kind"], record, self.schema)
        if text_of(self.found.setdefault(identity, record)) != text_of(record):
            raise ValueError(f"{named(identity)} is recorded a second time")


def _whole_lines(content: bytes) -> Iterator[bytes]:
    """Those that are ended: what a kill cut off, or is being written, is none."""
    yield from content.split(b"\n")[:-1]
