"""Do the four findings of the published study hold in this one?

A finding about both phases, before and after fine-tuning, is judged in each phase that the study
measures: it does not hold where it does not in one of them, holds where it does in all, and is not
decidable otherwise.

The docstring of a rule is its full text: the report prints it. All rules judge tau on the test set,
of the six errors of the published study alone, whatever others are measured beside.
Intervals are the 95 % bootstrap intervals; two taus are not distinguishable where the interval of
their difference, taken on the same resamples, covers 0. Fewer than six complete choices decide
nothing: resampling so few says little.
"""

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.error_study.error_names import (
    ERRORS,
    FEATURE_ERRORS,
    RELATIVE_WEIGHTS,
    WEIGHT_ERRORS,
    error_name,
)
from experiments.error_study.paper import PublishedStudy, PublishedTau
from experiments.error_study.tables import SCOPE_NAMES, Row, TauTable, tau_figures
from experiments.report.correlate import (
    TauEstimate,
    concordance,
    difference,
    kendall_tau_a,
)
from experiments.report.tables import number

HOLDS = "holds"
FAILS = "does not hold"
UNDECIDED = "not decidable"

LEAST_TREND = 0.6
NEAR = 0.1
LEAST_LEVELS = 3
LEAST_CHOICES = 6

SIGN = {HOLDS: "is positive", FAILS: "is not positive", UNDECIDED: "cannot be told from 0"}
GROWS = {
    HOLDS: "grows with compression",
    FAILS: "does not grow with compression",
    UNDECIDED: "may or may not grow with compression",
}


@dataclass(frozen=True)
class Part:
    """What one phase says about one finding, with the figures that decide, see `Seen.row`."""

    verdict: str
    reason: str
    evidence: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A finding, the rule that decides it, and what this study says."""

    number: int
    claim: str
    rule: str
    verdict: str
    reasons: tuple[str, ...]
    evidence: tuple[Row, ...]


@dataclass(frozen=True)
class Seen:
    """What a rule looks at: taus on the test set in one phase, and the published ones."""

    taus: TauTable
    paper: PublishedStudy
    phase: str

    @property
    def when(self) -> str:
        """The phase in words."""
        return f"{self.phase.title()} fine-tuning"

    @property
    def unmeasured(self) -> Part:
        """That there is too little to decide on."""
        return Part(UNDECIDED, f"{self.when}: too few choices are measured in every run.")

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


def judge_findings(
    taus: TauTable, paper: PublishedStudy, phases: Sequence[str]
) -> tuple[Finding, ...]:
    """The four findings, judged on the test set in the phases that a study measures."""
    findings = []
    rules = (positive_and_growing, relative_weights_best, features_no_better)
    for place, rule in enumerate((*rules, layers_harder_than_methods), start=1):
        own = phases if rule in rules else ("before",)
        parts = [rule(Seen(taus, paper, phase)) for phase in own]
        claim, _, text = (inspect.getdoc(rule) or "").partition("\n\n")
        finding = Finding(
            number=place,
            claim=claim,
            rule=" ".join(text.split()),
            verdict=all_hold(part.verdict for part in parts),
            reasons=tuple(part.reason for part in parts),
            evidence=tuple(row for part in parts for row in part.evidence),
        )
        findings.append(finding)
    return tuple(findings)


def positive_and_growing(seen: Seen) -> Part:
    """Tau is positive, and grows with compression.

    Relative Weights. Positive: over all choices that remove at least half of a layer, the interval
    of tau lies above 0; it is not where the interval ends at or below 0, and not decidable where
    the interval covers 0. Growing: the trend, Kendall's tau-a between compression and the mean tau
    at that compression over all levels (at least three), is at least 0.6; with five levels this
    means that eight of the ten pairs of levels are in order. It does not grow where the interval
    of the trend lies below 0.6, and is not decidable otherwise.
    """
    known = seen.known("error", (RELATIVE_WEIGHTS,))
    levels = sorted(value for *of, value in seen.taus if of == ["compression", "test", seen.phase])
    if known is None or len(levels) < LEAST_LEVELS:
        return seen.unmeasured
    (tau,) = known.values()
    by_level = [seen.evidence(f"compression {100 * c:g} %", "compression", c) for c in levels]
    trend = _trend([seen.taus["compression", "test", seen.phase, level] for level in levels])
    means = [row["published_mean"] for row in by_level]
    published = math.nan if np.isnan(means).any() else kendall_tau_a(levels, means)
    evidence = (
        seen.evidence("all choices \N{GREATER-THAN OR EQUAL TO} 50 %", "error", RELATIVE_WEIGHTS),
        *by_level,
        seen.row("trend over levels", trend, PublishedTau(published, math.nan)),
    )
    positive = _verdict(tau.lower > 0, tau.upper <= 0)
    growing = _verdict(trend.mean >= LEAST_TREND, trend.upper < LEAST_TREND)
    trends = f"tau {SIGN[positive]} and {GROWS[growing]} (trend {number(trend.mean)})"
    return Part(all_hold((positive, growing)), f"{seen.when}, {trends}.", evidence)


def relative_weights_best(seen: Seen) -> Part:
    """Relative Weights has the highest tau of the six errors.

    Over all choices that remove at least half of a layer. Holds where its mean tau is the highest;
    errors that are not distinguishable from it are named. Does not hold where another error's tau
    is higher and distinguishable from it; not decidable where another is higher but not
    distinguishable.
    """
    taus = seen.known("error", ERRORS)
    if taus is None:
        return seen.unmeasured
    ours = taus[RELATIVE_WEIGHTS]
    others = [error for error in ERRORS if error != RELATIVE_WEIGHTS]
    gaps = {error_name(error): difference(ours, taus[error]) for error in others}
    close = [name for name, gap in gaps.items() if not _distinguishable(gap)]
    higher = [error_name(error) for error in others if taus[error].mean > ours.mean]
    beaten_by = [name for name, gap in gaps.items() if gap.upper < 0]
    rest = "every other error is distinguishably lower"
    if close:
        rest = f"not distinguishable from it: {_listed(close)}"
    reason = f"Relative Weights is highest; {rest}."
    if beaten_by:
        reason = f"{_listed(beaten_by)} predicts better than Relative Weights."
    elif higher:
        reason = f"{_listed(higher)} has a higher tau, not distinguishable from Relative Weights."
    verdict = _verdict(not (higher or beaten_by), bool(beaten_by))
    evidence = tuple(seen.evidence(error_name(error), "error", error) for error in ERRORS)
    return Part(verdict, f"{seen.when}: {reason}", evidence)


def features_no_better(seen: Seen) -> Part:
    """Errors of the features predict no better than errors of the weights.

    Over all choices that remove at least half of a layer, the best of the three feature errors is
    set against the best of the three weight errors. Holds where the features' tau is at most the
    weights'; does not hold where it is higher and distinguishable; not decidable where it is
    higher but not distinguishable.
    """
    names, best, evidence = [], [], []
    for label, errors in (("best of weights", WEIGHT_ERRORS), ("best of features", FEATURE_ERRORS)):
        known = seen.known("error", errors)
        if known is None:
            return seen.unmeasured
        names.append(max(known, key=lambda error: known[error].mean))
        best.append(known[names[-1]])
        published = [seen.paper.tau("error", "test", seen.phase, error) for error in errors]
        highest = max(filter(None, published), key=lambda value: value.mean, default=None)
        evidence.append(seen.row(label, best[-1], highest))
    gap = difference(*best)
    evidence.append(seen.gap("weights \N{MINUS SIGN} features", gap, *evidence))
    verdict = _verdict(gap.mean >= 0, _distinguishable(gap))
    order = "no better than" if verdict == HOLDS else "better than"
    suffix = "" if _distinguishable(gap) else ", though the two are not distinguishable"
    first, second = map(error_name, names)
    reason = f"{seen.when}: {second} predicts {order} {first}{suffix}."
    return Part(verdict, reason, tuple(evidence))


def layers_harder_than_methods(seen: Seen) -> Part:
    """Before fine-tuning, layers are harder to compare than methods.

    Tau over layers only is below tau over all choices, tau over methods only about equal to it.
    Relative Weights, choices that remove at least half of a layer. Layers: holds where their mean
    tau is below that over all choices; does not hold where it is higher and distinguishable; not
    decidable where it is higher but not distinguishable. Methods: holds where their mean tau lies
    within 0.1 of that over all choices, or within its interval; else does not hold.
    """
    known = seen.known("scope", tuple(SCOPE_NAMES))
    if known is None:
        return seen.unmeasured
    layers, methods, everything = known.values()
    gap = difference(everything, layers)
    below = _verdict(gap.mean > 0, _distinguishable(gap))
    order = "below" if below == HOLDS else "not below"
    suffix = "" if _distinguishable(gap) else " (not distinguishable)"
    distance = abs(methods.mean - everything.mean)
    is_near = distance <= NEAR or everything.lower <= methods.mean <= everything.upper
    evidence = [seen.evidence(name, "scope", scope) for scope, name in SCOPE_NAMES.items()]
    evidence.append(seen.gap("all \N{MINUS SIGN} layers", gap, evidence[2], evidence[0]))
    reason = (
        f"Tau over layers is {order} tau over all choices{suffix}; "
        f"tau over methods is {'near it' if is_near else 'not near it'}, {distance:.2f} away."
    )
    return Part(all_hold((below, HOLDS if is_near else FAILS)), reason, tuple(evidence))


def all_hold(verdicts: Iterable[str]) -> str:
    """Does not hold where one does not; holds where all do; else not decidable."""
    found = set(verdicts)
    return next((verdict for verdict in (FAILS, UNDECIDED) if verdict in found), HOLDS)


def _verdict(holds: bool, fails: bool) -> str:
    return HOLDS if holds else FAILS if fails else UNDECIDED


def _trend(taus: Sequence[TauEstimate]) -> TauEstimate:
    """Tau-a between compression and tau at it, of levels in order; resampled as those are."""
    levels = len(taus)
    resampled = np.stack([tau.resampled for tau in taus])
    defined = resampled[:, ~np.isnan(resampled).any(axis=0)].T
    order = np.broadcast_to(np.arange(levels, dtype=float), defined.shape)
    trends = concordance(order, defined).sum(axis=(1, 2)) / (levels * (levels - 1))
    mean = kendall_tau_a(range(levels), [tau.mean for tau in taus])
    return TauEstimate(np.array([mean]), trends, levels)


def _distinguishable(gap: TauEstimate) -> bool:
    return gap.lower > 0 or gap.upper < 0


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
