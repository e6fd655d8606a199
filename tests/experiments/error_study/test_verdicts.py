"""Verdicts on drawn studies whose truth is known, and the bounds that they rest on."""

import math

import numpy as np
import pytest

from benchmarks.verdicts import TRUTHS, counted
from experiments.error_study.judging import FAILS, HOLDS, best_is_higher, best_is_no_higher
from experiments.report.correlate import estimate_tau
from tests.drawn_taus import drawn_tau


@pytest.mark.parametrize(
    ("letter", "networks", "often"),
    [("d", 1, {}), ("e", 1, {1: HOLDS}), ("f", 1, {1: FAILS}), ("f", 4, {1: FAILS})],
)
def test_verdicts_on_drawn_studies(letter, networks, often):
    """Python -m benchmarks.verdicts draws more, of all truths."""
    truth = TRUTHS[letter]
    for number, counts in enumerate(counted(truth, networks, 3, 60), start=1):
        assert counts.wrong(truth.findings[number - 1]) == 0
        assert counts.contradictions == 0
        if number in often:
            assert counts.verdicts[often[number]] >= 3


def drawn(mean, sd, seed, choices=45):
    return drawn_tau([[mean]], sd, np.full(1, mean), choices, seed)


def test_bounds_are_quantiles_of_students_t():
    lower, upper = drawn(0.3, 0.1, 0).bounds(0.025)
    # 2.015 for 44 degrees of freedom.
    assert lower == pytest.approx(0.3 - 0.2015, abs=1e-3)
    assert upper == pytest.approx(0.3 + 0.2015, abs=1e-3)
    # 2.571 for 5.
    assert drawn(0.3, 0.1, 0, choices=6).bounds(0.025)[0] == pytest.approx(0.3 - 0.2571, abs=1e-3)
    # Three networks that no choice has a part in: 4.303 for 2 degrees of freedom.
    apart = drawn_tau([[0.2], [0.3], [0.4]], 0.0, np.full(1, 0.3))
    half = 4.303 * 0.1 / math.sqrt(3)
    assert apart.bounds(0.025) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-3)


@pytest.mark.parametrize("networks", [1, 2, 5])
def test_bounds_cover_tau_as_often_as_they_say(networks):
    """Of choices half the same on all networks, that differ in how x goes with y: tau is 0."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(150):
        common, own = rng.standard_normal((2, 1, 1, 20)), rng.standard_normal((2, networks, 1, 20))
        x, y = common + own
        y = y + (rng.standard_normal((networks, 1, 1)) if networks > 1 else 0) * x / 4
        lower, upper = estimate_tau(x, y, np.zeros(20, int), resamples=2).bounds(0.05)
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
