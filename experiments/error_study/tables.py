"""A study's measurements as rows, its taus, and both as tables of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from experiments.error_study.error_names import RELATIVE_WEIGHTS
from experiments.error_study.paper import PublishedStudy, PublishedTau
from experiments.error_study.protocol import PHASES, Choice, Protocol
from experiments.error_study.records import SUBSETS, choice_fields, common_errors
from experiments.report.correlate import estimate_tau, log_classification_error
from experiments.report.estimates import TauEstimate
from experiments.report.tables import (
    Table,
    Tau,
    arranged,
    averages,
    crossed,
    framed,
    percent,
)
from experiments.workdir.journal import Journal
from experiments.workdir.record_fields import Record

CHOICE = ("layer", "method", "compression")
SCOPE_NAMES = {"layers": "layers only", "methods": "methods only", "all": "all choices"}
# What pairs of choices have in common.
HELD_FIXED: dict[str, tuple[str, ...]] = {
    "layers": ("method", "compression"),
    "methods": ("layer", "compression"),
    "all": (),
}
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
    """The rows that count towards tau before or after fine-tuning, of an unfinished study too.

    Of every network on which all choices were measured in every run. Until there is one, of the
    network that is furthest, of equals the first, those choices that were: taus over other choices
    on each network could not be averaged.
    """
    measured = rows[rows[f"test/{phase}/accuracy"].notna()]
    by = ["network", *CHOICE]
    counts = measured.groupby(by)["run"].transform("size")
    whole = measured[counts == measured["method"].map(settings.runs_of)]
    choices = whole.drop_duplicates(by).groupby("network").size()
    if choices.empty:
        return whole
    finished = choices.index[choices == len(settings.choices)]
    return whole[whole["network"].isin(finished if len(finished) else [choices.idxmax()])]


def measured_taus(
    rows: pd.DataFrame,
    settings: Protocol,
    *,
    resamples: int,
    strong: float = 0.5,
    subsets: Sequence[str] = SUBSETS,
) -> TauTable:
    """All taus of a study, finished or not; only what is `complete` counts.

    There is none where too few choices are complete to order any.

    Arguments:
        rows: from `measurement_rows`.
        resamples: behind each interval, drawn with the study's seed.
        strong: the least compression that counts as strong.
        subsets: whose performance is asked for.
    """
    own = tuple(level for level in settings.levels if level >= strong)
    errors = [name for name in rows.columns if "/" in name and not name.startswith(SUBSETS)]
    asked: list[tuple[str, Any, tuple[float, ...], str, tuple[str, ...]]] = [
        ("compression", level, (level,), RELATIVE_WEIGHTS, ()) for level in settings.levels
    ]
    asked += [("error", error, own, error, ()) for error in errors]
    asked += [("scope", scope, own, RELATIVE_WEIGHTS, fixed) for scope, fixed in HELD_FIXED.items()]
    counted = {phase: complete(rows, settings, phase) for phase in settings.phases}

    @cache
    def cube_of(phase: str, levels: tuple[float, ...], fixed: tuple[str, ...]) -> _Cube:
        whole = counted[phase]
        return _cube(whole[whole["compression"].isin(levels)], settings, fixed)

    taus: dict[tuple[str, str, str, Any], TauEstimate] = {}
    for kind, value, levels, error, fixed in asked:
        for phase in settings.phases:
            cube = cube_of(phase, levels, fixed)
            # None where no two choices have in common what is held fixed.
            for subset in subsets if len(np.unique(cube.groups)) < len(cube.groups) else ():
                taus[kind, subset, phase, value] = estimate_tau(
                    cube.values(error),
                    cube.values(f"{subset}/{phase}/log_error"),
                    cube.groups,
                    counts=cube.counts,
                    numbers=cube.numbers,
                    resamples=resamples,
                    seed=settings.seed,
                )
    return taus


@dataclass(frozen=True, eq=False)
class _Cube:
    """Rows by network, run and choice.

    Arguments:
        numbers: of the choices among those of the study.
        places: of each row its network, run and choice, counted from 0.
        groups: which choices have in common what is held fixed.
        counts: how many runs each choice has on each network.
    """

    rows: pd.DataFrame
    numbers: Int[np.ndarray, " choices"]
    places: tuple[np.ndarray, np.ndarray, np.ndarray]
    groups: Int[np.ndarray, " choices"]
    counts: Int[np.ndarray, " choices"]

    def values(self, name: str) -> Float[np.ndarray, "networks runs choices"]:
        """A column; NaN for runs that a choice does not have."""
        found = np.full([place.max() + 1 for place in self.places], math.nan)
        found[self.places] = self.rows[name]
        return found


def _cube(rows: pd.DataFrame, settings: Protocol, held_fixed: tuple[str, ...]) -> _Cube:
    first, runs = rows.drop_duplicates(CHOICE), rows["run"].to_numpy(int)
    networks = np.unique(rows["network"], return_inverse=True)[1]
    choices = rows.groupby(list(CHOICE), sort=False).ngroup().to_numpy()
    groups = np.zeros(len(first), int)
    if held_fixed:
        groups = first.groupby(list(held_fixed), sort=False).ngroup().to_numpy()
    counts = first["method"].map(settings.runs_of).to_numpy(int)
    every = {choice: number for number, choice in enumerate(settings.choices)}
    numbers = [every[Choice(*own)] for own in first[list(CHOICE)].itertuples(index=False)]
    return _Cube(rows, np.array(numbers, int), (networks, runs, choices), groups, counts)


def tau_rows(
    taus: TauTable, kind: str, paper: PublishedStudy, *, several: bool = False
) -> pd.DataFrame:
    """One row per compression, error or scope, subset and phase, the published value beside.

    Arguments:
        several: whether the study has several networks; each row then says over how many.
    """
    rows: list[Row] = [
        {
            kind: value,
            "subset": subset,
            "phase": phase,
            **tau_figures(tau, paper.tau(kind, subset, phase, value)),
            "choices": tau.choices,
            "networks": tau.per_run.shape[0],
            "runs": tau.per_run.shape[1],
        }
        for (of, subset, phase, value), tau in taus.items()
        if of == kind
    ]
    columns: Row = {kind: float if kind == "compression" else str, "subset": str, "phase": str}
    columns |= {**dict.fromkeys(TAU[:4], float), "choices": int}
    columns |= {"networks": int, "runs": int} if several else {"runs": int}
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
