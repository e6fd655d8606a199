"""The experiment's tables as a reader sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.compressibility.paper import PublishedPruning, published_pruning
from experiments.compressibility.rows import PHASES, TRIAL
from experiments.compressibility.settings import MAGNITUDE, Compressibility, enumerate_trials
from experiments.report.tables import (
    DASH,
    Table,
    Tau,
    crossed,
    framed,
    interval_texts,
    number,
    percent,
)
from tdjax.pruning.prunable import SCOPES

INDEX_TEXT = {
    "sparsity_index": "sparsity index",
    "pq_index": "PQ index",
    "effective_share": "1 \N{MINUS SIGN} effective share",
    "weights": "number of weights",
}


def with_names(settings: Compressibility, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of trials in the report's order, with the names of the trials and of their curves."""
    trials = [
        {**trial.fields, "curve": trial.curve, "name": trial.name}
        for trial in enumerate_trials(settings)
    ]
    known = framed(trials, {**TRIAL, "curve": str, "name": str})
    return known.merge(rows, on=list(TRIAL))


def text_tables(
    settings: Compressibility,
    averaged: pd.DataFrame,
    gains: pd.DataFrame,
    layers: pd.DataFrame,
    taus: pd.DataFrame,
) -> list[Table]:
    """All tables of whatever was measured; the first two with the names of trials."""
    pruned = averaged[averaged["phase"] == "pruned"]
    tables = [
        _own_table(settings, pruned),
        _own_gain_table(settings, pruned, gains[gains["phase"] == "pruned"]),
    ]
    for phase in PHASES:
        tables += [
            _curve_table(settings, averaged[averaged["phase"] == phase], phase),
            _gain_table(settings, gains[gains["phase"] == phase], phase),
        ]
    tables += [
        _size_table(settings, pruned),
        _index_table(layers),
        _reached_table(layers),
        _tau_table(taus),
        _looseness_table(layers),
    ]
    return [found for found in tables if len(found.cells)]


def _by_share(settings: Compressibility, rows: pd.DataFrame, **lines: str) -> pd.DataFrame:
    """Lines of curves, a column a share."""
    heads = {share: f"{percent(share)} pruned" for share in settings.shares}
    return crossed(rows[rows["share"].notna()], {"curve": "method", **lines}, "share", heads)


def _curve_table(settings: Compressibility, rows: pd.DataFrame, phase: str) -> Table:
    name, what = "accuracy", settings.metric_name.capitalize()
    if settings.predicts_numbers:
        name, what = "rise", "Relative rise of the mean squared error"
    cells = _by_share(settings, rows.assign(text=interval_texts(rows, name, 100, 1)))
    return Table(f"{what}, %, {PHASES[phase]}", cells)


def _gain(settings: Compressibility, rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """What gains are shown in, and the rows with their gains as text."""
    name, factor, what = "points", 1.0, f"points of {settings.metric_name}"
    if settings.predicts_numbers:
        name, factor = "rise", 100.0
        what = "percentage points of the error's relative rise"
    return what, rows.assign(text=interval_texts(rows, name, factor, 1))


def _gain_table(settings: Compressibility, rows: pd.DataFrame, phase: str) -> Table:
    what, own = _gain(settings, rows)
    by_scope = pd.concat([own[own["against"] == scope] for scope in SCOPES])
    cells = _by_share(
        settings, by_scope.assign(over="magnitude, " + by_scope["against"]), over="over"
    )
    title = f"Gain over plain magnitude pruning at equal share, {what}, {PHASES[phase]}"
    return Table(title, cells, labels=2)


def _own_table(settings: Compressibility, pruned: pd.DataFrame) -> Table:
    """Methods in their own settings, beside what was published of them."""
    published = published_pruning(settings.published)
    magnitude = pruned["method"].isin(MAGNITUDE)
    shares = [value for method, _, value in published if method == "magnitude"]
    beside = pruned[magnitude & pruned["share"].isin(shares)]
    rows = pd.concat([pruned[pruned["share"].isna()], beside])
    texts = {
        "setting": rows["name"],
        "ratio": [number(ratio) for ratio in rows["ratio"]],
        "pruned": [percent(share, 1) for share in rows["pruned"]],
        "dead neurons too": [percent(share, 1) for share in rows["gone"]],
    }
    if not settings.predicts_numbers:
        texts[f"{settings.metric_name}, %"] = interval_texts(rows, "accuracy", 100, 1)
    cells = pd.DataFrame(texts | {"rise of the loss, %": interval_texts(rows, "rise", 100, 1)})
    if published:
        heads = ["published: ratio", "pruned", "rise, %"]
        found = [_published(published, row) for _, row in rows[list(TRIAL)].iterrows()]
        cells = pd.concat([cells, pd.DataFrame(found, cells.index, heads)], axis=1)
    return Table("The methods' own settings, without fine-tuning", cells)


def _published(published: Mapping[Any, PublishedPruning], trial: pd.Series) -> tuple[str, str, str]:
    q = None if pd.isna(trial["q"]) else trial["q"]
    name = (trial["method"], q, trial["value"])
    if trial["method"] in MAGNITUDE:
        name = ("magnitude", None, trial["share"])
    paper = published.get(name)
    if paper is None:
        return DASH, DASH, DASH
    return number(paper.ratio), percent(paper.share), number(100 * paper.rise, 0)


def _own_gain_table(settings: Compressibility, pruned: pd.DataFrame, gains: pd.DataFrame) -> Table:
    """Methods in their own settings against plain magnitude pruning at the share that came out."""
    own = pruned[pruned["share"].isna()]
    what, against = _gain(settings, gains[gains["share"].isna()])
    heads = {scope: f"over magnitude, {scope}" for scope in SCOPES}
    cells = crossed(against, {"name": "setting"}, "against", heads, own)
    cells.insert(1, "pruned", [percent(share, 1) for share in own["pruned"]])
    title = f"Gain of the methods' own settings over plain magnitude pruning at equal share, {what}"
    return Table(title, cells)


def _size_table(settings: Compressibility, pruned: pd.DataFrame) -> Table:
    cells = _by_share(settings, pruned.assign(text=[percent(size, 1) for size in pruned["size"]]))
    return Table("Parameters stored once dead neurons are removed, of those before", cells)


def _index_table(layers: pd.DataFrame) -> Table:
    quantiles = layers[["effective_number", "lower", "median", "upper"]].to_numpy(float)
    effective = [[number(value, 1) for value in values] for values in quantiles]
    cells = {
        **_layer_cells(layers),
        "neurons": [f"{neurons:,}" for neurons in layers["neurons"]],
        "weights": [f"{weights:,}" for weights in layers["weights"]],
        "sparsity index": [number(index, 3) for index in layers["sparsity_index"]],
        "PQ index": [number(index, 3) for index in layers["pq_index"]],
        "effective weights of a neuron (10, 50, 90 %)": [
            f"{mean} ({', '.join(ends)})" for mean, *ends in effective
        ],
        "of its weights": [percent(share, 1) for share in layers["effective_share"]],
    }
    return Table("Indices, means over neurons and runs", pd.DataFrame(cells))


def _layer_cells(layers: pd.DataFrame) -> dict[str, list[str]]:
    return {
        "layer": [layer or "network" for layer in layers["layer"]],
        "q": [number(q, 1) for q in layers["q"]],
    }


def _reached_table(layers: pd.DataFrame) -> Table:
    own = layers[layers["layer"] != ""]
    cells = {
        "layer": own["layer"],
        "weights": [f"{weights:,}" for weights in own["weights"]],
        "can go": [percent(share, 1) for share in own["reached"]],
    }
    title = "Share of each layer alone that can go within the tolerance"
    return Table(title, pd.DataFrame(cells).drop_duplicates())


def _tau_table(taus: pd.DataFrame) -> Table:
    cells = {
        "index": taus["index"].map(INDEX_TEXT),
        "q": [number(q, 1) or DASH for q in taus["q"]],
        "tau": [Tau(*own) for own in taus[["mean", "std", "lower", "upper"]].to_numpy(float)],
        "layers": taus["layers"].astype(str),
    }
    title = "Kendall's tau between index and share that can go, over the layers"
    return Table(title, pd.DataFrame(cells), labels=2)


def _looseness_table(layers: pd.DataFrame) -> Table:
    heads = {"bound": "bound of q", "tail": "sum of what went"}
    ratios = {
        head: interval_texts(layers, name, 1.0, 1, (f"{name}_least", f"{name}_most"))
        for name, head in heads.items()
    }
    cells = pd.DataFrame({**_layer_cells(layers), **ratios}).replace("", DASH)
    return Table("Error bounds over the worst error measured: median [least, most]", cells)
