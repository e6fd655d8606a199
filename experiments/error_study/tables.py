"""The study's three tables of tau, from its measurements to plain rows."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.error_study.error_names import RELATIVE_WEIGHTS
from experiments.error_study.paper import PublishedStudy, PublishedTau
from experiments.error_study.records import SUBSETS, Choice, Study
from experiments.report.correlate import TauEstimate, estimate_tau, log_classification_error

SCOPE_NAMES = {"layers": "layers only", "methods": "methods only", "all": "all choices"}
SCOPES = tuple(SCOPE_NAMES)

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


def tau_tables(study: Study, resampling: Resampling) -> TauTables:
    """All three tables of a study, finished or not; only choices complete in every run count."""
    return TauTables(
        tau_by_compression(study, resampling),
        tau_by_error(study, resampling),
        tau_by_scope(study, resampling),
    )


def tau_by_compression(study: Study, resampling: Resampling) -> TauTable:
    """Tau of Relative Weights over layers and methods, at each compression (Figure 1)."""
    return _table(
        study,
        resampling,
        columns=study.config.compressions,
        selects=lambda choice, compression: choice.compression == compression,
        group=lambda choice, compression: (),
        error=lambda compression: RELATIVE_WEIGHTS,
    )


def tau_by_error(study: Study, resampling: Resampling) -> TauTable:
    """Tau of each error over all choices of strong compression (Figure 2)."""
    return _table(
        study,
        resampling,
        columns=study.measurements.errors,
        selects=lambda choice, error: choice.compression >= resampling.least_compression,
        group=lambda choice, error: (),
        error=lambda error: error,
    )


def tau_by_scope(study: Study, resampling: Resampling) -> TauTable:
    """Tau of Relative Weights over layers only, methods only, and all choices (Figure 3).

    Over layers only: in each run, tau over the layers for each fixed method and compression, then
    the mean of those; over methods only: the same for each fixed layer and compression. Choices of
    strong compression.
    """

    def held_fixed(choice: Choice, scope: str) -> tuple[Any, ...]:
        if scope == "layers":
            return choice.method, choice.compression
        if scope == "methods":
            return choice.layer, choice.compression
        return ()

    return _table(
        study,
        resampling,
        columns=SCOPES,
        selects=lambda choice, scope: choice.compression >= resampling.least_compression,
        group=held_fixed,
        error=lambda scope: RELATIVE_WEIGHTS,
    )


def _table(
    study: Study,
    resampling: Resampling,
    columns: Iterable[Any],
    selects: Callable[[Choice, Any], bool],
    group: Callable[[Choice, Any], tuple[Any, ...]],
    error: Callable[[Any], str],
) -> TauTable:
    table: TauTable = {}
    for column in columns:
        for phase in study.config.phases:
            choices = [c for c in study.complete_choices(phase) if selects(c, column)]
            held_fixed = [group(choice, column) for choice in choices]
            numbers = {fixed: number for number, fixed in enumerate(dict.fromkeys(held_fixed))}
            if len(numbers) == len(choices):
                continue
            groups = np.array([numbers[fixed] for fixed in held_fixed])
            errors = _errors(study, choices, error(column))
            for subset in SUBSETS:
                table[subset, phase, column] = estimate_tau(
                    errors,
                    _log_errors(study, choices, subset, phase),
                    groups,
                    resamples=resampling.resamples,
                    seed=resampling.seed,
                )
    return table


def _errors(
    study: Study, choices: Sequence[Choice], error: str
) -> Float[np.ndarray, "runs choices"]:
    records = study.measurements.compressed
    runs = range(study.config.runs)
    return np.array([[records[choice, run].errors[error] for choice in choices] for run in runs])


def _log_errors(
    study: Study, choices: Sequence[Choice], subset: str, phase: str
) -> Float[np.ndarray, "runs choices"]:
    records = study.records(phase)

    def log_error(choice: Choice, run: int) -> float:
        performance = getattr(records[choice, run], subset)
        return log_classification_error(performance.accuracy, performance.count)

    runs = range(study.config.runs)
    return np.array([[log_error(choice, run) for choice in choices] for run in runs])


def compression_rows(tables: TauTables, paper: PublishedStudy) -> list[Row]:
    """One row per compression, subset and phase, with the published value beside."""
    return _rows(tables.by_compression, "compression", paper.by_compression)


def error_rows(tables: TauTables, paper: PublishedStudy) -> list[Row]:
    """One row per error, subset and phase, with the published value beside."""
    return _rows(tables.by_error, "error", paper.by_error)


def scope_rows(tables: TauTables, paper: PublishedStudy) -> list[Row]:
    """One row per scope, subset and phase, with the published value beside."""
    return _rows(tables.by_scope, "scope", paper.by_scope)


def _rows(
    table: TauTable, name: str, published: Callable[[str, str, Any], PublishedTau | None]
) -> list[Row]:
    rows = []
    for (subset, phase, column), tau in table.items():
        beside = published(subset, phase, column)
        rows.append(
            {
                name: column,
                "subset": subset,
                "phase": phase,
                "mean": tau.mean,
                "std": tau.std,
                "lower": tau.lower,
                "upper": tau.upper,
                "choices": tau.choices,
                "runs": tau.per_run.size,
                "published_mean": beside.mean if beside else math.nan,
                "published_std": beside.std if beside else math.nan,
            }
        )
    return rows
