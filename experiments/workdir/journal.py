"""What a work directory has measured: its `metrics.jsonl`, of which a kill loses nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from experiments.workdir.config import CONFIG, read_config
from experiments.workdir.fields import read_fields, with_earlier
from experiments.workdir.files import append_lines
from experiments.workdir.reading import Reader
from experiments.workdir.record_fields import (
    AT,
    Identity,
    Record,
    Schema,
    identity_of,
    named,
    read_record,
    text_of,
)

T = TypeVar("T")
JOURNAL = "metrics.jsonl"


def append_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines with one write, after cutting off what a killed writer left unfinished.

    Raises OSError that names the file, on a full disk for example; what it held is kept.
    """
    lines = "".join(json.dumps(record, allow_nan=True) + "\n" for record in records)
    append_lines(path, lines.encode("utf-8"))


@dataclass(frozen=True)
class Journal:
    """What was recorded before, and where more is appended.

    Arguments:
        path: where more is appended.
        reader: of this file and those beside it.
        found: every record of these, in the order of the files.
        environments: with which versions they were measured, in the order of the files.
        times: when they were appended, where that is known.
        environment: the versions of this process, recorded with its first record where the last
            ones were others; None to record none.
        told: is told of each record that was appended.
        check: raises InUseError where this process is not to append any more.
    """

    path: Path
    reader: Reader
    found: Mapping[Identity, Record]
    environments: tuple[Record, ...] = ()
    times: tuple[str, ...] = ()
    environment: Record | None = None
    told: Callable[[Record], object] | None = None
    check: Callable[[], object] | None = None
    _appended: dict[Identity, str] = field(default_factory=dict)
    # Networks are trained by several threads, each of which records its epochs; what `again` gives
    # has the same two.
    _lock: Any = field(default_factory=threading.Lock, compare=False)

    @property
    def schema(self) -> Schema:
        """The kinds of records by name."""
        return self.reader.schema

    def identity(self, kind: str, fields: Record) -> Identity:
        """What identifies a record of such fields."""
        return identity_of(kind, fields, self.schema)

    def get(self, kind: str, **fields: Any) -> Record | None:
        """The record of such fields, or None where it is missing."""
        return self.found.get(self.identity(kind, fields))

    def of_kind(self, *kinds: str) -> list[Record]:
        """All records of some kinds."""
        return [record for identity, record in self.found.items() if identity[0] in kinds]

    def again(self) -> Journal:
        """The journal as it is now, with what was appended since it was read, by others too."""
        now = _journal(self.path, self.reader)
        return replace(self, found=now.found, environments=now.environments, times=now.times)

    def holds(self, names: Iterable[Identity]) -> bool:
        """Whether all of these are there, as far as it was read and appended to."""
        return all(
            any(name in own for own in (self.found, self._appended, self.reader.found))
            for name in names
        )

    def append(self, records: Sequence[Record]) -> list[Record]:
        """Append those that were not found when the journal was read; these are returned.

        Raises ValueError that names the record, and writes nothing of them, for one that could not
        be read again: a field that the schema refuses, a second record of the same thing.
        """
        with self._lock:
            return self._append(records)

    def _append(self, records: Sequence[Record]) -> list[Record]:
        texts = dict(self._appended)
        new = []
        for record in records:
            identity, text = self._as_read(record)
            if identity in self.found:
                continue
            if identity not in texts and identity in self.reader.found:
                # Another process took this one's work over, or this one another's.
                continue
            if identity not in texts:
                texts[identity] = text
                new.append(record)
            elif texts[identity] != text:
                raise ValueError(
                    f"{self.path}: {named(identity)} was measured twice with other results, so "
                    "it is not recorded again; start again, and if it happens again, leave it out "
                    "of the configuration"
                )
        if new:
            if self.check is not None:
                self.check()
            append_records(self.path, [*self._dated(new), *self._unrecorded()])
            self._appended.update(texts)
            if self.told is not None:
                for record in new:
                    self.told(record)
        return new

    def _dated(self, records: Sequence[Record]) -> list[Record]:
        """The records, the last of them with the time where that of this process is recorded."""
        *most, last = records
        return [*most, last if self.environment is None else {**last, AT: now()}]

    def _unrecorded(self) -> list[Record]:
        """What this process measures with, where that is not recorded yet."""
        about = self.environment
        known = about is None or self._appended or about in self.reader.environments(self.path)[-1:]
        return [] if known or about is None else [about]

    def _as_read(self, record: Record) -> tuple[Identity, str]:
        """What identifies a record when it is read again, and all of it as text."""
        try:
            read = read_record(json.dumps(record).encode("utf-8"), self.schema)
        except (ValueError, TypeError) as error:
            kind = str(record.get("kind"))
            names = self.schema[kind].names if kind in self.schema else ()
            what = named((kind, *(record.get(name) for name in names)))
            raise ValueError(
                f"{self.path}: {what} cannot be recorded, since it could not be read again: "
                f"{error}. Nothing was written; look whether the data and the weights of the "
                "network are finite, or leave it out of the configuration"
            ) from error
        return self.identity(read["kind"], read), text_of(read)


def now() -> str:
    """The time to the second, of the zone UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_journal(path: Path, schema: Schema) -> Journal:
    """Read a journal, with those beside it of the processes of a group.

    A last line that a kill cut off is ignored, no file is an empty one.

    Raises ValueError that names file and line for a line that is not JSON, a kind that is unknown,
    a field that is missing or of the wrong kind, and a second record of the same thing that differs
    from the first; one that is equal counts once.
    """
    return _journal(path, Reader(path, schema))


def _journal(path: Path, reader: Reader) -> Journal:
    found = reader.refresh()
    environments, times = reader.environments(), reader.times()
    return Journal(path, reader, found, tuple(environments), tuple(times))


def read_workdir(
    workdir: Path, settings: type[T], schema: Schema
) -> tuple[dict[str, Any], T, Journal]:
    """The configuration of an experiment, as written and as settings, and what it has measured.

    Raises FileNotFoundError where the configuration is missing, ValueError where one of the files
    cannot be understood.
    """
    raw = read_config(workdir)
    try:
        asked = read_fields(settings, with_earlier(settings, raw))
    except ValueError as error:
        raise ValueError(f"{workdir / CONFIG}: {error}") from error
    return raw, asked, read_journal(workdir / JOURNAL, schema)
