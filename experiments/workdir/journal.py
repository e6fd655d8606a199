"""The files of a running study: written so that a kill at any moment loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tdjax.files import write_atomically

# In place of a field that one of two configurations lacks.
OFF: Mapping[str, Any] = MappingProxyType({})


def claim_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Make the work directory this configuration's, or find that it is already.

    A field that only one of them knows, as one written by another version, must be off: None, 0,
    False or empty.

    Raises ValueError, and touches nothing, where it holds another configuration or things that
    are not a study's.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            present = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); use another workdir") from error
        differing = sorted(_differences(present, json.loads(json.dumps(config))))
        if differing:
            raise ValueError(
                f"{workdir} holds another configuration; fields that differ: "
                f"{', '.join(differing)}; use another workdir"
            )
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


def required(record: Mapping[str, Any], name: str, kind: type) -> Any:
    """The field of a JSON object; raises `ValueError` if it is missing or not of that type."""
    if name not in record:
        raise ValueError(f"field '{name}' is missing")
    value = record[name]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"field '{name}' is {value!r}, not of type {kind.__name__}")
    return value


def optional(record: Mapping[str, Any], name: str, kind: type) -> Any:
    """The field of a JSON object, or None where it is missing or null."""
    return None if record.get(name) is None else required(record, name, kind)


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
