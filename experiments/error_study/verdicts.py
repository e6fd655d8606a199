"""The rules that decide the published findings, each for one phase.

The docstring of a rule is its full text: the report prints it. All rules judge tau on the test set,
of the six errors of the published study alone, whatever others are measured beside.
Intervals are the 95 % bootstrap intervals; two taus are not distinguishable where the interval of
their difference, taken on the same resamples, covers 0. Fewer than six complete choices decide
nothing: resampling so few says little.
"""

import math
from collections.abc import Iterable, Sequence
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
from experiments.report.text import number

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
    tau = _enough(tables.by_error, phase, RELATIVE_WEIGHTS)
    levels = {
        compression: tables.by_compression["test", phase, compression]
        for compression in sorted(config.compressions)
        if ("test", phase, compression) in tables.by_compression
    }
    if tau is None or len(levels) < LEAST_LEVELS:
        return _unmeasured(phase)
    trend = kendall_tau_a(list(levels), [level.mean for level in levels.values()])
    trend_lower, trend_upper = _trend_interval(list(levels.values()))
    published = {c: paper.by_compression("test", phase, c) for c in levels}
    published_means = [value.mean for value in published.values() if value]
    published_trend = (
        kendall_tau_a(list(levels), published_means)
        if len(published_means) == len(levels)
        else math.nan
    )

    if tau.lower > 0:
        positive, sign = HOLDS, "is positive"
    elif tau.upper <= 0:
        positive, sign = FAILS, "is not positive"
    else:
        positive, sign = UNDECIDED, "cannot be told from 0"
    if trend >= LEAST_TREND:
        growing, grows = HOLDS, "grows with compression"
    elif trend_upper < LEAST_TREND:
        growing, grows = FAILS, "does not grow with compression"
    else:
        growing, grows = UNDECIDED, "may or may not grow with compression"
    evidence = [
        _evidence(
            "all choices \N{GREATER-THAN OR EQUAL TO} 50 %",
            phase,
            tau,
            paper.by_error("test", phase, RELATIVE_WEIGHTS),
        ),
        *(
            _evidence(f"compression {100 * c:g} %", phase, level, published[c])
            for c, level in levels.items()
        ),
        Evidence(
            "trend over levels",
            phase,
            trend,
            lower=trend_lower,
            upper=trend_upper,
            published_mean=published_trend,
        ),
    ]
    reason = f"{_when(phase)}, tau {sign} and {grows} (trend {number(trend)})."
    return Part(all_hold((positive, growing)), reason, tuple(evidence))


def relative_weights_best(
    tables: TauTables, paper: PublishedStudy, config: StudyConfig, phase: str
) -> Part:
    """Relative Weights has the highest tau of the six errors.

    Over all choices that remove at least half of a layer. Holds where its mean tau is the highest;
    errors that are not distinguishable from it are named. Does not hold where another error's tau
    is higher and distinguishable from it; not decidable where another is higher but not
    distinguishable.
    """
    taus = {error: _enough(tables.by_error, phase, error) for error in ERRORS}
    known = {error: tau for error, tau in taus.items() if tau is not None}
    if len(known) < len(ERRORS):
        return _unmeasured(phase)
    ours = known.pop(RELATIVE_WEIGHTS)
    gaps = {error: difference(ours, tau) for error, tau in known.items()}
    close = [error_name(error) for error, gap in gaps.items() if not _distinguishable(gap)]
    higher = [error_name(error) for error, tau in known.items() if tau.mean > ours.mean]
    beaten_by = [error_name(error) for error, gap in gaps.items() if gap.upper < 0]
    if beaten_by:
        verdict, reason = FAILS, f"{_listed(beaten_by)} predicts better than Relative Weights."
    elif higher:
        verdict = UNDECIDED
        reason = f"{_listed(higher)} has a higher tau, not distinguishable from Relative Weights."
    else:
        verdict = HOLDS
        others = (
            f"not distinguishable from it: {_listed(close)}"
            if close
            else "every other error is distinguishably lower"
        )
        reason = f"Relative Weights is highest; {others}."
    evidence = tuple(
        _evidence(error_name(error), phase, tau, paper.by_error("test", phase, error))
        for error, tau in taus.items()
        if tau is not None
    )
    return Part(verdict, f"{_when(phase)}: {reason}", evidence)


def features_no_better(
    tables: TauTables, paper: PublishedStudy, config: StudyConfig, phase: str
) -> Part:
    """Errors of the features predict no better than errors of the weights.

    Over all choices that remove at least half of a layer, the best of the three feature errors is
    set against the best of the three weight errors. Holds where the features' tau is at most the
    weights'; does not hold where it is higher and distinguishable; not decidable where it is
    higher but not distinguishable.
    """
    best, evidence = {}, []
    for label, errors in (("best of weights", WEIGHT_ERRORS), ("best of features", FEATURE_ERRORS)):
        taus = {error: _enough(tables.by_error, phase, error) for error in errors}
        known = {error: tau for error, tau in taus.items() if tau is not None}
        if len(known) < len(errors):
            return _unmeasured(phase)
        name = max(known, key=lambda error: known[error].mean)
        best[label] = (error_name(name), known[name])
        published = [p for e in errors if (p := paper.by_error("test", phase, e)) is not None]
        highest = max(published, key=lambda value: value.mean, default=None)
        evidence.append(_evidence(label, phase, known[name], highest))
    (weights_name, weights), (features_name, features) = best.values()
    gap = difference(weights, features)
    evidence.append(_gap_evidence("weights \N{MINUS SIGN} features", phase, gap, *evidence))

    distinguishable = _distinguishable(gap)
    if gap.mean >= 0:
        verdict, order = HOLDS, "no better than"
    else:
        verdict, order = (FAILS if distinguishable else UNDECIDED), "better than"
    suffix = "" if distinguishable else ", though the two are not distinguishable"
    reason = f"{_when(phase)}: {features_name} predicts {order} {weights_name}{suffix}."
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
    layers, methods, everything = (_enough(tables.by_scope, phase, scope) for scope in SCOPES)
    if layers is None or methods is None or everything is None:
        return _unmeasured(phase)
    gap = difference(everything, layers)
    if gap.mean > 0:
        below, order = HOLDS, "below"
    else:
        below, order = (FAILS if _distinguishable(gap) else UNDECIDED), "not below"
    suffix = "" if _distinguishable(gap) else " (not distinguishable)"
    distance = abs(methods.mean - everything.mean)
    is_near = distance <= NEAR or everything.lower <= methods.mean <= everything.upper
    nearness = "near it" if is_near else "not near it"
    evidence = [
        _evidence(SCOPE_NAMES[scope], phase, tau, paper.by_scope("test", phase, scope))
        for scope, tau in zip(SCOPES, (layers, methods, everything), strict=True)
    ]
    evidence.append(
        _gap_evidence("all \N{MINUS SIGN} layers", phase, gap, evidence[2], evidence[0])
    )
    reason = (
        f"Tau over layers is {order} tau over all choices{suffix}; "
        f"tau over methods is {nearness}, {distance:.2f} away."
    )
    return Part(all_hold((below, HOLDS if is_near else FAILS)), reason, tuple(evidence))


def all_hold(verdicts: Iterable[str]) -> str:
    """Does not hold where one does not; holds where all do; else not decidable."""
    verdicts = set(verdicts)
    if FAILS in verdicts:
        return FAILS
    return UNDECIDED if UNDECIDED in verdicts else HOLDS


def _enough(table: TauTable, phase: str, column: str) -> TauEstimate | None:
    tau = table.get(("test", phase, column))
    return tau if tau is not None and tau.choices >= LEAST_CHOICES else None


def _trend_interval(levels: Sequence[TauEstimate]) -> tuple[float, float]:
    """The interval of tau-a between the order of the levels and their taus, over the resamples."""
    resampled = np.stack([level.resampled for level in levels])
    defined = resampled[:, ~np.isnan(resampled).any(axis=0)].T
    order = np.broadcast_to(np.arange(len(levels), dtype=float), defined.shape)
    trends = concordance(order, defined).sum(axis=(1, 2)) / (len(levels) * (len(levels) - 1))
    return percentile_interval(trends)


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
