"""Do the four findings of the published study hold in this one?

Every verdict is a test, and a wrong one has a probability of at most `Margins.error`, of each kind
and for each finding. What a finding says must follow from bounds (`TauEstimate.bounds`) for it to
hold, and be contradicted by bounds for it not to hold; otherwise it is not decidable. Where one of
several bounds would do, as of six errors in two phases, each gets its part of the probability
(Bonferroni); where all must agree, each has it whole (intersection-union). "No better than" and
"about equal" are claims of equivalence: within a margin. What compares errors presupposes that
there is something to compare: a tau that lies above 0.

A finding about both phases, before and after fine-tuning, is judged in each phase that the study
measures: it does not hold where it does not in one of them, holds where it does in all, and is not
decidable otherwise.

The docstring of a rule is its full text: the report prints it, with the numbers of `Margins`. All
rules judge tau on the test set, of the six errors of the published study alone, whatever others
are measured beside. A verdict on several networks speaks of other networks of this kind, one on a
single network of that network alone; and of other choices on these layers, not of other layers.
Fewer than six complete choices decide nothing: so few say little of others.
"""

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from experiments.error_study.error_names import (
    ERRORS,
    FEATURE_ERRORS,
    RELATIVE_WEIGHTS,
    WEIGHT_ERRORS,
    error_name,
)
from experiments.error_study.judging import (
    FAILS,
    HOLDS,
    MARGINS,
    UNDECIDED,
    Margins,
    Part,
    Seen,
    all_hold,
    best_is_higher,
    best_is_no_higher,
    verdict_of,
)
from experiments.error_study.paper import PublishedStudy, PublishedTau
from experiments.error_study.tables import SCOPE_NAMES, Row, TauTable
from experiments.report.correlate import concordance, kendall_tau_a
from experiments.report.estimates import TauEstimate, combination, difference
from experiments.report.tables import number

LEAST_LEVELS = 3

SIGN = {HOLDS: "is positive", FAILS: "is not positive", UNDECIDED: "cannot be told from 0"}
GROWS = {
    HOLDS: "grows with compression",
    FAILS: "does not grow with compression",
    UNDECIDED: "may or may not grow with compression",
}


@dataclass(frozen=True)
class Finding:
    """A finding, the rule that decides it, and what this study says."""

    number: int
    claim: str
    rule: str
    verdict: str
    reasons: tuple[str, ...]
    evidence: tuple[Row, ...]


def judge_findings(
    taus: TauTable, paper: PublishedStudy, phases: Sequence[str], margins: Margins = MARGINS
) -> tuple[Finding, ...]:
    """The four findings, judged on the test set in the phases that a study measures."""
    findings = []
    rules = (positive_and_growing, relative_weights_best, features_no_better)
    for place, rule in enumerate((*rules, layers_harder_than_methods), start=1):
        own = phases if rule in rules else ("before",)
        parts = [rule(Seen(taus, paper, phase, margins, len(own))) for phase in own]
        claim, _, text = (inspect.getdoc(rule) or "").partition("\n\n")
        finding = Finding(
            number=place,
            claim=claim,
            rule=" ".join(text.format(**asdict(margins)).split()),
            verdict=all_hold(part.verdict for part in parts),
            reasons=tuple(part.reason for part in parts),
            evidence=tuple(row for part in parts for row in part.evidence),
        )
        findings.append(finding)
    return tuple(findings)


def positive_and_growing(seen: Seen) -> Part:
    """Tau is positive, and grows with compression.

    Relative Weights. Positive: over all choices that remove at least half of a layer, the lower
    bound of tau lies above 0; it is not where the upper bound lies below 0, and not decidable
    otherwise. Growing: the trend, Kendall's tau-a between compression and the mean tau at that
    compression over all levels (at least three), is at least {trend:g}, and its 95 % interval lies
    above 0. It does not grow where the upper bound of the slope of tau over the levels in order
    lies below 0, or where tau falls between so many pairs of levels, by bounds that hold for all
    pairs at once, that the trend cannot reach {trend:g}. Not decidable otherwise.
    """
    known = seen.known("error", (RELATIVE_WEIGHTS,))
    levels = sorted(value for *of, value in seen.taus if of == ["compression", "test", seen.phase])
    if known is None:
        return seen.unmeasured
    if len(levels) < LEAST_LEVELS:
        few = f"fewer than {LEAST_LEVELS} compressions, by which growth is judged, are measured"
        return Part(UNDECIDED, f"{seen.when}: {few}.")
    (tau,) = known.values()
    by_level = [seen.evidence(f"compression {100 * c:g} %", "compression", c) for c in levels]
    own = [seen.taus["compression", "test", seen.phase, level] for level in levels]
    trend = _trend(own)
    means = [row["published_mean"] for row in by_level]
    published = math.nan if np.isnan(means).any() else kendall_tau_a(levels, means)
    evidence = (
        seen.evidence("all choices \N{GREATER-THAN OR EQUAL TO} 50 %", "error", RELATIVE_WEIGHTS),
        *by_level,
        seen.row("trend over levels", trend, PublishedTau(published, math.nan)),
    )
    positive = verdict_of(
        tau.bounds(seen.proves())[0] > 0, tau.bounds(seen.refutes(among=2))[1] < 0
    )
    growing = verdict_of(
        trend.mean >= seen.margins.trend and trend.lower > 0,
        _slope(own).bounds(seen.refutes(among=4))[1] < 0
        or _greatest_trend(own, seen.refutes(among=4)) < seen.margins.trend,
    )
    trends = f"tau {SIGN[positive]} and {GROWS[growing]} (trend {number(trend.mean)})"
    return Part(all_hold((positive, growing)), f"{seen.when}, {trends}.", evidence)


def relative_weights_best(seen: Seen) -> Part:
    """Relative Weights has the highest tau of the six errors.

    Over all choices that remove at least half of a layer, where one of the six taus lies above 0.
    Holds where no other error is better: the upper bound of its tau less that of Relative Weights
    is less than {better:g}, for all five. Does not hold where the lower bound of one such
    difference, of bounds that hold for all five at once, lies above 0. Errors that are higher are
    named.
    """
    taus = seen.known("error", ERRORS)
    if taus is None:
        return seen.unmeasured
    evidence = tuple(seen.evidence(error_name(error), "error", error) for error in ERRORS)
    if not seen.any_positive(list(taus.values())):
        return seen.unrelated(evidence)
    ours = taus[RELATIVE_WEIGHTS]
    gaps = {error: difference(tau, ours) for error, tau in taus.items() if tau is not ours}
    beaten = [e for e, gap in gaps.items() if gap.bounds(seen.refutes(len(gaps)))[0] > 0]
    open_ = [e for e, gap in gaps.items() if not gap.bounds(seen.proves())[1] < seen.margins.better]
    verdict = verdict_of(not open_ and not beaten, bool(beaten))
    if verdict == FAILS:
        reason = f"{_listed(map(error_name, beaten))} predicts better than Relative Weights."
    elif verdict == HOLDS:
        reason = "no other error predicts better than Relative Weights."
    else:
        reason = f"{_listed(map(error_name, open_))} may predict better than Relative Weights."
    return Part(verdict, f"{seen.when}: {reason}", evidence)


def features_no_better(seen: Seen) -> Part:
    """Errors of the features predict no better than errors of the weights.

    Over all choices that remove at least half of a layer, where one of the six taus lies above 0.
    Holds where there is a weight error than which no feature error is better: the upper bounds of
    their taus less its own are less than {better:g}. Does not hold where there is a feature error
    better than every weight error: the lower bounds of its tau less theirs lie above 0. As the best
    of three is looked for, the bounds hold for all three at once.
    """
    weights, features = (seen.known("error", own) for own in (WEIGHT_ERRORS, FEATURE_ERRORS))
    if weights is None or features is None:
        return seen.unmeasured
    names, evidence = [], []
    for label, known in (("best of weights", weights), ("best of features", features)):
        names.append(max(known, key=lambda error: known[error].mean))
        published = [seen.paper.tau("error", "test", seen.phase, error) for error in known]
        highest = max(filter(None, published), key=lambda value: value.mean, default=None)
        evidence.append(seen.row(label, known[names[-1]], highest))
    gap = difference(weights[names[0]], features[names[1]])
    evidence.append(seen.gap("weights \N{MINUS SIGN} features", gap, *evidence))
    if not seen.any_positive([*weights.values(), *features.values()]):
        return seen.unrelated(evidence)
    own, others = list(features.values()), list(weights.values())
    better = best_is_higher(own, others, seen.refutes())
    no_better = best_is_no_higher(own, others, seen.margins.better, seen.proves())
    verdict = verdict_of(no_better and not better, better)
    order = {HOLDS: "no better than", FAILS: "better than", UNDECIDED: "perhaps better than"}
    first, second = map(error_name, names)
    reason = f"{seen.when}: {second} predicts {order[verdict]} {first}."
    return Part(verdict, reason, tuple(evidence))


def layers_harder_than_methods(seen: Seen) -> Part:
    """Before fine-tuning, layers are harder to compare than methods.

    Tau over layers only is below tau over all choices, tau over methods only about equal to it.
    Relative Weights, choices that remove at least half of a layer, where tau over all choices lies
    above 0. Layers: holds where the lower bound of tau over all choices less that over layers lies
    above 0; does not hold where the upper bound lies below 0. Methods: holds where both bounds of
    their tau less that over all choices lie within {near:g} of 0; does not hold where both lie on
    one side beyond it. Not decidable otherwise.
    """
    known = seen.known("scope", tuple(SCOPE_NAMES))
    if known is None:
        return seen.unmeasured
    layers, methods, everything = known.values()
    gap, distance = difference(everything, layers), difference(methods, everything)
    evidence = [seen.evidence(name, "scope", scope) for scope, name in SCOPE_NAMES.items()]
    evidence.append(seen.gap("all \N{MINUS SIGN} layers", gap, evidence[2], evidence[0]))
    evidence.append(seen.gap("methods \N{MINUS SIGN} all", distance, evidence[1], evidence[2]))
    if not seen.any_positive([everything]):
        return seen.unrelated(evidence)
    below = verdict_of(gap.bounds(seen.proves())[0] > 0, gap.bounds(seen.refutes(among=2))[1] < 0)
    near = seen.margins.near
    (least, most), (low, high) = (distance.bounds(p) for p in (seen.proves(), seen.refutes(2)))
    close = verdict_of(-near < least and most < near, low > near or high < -near)
    order = {HOLDS: "below", FAILS: "above", UNDECIDED: "not distinguishable from"}
    about = {HOLDS: "about equal to it", FAILS: "not near it", UNDECIDED: "perhaps near it"}
    reason = (
        f"Tau over layers is {order[below]} tau over all choices; "
        f"tau over methods is {about[close]}, {abs(distance.mean):.2f} away."
    )
    return Part(all_hold((below, close)), reason, tuple(evidence))


def _trend(taus: Sequence[TauEstimate]) -> TauEstimate:
    """Tau-a between compression and tau at it, of levels in order; resampled as those are."""
    levels = len(taus)
    resampled = np.stack([tau.scaled for tau in taus])
    defined = resampled[:, ~np.isnan(resampled).any(axis=0)].T
    order = np.broadcast_to(np.arange(levels, dtype=float), defined.shape)
    trends = concordance(order, defined).sum(axis=(1, 2)) / (levels * (levels - 1))
    mean = kendall_tau_a(range(levels), [tau.mean for tau in taus])
    none = np.zeros((1, 0, 0)), np.zeros(0, int)
    return TauEstimate(np.array([[mean]]), trends, *none, levels)


def _slope(taus: Sequence[TauEstimate]) -> TauEstimate:
    """How tau changes from one level to the next, by a straight line through levels in order."""
    places = np.arange(len(taus)) - (len(taus) - 1) / 2
    return combination(taus, (places / (places**2).sum()).tolist())


def _greatest_trend(taus: Sequence[TauEstimate], error: float) -> float:
    """What the trend is at most, as tau falls between some pairs of levels in order.

    Arguments:
        error: probability that it falls between fewer.
    """
    pairs = list(combinations(taus, 2))
    falls = (difference(low, high).bounds(error / len(pairs))[0] > 0 for low, high in pairs)
    return 1 - 2 * sum(falls) / len(pairs)


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return " and ".join(filter(None, (", ".join(most), last)))
