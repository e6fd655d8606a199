"""Verdicts on drawn studies whose truth is known, and the bounds that they rest on."""

import math

import numpy as np
import pytest

from benchmarks.verdicts import TRUTHS, WRONG, counted
from experiments.error_study.judging import FAILS, HOLDS, best_is_higher, best_is_no_higher
from experiments.report.correlate import estimate_tau
from experiments.report.estimates import TauEstimate


@pytest.mark.parametrize(("letter", "often"), [("d", {}), ("e", {1: HOLDS}), ("f", {1: FAILS})])
def test_verdicts_on_drawn_studies(letter, often):
    """Python -m benchmarks.verdicts draws more, of all truths."""
    truth = TRUTHS[letter]
    for number, counts in enumerate(counted(truth, 6, 60), start=1):
        assert not any(counts[verdict] for verdict in WRONG[truth.findings[number - 1]])
        if number in often:
            assert counts[often[number]] >= 3


def drawn(mean, sd, seed, choices=45):
    resampled = mean + sd * np.random.default_rng(seed).standard_normal(4000)
    return TauEstimate(np.array([[mean]]), resampled, resampled[:, None], choices)


def test_bounds_are_quantiles_of_students_t():
    lower, upper = drawn(0.3, 0.1, 0).bounds(0.025)
    # 2.015 for 44 degrees of freedom.
    assert lower == pytest.approx(0.3 - 0.2015, abs=0.005)
    assert upper == pytest.approx(0.3 + 0.2015, abs=0.005)
    # 2.571 for 5.
    assert drawn(0.3, 0.1, 0, choices=6).bounds(0.025)[0] == pytest.approx(0.3 - 0.257, abs=0.005)
    none = TauEstimate(np.array([[0.3]]), np.full(5, math.nan), np.full((5, 1), math.nan), 4)
    assert np.isnan(none.bounds(0.025)).all()


def test_bounds_cover_tau_as_often_as_they_say():
    """Of independent choices, tau is 0."""
    rng, missed = np.random.default_rng(0), 0
    for seed in range(150):
        x, y = rng.standard_normal((2, 1, 1, 20))
        lower, upper = estimate_tau(x, y, np.zeros(20, int), resamples=100, seed=seed).bounds(0.05)
        missed += not lower < 0 < upper
    # Both sides: at most one in ten, give or take three standard deviations.
    assert missed / 150 <= 0.1 + 3 * math.sqrt(0.09 / 150)


def test_the_best_of_several_is_not_taken_for_better():
    """Three equal taus each: the luck of the draw decides nothing."""
    rng, higher, lower = np.random.default_rng(0), 0, 0
    for seed in range(300):
        taus = [drawn(0.5 + 0.1 * rng.standard_normal(), 0.1, 6 * seed + k) for k in range(6)]
        higher += best_is_higher(taus[:3], taus[3:], 0.05)
        lower += best_is_no_higher(taus[:3], taus[3:], 0.0, 0.05)
    assert higher / 300 <= 0.05
    assert lower / 300 <= 0.05
    assert best_is_higher([drawn(0.9, 0.1, 0)], [drawn(0.1, 0.1, 1)], 0.05)
    assert best_is_no_higher([drawn(0.1, 0.1, 0)], [drawn(0.9, 0.1, 1)], 0.04, 0.05)
