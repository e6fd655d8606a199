"""What to use on such a network: what a study's taus say, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.error_study.error_names import DATA_ERRORS, ERRORS, WEIGHT_ERRORS, error_name
from experiments.error_study.judging import (
    MARGINS,
    Seen,
    best_is_higher,
    best_is_no_higher,
)
from experiments.error_study.paper import PublishedStudy
from experiments.error_study.tables import TauTable
from experiments.report.tables import number


def what_to_use(taus: TauTable, paper: PublishedStudy, phases: Sequence[str]) -> str:
    """Which error to compare compressions of such a network by, in each phase that was measured.

    It is one that bounds prove to have the highest tau of the six; else one than which no other is
    better by as much as `Margins.better`, of weights where there is one, as those need no data;
    else that is not decidable.
    """
    parts = [_answer(Seen(taus, paper, phase, MARGINS)) for phase in phases]
    return (
        "Which approximation error tells good compressions of such a network from bad ones? "
        + " ".join(parts)
    )


def _answer(seen: Seen) -> str:
    taus = seen.known("error", ERRORS)
    if taus is None:
        return seen.unmeasured.reason
    if not seen.any_positive(list(taus.values())):
        return f"{seen.when}, none is known to: no tau lies above 0."

    def named(error: str) -> str:
        return f"{error_name(error)} (tau {number(taus[error].mean)})"

    def others(error: str) -> list:
        return [tau for other, tau in taus.items() if other != error]

    error = seen.proves(len(taus))
    best = max(taus, key=lambda own: taus[own].mean)
    if best_is_higher([taus[best]], others(best), error):
        return (
            f"{seen.when}, use {named(best)}: it predicts better than the other five.{_data(seen)}"
        )
    margin = seen.margins.better
    fine = [own for own in taus if best_is_no_higher(others(own), [taus[own]], margin, error)]
    if fine:
        by_weights = [own for own in fine if own in WEIGHT_ERRORS] or fine
        used = max(by_weights, key=lambda own: taus[own].mean)
        return (
            f"{seen.when}, use {named(used)}: no other of the six is better by {margin:g} or more."
            f"{_data(seen)}"
        )
    return (
        f"{seen.when}, that is not decidable: {named(best)} has the highest tau, but others may "
        f"predict as well or better.{_data(seen)}"
    )


def _data(seen: Seen) -> str:
    """Whether an error in the norms of the data is better still."""
    data, six = (seen.known("error", own) for own in (DATA_ERRORS, ERRORS))
    if data is None or six is None:
        return ""
    if not best_is_higher(list(data.values()), list(six.values()), seen.proves()):
        return ""
    best = max(data, key=lambda own: data[own].mean)
    return f" {error_name(best)} ({number(data[best].mean)}), which needs data, is better still."
