"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.data_aware.settings import SCHEMA, DataAware
from experiments.data_aware.tables import (
    PHASES,
    WHEN,
    averaged_rows,
    comparison_rows,
    condition_text,
    measurement_rows,
    text_tables,
)
from experiments.report import page
from experiments.report.page import Picture, Report, Section, baseline_facts
from experiments.report.plots import INK, WIDTH, draw_curve, draw_level, figure, on_test
from experiments.report.tables import percent, to_csv
from experiments.workdir.journal import Journal

TITLE = "Do decompositions that see the data keep more of the {}?"
TABLES_NOTE = (
    "Accuracy on the test set: mean over the calibration subsets, with the 95 % interval by "
    "Student's t in brackets where there are several. Gains are differences in percentage points, "
    "all else equal."
)
# Of Okabe and Ito: told apart by colour-blind readers.
COLORS = {
    "frobenius": "#8a8f96",
    "covariance": "#0072b2",
    "kronecker": "#d55e00",
    "sequential covariance": "#009e73",
    "sequential kronecker": "#cc79a7",
}


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
        title=TITLE.format(settings.metric_name),
        before="Before any compression",
        facts=baseline_facts(baseline, settings.metric_name, settings.loss_name),
        sections=[
            Section("tables", "Tables", TABLES_NOTE + settings.refined_note, tables=tables),
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
                f"{settings.metric_name.capitalize()} against {label}, {words}.",
                f"Whole network; calibration: {condition}. Bars: 95 % intervals over the "
                "calibration subsets. Dashed: before compression.",
                plot_against(settings, own, (cost, label), accuracy),
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
            plot_layers(settings, own, layers, whole),
        )


def _provenance(settings: DataAware, measured: Journal) -> dict[str, str]:
    calibration, refine = settings.calibration, settings.refine
    return {
        "measurements": f"{len(measured.of_kind(*PHASES)):,}",
        "calibration": ", ".join(calibration.sources),
        "calibration images": ", ".join(map(str, calibration.images)),
        "subsets": str(calibration.subsets),
        "labels of the gradient": settings.gradient_name,
        **({"refined": refine.in_words} if refine.epochs else {}),
        "test images are": settings.test.change,
        "seed": str(settings.seed),
    }


def plot_against(
    settings: DataAware, rows: pd.DataFrame, cost: tuple[str, str], accuracy: float | None
) -> bytes:
    """The metric of whole networks against what they cost: a panel a method, a curve a norm.

    Arguments:
        rows: from `tables.averaged_rows`, of one phase, source and number of images.
        cost: the column on the horizontal axis, "params" or "macs", and its label.
        accuracy: before compression.
    """
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(settings.methods), sharey=True, squeeze=False)[0]
        for axes, method in zip(panels, settings.methods, strict=True):
            _draw_norms(axes, rows, method, cost[0], accuracy, capsize=3)
            axes.set_xlabel(cost[1])
            axes.tick_params(axis="x", labelrotation=30)
        panels[0].set_ylabel(on_test(settings.metric_name))
        _legend(drawn, panels)
    return png.getvalue()


def plot_layers(
    settings: DataAware, rows: pd.DataFrame, layers: Sequence[str], accuracy: float | None
) -> bytes:
    """The metric with one layer compressed at a time: a panel a method, a curve a norm.

    Arguments:
        rows: from `tables.averaged_rows`, of one share kept, source and number of images.
        layers: in order of depth.
        accuracy: before compression, if it is on the same test images.
    """
    methods = settings.methods
    at = rows.assign(at=[layers.index(layer) for layer in rows["layer"]])
    with figure(WIDTH, 2.4 * len(methods) + 0.8) as (drawn, png):
        panels = drawn.subplots(len(methods), 1, sharex=True, squeeze=False)[:, 0]
        for axes, method in zip(panels, methods, strict=True):
            style = {"bars": False, "markersize": 4.5, "linewidth": 1.2}
            _draw_norms(axes, at, method, "at", accuracy, **style)
            axes.set_ylabel(f"{settings.metric_name}, %")
        panels[-1].set_xticks(range(len(layers)), layers, rotation=60, ha="right")
        _legend(drawn, panels)
    return png.getvalue()


def _draw_norms(
    axes: Any, rows: pd.DataFrame, method: str, x: str, accuracy: float | None, **style: Any
) -> None:
    for place, norm in enumerate(COLORS):
        own = rows[(rows["method"] == method) & (rows["norm"] == norm)]
        if len(own):
            colors = tuple(COLORS.values())
            draw_curve(axes, own, x, "accuracy", place=place, colors=colors, label=norm, **style)
    draw_level(axes, accuracy)
    axes.set_title(method)
    axes.grid(visible=True)


def _legend(drawn: Any, panels: Any) -> None:
    marks = {
        name: mark
        for axes in panels
        for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if marks:
        drawn.legend(marks.values(), marks.keys(), ncols=len(marks), loc="outside upper left")
    else:
        panels[0].text(0.5, 0.5, "nothing measured yet", transform=panels[0].transAxes, color=INK)
