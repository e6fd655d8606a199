"""A study's measurements as rows, its taus, and both as tables of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.error_study.error_names import RELATIVE_WEIGHTS
from experiments.error_study.paper import PublishedTau
from experiments.error_study.records import SUBSETS, Compressed, Finetuned, Study
from experiments.error_study.settings import StudyConfig
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

CHOICE = ("layer", "method", "compression")
SCOPE_NAMES = {"layers": "layers only", "methods": "methods only", "all": "all choices"}
SCOPES = tuple(SCOPE_NAMES)
# What pairs of choices have in common.
HELD_FIXED = {"layers": ["method", "compression"], "methods": ["layer", "compression"], "all": []}
FIGURES = ("accuracy", "cross_entropy", "log_error")
TAU = ("mean", "std", "lower", "upper", "published_mean", "published_std")

Row = dict[str, Any]
TauTable = dict[tuple[str, str, Any], TauEstimate]


@dataclass(frozen=True)
class TauTables:
    """Tau by (subset, phase, compression), (subset, phase, error) and (subset, phase, scope).

    A key is absent where too few choices are complete to order any.
    """

    by_compression: TauTable
    by_error: TauTable
    by_scope: TauTable


@dataclass(frozen=True)
class Resampling:
    """How the intervals are drawn, and which choices count as strong compression."""

    resamples: int = 2000
    seed: int = 0
    least_compression: float = 0.5


def measurement_rows(study: Study) -> pd.DataFrame:
    """One row per choice and run that was measured, in the configuration's order.

    No timings: an interrupted and an unbroken study give the same rows.
    """
    errors, phases = study.measurements.errors, study.config.phases
    rows: list[Row] = []
    for choice in study.choices:
        for run in range(study.config.runs):
            found = study.measurements.compressed.get((choice, run))
            if found is None:
                continue
            row: Row = {
                **asdict(choice),
                "run": run,
                "ranks": " ".join(map(str, found.ranks)),
                "kept": found.kept,
                "saves": found.saves,
                **found.errors,
                **_performances("before", found),
            }
            if tuned := study.measurements.finetuned.get((choice, run)):
                row |= {"finetune_epoch": tuned.epoch} | _performances("after", tuned)
            rows.append(row)
    columns: Row = {"layer": str, "method": str, "compression": float, "run": int, "ranks": str}
    columns |= {"kept": float, "saves": bool, **dict.fromkeys(errors, float)}
    for phase in phases:
        columns |= {"finetune_epoch": "Int64"} if phase == "after" else {}
        columns |= dict.fromkeys(_performance_columns(phase), float)
    return framed(rows, columns)


def _performance_columns(phase: str) -> list[str]:
    return [f"{subset}/{phase}/{figure}" for subset in SUBSETS for figure in FIGURES]


def _performances(phase: str, measured: Compressed | Finetuned) -> dict[str, float]:
    values: list[float] = []
    for own in (getattr(measured, subset) for subset in SUBSETS):
        log_error = log_classification_error(own.accuracy, own.count)
        values += [own.accuracy, own.cross_entropy, log_error]
    return dict(zip(_performance_columns(phase), values, strict=True))


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


def complete(rows: pd.DataFrame, config: StudyConfig, phase: str) -> pd.DataFrame:
    """The rows of the choices that were measured in every run before or after fine-tuning."""
    counts = rows.groupby(list(CHOICE))[f"test/{phase}/accuracy"].transform("count")
    return rows[counts == config.runs]


def tau_tables(rows: pd.DataFrame, config: StudyConfig, resampling: Resampling) -> TauTables:
    """All taus of a study, finished or not; only choices complete in every run count.

    By compression: of Relative Weights over layers and methods (Figure 1). By error: of each error
    over all choices of strong compression (Figure 2). By scope: of Relative Weights over layers
    only, for each fixed method and compression, over methods only, for each fixed layer and
    compression, in each run the mean of those, and over all choices (Figure 3).
    """
    strong = rows[rows["compression"] >= resampling.least_compression]
    errors = [name for name in rows.columns if "/" in name and not name.startswith(SUBSETS)]
    by_level = {level: rows[rows["compression"] == level] for level in config.compressions}

    def taus(asked: Iterable[tuple[Any, pd.DataFrame, str, list[str]]]) -> TauTable:
        return {
            (subset, phase, column): tau
            for column, own, error, held_fixed in asked
            for phase in config.phases
            for subset, tau in _taus(own, config, resampling, phase, error, held_fixed).items()
        }

    return TauTables(
        taus((level, own, RELATIVE_WEIGHTS, []) for level, own in by_level.items()),
        taus((error, strong, error, []) for error in errors),
        taus((scope, strong, RELATIVE_WEIGHTS, HELD_FIXED[scope]) for scope in SCOPES),
    )


def _taus(
    rows: pd.DataFrame,
    config: StudyConfig,
    resampling: Resampling,
    phase: str,
    error: str,
    held_fixed: list[str],
) -> dict[str, TauEstimate]:
    """Tau by subset; none where no two choices have in common what is held fixed."""
    whole = complete(rows, config, phase)
    first = whole[:: config.runs]
    groups = np.zeros(len(first), int)
    if held_fixed:
        groups = first.groupby(held_fixed, sort=False).ngroup().to_numpy()
    if len(np.unique(groups)) == len(groups):
        return {}

    def by_run(name: str) -> Float[np.ndarray, "runs choices"]:
        return np.ascontiguousarray(whole[name].to_numpy(float).reshape(-1, config.runs).T)

    return {
        subset: estimate_tau(
            by_run(error),
            by_run(f"{subset}/{phase}/log_error"),
            groups,
            resamples=resampling.resamples,
            seed=resampling.seed,
        )
        for subset in SUBSETS
    }


def tau_rows(
    table: TauTable, name: str, published: Callable[[str, str, Any], PublishedTau | None]
) -> pd.DataFrame:
    """One row per compression, error or scope, subset and phase, the published value beside."""
    rows: list[Row] = []
    for (subset, phase, column), tau in table.items():
        row = {each: getattr(tau, each) for each in ("mean", "std", "lower", "upper", "choices")}
        row |= {name: column, "subset": subset, "phase": phase, "runs": tau.per_run.size}
        if beside := published(subset, phase, column):
            row |= {"published_mean": beside.mean, "published_std": beside.std}
        rows.append(row)
    columns: Row = {name: float if name == "compression" else str, "subset": str, "phase": str}
    columns |= {**dict.fromkeys(TAU[:4], float), "choices": int, "runs": int}
    return framed(rows, columns | dict.fromkeys(TAU[4:], float))


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
    places = {label: names, "subset": SUBSETS, "phase": ("before", "after")}
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
