"""The report's section about errors in the norms of the data, apart from the published six."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pandas as pd

from experiments.error_study.error_names import DATA_ERRORS, ERRORS, error_name, error_names
from experiments.error_study.judging import LEAST_CHOICES, MARGINS, SIDES, best_is_higher
from experiments.error_study.plots import plot_taus
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import SUBSETS, lacking_data_errors
from experiments.error_study.tables import TauTable, tau_table
from experiments.report.estimates import TauEstimate, difference
from experiments.report.page import Picture, Section
from experiments.report.tables import DASH, Table, Tau, number
from experiments.workdir.journal import Journal

MEANING = (
    "The same approximations in the norms that the data gives, over the training examples of the "
    "feature errors. With E the change of a kernel, Covariance is the root of tr(E\u1d40 S E), S "
    "the second moment of what goes into the layer; Kronecker is the root of tr(G E\u1d40 S E), G "
    "the second moment of the training loss's gradient at what comes out. Relative: divided by the "
    "same norm of the kernel. The published study has neither, and the findings do not use them. "
    "Below, the best of these stands against the best of the six, each picked by the same figures; "
    "one predicts better where it lies above all of the others by bounds that allow for the choice."
)
TITLE = "Errors in the norm of the data"


def data_section(
    settings: Protocol, measured: Journal, taus: TauTable, by_error: pd.DataFrame, bars: str
) -> Section:
    """Whether the best of these errors predicts better than the best of the six.

    Arguments:
        by_error: the rows of the table by error.
        bars: what the bars of a plot mean.
    """
    count, lacking = len(measured.of_kind("compressed")), lacking_data_errors(measured)
    if lacking or not count:
        why = "No choice is measured yet."
        if count:
            why = (
                f"Not measured: {lacking} of {count} measurements in this work directory lack "
                f"{', '.join(map(error_name, DATA_ERRORS))}, as those of earlier versions do. "
                "A study in a new work directory has them."
            )
        return Section("data-errors", TITLE, MEANING, paragraphs=[why])
    title = "Tau by error in the norms of the data, compression of 50 % and more"
    picture = Picture(
        "Tau of the six approximation errors, and of those in the norms of the data.",
        f"All choices that remove at least half of a layer, test set. {bars}",
        {"tau_data_errors.svg": plot_taus(by_error, "error", error_names(ERRORS + DATA_ERRORS))},
    )
    return Section(
        "data-errors",
        TITLE,
        MEANING,
        paragraphs=[_answer(taus, phase) for phase in settings.phases],
        pictures=[picture],
        tables=[
            tau_table(title, "error", error_names(DATA_ERRORS), by_error),
            _gaps(taus, settings.phases),
        ],
    )


def _answer(taus: TauTable, phase: str) -> str:
    when = f"{phase.title()} fine-tuning"
    ours, six = (_best(taus, "test", phase, errors) for errors in (DATA_ERRORS, ERRORS))
    if ours is None or six is None or ours[1].choices < LEAST_CHOICES:
        return f"{when}: too few choices are measured in every run."
    gap = difference(ours[1], six[1])
    data, published = (
        [taus["error", "test", phase, error] for error in own] for own in (DATA_ERRORS, ERRORS)
    )
    verdict, wrong = "The two are not distinguishable", MARGINS.error / SIDES
    if best_is_higher(data, published, wrong):
        verdict = "It predicts better"
    elif best_is_higher(published, data, wrong):
        verdict = "It predicts worse"
    return (
        f"{when}, on the test set: {error_name(ours[0])} has the highest tau of these, "
        f"{number(ours[1].mean)}; of the six, {error_name(six[0])} has, {number(six[1].mean)}. "
        f"{verdict}: difference {_gap_tau(gap)}."
    )


def _gaps(taus: TauTable, phases: Sequence[str]) -> Table:
    cells: dict[str, list[Any]] = {"error": ["best of the six", *map(error_name, DATA_ERRORS)]}
    for subset, phase in product(SUBSETS, phases):
        column: list[Any] = [DASH] * len(cells["error"])
        if (six := _best(taus, subset, phase, ERRORS)) is not None:
            own = (taus["error", subset, phase, error] for error in DATA_ERRORS)
            column = [error_name(six[0]), *(_gap_tau(difference(tau, six[1])) for tau in own)]
        cells[f"{subset}, {phase}"] = column
    return Table("The same less tau of the best of the six", pd.DataFrame(cells))


def _gap_tau(gap: TauEstimate) -> Tau:
    return Tau(gap.mean, gap.std, gap.lower, gap.upper)


def _best(
    taus: TauTable, subset: str, phase: str, errors: Iterable[str]
) -> tuple[str, TauEstimate] | None:
    found = ((error, taus.get(("error", subset, phase, error))) for error in errors)
    known = [(error, tau) for error, tau in found if tau is not None]
    return max(known, key=lambda found: found[1].mean, default=None)
