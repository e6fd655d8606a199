"""The experiment's tables as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.data_aware.settings import DataAware
from experiments.data_aware.tables import PHASES
from experiments.report.rows import Row, where
from experiments.report.text import DASH, TextTable, number, percent

WHEN = {
    "before": "without fine-tuning",
    "re-estimated": "without fine-tuning, batch statistics re-estimated",
    "after": "after fine-tuning",
}


def text_tables(
    settings: DataAware, averaged: Sequence[Row], compared: Sequence[Row], layers: Sequence[Row]
) -> list[TextTable]:
    """All tables of whatever was measured: whole networks, gains, single layers, transfer."""
    phases = list(dict.fromkeys(PHASES.values()))
    tables = [
        *(_network_table(settings, averaged, phase) for phase in phases),
        *(_gain_table(settings, compared, phase) for phase in phases),
        _layer_table(settings, layers),
        _transfer_table(settings, averaged),
    ]
    return [found for found in tables if found is not None]


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


def condition_text(source: str, images: int, correct: bool) -> str:
    """Calibration images, and what was done with them, in words."""
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
                        condition_text(source, images, correct),
                        *cells,
                        f"{size['params']:,}" if size["params"] else DASH,
                        f"{size['macs'] / 1e6:,.2f}" if size["macs"] else DASH,
                    )
                )
    title = f"Whole network, {WHEN[phase]}: accuracy, %"
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
                    condition_text(source, images, correct),
                    *(_points(where(found, method=name)) for name in columns),
                )
            )
    header = ("kept", "norms", "calibration", *columns)
    return TextTable(f"Gain in accuracy {WHEN[phase]}, points", header, tuple(lines), labels=3)


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
                            condition_text(source, images, correct),
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
