"""What a work directory has measured: its `metrics.jsonl`, of which a kill loses nothing."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from experiments.workdir.config import CONFIG, read_config
from experiments.workdir.fields import read_fields, with_earlier
from experiments.workdir.files import append_lines, parse_json, read_bytes

T = TypeVar("T")

# Kind of the records that say with which versions the others were measured.
ENVIRONMENT = "environment"
# When a record was appended: no part of what it says.
AT = "at"
Record = Mapping[str, Any]
# Kind of a record, and the values of the fields that identify it.
Identity = tuple[Any, ...]
Fields = Mapping[str, Any]
"""What each field of a JSON object must be.

A type, where a float may be written as a whole number; a mapping of the fields of an object; a list
of one such mapping; a pair of any of these and what is read where it is missing or null, such as
None, which leaves it so; or a function
(name, value) -> value that raises ValueError.
"""


def append_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines with one write, after cutting off what a killed writer left unfinished.

    Raises OSError that names the file, on a full disk for example; what it held is kept.
    """
    lines = "".join(json.dumps(record, allow_nan=True) + "\n" for record in records)
    append_lines(path, lines.encode("utf-8"))


@dataclass(frozen=True)
class Kind:
    """One kind of records.

    Arguments:
        names: the fields that identify a record of this kind.
        holds: further fields that are checked; a record may hold more.
    """

    names: Fields
    holds: Fields


Schema = Mapping[str, Kind]


@dataclass(frozen=True)
class Journal:
    """What was recorded before, and where more is appended.

    Arguments:
        schema: the kinds of records by name.
        found: every record of these, in the order of the file.
        environments: with which versions they were measured, in the order of the file.
        times: when they were appended, where that is known.
        environment: the versions of this process, recorded with its first record where the last
            ones were others; None to record none.
        told: is told of each record that was appended.
    """

    path: Path
    schema: Schema
    found: Mapping[Identity, Record]
    environments: tuple[Record, ...] = ()
    times: tuple[str, ...] = ()
    environment: Record | None = None
    told: Callable[[Record], object] | None = None
    _appended: dict[Identity, str] = field(default_factory=dict)
    # Networks are trained by several threads, each of which records its epochs.
    _lock: Any = field(default_factory=threading.Lock, compare=False)

    def identity(self, kind: str, fields: Record) -> Identity:
        """What identifies a record of such fields."""
        return (kind, *(fields.get(name) for name in self.schema[kind].names))

    def get(self, kind: str, **fields: Any) -> Record | None:
        """The record of such fields, or None where it is missing."""
        return self.found.get(self.identity(kind, fields))

    def of_kind(self, *kinds: str) -> list[Record]:
        """All records of some kinds."""
        return [record for identity, record in self.found.items() if identity[0] in kinds]

    def again(self) -> Journal:
        """The journal as it is now, with what was appended since it was read."""
        found = read_journal(self.path, self.schema)
        return replace(found, environment=self.environment, told=self.told)

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
            if identity not in texts:
                texts[identity] = text
                new.append(record)
            elif texts[identity] != text:
                raise ValueError(
                    f"{self.path}: {_named(identity)} was measured twice with other results, so "
                    "it is not recorded again; start again, and if it happens again, leave it out "
                    "of the configuration"
                )
        if new:
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
        known = about is None or self._appended or about in self.environments[-1:]
        return [] if known or about is None else [about]

    def _as_read(self, record: Record) -> tuple[Identity, str]:
        """What identifies a record when it is read again, and all of it as text."""
        try:
            read = _read(json.dumps(record).encode("utf-8"), self.schema)
        except (ValueError, TypeError) as error:
            kind = str(record.get("kind"))
            names = self.schema[kind].names if kind in self.schema else ()
            named = _named((kind, *(record.get(name) for name in names)))
            raise ValueError(
                f"{self.path}: {named} cannot be recorded, since it could not be read again: "
                f"{error}. Nothing was written; look whether the data and the weights of the "
                "network are finite, or leave it out of the configuration"
            ) from error
        return self.identity(read["kind"], read), _text(read)


def now() -> str:
    """The time to the second, of the zone UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_journal(path: Path, schema: Schema) -> Journal:
    """Read a journal; a last line that a kill cut off is ignored, no file is an empty one.

    Raises ValueError that names file and line for a line that is not JSON, a kind that is unknown,
    a field that is missing or of the wrong kind, and a second record of the same thing that differs
    from the first; one that is equal counts once.
    """
    found: dict[Identity, Record] = {}
    journal = Journal(path, schema, found)
    environments, times = [], []
    # A link that leads nowhere may lead to what was measured, on a disk that is not there.
    content = read_bytes(path) if os.path.lexists(path) else b""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            record = _read(line, schema)
            if record["kind"] == ENVIRONMENT:
                environments.append(record)
                continue
            if isinstance(at := record.pop(AT, None), str):
                times.append(at)
            identity = journal.identity(record["kind"], record)
            if _text(found.setdefault(identity, record)) != _text(record):
                raise ValueError(f"{_named(identity)} is recorded a second time")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return replace(journal, environments=tuple(environments), times=tuple(times))


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
    return raw, asked, read_journal(workdir / "metrics.jsonl", schema)


def checked(record: Any, fields: Fields) -> dict[str, Any]:
    """A JSON object with its fields as they must be.

    Raises ValueError that names the field which is missing or of another kind.
    """
    if not isinstance(record, dict):
        raise ValueError("a record must be a JSON object")
    found = dict(record)
    for name, kind in fields.items():
        if not (isinstance(kind, tuple) and record.get(name) is None):
            found[name] = _field(record, name, kind)
        elif kind[1] is not None:
            found[name] = kind[1]
    return found


def required(record: Record, name: str, kind: type) -> Any:
    """The field of a JSON object; raises ValueError if it is missing or not of that type."""
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    value = record[name]
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"field {name!r} is a number of more than 64 bits")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"field {name!r} is {value!r}, not of type {kind.__name__}")
    return value


def share(name: str, value: Any) -> float:
    """A number from 0 to 1. Raises ValueError for anything else."""
    number = float(required({name: value}, name, float))
    # NaN fails too.
    if not 0 <= number <= 1:
        raise ValueError(f"{name} {number} is not in [0, 1]")
    return number


def natural(name: str, value: Any) -> int:
    """A whole number of at least 1. Raises ValueError for anything else."""
    number = int(required({name: value}, name, int))
    if number < 1:
        raise ValueError(f"{name} is {number}, not at least 1")
    return number


def numbers(name: str, value: Any) -> list[float]:
    """A list of numbers. Raises ValueError for anything else."""
    return [required({name: one}, name, float) for one in required({name: value}, name, list)]


# How a network does on a set of examples.
SCORES: Fields = {"accuracy": share, "cross_entropy": float, "count": (natural, None)}


def _read(line: bytes, schema: Schema) -> dict[str, Any]:
    record = checked(parse_json(line), {})
    kind = required(record, "kind", str)
    if kind == ENVIRONMENT:
        return checked(record, dict.fromkeys(record, str))
    if kind not in schema:
        raise ValueError(f"kind {kind!r} is unknown; kinds are: {', '.join(schema)}")
    names, holds = schema[kind].names, schema[kind].holds
    try:
        read = checked(record, {**names, **holds})
    except (TypeError, ArithmeticError, LookupError, AttributeError) as error:
        # Of a field's own function, for which the value was too odd.
        raise ValueError(f"a field is of a wrong type ({error})") from error
    for name in names:
        # What is not equal to itself identifies nothing.
        if isinstance(read.get(name), float) and not math.isfinite(read[name]):
            raise ValueError(f"field {name!r} is {read[name]}, not a finite number")
    return read


def _named(identity: Identity) -> str:
    return f"the {identity[0]} {', '.join(map(str, identity[1:]))}".rstrip()


def _text(record: Record) -> str:
    # In which NaN equals NaN; a schema may make other objects of its fields.
    return json.dumps(record, sort_keys=True, default=repr)


def _field(record: Record, name: str, kind: Any) -> Any:
    if isinstance(kind, tuple):
        return _field(record, name, kind[0])
    if isinstance(kind, type):
        return required(record, name, kind)
    if isinstance(kind, Mapping):
        return checked(required(record, name, dict), kind)
    if isinstance(kind, list):
        return [checked(one, kind[0]) for one in required(record, name, list)]
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    return kind(name, record[name])
