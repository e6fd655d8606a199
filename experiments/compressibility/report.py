"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compressibility.plots import plot_curves, plot_index
from experiments.compressibility.settings import Compressibility
from experiments.compressibility.tables import (
    INDICES,
    PHASES,
    averaged_layers,
    averaged_rows,
    gain_rows,
    layer_rows,
    measurement_rows,
    tau_rows,
)
from experiments.compressibility.text_tables import text_tables
from experiments.compressibility.trials import SCHEMA, Trial, enumerate_trials
from experiments.error_study.export import to_csv
from experiments.report.html import Frame, Picture, document, picture, section, table
from experiments.report.publish import publish
from experiments.report.rows import Row, where
from experiments.report.text import number, percent, to_markdown
from experiments.report.versions import versions
from experiments.workdir.journal import Journal, read_workdir

TITLE = "How far can a network be pruned?"
INDEX_LABELS = {
    "sparsity_index": "sparsity index",
    "pq_index": "PQ index",
    "effective_share": "effective share of the weights",
}
TABLES_NOTE = (
    "On the test set: mean over networks trained from several seeds, with the 95 % interval by "
    "Student's t in brackets. Shares are of all weights of kernels. The ratio is that of all "
    "parameters to those left, zeros and dead neurons taken away. Gains are differences in pairs, "
    "a network each; above 0 the method loses less than plain magnitude pruning. Intervals of tau "
    "are by bootstrap, over layers and runs."
)


def write_report(workdir: Path) -> Path:
    """Write `workdir/report/` from `config.json` and `metrics.jsonl`; return its `index.html`.

    An unfinished experiment is reported too. The same measurements give the same tables, byte for
    byte, in whatever order they were recorded.

    Raises FileNotFoundError where the configuration is missing, ValueError where one of the files
    cannot be understood, ImportError where matplotlib is not installed.
    """
    raw, settings, measured = read_workdir(workdir, Compressibility, SCHEMA)
    rows = measurement_rows(settings, measured)
    averaged, gains = averaged_rows(settings, rows), gain_rows(settings, measured, rows)
    layers = layer_rows(settings, measured)
    over_runs, taus = averaged_layers(layers), tau_rows(settings, layers)
    shown = text_tables(settings, averaged, gains, over_runs, taus)
    files: dict[str, str | bytes] = {
        "measurements.csv": to_csv(rows),
        "networks.csv": to_csv(averaged, decimals=6),
        "gains.csv": to_csv(gains, decimals=6),
        "layers.csv": to_csv(layers, decimals=6),
        "tau.csv": to_csv(taus, decimals=4),
        "tables.md": "\n".join([*_remark(settings), *map(to_markdown, shown)]),
    }
    baselines = [
        found for run in range(settings.runs) if (found := measured.get("baseline", run=run))
    ]
    pictures = _pictures(settings, averaged, layers, baselines)
    frame = Frame(
        title=TITLE,
        subtitle=f"{settings.model.name} on {settings.data.name}",
        lead=settings.note,
        before="Before any pruning, means over the runs",
        facts=_facts(baselines),
        provenance=_provenance(settings, measured),
        config=json.dumps(raw, indent=2),
        files=list(files),
    )
    tables = (table(each, caption=True) for each in shown)
    page = document(
        frame,
        [
            section("figures", "Figures", *(picture(one) for one, _ in pictures)),
            section("tables", "Tables", *tables, note=TABLES_NOTE),
        ],
    )
    return publish(workdir, files, pictures, page)


def _remark(settings: Compressibility) -> list[str]:
    return [settings.note, ""] if settings.note else []


def _pictures(
    settings: Compressibility,
    averaged: Sequence[Row],
    layers: Sequence[Row],
    baselines: Sequence[Mapping[str, Any]],
) -> list[tuple[Picture, bytes]]:
    name, label, whole = "rise", "relative rise of the mean squared error, %", 0.0
    if not settings.predicts_numbers:
        name, label = "accuracy", "accuracy on the test set, %"
        whole = _mean(baselines, "accuracy")
    pictures = []
    order = dict.fromkeys(trial.curve for trial in enumerate_trials(settings))
    for phase, words in PHASES.items():
        curves: dict[str, list[Row]] = {curve: [] for curve in order}
        for row in where(averaged, phase=phase, share=lambda share: share is not None):
            curves[Trial(row["method"], row["q"], row["share"]).curve].append(row)
        known = {curve: own for curve, own in curves.items() if own}
        if known:
            shown = Picture(
                f"curves_{phase}.png",
                f"{label[0].upper()}{label[1:]} against the share pruned, {words}.",
                "Means over the runs with 95 % intervals, methods side by side. Dashed: before "
                "pruning.",
            )
            pictures.append((shown, plot_curves(known, name, label, whole)))
    for q in settings.qs:
        own = where(layers, q=q)
        if own:
            shown = Picture(
                f"layers_{q:g}.png",
                f"What can go from a layer alone against its indices, q {q:g}.",
                "A point for each layer and run. All indices but the effective share ought to rise "
                "with what can go.",
            )
            texts = {index: INDEX_LABELS[index] for index in INDICES}
            pictures.append((shown, plot_index(own, texts)))
    return pictures


def _mean(baselines: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([one["test"][name] for one in baselines])) if baselines else 0.0


def _facts(baselines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if not baselines:
        return {"networks": "none trained yet"}
    test = baselines[0]["test"]
    if "accuracy" in test:
        accuracy = {"test accuracy": percent(_mean(baselines, "accuracy"), 2)}
        loss = "test cross-entropy"
    else:
        accuracy, loss = {}, "test mean squared error"
    return {
        **accuracy,
        loss: number(_mean(baselines, "loss"), 3),
        "test examples": f"{test['count']:,}",
        "parameters": f"{baselines[0]['params']:,}",
        "networks": str(len(baselines)),
    }


def _provenance(settings: Compressibility, measured: Journal) -> dict[str, str]:
    return {
        "measurements": f"{len(measured.found):,}",
        "calibration examples": str(settings.calibration.images[0]),
        "fine-tuning": f"{settings.finetune.epochs} epochs",
        "seeds": f"{settings.seed} to {settings.seed + settings.runs - 1}",
        "tolerance": (
            f"{number(100 * settings.tolerance, 1)} % more mean squared error"
            if settings.predicts_numbers
            else f"{number(100 * settings.tolerance, 1)} points of accuracy"
        ),
        "published figures": settings.published or "none",
        **versions(),
    }
