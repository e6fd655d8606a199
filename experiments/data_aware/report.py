"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from experiments.data_aware.plots import plot_against, plot_layers
from experiments.data_aware.settings import DataAware
from experiments.data_aware.tables import (
    PHASES,
    WHEN,
    averaged_rows,
    comparison_rows,
    condition_text,
    measurement_rows,
    text_tables,
)
from experiments.data_aware.trials import SCHEMA
from experiments.report import page
from experiments.report.page import Picture, Report, Section, baseline_facts
from experiments.report.tables import percent, to_csv
from experiments.workdir.journal import Journal

TITLE = "Do decompositions that see the data keep more of the accuracy?"
TABLES_NOTE = (
    "Accuracy on the test set: mean over the calibration subsets, with the 95 % interval by "
    "Student's t in brackets where there are several. Gains are differences in percentage points, "
    "all else equal."
)


def write_report(workdir: Path) -> Path:
    """The report of a work directory; see `experiments.report.page.write_report`."""
    return page.write_report(workdir, DataAware, SCHEMA, _report)


def _report(settings: DataAware, measured: Journal) -> Report:
    baseline = measured.get("baseline")
    rows = measurement_rows(settings, measured)
    averaged = averaged_rows(rows, baseline["sizes"] if baseline else [])
    compared = comparison_rows(settings, rows)
    accuracy = baseline["test"]["accuracy"] if baseline else None
    tables = text_tables(settings, averaged, compared, rows)
    pictures = list(_pictures(settings, averaged, accuracy))
    return Report(
        title=TITLE,
        before="Before any compression",
        facts=baseline_facts(baseline),
        sections=[
            Section("tables", "Tables", TABLES_NOTE, tables=tables),
            Section("figures", "Figures", pictures=pictures),
        ],
        provenance=_provenance(settings, measured),
        files={
            "measurements.csv": to_csv(rows),
            "networks.csv": to_csv(averaged[averaged["layer"] == ""], decimals=6),
            "layers.csv": to_csv(averaged[averaged["layer"] != ""], decimals=6),
            "gains.csv": to_csv(compared, decimals=6),
        },
    )


def _pictures(settings: DataAware, rows: pd.DataFrame, accuracy: float | None) -> Iterator[Picture]:
    # One condition a figure: the first source, the most images.
    calibration = settings.calibration
    source, images = calibration.sources[0], max(calibration.images)
    correct = settings.correct_bias[0]
    condition = condition_text(source, images, correct)
    seen = (rows["source"] == source) & (rows["images"] == images)
    fitting = rows[(rows["correct_bias"] == correct) & (seen | (rows["images"] == 0))]
    for phase, words in WHEN.items():
        own = fitting[(fitting["phase"] == phase) & (fitting["layer"] == "")]
        if phase != "before" and own.empty:
            continue
        for cost, label in (("params", "parameters"), ("macs", "multiply-adds")):
            yield Picture(
                f"accuracy_{cost}_{phase.replace('-', '')}.png",
                f"Accuracy against {label}, {words}.",
                f"Whole network; calibration: {condition}. Bars: 95 % intervals over the "
                "calibration subsets. Dashed: before compression.",
                plot_against(own, cost, label, accuracy, settings.methods),
            )
    layers = [layer for layer in rows["layer"].unique() if layer]
    if layers:
        keep = min(settings.keeps)
        whole = accuracy if settings.test.layer_images is None else None
        own = fitting[(fitting["layer"] != "") & (fitting["keep"] == keep)]
        yield Picture(
            "layers.png",
            f"One layer at a time, {percent(keep)} of it kept.",
            f"Layers by name; calibration: {condition}.",
            plot_layers(own, layers, settings.methods, whole),
        )


def _provenance(settings: DataAware, measured: Journal) -> dict[str, str]:
    calibration = settings.calibration
    return {
        "measurements": f"{len(measured.of_kind(*PHASES)):,}",
        "calibration": ", ".join(calibration.sources),
        "calibration images": ", ".join(map(str, calibration.images)),
        "subsets": str(calibration.subsets),
        "labels of the gradient": f"{calibration.labels}, temperature {calibration.temperature:g}",
        "test images are": settings.test.change,
        "seed": str(settings.seed),
    }
