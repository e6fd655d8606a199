"""The journals of several processes made one, whose lines stand in one order whoever wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.workdir.files import read_bytes
from experiments.workdir.reading import own_journals
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
from tdjax.files import write_atomically


@dataclass
class _Entry:
    """A record as it is written, and the lines after it that say with what it was measured."""

    record: Record
    line: bytes
    after: list[bytes] = field(default_factory=list)


def merge(
    path: Path, schema: Schema, order: Sequence[Identity] = (), ended: Iterable[int] = ()
) -> None:
    """Put all that is recorded into one journal, its lines in one order.

    First what `order` does not name, by kind and by the whole numbers that identify it: epochs.
    Then the records of `order`. To be called by one process at a time, which nobody appends to
    `path` beside.

    Arguments:
        path: of the journal; it is replaced at once, and left alone where it is so already.
        ended: the numbers of the processes whose own journals nobody appends to any more: they are
            removed.

    Raises ValueError for what cannot be read, and for two different records of the same thing.
    """
    others = own_journals(path)
    start: list[bytes] = []
    entries: dict[Identity, _Entry] = {}
    for file in (path, *others.values()):
        if os.path.lexists(file):
            _read_into(entries, start, file, schema)
    places = {identity: place for place, identity in enumerate(order)}
    kinds = {kind: place for place, kind in enumerate(schema)}

    def place_of(identity: Identity) -> tuple[int, ...]:
        if identity in places:
            return 1, places[identity]
        return 0, kinds[identity[0]], *(value for value in identity[1:] if type(value) is int)

    # Stable: what no order is known of stays as it was.
    names = sorted(entries, key=place_of) if order else list(entries)
    lines = [line for name in names for line in (entries[name].line, *entries[name].after)]
    content = b"".join(line + b"\n" for line in (*start, *lines))
    if content != (read_bytes(path) if os.path.lexists(path) else b""):
        # A link stays one.
        write_atomically(path.resolve(), content)
    for number in ended:
        if number in others:
            others[number].unlink(missing_ok=True)


def _read_into(
    entries: dict[Identity, _Entry], start: list[bytes], path: Path, schema: Schema
) -> None:
    after = start
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            record = read_record(line, schema)
            if record["kind"] == ENVIRONMENT:
                if line not in after:
                    after.append(line)
                continue
            record.pop(AT, None)
            identity = identity_of(record["kind"], record, schema)
            entry = entries.setdefault(identity, _Entry(record, line))
            if text_of(entry.record) != text_of(record):
                raise ValueError(
                    f"{named(identity)} was measured by two processes with other results; remove "
                    "one of the two lines"
                )
            after = entry.after
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
