"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compress.plots import plot_curves
from experiments.compress.settings import Compress
from experiments.compress.tables import (
    PHASES,
    averaged_rows,
    curve_of,
    curve_text,
    layer_rows,
    measurement_rows,
    text_tables,
    time_rows,
)
from experiments.compress.trials import SCHEMA
from experiments.error_study.export import to_csv
from experiments.report.html import Frame, Picture, document, picture, section, table
from experiments.report.publish import publish
from experiments.report.rows import Row, where
from experiments.report.text import number, percent, to_markdown
from experiments.report.versions import versions
from experiments.workdir.journal import read_workdir

TITLE = "One budget for the whole network"
TABLES_NOTE = (
    "Accuracy on the test set: mean over the calibration subsets, with the 95 % interval by "
    "Student's t in brackets where there are several. Shares count all parameters and all "
    "multiply-adds of the network. Times are medians [least, most] of turns with the original."
)


def write_report(workdir: Path) -> Path:
    """Write `workdir/report/` from `config.json` and `metrics.jsonl`; return its `index.html`.

    An unfinished experiment is reported too. The same measurements give the same tables, byte for
    byte, in whatever order they were recorded.

    Raises FileNotFoundError where the configuration is missing, ValueError where one of the files
    cannot be understood, ImportError where matplotlib is not installed.
    """
    raw, settings, measured = read_workdir(workdir, Compress, SCHEMA)
    baseline = dict(measured.get("baseline") or {})
    rows = measurement_rows(settings, measured)
    averaged, times = averaged_rows(rows), time_rows(settings, measured)
    shown = text_tables(settings, averaged, times, baseline) if baseline else []
    files: dict[str, str | bytes] = {
        "measurements.csv": to_csv(rows),
        "networks.csv": to_csv(averaged, decimals=6),
        "layers.csv": to_csv(layer_rows(settings, measured)),
        "tables.md": "\n".join([*_remark(settings), *map(to_markdown, shown)]),
    }
    if times:
        files["times.csv"] = to_csv(times, decimals=3)
    pictures = _pictures(settings, averaged, times, baseline)
    frame = Frame(
        title=TITLE,
        subtitle=f"{settings.model.name} on {settings.data.name}",
        lead=settings.note,
        before="Before any compression",
        facts=_facts(baseline),
        provenance=_provenance(settings, len(measured.found) - bool(baseline)),
        config=json.dumps(raw, indent=2),
        files=list(files),
    )
    tables = (table(found, caption=True) for found in shown)
    page = document(
        frame,
        [
            section("figures", "Figures", *(picture(one) for one, _ in pictures)),
            section("tables", "Tables", *tables, note=TABLES_NOTE),
        ],
    )
    return publish(workdir, files, pictures, page)


def _remark(settings: Compress) -> list[str]:
    return [settings.note, ""] if settings.note else []


def _pictures(
    settings: Compress, averaged: Sequence[Row], times: Sequence[Row], baseline: Mapping[str, Any]
) -> list[tuple[Picture, bytes]]:
    accuracy = baseline["test"]["accuracy"] if baseline else None
    pictures = []
    for phase, words in PHASES.items():
        own = where(averaged, phase=phase)
        if not own:
            continue
        for cost, label in (("params", "parameters"), ("macs", "multiply-adds")):
            curves: dict[str, list[tuple[float, float]]] = {}
            for row in own:
                name = curve_text(settings, curve_of(row))
                curves.setdefault(name, []).append((row[cost], row["accuracy"]))
            pictures.append(_picture(curves, f"accuracy_{cost}_{phase}", label, words, accuracy))
        timed = {(curve_of(row), row["budget"]): row for row in where(times, subset=0)}
        curves = {}
        for row in own:
            found = timed.get((curve_of(row), row["budget"]))
            if found is not None:
                name = curve_text(settings, curve_of(row))
                point = (found["milliseconds"], row["accuracy"])
                curves.setdefault(name, []).append(point)
        if curves:
            label = f"milliseconds for {settings.timed_images} images"
            pictures.append(_picture(curves, f"accuracy_time_{phase}", label, words, accuracy))
    return pictures


def _picture(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    name: str,
    label: str,
    words: str,
    accuracy: float | None,
) -> tuple[Picture, bytes]:
    shown = Picture(
        f"{name}.png",
        f"Accuracy against {label}, {words}.",
        "A curve for each strategy and norm, a point for each budget. Dashed: before compression.",
    )
    return shown, plot_curves(curves, label, accuracy)


def _facts(baseline: Mapping[str, Any]) -> dict[str, str]:
    if not baseline:
        return {"network": "not trained yet"}
    test = baseline["test"]
    return {
        "test accuracy": percent(test["accuracy"], 2),
        "test cross-entropy": number(test["cross_entropy"], 3),
        "test images": f"{test['count']:,}",
        "parameters": f"{baseline['params']:,}",
        "multiply-adds": f"{baseline['macs'] / 1e6:,.1f} M",
    }


def _provenance(settings: Compress, count: int) -> dict[str, str]:
    calibration = settings.calibration
    return {
        "measurements": f"{count:,}",
        "formats": ", ".join(settings.methods),
        "layer after layer": "yes" if settings.sequential else "no",
        "rounds": str(settings.rounds),
        "calibration images": ", ".join(map(str, calibration.images)),
        "subsets": str(calibration.subsets),
        "labels of the gradient": f"{calibration.labels}, temperature {calibration.temperature:g}",
        "seed": str(settings.seed),
        **versions(),
    }
