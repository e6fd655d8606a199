"""What to use on such a network: what a study's taus say, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from experiments.error_study.error_names import DATA_ERRORS, ERRORS, WEIGHT_ERRORS, error_name
from experiments.error_study.judging import (
    MARGINS,
    Seen,
    best_is_higher,
    best_is_no_higher,
)
from experiments.error_study.paper import PublishedStudy
from experiments.error_study.tables import TauTable
from experiments.report.estimates import TauEstimate
from experiments.report.tables import number

Taus = Mapping[str, TauEstimate]


def what_to_use(taus: TauTable, paper: PublishedStudy, phases: Sequence[str]) -> str:
    """Which error to compare compressions of such a network by, in each phase that was measured.

    It is one that bounds prove to have the highest tau of the six; else one than which no other is
    better by as much as `Margins.better`, of weights where there is one, as those need no data;
    else which is best is not decidable, and those are named that no other is proved to be above.
    """
    asked = "Which approximation error tells good compressions of such a network from bad ones?"
    parts = [_answer(Seen(taus, paper, phase, MARGINS)) for phase in phases]
    return "\n".join([asked, *parts])


def _answer(seen: Seen) -> str:
    taus = seen.known("error", ERRORS)
    if taus is None:
        return seen.unmeasured.reason
    if not seen.any_positive(list(taus.values())):
        return f"{seen.when}, none is known to: of no tau is it decided that it lies above 0."
    best, fine, open_ = _best(seen, taus), _fine(seen, taus), _open(seen, taus)
    if best:
        text = f"use {_named(taus, best)}: it predicts better than the other five."
    elif fine:
        used = next((own for own in fine if own in WEIGHT_ERRORS), fine[0])
        margin = seen.margins.better
        text = f"use {_named(taus, [used])}: no other of the six is better by {margin:g} or more."
    elif len(open_) < len(taus):
        text = (
            f"use one of {_named(taus, open_)}: which is not decidable, but the others are worse."
        )
    else:
        text = f"which of the six is best is not decidable: {_named(taus, open_)}."
    return f"{seen.when}, {text}{_data(seen)}"


def _best(seen: Seen, taus: Taus) -> list[str]:
    """The one that lies above all others, or none."""
    error = seen.proves(len(taus))
    return [own for own in taus if best_is_higher([taus[own]], _others(taus, own), error)]


def _fine(seen: Seen, taus: Taus) -> list[str]:
    """Those than which no other is better by a margin."""
    margin, error = seen.margins.better, seen.proves(len(taus))
    found = [
        own for own in taus if best_is_no_higher(_others(taus, own), [taus[own]], margin, error)
    ]
    return _falling(taus, found)


def _open(seen: Seen, taus: Taus) -> list[str]:
    """Those that none of the others lies above."""
    error = seen.proves(len(taus) * (len(taus) - 1))
    found = [
        own
        for own in taus
        if not any(best_is_higher([other], [taus[own]], error) for other in _others(taus, own))
    ]
    return _falling(taus, found)


def _falling(taus: Taus, errors: Iterable[str]) -> list[str]:
    return sorted(errors, key=lambda own: taus[own].mean, reverse=True)


def _others(taus: Taus, error: str) -> list[TauEstimate]:
    return [tau for other, tau in taus.items() if other != error]


def _named(taus: Taus, errors: Iterable[str]) -> str:
    names = [f"{error_name(error)} (tau {number(taus[error].mean)})" for error in errors]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _data(seen: Seen) -> str:
    """Whether an error in the norms of the data is better still."""
    data, six = (seen.known("error", own) for own in (DATA_ERRORS, ERRORS))
    if data is None or six is None:
        return ""
    if not best_is_higher(list(data.values()), list(six.values()), seen.proves()):
        return ""
    best = max(data, key=lambda own: data[own].mean)
    return f" In the norms of the data, {_named(data, [best])} is better still."
