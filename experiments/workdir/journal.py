"""The files of a running experiment: written so that a kill at any moment loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from experiments.workdir.fields import read_fields
from tdjax.files import write_atomically

T = TypeVar("T")

# In place of a field that one of two configurations lacks.
OFF: Mapping[str, Any] = MappingProxyType({})
Record = Mapping[str, Any]
# Kind of a record, and the values of the fields that identify it.
Identity = tuple[Any, ...]
Fields = Mapping[str, Any]
"""What each field of a JSON object must be.

A type, where a float may be written as a whole number; a mapping of the fields of an object; a list
of one such mapping; a pair of any of these and None for what may be missing or null; or a function
(name, value) -> value that raises ValueError.
"""


def claim_workdir(workdir: Path, config: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Make the work directory this configuration's, or find that it is already.

    A field that only one of them knows, as one written by another version, must be off: None, 0,
    False or empty.

    Arguments:
        config: plain JSON values.
        free: paths of the fields that may change; what is there then takes the new values.

    Raises ValueError, and touches nothing, where it holds another configuration or things that
    are not an experiment's.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            present = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); use another workdir") from error
        changed = _differences(present, json.loads(json.dumps(config)))
        differing = sorted(set(changed) - set(free))
        if differing:
            raise ValueError(
                f"{workdir} holds another configuration; fields that differ: "
                f"{', '.join(differing)}; use another workdir"
            )
        if changed:
            write_atomically(path, json.dumps(config, indent=2) + "\n")
        return
    # A claim that was killed half way leaves nothing but its part of the file.
    if workdir.exists() and any(
        not found.name.startswith(f".{path.name}.") for found in workdir.iterdir()
    ):
        raise ValueError(f"{workdir} is not empty and holds no config.json; use another workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(config, indent=2) + "\n")


def append_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines with one write, after cutting off what a killed writer left unfinished."""
    lines = "".join(json.dumps(record, allow_nan=True) + "\n" for record in records)
    with open(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            if whole < end:
                file.truncate(whole)
                file.seek(0, os.SEEK_END)
        file.write(lines.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


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
        found: every record, in the order of the file.
    """

    path: Path
    schema: Schema
    found: Mapping[Identity, Record]

    def identity(self, kind: str, fields: Record) -> Identity:
        """What identifies a record of such fields."""
        return (kind, *(fields.get(name) for name in self.schema[kind].names))

    def get(self, kind: str, **fields: Any) -> Record | None:
        """The record of such fields, or None where it is missing."""
        return self.found.get(self.identity(kind, fields))

    def of_kind(self, *kinds: str) -> list[Record]:
        """All records of some kinds."""
        return [record for identity, record in self.found.items() if identity[0] in kinds]

    def append(self, records: Sequence[Record]) -> list[Record]:
        """Append those that were not found when the journal was read; these are returned."""
        new = [r for r in records if self.identity(r["kind"], r) not in self.found]
        if new:
            append_records(self.path, new)
        return new


def read_journal(path: Path, schema: Schema) -> Journal:
    """Read a journal; a last line that a kill cut off is ignored, no file is an empty one.

    Raises ValueError that names file and line for a line that is not JSON, a kind that is unknown,
    a field that is missing or of the wrong kind, and a second record of the same thing that differs
    from the first; one that is equal counts once.
    """
    journal = Journal(path, schema, {})
    found: dict[Identity, Record] = {}
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            record = _read(line, schema)
            identity = journal.identity(record["kind"], record)
            if _text(found.setdefault(identity, record)) != _text(record):
                named = f"the {identity[0]} {', '.join(map(str, identity[1:]))}".rstrip()
                raise ValueError(f"{named} is recorded a second time")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return Journal(path, schema, found)


def read_workdir(
    workdir: Path, settings: type[T], schema: Schema
) -> tuple[dict[str, Any], T, Journal]:
    """The configuration of an experiment, as written and as settings, and what it has measured.

    Raises FileNotFoundError where the configuration is missing, ValueError where one of the files
    cannot be understood.
    """
    path = workdir / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
        asked = read_fields(settings, raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return raw, asked, read_journal(workdir / "metrics.jsonl", schema)


def checked(record: Any, fields: Fields) -> dict[str, Any]:
    """A JSON object with its fields as they must be.

    Raises ValueError that names the field which is missing or of another kind.
    """
    if not isinstance(record, dict):
        raise ValueError("a record must be a JSON object")
    return record | {
        name: _field(record, name, kind)
        for name, kind in fields.items()
        if not (isinstance(kind, tuple) and record.get(name) is None)
    }


def required(record: Record, name: str, kind: type) -> Any:
    """The field of a JSON object; raises ValueError if it is missing or not of that type."""
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    value = record[name]
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


# How a network does on a set of examples.
SCORES: Fields = {"accuracy": share, "cross_entropy": float}


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            found
            for key in a.keys() | b.keys()
            for found in _differences(
                a.get(key, OFF), b.get(key, OFF), f"{where}.{key}" if where else key
            )
        ]
    if a is OFF or b is OFF:
        return [where] if a or b else []
    return [] if a == b else [where]


def _read(line: bytes, schema: Schema) -> dict[str, Any]:
    record = checked(json.loads(line), {})
    kind = required(record, "kind", str)
    if kind not in schema:
        raise ValueError(f"kind {kind!r} is unknown; kinds are: {', '.join(schema)}")
    return checked(record, {**schema[kind].names, **schema[kind].holds})


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
