"""What the experiment measured, read back from its work directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.workdir.journal import required
from tdjax.plan.plan import Plan

KINDS = ("network", "reestimated", "tuned", "timed")
FIELDS: dict[str, type] = {
    "strategy": str,
    "budget": float,
    "norm": str,
    "source": str,
    "images": int,
    "subset": int,
}


@dataclass(frozen=True)
class Measured:
    """All records of one `metrics.jsonl`.

    Arguments:
        baseline: of the network before compression.
        found: by `identity`, the records of compressed networks; the first of equal ones counts.
    """

    baseline: Mapping[str, Any] | None
    found: Mapping[tuple, Mapping[str, Any]]


def identity(record: Mapping[str, Any]) -> tuple:
    """What tells a record from all others: its kind and its trial."""
    return (record["kind"], *(record[name] for name in FIELDS))


def read_records(path: Path) -> Measured:
    """Read a journal; a last line that a kill cut off is passed over, no file is an empty one.

    Raises ValueError that names file and line for anything else that is not a record.
    """
    baseline: dict[str, Any] | None = None
    found: dict[tuple, dict[str, Any]] = {}
    text = path.read_text("utf-8") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            kind = required(record, "kind", str) if isinstance(record, dict) else None
            if kind == "baseline":
                for name in ("params", "macs"):
                    required(record, name, int)
                _check_performance(required(record, "test", dict))
                baseline = baseline or record
            elif kind in KINDS:
                _check(record)
                found.setdefault(identity(record), record)
            else:
                raise ValueError(f"a record of unknown kind {kind!r}")
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return Measured(baseline, found)


def _check(record: Mapping[str, Any]) -> None:
    for name, kind in FIELDS.items():
        required(record, name, kind)
    if record["kind"] == "timed":
        for name in ("before", "after", "speedup", "least", "most"):
            required(record, name, float)
        return
    _check_performance(required(record, "test", dict))
    if record["kind"] == "network":
        Plan.from_json(required(record, "plan", str))


def _check_performance(test: Mapping[str, Any]) -> None:
    accuracy = required(test, "accuracy", float)
    required(test, "cross_entropy", float)
    if math.isnan(accuracy) or not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy {accuracy} is not in [0, 1]")
