"""What was measured: a line of JSON for each run, written as it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.workdir.journal import append_records, read_journal
from experiments.workdir.record_fields import Identity, Kind, Record, Schema, share

# Where a compressed network starts.
START = {
    "digest": str, "network": str, "plan": str, "plan_temperature": float, "images": int,
    "subset": int, "budget": float,
}  # fmt: skip
SCHEMA: Mapping[str, Kind] = {
    "dense": Kind({"digest": str, "network": str}, {"accuracy": share}),
    "refined": Kind(
        START
        | {"epochs": int, "augment": bool, "loss": str, "temperature": float}
        | {"features": str, "blocks": bool, "rate": str},
        {"kept": float, "before": share, "accuracy": share, "seconds": float}
        | {"learning_rate": (float, None)},
    ),
    "labelled": Kind(
        START | {"epochs": int, "augment": bool, "rate": float},
        {"accuracy": share, "seconds": float},
    ),
}


@dataclass(frozen=True, eq=False)
class Records:
    """Records by what identifies them.

    Arguments:
        path: file that they are written to; None for none.
        schema: of their kinds.
    """

    path: Path | None
    found: dict[Identity, Record] = field(default_factory=dict)
    schema: Schema = field(default_factory=lambda: SCHEMA)

    def get(self, run: Record) -> Record | None:
        """The record of a run, None where it is missing."""
        return self.found.get(self._identity(run))

    def add(self, run: Record, **results: Any) -> Record:
        """The record of a run, kept and written."""
        record = {**run, **results}
        self.found[self._identity(run)] = record
        if self.path is not None:
            append_records(self.path, [record])
        return record

    def _identity(self, run: Record) -> Identity:
        return (run["kind"], *(run[name] for name in self.schema[run["kind"]].names))


def read_records(path: Path | None, schema: Schema = SCHEMA) -> Records:
    """What a file holds, if there is one."""
    return Records(path, {} if path is None else dict(read_journal(path, schema).found), schema)
