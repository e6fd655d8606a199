"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from experiments.network.compressed import FROBENIUS
from experiments.report import page
from experiments.report.curves import training_section
from experiments.report.maps import Map, draw_map
from experiments.report.page import (
    Atlas,
    Picture,
    Report,
    Section,
    baseline_facts,
    baseline_warning,
)
from experiments.report.plots import (
    draw_curve,
    draw_legend,
    draw_level,
    draw_nothing,
    figure,
    limit_shares,
    on_test,
)
from experiments.report.tables import number, percent, to_csv
from experiments.workdir.journal import Journal

TITLE = "Do decompositions that see the data keep more of the {}?"
TABLES_NOTE = (
    "Accuracy on the test set: mean over the calibration subsets, with the 95 % interval by "
    "Student's t in brackets where there are several. Gains are differences in percentage points, "
    "all else equal."
)
TERMS = (
    "covariance, kronecker", "sequential", "calibration", "re-estimated", "refinement", "interval",
)  # fmt: skip
COSTS = {"params": "parameters", "macs": "multiply-adds"}
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
    tables = text_tables(settings, averaged, compared, rows)
    shown = _condition(settings, averaged)
    pictures = list(_pictures(settings, shown, baseline)) if baseline else []
    records = sorted(measured.of_kind("tuned"), key=lambda one: -one["keep"])
    tuned = [(f"{percent(one['keep'])} kept", one) for one in records]
    return Report(
        title=TITLE.format(settings.metric_name),
        summary=_summary(settings, _condition(settings, compared)),
        warning=baseline_warning(measured.of_kind("baseline"), settings.metric_name),
        terms=TERMS,
        before="Before any compression",
        facts=baseline_facts(baseline, settings.metric_name, settings.loss_name),
        sections=[
            Section("figures", "Figures", pictures=pictures),
            _layers_section(settings, shown, baseline),
            training_section(measured, tuned, settings.metric_name, settings.loss_name),
            Section("tables", "Tables", TABLES_NOTE + settings.refined_note, tables=tables),
        ],
        provenance=_provenance(settings, measured),
        files={
            "measurements.csv": to_csv(rows),
            "networks.csv": to_csv(averaged[averaged["layer"] == ""], decimals=6),
            "layers.csv": to_csv(averaged[averaged["layer"] != ""], decimals=6),
            "gains.csv": to_csv(compared, decimals=6),
        },
    )


def _condition(settings: DataAware, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the condition that is drawn: the first source, the most images."""
    calibration = settings.calibration
    seen = (rows["source"] == calibration.sources[0]) & (rows["images"] == max(calibration.images))
    fitting = seen | (rows["images"] == 0)
    return rows[(rows["correct_bias"] == settings.correct_bias[0]) & fitting]


def _condition_text(settings: DataAware) -> str:
    calibration = settings.calibration
    images, correct = max(calibration.images), settings.correct_bias[0]
    return condition_text(calibration.sources[0], images, correct)


def _summary(settings: DataAware, compared: pd.DataFrame) -> str:
    """What the best of the norms gains where least is kept, and whether that is decided."""
    parts = []
    for phase, words in WHEN.items():
        plain = (compared["against"] == FROBENIUS) & (compared["phase"] == phase)
        own = compared[plain & compared["points"].notna()]
        method = "mean" if "mean" in set(own["method"]) else settings.methods[0]
        own = own[own["method"] == method]
        if len(own):
            least = own[own["keep"] == own["keep"].min()]
            parts.append(_gain(least.loc[least["points"].idxmax()], words))
    if not parts:
        return "Nothing is measured in two norms yet."
    over = " (mean over the methods)" if len(settings.methods) > 1 else ""
    return (
        "The best norm that sees the data against the plain one, in points of "
        f"{settings.metric_name}{over}: {'; '.join(parts)}."
    )


def _gain(row: Mapping[str, Any], words: str) -> str:
    points, lower, upper = (row[f"points{end}"] for end in ("", "_lower", "_upper"))
    text = f"{row['norm']} {number(points)}"
    if pd.isna(lower):
        verdict = ", measured once, so that small differences are not decidable"
    else:
        text += f" [{number(lower)}, {number(upper)}]"
        verdict = "" if lower > 0 else ", less" if upper < 0 else ", not decidable"
    return f"{words}, {percent(row['keep'])} kept: {text}{verdict}"


def _pictures(
    settings: DataAware, shown: pd.DataFrame, baseline: Mapping[str, Any]
) -> Iterator[Picture]:
    accuracy, rows = baseline["test"]["accuracy"], shown[shown["layer"] == ""]
    shares = {cost: 100 * rows[cost].astype(float) / baseline[cost] for cost in COSTS}
    for phase, words in WHEN.items():
        own = rows.assign(**shares)[rows["phase"] == phase]
        if phase != "before" and own.empty:
            continue
        yield Picture(
            f"{settings.metric_name.capitalize()} against what the network costs, {words}.",
            f"Whole network; calibration: {_condition_text(settings)}. Bars: 95 % intervals over "
            "the calibration subsets. Dashed: before compression.",
            {
                f"accuracy_{cost}_{method}_{phase.replace('-', '')}.svg": plot_against(
                    settings, own[own["method"] == method], method, cost, accuracy
                )
                for cost in COSTS
                for method in settings.methods
            },
        )


def _layers_section(
    settings: DataAware, shown: pd.DataFrame, baseline: Mapping[str, Any] | None
) -> Section:
    """What single layers lose, a map for each method and share kept."""
    rows = shown[shown["layer"] != ""]
    whole = baseline["test"]["accuracy"] if baseline else 0.0
    # Where layers are measured on fewer images, the best of them stands for the network.
    if settings.test.layer_images is not None and len(rows):
        whole = float(rows["accuracy"].max())
    maps = [
        _layer_map(settings, own, f"{method}, {percent(keep)} kept", whole)
        for method in settings.methods
        for keep in settings.keeps
        if len(own := rows[(rows["method"] == method) & (rows["keep"] == keep)])
    ]
    than = "before compression" if settings.test.layer_images is None else "the best of all"
    atlas = Atlas(
        f"Points of {settings.metric_name} lost with one layer compressed.",
        f"Less than {than}, layer by norm; calibration: {_condition_text(settings)}. The darker "
        "the more.",
        maps,
    )
    return Section("layers", "One layer at a time", atlases=[atlas] if maps else [])


def _layer_map(settings: DataAware, rows: pd.DataFrame, title: str, whole: float) -> Map:
    lost = 100 * (whole - rows["accuracy"])
    told = [
        f"{row['layer']}, {title}, {row['norm']}\nloses {number(value, 2)} points: "
        f"{percent(row['accuracy'], 2)} of {percent(whole, 2)}"
        for row, value in zip(rows.to_dict("records"), lost, strict=True)
    ]
    cells = rows.assign(value=lost, text=[number(value, 1) for value in lost], title=told)
    heads = {norm: norm for norm in COLORS if norm in set(rows["norm"])}
    return draw_map(cells, title, ("layer", "layer"), "norm", heads, 100.0)


def _provenance(settings: DataAware, measured: Journal) -> dict[str, str]:
    calibration, refine = settings.calibration, settings.refine
    return {
        "measurements": f"{len(measured.of_kind(*PHASES)):,}",
        "calibration": ", ".join(calibration.sources),
        "calibration examples": ", ".join(map(str, calibration.images)),
        "subsets": str(calibration.subsets),
        "labels of the gradient": settings.gradient_name,
        **({"refined": refine.in_words} if refine.epochs else {}),
        "test examples are": settings.test.change,
        "seed": str(settings.seed),
    }


def plot_against(
    settings: DataAware, rows: pd.DataFrame, method: str, cost: str, accuracy: float
) -> str:
    """The metric of whole networks against the share of their cost that is kept, a curve a norm.

    Arguments:
        rows: from `tables.averaged_rows`, of one phase, method and condition, with shares.
        cost: the column on the horizontal axis, "params" or "macs".
        accuracy: before compression.
    """
    x, y = (cost, f"{COSTS[cost]} kept, %"), ("accuracy", on_test(settings.metric_name))
    with figure(3.3, f"{method}: {y[1]} against {x[1]}") as (drawn, svg):
        axes = drawn.subplots()
        for place, norm in enumerate(COLORS):
            own = rows[rows["norm"] == norm]
            if len(own):
                colors = tuple(COLORS.values())
                draw_curve(axes, own, x, y, label=norm, place=place, colors=colors, capsize=3)
        if rows.empty:
            draw_nothing(axes)
        draw_level(axes, accuracy)
        limit_shares(axes, "x")
        limit_shares(axes, "y")
        axes.set_title(method)
        axes.set_xlabel(x[1])
        axes.set_ylabel(y[1])
        axes.grid(visible=True)
        draw_legend(drawn, axes)
    return svg.getvalue()
