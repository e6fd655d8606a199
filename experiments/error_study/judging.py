"""What every rule on the findings of a study works with: taus, margins, bounds, verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.error_study.paper import PublishedStudy, PublishedTau
from experiments.error_study.tables import Row, TauTable, tau_figures
from experiments.report.estimates import TauEstimate, difference

HOLDS = "holds"
FAILS = "does not hold"
UNDECIDED = "not decidable"

# What wrong verdicts of both kinds may add up to, one side of an interval each.
SIDES = 2
LEAST_CHOICES = 6


@dataclass(frozen=True, kw_only=True)
class Margins:
    """What counts as a difference, and how often a verdict may be wrong.

    Arguments:
        error: probability of a wrong "holds", and of a wrong "does not hold".
        better: an error is no better than another where its tau is higher by less; 0.04 is a
            fiftieth of the pairs of choices.
        near: taus are about equal where they differ by less.
        trend: Kendall's tau-a between compression and tau at which tau grows; 0.6 of five levels
            means that eight of the ten pairs of levels are in order.
    """

    error: float = 0.05
    better: float = 0.04
    near: float = 0.1
    trend: float = 0.6


MARGINS = Margins()


@dataclass(frozen=True)
class Part:
    """What one phase says about one finding, with the figures that decide, see `Seen.row`."""

    verdict: str
    reason: str
    evidence: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What a rule looks at: taus on the test set in one phase, and the published ones.

    Arguments:
        ways: in how many phases the finding is judged, each of which may speak against it.
    """

    taus: TauTable
    paper: PublishedStudy
    phase: str
    margins: Margins
    ways: int = 1

    @property
    def when(self) -> str:
        """The phase in words."""
        return f"{self.phase.title()} fine-tuning"

    @property
    def unmeasured(self) -> Part:
        """That there is too little to decide on."""
        return Part(UNDECIDED, f"{self.when}: too few choices are measured in every run.")

    def proves(self, among: int = 1) -> float:
        """The probability that a bound is wrong of which one of so many would make it hold."""
        return self.margins.error / SIDES / among

    def refutes(self, among: int = 1) -> float:
        """The same of a bound which one of so many, in one of the phases, would speak against."""
        return self.margins.error / SIDES / among / self.ways

    def any_positive(self, taus: Sequence[TauEstimate]) -> bool:
        """Whether one of some taus lies above 0."""
        return any(tau.bounds(self.proves(len(taus)))[0] > 0 for tau in taus)

    def unrelated(self, evidence: Sequence[Row]) -> Part:
        """That there is nothing to compare."""
        reason = (
            f"{self.when}: no tau is known to lie above 0, so that there is nothing to compare."
        )
        return Part(UNDECIDED, reason, tuple(evidence))

    def known(self, kind: str, values: Sequence[str]) -> dict[str, TauEstimate] | None:
        """The taus of these; None unless each rests on enough choices."""
        taus = {value: self.taus.get((kind, "test", self.phase, value)) for value in values}
        known = {v: tau for v, tau in taus.items() if tau and tau.choices >= LEAST_CHOICES}
        return known if len(known) == len(values) else None

    def evidence(self, label: str, kind: str, value: Any) -> Row:
        """A tau, the published one beside it."""
        place = (kind, "test", self.phase, value)
        return self.row(label, self.taus[place], self.paper.tau(*place))

    def gap(self, label: str, gap: TauEstimate, minuend: Row, less: Row) -> Row:
        """The difference of two taus."""
        # The spread of a published difference is unknown: its runs are not published here.
        published = PublishedTau(minuend["published_mean"] - less["published_mean"], math.nan)
        return self.row(label, gap, published)

    def row(self, label: str, tau: TauEstimate, published: PublishedTau | None) -> Row:
        """One figure that decides: its label, the phase, and the columns `tables.TAU`."""
        return {"label": label, "phase": self.phase, **tau_figures(tau, published)}


def best_is_higher(
    ours: Sequence[TauEstimate], theirs: Sequence[TauEstimate], error: float
) -> bool:
    """Whether one of some taus lies above all others, by bounds that hold for all of ours at once.

    Arguments:
        error: probability of a wrong yes.
    """
    return any(
        all(difference(own, other).bounds(error / len(ours))[0] > 0 for other in theirs)
        for own in ours
    )


def best_is_no_higher(
    ours: Sequence[TauEstimate], theirs: Sequence[TauEstimate], margin: float, error: float
) -> bool:
    """Whether one of other taus is such that none of ours is higher by a margin.

    Arguments:
        error: probability of a wrong yes.
    """
    return any(
        all(difference(own, other).bounds(error / len(theirs))[1] < margin for own in ours)
        for other in theirs
    )


def all_hold(verdicts: Iterable[str]) -> str:
    """Does not hold where one does not; holds where all do; else not decidable."""
    found = set(verdicts)
    return next((verdict for verdict in (FAILS, UNDECIDED) if verdict in found), HOLDS)


def verdict_of(holds: bool, fails: bool) -> str:
    """Whether a claim holds, from whether it was proved and whether it was refuted."""
    return HOLDS if holds else FAILS if fails else UNDECIDED
