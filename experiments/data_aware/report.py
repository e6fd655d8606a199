"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.data_aware.plots import plot_against, plot_layers
from experiments.data_aware.settings import DataAware
from experiments.data_aware.tables import (
    PHASES,
    averaged_rows,
    comparison_rows,
    layer_rows,
    measurement_rows,
)
from experiments.data_aware.text_tables import WHEN, condition_text, text_tables
from experiments.data_aware.trials import SCHEMA
from experiments.error_study.export import to_csv
from experiments.report.html import Frame, Picture, document, picture, section, table
from experiments.report.publish import publish
from experiments.report.rows import Row, where
from experiments.report.text import number, percent, to_markdown
from experiments.report.versions import versions
from experiments.workdir.journal import Journal, read_workdir

TITLE = "Do decompositions that see the data keep more of the accuracy?"
TABLES_NOTE = (
    "Accuracy on the test set: mean over the calibration subsets, with the 95 % interval by "
    "Student's t in brackets where there are several. Gains are differences in percentage points, "
    "all else equal."
)


def write_report(workdir: Path) -> Path:
    """Write `workdir/report/` from `config.json` and `metrics.jsonl`; return its `index.html`.

    An unfinished experiment is reported too. The same measurements give the same tables, byte for
    byte, in whatever order they were recorded.

    Raises FileNotFoundError where the configuration is missing, ValueError where one of the files
    cannot be understood, ImportError where matplotlib is not installed.
    """
    raw, settings, measured = read_workdir(workdir, DataAware, SCHEMA)
    baseline = measured.get("baseline") or {}
    sizes = {(size["method"], size["keep"]): size for size in baseline.get("sizes", [])}
    rows = measurement_rows(settings, measured)
    averaged = averaged_rows(rows, sizes)
    compared = comparison_rows(settings, rows)
    layers = layer_rows(rows)
    shown = text_tables(settings, averaged, compared, layers)
    files: dict[str, str | bytes] = {
        "measurements.csv": to_csv(rows),
        "networks.csv": to_csv(where(averaged, layer=""), decimals=6),
        "layers.csv": to_csv([row for row in averaged if row["layer"]], decimals=6),
        "gains.csv": to_csv(compared, decimals=6),
        "tables.md": "\n".join([*_remark(settings), *map(to_markdown, shown)]),
    }
    pictures = _pictures(settings, averaged, baseline)
    frame = Frame(
        title=TITLE,
        subtitle=f"{settings.model.name} on {settings.data.name}",
        lead=settings.note,
        before="Before any compression",
        facts=_facts(baseline),
        provenance=_provenance(settings, measured),
        config=json.dumps(raw, indent=2),
        files=list(files),
    )
    tables = (table(found, caption=True) for found in shown)
    page = document(
        frame,
        [
            section("tables", "Tables", *tables, note=TABLES_NOTE),
            section("figures", "Figures", *(picture(one) for one, _ in pictures)),
        ],
    )
    return publish(workdir, files, pictures, page)


def _remark(settings: DataAware) -> list[str]:
    return [settings.note, ""] if settings.note else []


def _pictures(
    settings: DataAware, rows: Sequence[Row], baseline: Mapping[str, Any]
) -> list[tuple[Picture, bytes]]:
    # One condition a figure: the first source, the most images.
    calibration = settings.calibration
    source, images = calibration.sources[0], max(calibration.images)
    correct = settings.correct_bias[0]
    condition = condition_text(source, images, correct)
    fitting = [
        row
        for row in where(rows, correct_bias=correct)
        if (row["source"], row["images"]) in (("", 0), (source, images))
    ]
    test = baseline.get("test")
    pictures = []
    for phase in dict.fromkeys(PHASES.values()):
        own = where(fitting, phase=phase, layer="")
        if phase != "before" and not own:
            continue
        for cost, label in (("params", "parameters"), ("macs", "multiply-adds")):
            pictures.append(
                (
                    Picture(
                        f"accuracy_{cost}_{phase.replace('-', '')}.png",
                        f"Accuracy against {label}, {WHEN[phase]}.",
                        f"Whole network; calibration: {condition}. Bars: 95 % intervals over the "
                        "calibration subsets. Dashed: before compression.",
                    ),
                    plot_against(own, cost, label, test, settings.methods),
                )
            )
    layers = list(dict.fromkeys(row["layer"] for row in rows if row["layer"]))
    if layers:
        keep = min(settings.keeps)
        same_test = settings.test.layer_images is None
        pictures.append(
            (
                Picture(
                    "layers.png",
                    f"One layer at a time, {percent(keep)} of it kept.",
                    f"Layers by name; calibration: {condition}.",
                ),
                plot_layers(
                    [row for row in fitting if row["layer"] and row["keep"] == keep],
                    layers,
                    settings.methods,
                    test["accuracy"] if test and same_test else None,
                ),
            )
        )
    return pictures


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
        **versions(),
    }
