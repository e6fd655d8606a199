"""Measurements as rows, and as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.compress.settings import Compress
from experiments.compress.trials import Trial, enumerate_trials
from experiments.report.rows import Row, spread, where
from experiments.report.text import DASH, TextTable, number, percent
from experiments.workdir.journal import Journal
from tdjax.plan.plan import Plan

PHASES = {
    "network": "without fine-tuning",
    "reestimated": "without fine-tuning, batch statistics re-estimated",
    "tuned": "after fine-tuning",
}


def measurement_rows(settings: Compress, measured: Journal) -> list[Row]:
    """One row for each measured network and phase, in the configuration's order."""
    rows = []
    for trial, plan in _planned(settings, measured):
        for kind in PHASES:
            record = _found(measured, kind, trial)
            if record is not None:
                rows.append(
                    {
                        "phase": kind,
                        **trial.fields,
                        "params": plan.size,
                        "macs": plan.macs,
                        "accuracy": float(record["test"]["accuracy"]),
                        "cross_entropy": float(record["test"]["cross_entropy"]),
                        "bound": float(record.get("bound", math.nan)),
                    }
                )
    return rows


def averaged_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over the calibration subsets, with 95 % intervals by Student's t."""
    groups: dict[tuple, list[Row]] = {}
    names = ("phase", "strategy", "budget", "norm", "source", "images")
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        dict(zip(names, key, strict=True))
        | {"subsets": len(own)}
        | {name: sum(row[name] for row in own) / len(own) for name in ("params", "macs")}
        | {"bound": own[0]["bound"]}
        | spread("accuracy", [row["accuracy"] for row in own])
        | spread("cross_entropy", [row["cross_entropy"] for row in own])
        for key, own in groups.items()
    ]


def layer_rows(settings: Compress, measured: Journal) -> list[Row]:
    """What became of every layer of every network."""
    return [
        {
            **trial.fields,
            "layer": entry.layer.path,
            "format": entry.format,
            "ranks": " ".join(map(str, entry.ranks)),
            "params_before": entry.layer.size,
            "params": entry.size,
            "macs_before": entry.layer.macs,
            "macs": entry.macs,
            "reason": entry.reason or "",
        }
        for trial, plan in _planned(settings, measured)
        for entry in plan.layers
    ]


def time_rows(settings: Compress, measured: Journal) -> list[Row]:
    """How long a batch takes, the original network's and each compressed one's, in turns."""
    return [
        {
            **trial.fields,
            "params": plan.size,
            "macs": plan.macs,
            "milliseconds_before": 1e3 * record["before"],
            "milliseconds": 1e3 * record["after"],
            **{name: record[name] for name in ("speedup", "least", "most")},
        }
        for trial, plan in _planned(settings, measured)
        if (record := _found(measured, "timed", trial)) is not None
    ]


def text_tables(
    settings: Compress, averaged: Sequence[Row], times: Sequence[Row], baseline: Row
) -> list[TextTable]:
    """Accuracy of each phase, then what the networks cost."""
    curves = list(dict.fromkeys(curve_of(row) for row in averaged))
    tables = []
    for phase, words in PHASES.items():
        own = where(averaged, phase=phase)
        if own:
            lines = [
                (curve_text(settings, curve), *(_accuracy(found) for found in cells))
                for curve, cells in _by_budget(settings, own, curves)
            ]
            title = f"Accuracy {words}, %"
            tables.append(TextTable(title, _header(settings), tuple(lines)))
    for cost, words in (("params", "parameters"), ("macs", "multiply-adds")):
        if where(averaged, phase="network"):
            lines = [
                (
                    curve_text(settings, curve),
                    *(percent(row[cost] / baseline[cost], 1) if row else DASH for row in cells),
                )
                for curve, cells in _by_budget(settings, where(averaged, phase="network"), curves)
            ]
            tables.append(TextTable(f"Share of the {words}", _header(settings), tuple(lines)))
    bounds = where(averaged, bound=lambda bound: not math.isnan(bound), norm="frobenius")
    if bounds:
        lines = [
            (
                curve_text(settings, curve),
                *(number(row["bound"], 3) if row else DASH for row in cells),
            )
            for curve, cells in _by_budget(settings, bounds, curves)
            if any(cells)
        ]
        title = "Bound of any layer's relative error in the operator norm"
        tables.append(TextTable(title, _header(settings), tuple(lines)))
    if times:
        lines = [
            (
                curve_text(settings, curve),
                *(
                    f"{number(row['speedup'])} [{number(row['least'])}, {number(row['most'])}]"
                    if row
                    else DASH
                    for row in cells
                ),
            )
            for curve, cells in _by_budget(settings, where(times, subset=0), curves)
        ]
        tables.append(TextTable("Speed of inference, times the original's", _header(settings),
                                tuple(lines)))  # fmt: skip
    return tables


def curve_of(row: Row) -> tuple[str, str, str, int]:
    """What a row has in common with those of other budgets."""
    return row["strategy"], row["norm"], row["source"], row["images"]


def curve_text(settings: Compress, curve: tuple[str, str, str, int]) -> str:
    """A curve's name; the calibration only where there are several."""
    strategy, norm, source, images = curve
    text = f"{strategy}, {norm}"
    several = len(settings.calibration.sources) * len(settings.calibration.images) > 1
    return f"{text}, {source} {images}" if several and images else text


def _header(settings: Compress) -> tuple[str, ...]:
    what = "parameters" if settings.cost == "params" else "MACs"
    return ("strategy, norm", *(f"{percent(budget)} of {what}" for budget in settings.budgets))


def _by_budget(settings: Compress, rows: Sequence[Row], curves: Sequence[Any]) -> list[Any]:
    found = {(curve_of(row), row["budget"]): row for row in rows}
    return [
        (curve, [found.get((curve, budget)) for budget in settings.budgets]) for curve in curves
    ]


def _accuracy(row: Row | None) -> str:
    if row is None:
        return DASH
    text = number(100 * row["accuracy"])
    if math.isnan(row["accuracy_lower"]):
        return text
    ends = (number(100 * row[f"accuracy_{end}"]) for end in ("lower", "upper"))
    return f"{text} [{', '.join(ends)}]"


def _planned(settings: Compress, measured: Journal) -> list[tuple[Trial, Plan]]:
    found = []
    for trial in enumerate_trials(settings):
        record = _found(measured, "network", trial)
        if record is not None:
            found.append((trial, Plan.from_json(record["plan"])))
    return found


def _found(measured: Journal, kind: str, trial: Trial) -> Mapping[str, Any] | None:
    return measured.get(kind, **trial.fields)
