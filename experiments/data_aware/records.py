"""What the experiment measured, read back from its work directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.workdir.journal import required

KINDS = ("network", "reestimated", "tuned", "layer")
FIELDS: dict[str, type] = {
    "method": str,
    "keep": float,
    "norm": str,
    "correct_bias": bool,
    "source": str,
    "images": int,
    "subset": int,
}


@dataclass(frozen=True)
class Measured:
    """All records of one `metrics.jsonl`.

    Arguments:
        baseline: of the network before compression, with the sizes of all plans.
        tests: by `identity`, the records of compressed networks; the first of equal ones counts.
    """

    baseline: Mapping[str, Any] | None
    tests: Mapping[tuple, Mapping[str, Any]]


def identity(record: Mapping[str, Any]) -> tuple:
    """What tells a record from all others: its kind, its layer ("" for all), its trial."""
    return (record["kind"], record.get("layer", ""), *(record[name] for name in FIELDS))


def read_records(path: Path) -> Measured:
    """Read a journal; a last line that a kill cut off is passed over, no file is an empty one.

    Raises ValueError that names file and line for anything else that is not a record.
    """
    baseline: dict[str, Any] | None = None
    tests: dict[tuple, dict[str, Any]] = {}
    text = path.read_text("utf-8") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            kind = required(record, "kind", str) if isinstance(record, dict) else None
            if kind == "baseline":
                _check_baseline(record)
                baseline = baseline or record
            elif kind in KINDS:
                _check_test(record)
                tests.setdefault(identity(record), record)
            else:
                raise ValueError(f"a record of unknown kind {kind!r}")
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return Measured(baseline, tests)


def _check_baseline(record: Mapping[str, Any]) -> None:
    for name in ("params", "macs"):
        required(record, name, int)
    _check_performance(required(record, "test", dict))
    for size in required(record, "sizes", list):
        for name, kind in (("method", str), ("keep", float), ("params", int), ("macs", int)):
            required(size, name, kind)


def _check_test(record: Mapping[str, Any]) -> None:
    for name, kind in FIELDS.items():
        required(record, name, kind)
    if record["kind"] == "layer":
        required(record, "layer", str)
    _check_performance(required(record, "test", dict))


def _check_performance(test: Mapping[str, Any]) -> None:
    accuracy = required(test, "accuracy", float)
    required(test, "cross_entropy", float)
    if math.isnan(accuracy) or not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy {accuracy} is not in [0, 1]")
