"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.compressibility.rows import (
    INDICES,
    PHASES,
    averaged_layers,
    averaged_rows,
    gain_rows,
    layer_rows,
    measurement_rows,
    tau_rows,
)
from experiments.compressibility.settings import SCHEMA, Compressibility
from experiments.compressibility.tables import text_tables, with_names
from experiments.report import page
from experiments.report.curves import training_section
from experiments.report.maps import draw_map
from experiments.report.page import Atlas, Picture, Report, Section, baseline_warning
from experiments.report.plots import (
    MARKERS,
    draw_legend,
    figure,
    in_legend,
    on_test,
    plot_curves,
)
from experiments.report.svg import titled
from experiments.report.tables import number, percent, to_csv
from experiments.workdir.journal import Journal

TITLE = "How far can a network be pruned?"
INDEX_LABELS = {
    "sparsity_index": "sparsity index",
    "pq_index": "PQ index",
    "effective_share": "effective share of the weights",
}
# Of Okabe and Ito: told apart by colour-blind readers. Plain magnitude is grey and black.
COLORS = (
    "#8a8f96", "#000000", "#b9bdc2", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00",
    "#d55e00",
)  # fmt: skip
TERMS = ("pruned", "sparsity index, PQ index", "tau", "interval")
CURVES: Any = {
    "colors": COLORS,
    "side": 0.35,
    "linewidth": 1.2,
    "elinewidth": 0.7,
    "capsize": 2,
}
TABLES_NOTE = (
    "On the test set: mean over networks trained from several seeds, with the 95 % interval by "
    "Student's t in brackets. Shares are of all weights of kernels. The ratio is that of all "
    "parameters to those left, zeros and dead neurons taken away. Gains are differences in pairs, "
    "a network each; above 0 the method loses less than plain magnitude pruning. Intervals of tau "
    "are by bootstrap, over layers and runs."
)


def write_report(workdir: Path) -> Path:
    """The report of a work directory; see `experiments.report.page.write_report`."""
    return page.write_report(workdir, Compressibility, SCHEMA, _report)


def _report(settings: Compressibility, measured: Journal) -> Report:
    rows, rivals = measurement_rows(settings, measured)
    averaged, gains = averaged_rows(rows), gain_rows(rows, rivals)
    layers = layer_rows(measured)
    taus = tau_rows(settings, layers)
    named = with_names(settings, averaged)
    tables = text_tables(
        settings, named, with_names(settings, gains), averaged_layers(layers), taus
    )
    baselines = [
        found for run in range(settings.runs) if (found := measured.get("baseline", run=run))
    ]
    pictures = list(_pictures(settings, named, layers, baselines))
    records = sorted(measured.of_kind("tuned"), key=lambda one: one["method"])
    tuned = [(one["method"], one) for one in records]
    return Report(
        title=TITLE,
        summary=_summary(settings, named, baselines),
        warning=baseline_warning(baselines, settings.metric_name),
        terms=TERMS,
        before="Before any pruning, means over the runs",
        facts=_facts(settings, baselines),
        sections=[
            Section("figures", "Figures", pictures=pictures),
            _layers_section(settings, layers),
            training_section(measured, tuned, settings.metric_name, settings.loss_name),
            Section("tables", "Tables", TABLES_NOTE, tables=tables),
        ],
        provenance=_provenance(settings, len(measured.found)),
        files={
            "measurements.csv": to_csv(rows),
            "networks.csv": to_csv(averaged, decimals=6),
            "gains.csv": to_csv(gains, decimals=6),
            "layers.csv": to_csv(layers, decimals=6),
            "tau.csv": to_csv(taus, decimals=4),
        },
    )


def _summary(
    settings: Compressibility, averaged: pd.DataFrame, baselines: Sequence[Mapping[str, Any]]
) -> str:
    """How much can go within the tolerance in each phase, by which method."""
    parts = []
    for phase, words in PHASES.items():
        own = averaged[averaged["phase"] == phase]
        if len(own):
            parts.append(f"{words}, {_most(settings, own, baselines)}")
    if not parts:
        return "Nothing is measured yet."
    return f"Within {_tolerance(settings)}: {'; '.join(parts)}."


def _most(
    settings: Compressibility, rows: pd.DataFrame, baselines: Sequence[Mapping[str, Any]]
) -> str:
    lost = rows[["rise", "rise_lower", "rise_upper"]].to_numpy(float)
    if not settings.predicts_numbers:
        lost = _mean(baselines, "accuracy") - rows[
            ["accuracy", "accuracy_upper", "accuracy_lower"]
        ].to_numpy(float)
    within = rows.assign(lost=lost[:, 0], most=lost[:, 2])[lost[:, 0] <= settings.tolerance]
    if within.empty:
        return "none of the networks that were pruned stays"
    best = within.iloc[within["pruned"].argmax()]
    if math.isnan(best["most"]):
        sure = ", by one run"
    else:
        sure = "" if best["most"] <= settings.tolerance else ", not decidable by its interval"
    return f"up to {percent(best['pruned'])} of the weights can go, by {best['name']}{sure}"


def _layers_section(settings: Compressibility, layers: pd.DataFrame) -> Section:
    """What can go from each layer alone, a column for each run."""
    rows = layers.drop_duplicates(["layer", "run"])
    rows = rows.assign(
        value=rows["reached"],
        text=[percent(share) for share in rows["reached"]],
        title=[
            f"{row['layer']}, run {row['run']}\n{percent(row['reached'], 1)} of "
            f"{row['weights']:,} weights can go"
            for row in rows.to_dict("records")
        ],
    )
    heads = {run: f"run {run}" for run in sorted(set(rows["run"]))}
    found = draw_map(rows, "Weights that can go", ("layer", "layer"), "run", heads, 1.0)
    atlas = Atlas(
        "What can go from each layer alone.",
        f"By magnitude, within {_tolerance(settings)}; the darker the more.",
        [found],
    )
    return Section("layers", "One layer at a time", atlases=[atlas] if len(rows) else [])


def _tolerance(settings: Compressibility) -> str:
    size = number(100 * settings.tolerance, 1)
    if settings.predicts_numbers:
        return f"{size} % more mean squared error"
    return f"{size} points of {settings.metric_name}"


def _pictures(
    settings: Compressibility,
    averaged: pd.DataFrame,
    layers: pd.DataFrame,
    baselines: Sequence[Mapping[str, Any]],
) -> Iterator[Picture]:
    figure, whole = ("rise", "relative rise of the mean squared error, %"), 0.0
    if not settings.predicts_numbers:
        figure, whole = ("accuracy", on_test(settings.metric_name)), _mean(baselines, "accuracy")
    label = figure[1][0].upper() + figure[1][1:]
    shares = averaged[averaged["share"].notna()].assign(percent=100 * averaged["pruned"])
    weights, symlog = ("percent", "weights pruned, %"), settings.predicts_numbers
    drawings = {
        f"curves_{phase}.svg": plot_curves(
            own, weights, figure, whole, title=words, level_label="before pruning",
            symlog=symlog, **CURVES,
        )
        for phase, words in PHASES.items()
        if len(own := shares[shares["phase"] == phase])
    }  # fmt: skip
    if drawings:
        yield Picture(
            f"{label} against the share pruned.",
            "Means over the runs with 95 % intervals, methods side by side. Dashed: before "
            "pruning.",
            drawings,
        )
    for q in settings.qs:
        own = layers[layers["q"] == q]
        if len(own):
            yield Picture(
                f"What can go from a layer alone against its indices, q {q:g}.",
                "A point for each layer and run. All indices but the effective share ought to rise "
                "with what can go.",
                {f"layers_{q:g}_{name}.svg": plot_index(own, name) for name in INDICES},
            )


def _mean(baselines: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([one["test"][name] for one in baselines])) if baselines else 0.0


def _facts(settings: Compressibility, baselines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if not baselines:
        return {"networks": "none trained yet"}
    test = baselines[0]["test"]
    if "accuracy" in test:
        accuracy = {f"test {settings.metric_name}": percent(_mean(baselines, "accuracy"), 2)}
        loss = f"test {settings.loss_name}"
    else:
        accuracy, loss = {}, "test mean squared error"
    kept = {} if baselines[0].get("removes_dead", True) else {"dead neurons": "not looked for"}
    return {
        **accuracy,
        loss: number(_mean(baselines, "loss"), 3),
        "test examples": f"{test['count']:,}",
        "parameters": f"{baselines[0]['params']:,}",
        "networks": str(len(baselines)),
        **kept,
    }


def _provenance(settings: Compressibility, count: int) -> dict[str, str]:
    return {
        "measurements": f"{count:,}",
        "calibration examples": str(settings.calibration.images[0]),
        "fine-tuning": f"{settings.finetune.epochs} epochs",
        "seeds": f"{settings.seed} to {settings.seed + settings.runs - 1}",
        "tolerance": _tolerance(settings),
        "published figures": settings.published or "none",
    }


def plot_index(rows: pd.DataFrame, name: str) -> str:
    """The share of each layer that can go against one of its indices, a point a run.

    Arguments:
        rows: of layers, of one q.
        name: the index's column.
    """
    text = INDEX_LABELS[name]
    with figure(3.0, f"Weights that can go against {text}") as (drawn, svg):
        axes = drawn.subplots()
        for place, (layer, own) in enumerate(rows.groupby("layer", sort=False)):
            (points,) = axes.plot(
                own[name],
                100 * own["reached"],
                linestyle="none",
                color=COLORS[place % len(COLORS)],
                marker=MARKERS[place % len(MARKERS)],
                label=in_legend(layer),
            )
            told = own[["run", name, "reached"]].itertuples(index=False)
            titled(
                points,
                [
                    f"{layer}, run {run}\n{text} {number(index, 3)}\n{percent(share, 1)} can go"
                    for run, index, share in told
                ],
            )
        axes.set_xlabel(text)
        axes.set_ylabel("weights that can go, %")
        axes.grid(visible=True)
        draw_legend(drawn, axes)
    return svg.getvalue()
