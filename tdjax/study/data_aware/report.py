"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tdjax.files import write_atomically
from tdjax.study.data_aware.plots import plot_against, plot_layers
from tdjax.study.data_aware.records import Measured, read_records
from tdjax.study.data_aware.settings import DataAware, settings_from_dict
from tdjax.study.data_aware.tables import (
    averaged_rows,
    comparison_rows,
    layer_rows,
    measurement_rows,
    where,
)
from tdjax.study.export import to_csv
from tdjax.study.html import STYLE, Picture, definitions, links, picture, table
from tdjax.study.tables import Row
from tdjax.study.text import DASH, TextTable, number, percent, to_markdown
from tdjax.study.versions import versions

TITLE = "Do decompositions that see the data keep more of the accuracy?"
TEMPLATE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<p class="eyebrow">$subtitle</p>
<h1>$title</h1>
<p class="progress">$note</p>
<p class="baseline">Before any compression</p>
<dl class="facts">
$facts
</dl>
</header>
<main>
<section id="tables">
<h2>Tables</h2>
<p class="note">$tables_note</p>
$tables
</section>
<section id="figures">
<h2>Figures</h2>
$pictures
</section>
<section id="provenance">
<h2>Provenance</h2>
<dl class="facts small">
$provenance
</dl>
<p class="note">Files beside this page: $files.</p>
<details>
<summary>Configuration</summary>
<pre>$config</pre>
</details>
</section>
</main>
</body>
</html>
""")
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
    raw = json.loads((workdir / "config.json").read_text("utf-8"))
    settings = settings_from_dict(raw)
    measured = read_records(workdir / "metrics.jsonl")
    baseline = measured.baseline or {}
    sizes = {(size["method"], size["keep"]): size for size in baseline.get("sizes", [])}
    rows = measurement_rows(settings, measured)
    averaged = averaged_rows(rows, sizes)
    compared = comparison_rows(settings, rows)
    layers = layer_rows(rows)
    tables = [
        *(_network_table(settings, averaged, phase) for phase in ("before", "after")),
        *(_gain_table(settings, compared, phase) for phase in ("before", "after")),
        _layer_table(settings, layers),
        _transfer_table(settings, averaged),
    ]
    shown = [found for found in tables if found is not None]
    files: dict[str, str | bytes] = {
        "measurements.csv": to_csv(rows),
        "networks.csv": to_csv(where(averaged, layer=""), decimals=6),
        "layers.csv": to_csv([row for row in averaged if row["layer"]], decimals=6),
        "gains.csv": to_csv(compared, decimals=6),
        "tables.md": "\n".join([*_remark(settings), *map(to_markdown, shown)]),
    }
    pictures = _pictures(settings, averaged, baseline)
    page = TEMPLATE.substitute(
        title=escape(TITLE),
        style=STYLE,
        subtitle=escape(f"{settings.model.name} on {settings.data.name}"),
        note=escape(settings.note),
        facts=definitions(_facts(baseline)),
        tables_note=escape(TABLES_NOTE),
        tables="\n".join(table(found, caption=True) for found in shown),
        pictures="\n".join(picture(one) for one, _ in pictures),
        provenance=definitions(_provenance(settings, measured)),
        files=links(list(files)),
        config=escape(json.dumps(raw, indent=2)),
    )
    report = workdir / "report"
    report.mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomically(report / name, content)
    for one, png in pictures:
        write_atomically(report / one.file, png)
    # Last, so that whatever the page refers to is already there.
    write_atomically(report / "index.html", page)
    return report / "index.html"


def _remark(settings: DataAware) -> list[str]:
    return [settings.note, ""] if settings.note else []


def _accuracy(rows: Sequence[Row]) -> str:
    if not rows:
        return DASH
    row = rows[0]
    text = number(100 * row["accuracy"])
    if math.isnan(row["accuracy_lower"]):
        return text
    ends = (number(100 * row[f"accuracy_{end}"]) for end in ("lower", "upper"))
    return f"{text} [{', '.join(ends)}]"


def _conditions(settings: DataAware) -> list[tuple[str, int, bool]]:
    calibration = settings.calibration
    return [
        (source, images, correct)
        for source in calibration.sources
        for images in calibration.images
        for correct in settings.correct_bias
    ]


def _condition_text(source: str, images: int, correct: bool) -> str:
    return f"{source}, {images}" + (", bias corrected" if correct else "")


def _network_table(settings: DataAware, rows: Sequence[Row], phase: str) -> TextTable | None:
    own = where(rows, phase=phase, layer="")
    if not own:
        return None
    lines = []
    for method in settings.methods:
        for keep in settings.keeps:
            for source, images, correct in _conditions(settings):
                found = where(own, method=method, keep=keep, correct_bias=correct)
                if not found:
                    continue
                cells = [
                    _accuracy(
                        where(found, norm=norm, source=source, images=images)
                        or where(found, norm=norm, images=0)
                    )
                    for norm in settings.norms
                ]
                size = found[0]
                lines.append(
                    (
                        method,
                        percent(keep),
                        _condition_text(source, images, correct),
                        *cells,
                        f"{size['params']:,}" if size["params"] else DASH,
                        f"{size['macs'] / 1e6:,.2f}" if size["macs"] else DASH,
                    )
                )
    title = f"Whole network, {'without' if phase == 'before' else 'after'} fine-tuning: accuracy, %"
    header = ("method", "kept", "calibration", *settings.norms, "parameters", "MACs, M")
    return TextTable(title, header, tuple(lines), labels=3)


def _gain_table(settings: DataAware, rows: Sequence[Row], phase: str) -> TextTable | None:
    own = where(rows, phase=phase)
    if not own:
        return None
    columns = [name for name in ("mean", *settings.methods) if where(own, method=name)]
    lines = []
    for source, images, correct in _conditions(settings):
        condition = where(own, source=source, images=images, correct_bias=correct)
        pairs = list(dict.fromkeys((r["keep"], r["norm"], r["against"]) for r in condition))
        for keep, norm, against in pairs:
            found = where(condition, keep=keep, norm=norm, against=against)
            lines.append(
                (
                    percent(keep),
                    f"{norm} over {against}",
                    _condition_text(source, images, correct),
                    *(_points(where(found, method=name)) for name in columns),
                )
            )
    when = "without" if phase == "before" else "after"
    header = ("kept", "norms", "calibration", *columns)
    return TextTable(f"Gain in accuracy {when} fine-tuning, points", header, tuple(lines), labels=3)


def _points(rows: Sequence[Row]) -> str:
    if not rows:
        return DASH
    text = number(rows[0]["points"])
    if math.isnan(rows[0]["points_lower"]):
        return text
    return f"{text} [{number(rows[0]['points_lower'])}, {number(rows[0]['points_upper'])}]"


def _layer_table(settings: DataAware, rows: Sequence[Row]) -> TextTable | None:
    lines = []
    for method in settings.methods:
        for keep in settings.keeps:
            for source, images, correct in _conditions(settings):
                found = where(rows, method=method, keep=keep, correct_bias=correct)
                own = [
                    where(found, norm=norm, source=source, images=images)
                    or where(found, norm=norm, images=0)
                    for norm in settings.norms
                ]
                if any(own):
                    lines.append(
                        (
                            method,
                            percent(keep),
                            _condition_text(source, images, correct),
                            *(number(100 * one[0]["accuracy"]) if one else DASH for one in own),
                        )
                    )
    title = "One layer at a time: accuracy, %, mean over the layers"
    header = ("method", "kept", "calibration", *settings.norms)
    return TextTable(title, header, tuple(lines), labels=3) if lines else None


def _transfer_table(settings: DataAware, rows: Sequence[Row]) -> TextTable | None:
    sources = settings.calibration.sources
    if len(sources) < 2:
        return None
    own = where(rows, phase="before", layer="", source=lambda source: source != "")
    lines = []
    for method in settings.methods:
        for keep in settings.keeps:
            for norm in settings.norms:
                for _, images, correct in dict.fromkeys(
                    ("", *condition[1:]) for condition in _conditions(settings)
                ):
                    found = where(own, method=method, keep=keep, norm=norm, images=images)
                    cells = [
                        _accuracy(where(found, source=source, correct_bias=correct))
                        for source in sources
                    ]
                    if set(cells) != {DASH}:
                        bias = ", bias corrected" if correct else ""
                        lines.append((method, percent(keep), f"{norm}, {images}{bias}", *cells))
    header = ("method", "kept", "norm, images", *(f"moments from {name}" for name in sources))
    title = "Transfer: moments of one data set, accuracy on the network's own, %"
    return TextTable(title, header, tuple(lines), labels=3)


def _pictures(
    settings: DataAware, rows: Sequence[Row], baseline: Mapping[str, Any]
) -> list[tuple[Picture, bytes]]:
    # One condition a figure: the first source, the most images.
    calibration = settings.calibration
    source, images = calibration.sources[0], max(calibration.images)
    correct = settings.correct_bias[0]
    condition = _condition_text(source, images, correct)
    fitting = [
        row
        for row in where(rows, correct_bias=correct)
        if (row["source"], row["images"]) in (("", 0), (source, images))
    ]
    test = baseline.get("test")
    pictures = []
    for phase in ("before", "after"):
        own = where(fitting, phase=phase, layer="")
        if phase == "after" and not own:
            continue
        for cost, label in (("params", "parameters"), ("macs", "multiply-adds")):
            pictures.append(
                (
                    Picture(
                        f"accuracy_{cost}_{phase}.png",
                        f"Accuracy against {label}, {phase} fine-tuning.",
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


def _provenance(settings: DataAware, measured: Measured) -> dict[str, str]:
    calibration = settings.calibration
    return {
        "measurements": f"{len(measured.tests):,}",
        "calibration": ", ".join(calibration.sources),
        "calibration images": ", ".join(map(str, calibration.images)),
        "subsets": str(calibration.subsets),
        "labels of the gradient": calibration.labels,
        "test images are": settings.test.change,
        "seed": str(settings.seed),
        **versions(),
    }
