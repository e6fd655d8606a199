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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.error_study.error_names import (
    ERRORS,
    FEATURE_ERRORS,
    RELATIVE_WEIGHTS,
    WEIGHT_ERRORS,
    error_name,
)
from experiments.error_study.paper import PublishedStudy, PublishedTau
from experiments.error_study.settings import StudyConfig
from experiments.error_study.tables import SCOPE_NAMES, SCOPES, TauTable, TauTables
from experiments.report.correlate import (
    TauEstimate,
    concordance,
    difference,
    kendall_tau_a,
    percentile_interval,
)
from experiments.report.tables import number

HOLDS = "holds"
FAILS = "does not hold"
UNDECIDED = "not decidable"

LEAST_TREND = 0.6
NEAR = 0.1
LEAST_LEVELS = 3
LEAST_CHOICES = 6


@dataclass(frozen=True)
class Evidence:
    """One figure that decides, in one phase; NaN where it has no spread, interval or twin."""

    label: str
    phase: str
    mean: float
    std: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    published_mean: float = math.nan
    published_std: float = math.nan


@dataclass(frozen=True)
class Part:
    """What one phase says about one finding."""

    verdict: str
    reason: str
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A finding, the rule that decides it, and what this study says."""

    number: int
    claim: str
    rule: str
    verdict: str
    reasons: tuple[str, ...]
    evidence: tuple[Evidence, ...]


def judge_findings(
    tables: TauTables, paper: PublishedStudy, config: StudyConfig
) -> tuple[Finding, ...]:
    """The four findings, judged on the test set."""
    findings = []
    rules = (positive_and_growing, relative_weights_best, features_no_better)
    for place, rule in enumerate((*rules, layers_harder_than_methods), start=1):
        phases = config.phases if rule in rules else ("before",)
        parts = [rule(tables, paper, config, phase) for phase in phases]
        claim, _, text = (inspect.getdoc(rule) or "").partition("\n\n")
        finding = Finding(
            number=place,
            claim=claim,
            rule=" ".join(text.split()),
            verdict=all_hold(part.verdict for part in parts),
            reasons=tuple(part.reason for part in parts),
            evidence=tuple(evidence for part in parts for evidence in part.evidence),
        )
        findings.append(finding)
    return tuple(findings)


def positive_and_growing(
    tables: TauTables, paper: PublishedStudy, config: StudyConfig, phase: str
) -> Part:
    """Tau is positive, and grows with compression.

    Relative Weights. Positive: over all choices that remove at least half of a layer, the interval
    of tau lies above 0; it is not where the interval ends at or below 0, and not decidable where
    the interval covers 0. Growing: the trend, Kendall's tau-a between compression and the mean tau
    at that compression over all levels (at least three), is at least 0.6; with five levels this
    means that eight of the ten pairs of levels are in order. It does not grow where the interval
    of the trend lies below 0.6, and is not decidable otherwise.
    """
    known = _known(tables.by_error, phase, (RELATIVE_WEIGHTS,))
    levels = {
        compression: tables.by_compression["test", phase, compression]
        for compression in sorted(config.compressions)
        if ("test", phase, compression) in tables.by_compression
    }
    if known is None or len(levels) < LEAST_LEVELS:
        return _unmeasured(phase)
    (tau,) = known.values()
    published = {c: paper.by_compression("test", phase, c) for c in levels}
    whole = "all choices \N{GREATER-THAN OR EQUAL TO} 50 %"
    trend = _trend(levels, published, phase)
    evidence = (
        _evidence(whole, phase, tau, paper.by_error("test", phase, RELATIVE_WEIGHTS)),
        *(
            _evidence(f"compression {100 * c:g} %", phase, level, published[c])
            for c, level in levels.items()
        ),
        trend,
    )
    positive, sign = _choose(
        (tau.lower > 0, "is positive"),
        (tau.upper <= 0, "is not positive"),
        "cannot be told from 0",
    )
    growing, grows = _choose(
        (trend.mean >= LEAST_TREND, "grows with compression"),
        (trend.upper < LEAST_TREND, "does not grow with compression"),
        "may or may not grow with compression",
    )
    reason = f"{_when(phase)}, tau {sign} and {grows} (trend {number(trend.mean)})."
    return Part(all_hold((positive, growing)), reason, evidence)


def relative_weights_best(
    tables: TauTables, paper: PublishedStudy, config: StudyConfig, phase: str
) -> Part:
    """Relative Weights has the highest tau of the six errors.

    Over all choices that remove at least half of a layer. Holds where its mean tau is the highest;
    errors that are not distinguishable from it are named. Does not hold where another error's tau
    is higher and distinguishable from it; not decidable where another is higher but not
    distinguishable.
    """
    taus = _known(tables.by_error, phase, ERRORS)
    if taus is None:
        return _unmeasured(phase)
    ours = taus[RELATIVE_WEIGHTS]
    gaps = {
        error_name(error): difference(ours, tau)
        for error, tau in taus.items()
        if error != RELATIVE_WEIGHTS
    }
    close = [name for name, gap in gaps.items() if not _distinguishable(gap)]
    higher = [error_name(error) for error, tau in taus.items() if tau.mean > ours.mean]
    beaten_by = [name for name, gap in gaps.items() if gap.upper < 0]
    others = "every other error is distinguishably lower"
    if close:
        others = f"not distinguishable from it: {_listed(close)}"
    verdict, reason = HOLDS, f"Relative Weights is highest; {others}."
    if beaten_by:
        verdict, reason = FAILS, f"{_listed(beaten_by)} predicts better than Relative Weights."
    elif higher:
        verdict = UNDECIDED
        reason = f"{_listed(higher)} has a higher tau, not distinguishable from Relative Weights."
    evidence = (
        _evidence(error_name(error), phase, tau, paper.by_error("test", phase, error))
        for error, tau in taus.items()
    )
    return Part(verdict, f"{_when(phase)}: {reason}", tuple(evidence))


def features_no_better(
    tables: TauTables, paper: PublishedStudy, config: StudyConfig, phase: str
) -> Part:
    """Errors of the features predict no better than errors of the weights.

    Over all choices that remove at least half of a layer, the best of the three feature errors is
    set against the best of the three weight errors. Holds where the features' tau is at most the
    weights'; does not hold where it is higher and distinguishable; not decidable where it is
    higher but not distinguishable.
    """
    names, evidence = [], []
    for label, errors in (("best of weights", WEIGHT_ERRORS), ("best of features", FEATURE_ERRORS)):
        known = _known(tables.by_error, phase, errors)
        if known is None:
            return _unmeasured(phase)
        names.append(max(known, key=lambda error: known[error].mean))
        published = [p for e in errors if (p := paper.by_error("test", phase, e)) is not None]
        highest = max(published, key=lambda value: value.mean, default=None)
        evidence.append(_evidence(label, phase, known[names[-1]], highest))
    weights, features = (tables.by_error["test", phase, name] for name in names)
    gap = difference(weights, features)
    evidence.append(_gap_evidence("weights \N{MINUS SIGN} features", phase, gap, *evidence))
    verdict = _unless_higher(gap, holds=gap.mean >= 0)
    order = "no better than" if verdict == HOLDS else "better than"
    suffix = "" if _distinguishable(gap) else ", though the two are not distinguishable"
    first, second = map(error_name, names)
    reason = f"{_when(phase)}: {second} predicts {order} {first}{suffix}."
    return Part(verdict, reason, tuple(evidence))


def layers_harder_than_methods(
    tables: TauTables, paper: PublishedStudy, config: StudyConfig, phase: str
) -> Part:
    """Before fine-tuning, layers are harder to compare than methods.

    Tau over layers only is below tau over all choices, tau over methods only about equal to it.
    Relative Weights, choices that remove at least half of a layer. Layers: holds where their mean
    tau is below that over all choices; does not hold where it is higher and distinguishable; not
    decidable where it is higher but not distinguishable. Methods: holds where their mean tau lies
    within 0.1 of that over all choices, or within its interval; else does not hold.
    """
    known = _known(tables.by_scope, phase, SCOPES)
    if known is None:
        return _unmeasured(phase)
    layers, methods, everything = known.values()
    gap = difference(everything, layers)
    below = _unless_higher(gap, holds=gap.mean > 0)
    order = "below" if below == HOLDS else "not below"
    suffix = "" if _distinguishable(gap) else " (not distinguishable)"
    distance = abs(methods.mean - everything.mean)
    is_near = distance <= NEAR or everything.lower <= methods.mean <= everything.upper
    evidence = [
        _evidence(SCOPE_NAMES[scope], phase, tau, paper.by_scope("test", phase, scope))
        for scope, tau in known.items()
    ]
    evidence.append(
        _gap_evidence("all \N{MINUS SIGN} layers", phase, gap, evidence[2], evidence[0])
    )
    reason = (
        f"Tau over layers is {order} tau over all choices{suffix}; "
        f"tau over methods is {'near it' if is_near else 'not near it'}, {distance:.2f} away."
    )
    return Part(all_hold((below, HOLDS if is_near else FAILS)), reason, tuple(evidence))


def all_hold(verdicts: Iterable[str]) -> str:
    """Does not hold where one does not; holds where all do; else not decidable."""
    verdicts = set(verdicts)
    if FAILS in verdicts:
        return FAILS
    return UNDECIDED if UNDECIDED in verdicts else HOLDS


def _known(table: TauTable, phase: str, columns: Sequence[str]) -> dict[str, TauEstimate] | None:
    """The taus of these columns; None unless each rests on enough choices."""
    taus = {column: table.get(("test", phase, column)) for column in columns}
    known = {c: tau for c, tau in taus.items() if tau and tau.choices >= LEAST_CHOICES}
    return known if len(known) == len(columns) else None


def _choose(holds: tuple[bool, str], fails: tuple[bool, str], otherwise: str) -> tuple[str, str]:
    if holds[0]:
        return HOLDS, holds[1]
    return (FAILS, fails[1]) if fails[0] else (UNDECIDED, otherwise)


def _unless_higher(gap: TauEstimate, *, holds: bool) -> str:
    if holds:
        return HOLDS
    return FAILS if _distinguishable(gap) else UNDECIDED


def _trend(
    levels: Mapping[float, TauEstimate], published: Mapping[float, PublishedTau | None], phase: str
) -> Evidence:
    """Tau-a between compression and tau at that compression; its interval is over the resamples."""
    resampled = np.stack([level.resampled for level in levels.values()])
    defined = resampled[:, ~np.isnan(resampled).any(axis=0)].T
    order = np.broadcast_to(np.arange(len(levels), dtype=float), defined.shape)
    trends = concordance(order, defined).sum(axis=(1, 2)) / (len(levels) * (len(levels) - 1))
    lower, upper = percentile_interval(trends)
    means = [value.mean for value in published.values() if value]
    beside = kendall_tau_a(list(levels), means) if len(means) == len(levels) else math.nan
    return Evidence(
        "trend over levels",
        phase,
        kendall_tau_a(list(levels), [level.mean for level in levels.values()]),
        lower=lower,
        upper=upper,
        published_mean=beside,
    )


def _distinguishable(gap: TauEstimate) -> bool:
    return gap.lower > 0 or gap.upper < 0


def _unmeasured(phase: str) -> Part:
    return Part(UNDECIDED, f"{_when(phase)}: too few choices are measured in every run.")


def _when(phase: str) -> str:
    return f"{phase.title()} fine-tuning"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _evidence(label: str, phase: str, tau: TauEstimate, published: PublishedTau | None) -> Evidence:
    beside = (published.mean, published.std) if published else ()
    return Evidence(label, phase, tau.mean, tau.std, tau.lower, tau.upper, *beside)


def _gap_evidence(
    label: str, phase: str, gap: TauEstimate, minuend: Evidence, subtrahend: Evidence
) -> Evidence:
    # The spread of a published difference is unknown: the runs behind it are not published here.
    published = minuend.published_mean - subtrahend.published_mean
    return Evidence(label, phase, gap.mean, gap.std, gap.lower, gap.upper, published)
