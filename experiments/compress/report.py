"""From the experiment's work directory to its report: tables, plots, one page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.compress.layers import layers_section
from experiments.compress.settings import SCHEMA, TRIAL, Compress, enumerate_trials
from experiments.network.compressed import KINDS
from experiments.report import page
from experiments.report.curves import training_section
from experiments.report.page import (
    Picture,
    Report,
    Section,
    baseline_facts,
    baseline_warning,
)
from experiments.report.plots import on_test, plot_curves
from experiments.report.tables import (
    Table,
    averages,
    crossed,
    framed,
    interval_texts,
    number,
    percent,
    to_csv,
)
from experiments.workdir.journal import Journal
from tdjax.plan.plan import Plan, PlannedLayer

Row = Mapping[str, Any]

TITLE = "One budget for the whole network"
TABLES_NOTE = (
    "Accuracy on the test set: mean over the calibration subsets, with the 95 % interval by "
    "Student's t in brackets where there are several. Shares count all parameters and all "
    "multiply-adds of the network. Times are medians [least, most] of turns with the original."
)
TERMS = (
    "budget", "strategy", "covariance, kronecker", "sequential", "calibration", "re-estimated",
    "refinement", "interval",
)  # fmt: skip
PHASES = {
    "network": "without fine-tuning",
    "reestimated": "without fine-tuning, batch statistics re-estimated",
    "refined": "after refinement without labels",
    "tuned": "after fine-tuning",
}
COSTS = {"params": "parameters", "macs": "multiply-adds"}
FIGURES = ("accuracy", "cross_entropy")
NETWORK = ("phase", "strategy", "budget", "norm", "source", "images")
# The columns of the files with their types.
SIZES = {"params": int, "macs": int}
MEASURED = {
    **{"phase": str, **TRIAL, **SIZES},
    **dict.fromkeys((*FIGURES, "bound"), float),
}
LAYERS = {
    **{**TRIAL, "layer": str, "format": str, "ranks": str},
    **dict.fromkeys(("params_before", "params", "macs_before", "macs"), int),
    "reason": str,
}
TIMES = {
    **{**TRIAL, **SIZES},
    **dict.fromkeys(("milliseconds_before", "milliseconds", "speedup", "least", "most"), float),
}


def write_report(workdir: Path) -> Path:
    """The report of a work directory; see `experiments.report.page.write_report`."""
    return page.write_report(workdir, Compress, SCHEMA, _report)


def _report(settings: Compress, measured: Journal) -> Report:
    baseline = measured.get("baseline")
    rows, layers, times = _rows(settings, measured)
    networks = averages(rows, NETWORK, FIGURES, count="subsets", means=(*COSTS, "bound"))
    curves = _with_curves(settings, networks)
    timed = _with_curves(settings, times)[times["subset"] == 0]
    tables = _tables(settings, curves, timed, baseline) if baseline else []
    files = {
        "measurements.csv": to_csv(rows),
        "networks.csv": to_csv(networks, decimals=6),
        "layers.csv": to_csv(layers),
    }
    if len(times):
        files["times.csv"] = to_csv(times, decimals=3)
    pictures = list(_pictures(settings, curves, timed, baseline)) if baseline else []
    records = sorted(measured.of_kind("tuned"), key=lambda one: -one["budget"])
    tuned = [(f"{percent(one['budget'])} kept", one) for one in records]
    return Report(
        title=TITLE,
        summary=_summary(settings, curves, baseline),
        warning=baseline_warning(measured.of_kind("baseline"), settings.metric_name),
        terms=TERMS,
        before="Before any compression",
        facts=baseline_facts(baseline, settings.metric_name, settings.loss_name),
        sections=[
            Section("figures", "Figures", pictures=pictures),
            layers_section(settings, _with_curves(settings, layers)[layers["subset"] == 0]),
            training_section(measured, tuned, settings.metric_name, settings.loss_name),
            Section("tables", "Tables", TABLES_NOTE + settings.refined_note, tables=tables),
        ],
        provenance=_provenance(settings, len(measured.found) - bool(baseline)),
        files=files,
    )


def _summary(settings: Compress, networks: pd.DataFrame, baseline: Row | None) -> str:
    """Which strategy and norm keep most at each budget, and whether that is decided."""
    known = [phase for phase in PHASES if (networks["phase"] == phase).any()]
    if not known or baseline is None:
        return "Nothing is measured yet."
    own = networks[networks["phase"] == known[-1]]
    what = "parameters" if settings.cost == "params" else "multiply-adds"
    best = [
        f"{_best(ranked)} at {percent(budget)} of the {what}"
        for budget in settings.budgets
        if len(ranked := own[own["budget"] == budget].sort_values("accuracy", ascending=False))
    ]
    once = ""
    if (own["subsets"] == 1).any():
        once = " Where a network was measured once, small differences are not decidable."
    whole = percent(baseline["test"]["accuracy"], 2)
    text = f"Of a test {settings.metric_name} of {whole}, most is kept {PHASES[known[-1]]} by "
    return f"{text}{'; by '.join(best)}.{once}"


def _best(ranked: pd.DataFrame) -> str:
    first, others = ranked.iloc[0], ranked.iloc[1:]
    text = f"{first['curve']} ({percent(first['accuracy'], 2)})"
    if others["accuracy_upper"].isna().any() or math.isnan(first["accuracy_lower"]):
        return text
    apart = (others["accuracy_upper"] < first["accuracy_lower"]).all()
    return text if apart else f"{text}, not distinguishable from the next,"


def _rows(settings: Compress, measured: Journal) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows of networks by phase, of their layers, and of their times, of what was measured."""
    rows: list[Row] = []
    layers: list[Row] = []
    times: list[Row] = []
    for trial in enumerate_trials(settings):
        fields = trial.fields
        network = measured.get("network", **fields)
        if network is None:
            continue
        plan = Plan.from_json(network["plan"])
        found = {phase: measured.get(phase, **fields) for phase in PHASES}
        rows += [
            {"bound": math.nan, **record, "phase": phase, **_sizes(plan), **record["test"]}
            for phase, record in found.items()
            if record is not None
        ]
        layers += [{**fields, **_layer(entry)} for entry in plan.layers]
        if timed := measured.get("timed", **fields):
            before, after = 1e3 * timed["before"], 1e3 * timed["after"]
            ends = {"milliseconds_before": before, "milliseconds": after}
            times.append({**timed, **_sizes(plan), **ends})
    return framed(rows, MEASURED), framed(layers, LAYERS), framed(times, TIMES)


def _layer(entry: PlannedLayer) -> Row:
    return {
        "layer": entry.layer.path,
        "format": entry.format,
        "ranks": " ".join(map(str, entry.ranks)),
        "params_before": entry.layer.size,
        "macs_before": math.ceil(entry.layer.macs),
        "reason": entry.reason or "",
        **_sizes(entry),
    }


def _sizes(planned: Plan | PlannedLayer) -> Row:
    return {"params": planned.size, "macs": math.ceil(planned.macs)}


def _with_curves(settings: Compress, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their curve's name; it tells the calibration where there are several."""
    several = len(settings.calibration.sources) * len(settings.calibration.images) > 1
    seen = rows["source"] + " " + rows["images"].astype(str)
    curve = rows["strategy"] + ", " + rows["norm"]
    return rows.assign(
        curve=curve.where((rows["images"] == 0) | (not several), curve + ", " + seen)
    )


def _tables(
    settings: Compress, networks: pd.DataFrame, times: pd.DataFrame, baseline: Row
) -> list[Table]:
    """Accuracy of each phase, then what the networks cost; whatever was measured."""
    what = "parameters" if settings.cost == "params" else "MACs"
    heads = {budget: f"{percent(budget)} of {what}" for budget in settings.budgets}
    tables = []

    def add(title: str, rows: pd.DataFrame, texts: list[str], like: pd.DataFrame) -> None:
        if len(rows):
            own, lines = rows.assign(text=texts), {"curve": "strategy, norm"}
            tables.append(Table(title, crossed(own, lines, "budget", heads, like)))

    for phase, words in PHASES.items():
        own = networks[networks["phase"] == phase]
        title = f"{settings.metric_name.capitalize()} {words}, %"
        add(title, own, interval_texts(own, "accuracy", 100), networks)
    if "refined" in set(networks["phase"]):
        tables.append(_side_by_side(settings, networks, what))
    whole = networks[networks["phase"] == "network"]
    for cost, words in COSTS.items():
        shares = [percent(size / baseline[cost], 1) for size in whole[cost]]
        add(f"Share of the {words}", whole, shares, networks)
    bounded = whole[whole["bound"].notna() & (whole["norm"] == "frobenius")]
    bounds = [number(bound, 3) for bound in bounded["bound"]]
    add("Bound of any layer's relative error in the operator norm", bounded, bounds, bounded)
    speeds = interval_texts(times, "speedup", ends=("least", "most"))
    add("Speed of inference, times the original's", times, speeds, networks)
    return tables


def _side_by_side(settings: Compress, networks: pd.DataFrame, what: str) -> Table:
    """Accuracy of each network, a column for each phase."""
    kept = [percent(budget) for budget in networks["budget"]]
    own = networks.assign(kept=kept, text=interval_texts(networks, "accuracy", 100))
    known = set(networks["phase"])
    heads = {phase: head for phase, head in KINDS.items() if phase in known}
    cells = crossed(own, {"curve": "strategy, norm", "kept": f"{what} kept"}, "phase", heads)
    return Table(f"Side by side: {settings.metric_name}, %", cells, labels=2)


def _pictures(
    settings: Compress, networks: pd.DataFrame, timed: pd.DataFrame, baseline: Row
) -> Iterator[Picture]:
    labels = {cost: f"{words} kept, %" for cost, words in COSTS.items()}
    labels["time"] = f"milliseconds for {settings.timed_images} examples"
    figure, name = ("accuracy", on_test(settings.metric_name)), settings.metric_name.capitalize()
    times = timed.set_index(["curve", "budget"])["milliseconds"]
    shares = {cost: 100 * networks[cost] / baseline[cost] for cost in COSTS}
    for phase, words in PHASES.items():
        own = networks.assign(**shares)[networks["phase"] == phase]
        own = own.join(times.rename("time"), ["curve", "budget"])
        drawings = {
            f"accuracy_{cost}_{phase}.svg": plot_curves(
                points,
                (cost, label),
                figure,
                baseline["test"]["accuracy"],
                bars=False,
                shares=cost in COSTS,
            )
            for cost, label in labels.items()
            if len(points := own.dropna(subset=[cost]))
        }
        if drawings:
            yield Picture(
                f"{name} against what the network costs, {words}.",
                "A curve for each strategy and norm, a point for each budget. "
                "Dashed: before compression.",
                drawings,
            )


def _provenance(settings: Compress, count: int) -> dict[str, str]:
    calibration, refine = settings.calibration, settings.refine
    return {
        "measurements": f"{count:,}",
        "formats": ", ".join(settings.methods),
        "layer after layer": "yes" if settings.sequential else "no",
        "rounds": str(settings.rounds),
        "calibration examples": ", ".join(map(str, calibration.images)),
        "subsets": str(calibration.subsets),
        "labels of the gradient": settings.gradient_name,
        **({"refined": refine.in_words} if refine.epochs else {}),
        "seed": str(settings.seed),
    }
