"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

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
from experiments.report.page import Picture, Report, Section
from experiments.report.plots import MARKERS, WIDTH, figure, in_legend, on_test, plot_curves
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
    return Report(
        title=TITLE,
        before="Before any pruning, means over the runs",
        facts=_facts(settings, baselines),
        sections=[
            Section("figures", "Figures", pictures=pictures),
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
    for phase, words in PHASES.items():
        own = shares[shares["phase"] == phase]
        if len(own):
            yield Picture(
                f"curves_{phase}.png",
                f"{label} against the share pruned, {words}.",
                "Means over the runs with 95 % intervals, methods side by side. Dashed: before "
                "pruning.",
                plot_curves(own, weights, figure, whole, **CURVES, symlog=symlog),
            )
    for q in settings.qs:
        own = layers[layers["q"] == q]
        if len(own):
            yield Picture(
                f"layers_{q:g}.png",
                f"What can go from a layer alone against its indices, q {q:g}.",
                "A point for each layer and run. All indices but the effective share ought to rise "
                "with what can go.",
                plot_index(own, {index: INDEX_LABELS[index] for index in INDICES}),
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
        "tolerance": (
            f"{number(100 * settings.tolerance, 1)} % more mean squared error"
            if settings.predicts_numbers
            else f"{number(100 * settings.tolerance, 1)} points of {settings.metric_name}"
        ),
        "published figures": settings.published or "none",
    }


def plot_index(rows: pd.DataFrame, indices: Mapping[str, str]) -> bytes:
    """The share of each layer that can go against its indices: a panel an index, a point a run.

    Arguments:
        rows: of layers, of one q.
        indices: columns with their texts.
    """
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(indices), sharey=True, squeeze=False)[0]
        for axes, (name, text) in zip(panels, indices.items(), strict=True):
            for place, (layer, own) in enumerate(rows.groupby("layer", sort=False)):
                axes.scatter(
                    own[name],
                    100 * own["reached"],
                    color=COLORS[place % len(COLORS)],
                    marker=MARKERS[place % len(MARKERS)],
                    label=in_legend(layer),
                    s=28,
                )
            axes.set_xlabel(text)
            axes.grid(visible=True)
        panels[0].set_ylabel("weights that can go, %")
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return png.getvalue()
