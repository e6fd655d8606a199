"""A study's measurements as flat rows, and rows as CSV text."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.error_study.records import SUBSETS, Choice, Performance, Study
from experiments.error_study.tables import Row
from experiments.report.correlate import log_classification_error


def measurement_rows(study: Study) -> list[Row]:
    """One row per choice and run that was measured, in the configuration's order.

    No timings: an interrupted and an unbroken study give the same rows.
    """
    return [
        row
        for choice in study.choices
        for run in range(study.config.runs)
        if (row := _measurement_row(study, choice, run)) is not None
    ]


def choice_rows(study: Study) -> list[Row]:
    """One row per choice that was measured: ranks, share kept, and means over its runs."""
    rows = []
    for choice in study.choices:
        runs = [_measurement_row(study, choice, run) for run in range(study.config.runs)]
        measured = [row for row in runs if row is not None]
        if not measured:
            continue
        first = measured[0]
        averaged = [
            name for name in first if name.startswith((*study.measurements.errors, *SUBSETS))
        ]
        rows.append(
            {name: first[name] for name in ("layer", "method", "compression", "ranks")}
            | {"kept": first["kept"], "saves": first["saves"], "runs": len(measured)}
            | {name: _mean([row[name] for row in measured]) for name in averaged}
        )
    return rows


def _measurement_row(study: Study, choice: Choice, run: int) -> Row | None:
    compressed = study.measurements.compressed.get((choice, run))
    if compressed is None:
        return None
    row: Row = {
        "layer": choice.layer,
        "method": choice.method,
        "compression": choice.compression,
        "run": run,
        "ranks": " ".join(map(str, compressed.ranks)),
        "kept": compressed.kept,
        "saves": compressed.saves,
        **{error: compressed.errors[error] for error in study.measurements.errors},
    }
    for subset in SUBSETS:
        row |= _performance_columns(f"{subset}/before", getattr(compressed, subset))
    if "after" in study.config.phases:
        finetuned = study.measurements.finetuned.get((choice, run))
        row["finetune_epoch"] = finetuned.epoch if finetuned else None
        for subset in SUBSETS:
            performance = getattr(finetuned, subset) if finetuned else None
            row |= _performance_columns(f"{subset}/after", performance)
    return row


def _performance_columns(prefix: str, performance: Performance | None) -> Row:
    names = [f"{prefix}/{name}" for name in ("accuracy", "cross_entropy", "log_error")]
    if performance is None:
        return dict.fromkeys(names)
    log_error = log_classification_error(performance.accuracy, performance.count)
    values = (performance.accuracy, performance.cross_entropy, log_error)
    return dict(zip(names, values, strict=True))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def to_csv(rows: Sequence[Row], decimals: int | None = None) -> str:
    """CSV text of rows with the same columns; numbers in full, or rounded to `decimals`.

    None and NaN become empty cells, truth values `true` and `false`.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
        writer.writerows([_csv_cell(value, decimals) for value in row.values()] for row in rows)
    return buffer.getvalue()


def _csv_cell(value: Any, decimals: int | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and decimals is not None:
        return f"{value:.{decimals}f}"
    return repr(value) if isinstance(value, float) else str(value)
