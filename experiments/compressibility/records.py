"""What the experiment measured, read back from its work directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.workdir.journal import optional, required

# What tells a trial from others, and whether it may be null.
TRIAL = {"method": (str, False), "q": (float, True), "share": (float, True), "value": (float, True)}
# By kind, what tells a record of one run from others.
FIELDS: dict[str, dict[str, tuple[type, bool]]] = {
    "baseline": {},
    "layer": {"layer": (str, False)},
    "pruned": TRIAL,
    "tuned": TRIAL,
}


@dataclass(frozen=True)
class Measured:
    """All records of one `metrics.jsonl`.

    Arguments:
        found: by `identity`; the first of equal ones counts.
    """

    found: Mapping[tuple, Mapping[str, Any]]

    def baseline(self, run: int) -> Mapping[str, Any] | None:
        """The network of a run before pruning."""
        return self.found.get(("baseline", run))

    def layers(self, run: int) -> list[Mapping[str, Any]]:
        """The layers of a run, in forward order."""
        return [record for name, record in self.found.items() if name[:2] == ("layer", run)]


def identity(record: Mapping[str, Any]) -> tuple:
    """What tells a record from all others: its kind, its run, and what was measured."""
    kind = record["kind"]
    return (kind, record["run"], *(record[name] for name in FIELDS[kind]))


def read_records(path: Path) -> Measured:
    """Read a journal; a last line that a kill cut off is passed over, no file is an empty one.

    Raises ValueError that names file and line for anything else that is not a record.
    """
    found: dict[tuple, dict[str, Any]] = {}
    text = path.read_text("utf-8") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            kind = required(record, "kind", str) if isinstance(record, dict) else None
            if kind not in FIELDS:
                raise ValueError(f"a record of unknown kind {kind!r}")
            _check(record)
            found.setdefault(identity(record), record)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return Measured(found)


def _check(record: Mapping[str, Any]) -> None:
    required(record, "run", int)
    for name, (kind, nullable) in FIELDS[record["kind"]].items():
        (optional if nullable else required)(record, name, kind)
    if record["kind"] == "layer":
        for name in ("inputs", "neurons"):
            required(record, name, int)
        required(record, "reached", float)
        for own in required(record, "by_q", list):
            for name in ("q", "sparsity_index", "pq_index", "effective_number"):
                required(own, name, float)
        return
    _check_performance(required(record, "test", dict))
    if record["kind"] == "baseline":
        required(record, "params", int)
    if record["kind"] == "pruned":
        for name in ("pruned", "gone"):
            required(record, name, float)
        for name in ("size", "left"):
            required(record, name, int)


def _check_performance(test: Mapping[str, Any]) -> None:
    required(test, "loss", float)
    accuracy = optional(test, "accuracy", float)
    if accuracy is not None and (math.isnan(accuracy) or not 0 <= accuracy <= 1):
        raise ValueError(f"accuracy {accuracy} is not in [0, 1]")
