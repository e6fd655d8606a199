"""A study's measurements as rows, its taus, and both as tables of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.error_study.error_names import RELATIVE_WEIGHTS
from experiments.error_study.paper import PublishedStudy, PublishedTau
from experiments.error_study.protocol import PHASES, Protocol
from experiments.error_study.records import SUBSETS, choice_fields, common_errors
from experiments.report.correlate import TauEstimate, estimate_tau, log_classification_error
from experiments.report.tables import (
    Table,
    Tau,
    arranged,
    averages,
    crossed,
    framed,
    percent,
)
from experiments.workdir.journal import Journal, Record

CHOICE = ("layer", "method", "compression")
SCOPE_NAMES = {"layers": "layers only", "methods": "methods only", "all": "all choices"}
# What pairs of choices have in common.
HELD_FIXED = {"layers": ["method", "compression"], "methods": ["layer", "compression"], "all": []}
FIGURES = ("accuracy", "cross_entropy", "log_error")
TAU = ("mean", "std", "lower", "upper", "published_mean", "published_std")

Row = dict[str, Any]
TauTable = Mapping[tuple[str, str, str, Any], TauEstimate]
"""Tau by what it is measured by, subset, phase, and which of those it is.

By "compression" of Relative Weights over layers and methods (Figure 1). By "error" of each over all
choices of strong compression (Figure 2). By "scope" of Relative Weights over layers only, for each
fixed method and compression, over methods only, for each fixed layer and compression, in each run
the mean of those, and over all choices (Figure 3).
"""


def measurement_rows(settings: Protocol, measured: Journal) -> pd.DataFrame:
    """One row per choice, network and run that was measured, in the configuration's order.

    No timings: an interrupted and an unbroken study give the same rows.
    """
    rows: list[Row] = []
    for key in settings.keys:
        fields = choice_fields(key)
        if (found := measured.get("compressed", **fields)) is None:
            continue
        row = {**found, **found["errors"], "ranks": " ".join(map(str, found["ranks"]))}
        row |= _performances("before", found)
        if (tuned := measured.get("finetuned", **fields)) is not None:
            row |= {"finetune_epoch": tuned["epoch"], **_performances("after", tuned)}
        rows.append(row)
    columns: Row = {"layer": str, "method": str, "compression": float, "network": int}
    columns |= {"run": int, "ranks": str, "kept": float, "saves": bool}
    columns |= dict.fromkeys(common_errors(measured), float)
    for phase in settings.phases:
        columns |= {"finetune_epoch": "Int64"} if phase == "after" else {}
        columns |= {f"{sub}/{phase}/{name}": float for sub in SUBSETS for name in FIGURES}
    return framed(rows, columns)


def _performances(phase: str, record: Record) -> Row:
    found: Row = {}
    for subset in SUBSETS:
        own = record[subset]
        log_error = log_classification_error(own["accuracy"], own["count"])
        values = (own["accuracy"], own["cross_entropy"], log_error)
        found |= {f"{subset}/{phase}/{name}": v for name, v in zip(FIGURES, values, strict=True)}
    return found


def choice_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per choice that was measured: ranks, share kept, and means over its runs."""
    whole = [name for name in rows.columns if "/" in name and "/after/" not in name]
    after = [name for name in rows.columns if "/after/" in name]
    first = rows.drop_duplicates(CHOICE)[[*CHOICE, "ranks", "kept", "saves"]]
    found = first.merge(averages(rows, CHOICE, (), count="runs", means=whole), on=CHOICE)
    if not after:
        return found
    tuned = rows[rows["finetune_epoch"].notna()]
    means = averages(tuned, CHOICE, (), count="tuned", means=after)
    return found.merge(means, "left", CHOICE).drop(columns="tuned")


def complete(rows: pd.DataFrame, settings: Protocol, phase: str) -> pd.DataFrame:
    """The rows of the choices that were measured in every run before or after fine-tuning."""
    counts = rows.groupby(list(CHOICE))[f"test/{phase}/accuracy"].transform("count")
    return rows[counts == settings.networks * rows["method"].map(settings.runs_of)]


def measured_taus(
    rows: pd.DataFrame,
    settings: Protocol,
    *,
    resamples: int,
    strong: float = 0.5,
    subsets: Sequence[str] = SUBSETS,
) -> TauTable:
    """All taus of a study, finished or not; only choices complete in every run count.

    There is none where too few choices are complete to order any.

    Arguments:
        rows: from `measurement_rows`.
        resamples: behind each interval, drawn with the study's seed.
        strong: the least compression that counts as strong.
        subsets: whose performance is asked for.
    """
    estimate = partial(estimate_tau, resamples=resamples, seed=settings.seed)
    own = rows[rows["compression"] >= strong]
    errors = [name for name in rows.columns if "/" in name and not name.startswith(SUBSETS)]
    asked: list[tuple[str, Any, pd.DataFrame, str, list[str]]] = []
    for level in settings.levels:
        among = rows[rows["compression"] == level]
        asked.append(("compression", level, among, RELATIVE_WEIGHTS, []))
    asked += [("error", error, own, error, []) for error in errors]
    asked += [("scope", scope, own, RELATIVE_WEIGHTS, fixed) for scope, fixed in HELD_FIXED.items()]
    return {
        (kind, subset, phase, value): estimate(*pairs)
        for kind, value, among, error, held_fixed in asked
        for phase in settings.phases
        for subset, pairs in _pairs(among, settings, phase, error, held_fixed, subsets).items()
    }


def _pairs(
    rows: pd.DataFrame,
    settings: Protocol,
    phase: str,
    error: str,
    held_fixed: list[str],
    subsets: Sequence[str],
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What tau is of, by subset: errors and performance by run and choice, and groups of choices.

    None where no two choices have in common what is held fixed.
    """
    whole = complete(rows, settings, phase)
    first = whole[:: settings.runs]
    groups = np.zeros(len(first), int)
    if held_fixed:
        groups = first.groupby(held_fixed, sort=False).ngroup().to_numpy()
    if len(np.unique(groups)) == len(groups):
        return {}

    def by_run(name: str) -> Float[np.ndarray, "runs choices"]:
        return np.ascontiguousarray(whole[name].to_numpy(float).reshape(-1, settings.runs).T)

    return {sub: (by_run(error), by_run(f"{sub}/{phase}/log_error"), groups) for sub in subsets}


def tau_rows(taus: TauTable, kind: str, paper: PublishedStudy) -> pd.DataFrame:
    """One row per compression, error or scope, subset and phase, the published value beside."""
    rows: list[Row] = [
        {
            kind: value,
            "subset": subset,
            "phase": phase,
            **tau_figures(tau, paper.tau(kind, subset, phase, value)),
            "choices": tau.choices,
            "runs": tau.per_run.size,
        }
        for (of, subset, phase, value), tau in taus.items()
        if of == kind
    ]
    columns: Row = {kind: float if kind == "compression" else str, "subset": str, "phase": str}
    columns |= {**dict.fromkeys(TAU[:4], float), "choices": int, "runs": int}
    return framed(rows, columns | dict.fromkeys(TAU[4:], float))


def tau_figures(tau: TauEstimate, published: PublishedTau | None) -> Row:
    """A tau and the published one beside it, in the columns `TAU`; NaN where there is none."""
    beside = (published.mean, published.std) if published else (math.nan, math.nan)
    return dict(zip(TAU, (tau.mean, tau.std, tau.lower, tau.upper, *beside), strict=True))


def tau_texts(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their taus as text."""
    texts = [Tau(*values) for values in rows[list(TAU)].to_numpy(float)]
    return rows.assign(text=pd.Series(texts, rows.index, dtype=object))


def tau_table(title: str, label: str, names: Mapping[Any, str], rows: pd.DataFrame) -> Table:
    """Taus with one line per value of `label`, and a column per subset and phase.

    Arguments:
        title: what the table shows.
        label: the column of `rows` that the lines stand for.
        names: its values in order, each with the text to show.
        rows: from `tau_rows`.
    """
    places = {label: names, "subset": SUBSETS, "phase": PHASES}
    own = arranged(rows[rows[label].isin(names)], places)
    own = tau_texts(own.assign(head=own["subset"] + ", " + own["phase"]))
    order = arranged(own, {"subset": places["subset"], "phase": places["phase"]})
    cells = crossed(own, {label: label}, "head", {head: head for head in order["head"]})
    cells[label] = [names[value] for value in cells[label]]
    counts = own.groupby(label, sort=False)["choices"]
    cells["choices"] = [" / ".join(dict.fromkeys(map(str, found))) for _, found in counts]
    return Table(title, cells)


def unsaving_table(choices: pd.DataFrame) -> Table:
    """The choices whose ranks keep as many parameters as the layer had, or more."""
    own = choices[~choices["saves"]]
    cells = {
        "layer": own["layer"],
        "method": own["method"],
        "ranks": own["ranks"].str.replace(" ", ", "),
        "asked to keep": [percent(1 - compression) for compression in own["compression"]],
        "really keeps": [percent(kept, 1) for kept in own["kept"]],
    }
    return Table("Choices that save no parameters", pd.DataFrame(cells), labels=3)
