import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from experiments.report.correlate import (
    cross_runs,
    estimate_tau,
    kendall_tau_a,
    log_classification_error,
    resample_weights,
)
from experiments.report.estimates import TauEstimate, difference
from tests.drawn_taus import drawn_tau


def tau_by_pairs(x, y):
    pairs = list(itertools.combinations(range(len(x)), 2))
    score = 0
    for i, j in pairs:
        product = (x[i] - x[j]) * (y[i] - y[j])
        score += int(product > 0) - int(product < 0)
    return score / len(pairs)


few_values = st.integers(-3, 3)


@given(st.lists(st.tuples(few_values, few_values), min_size=2, max_size=20))
def test_tau_a_is_the_mean_over_pairs(items):
    x, y = zip(*items, strict=True)
    assert kendall_tau_a(x, y) == pytest.approx(tau_by_pairs(x, y), abs=1e-12)


@given(st.lists(st.tuples(few_values, few_values), min_size=2, max_size=20))
def test_tau_a_is_tau_b_times_the_share_of_untied_pairs(items):
    x, y = zip(*items, strict=True)

    def untied(values):
        return sum(a != b for a, b in itertools.combinations(values, 2))

    expected = 0.0
    if untied(x) and untied(y):
        tau_b = scipy.stats.kendalltau(x, y).statistic
        expected = tau_b * math.sqrt(untied(x) * untied(y)) / math.comb(len(x), 2)
    assert kendall_tau_a(x, y) == pytest.approx(expected, abs=1e-12)


@given(st.permutations(range(12)))
def test_without_ties_tau_a_is_scipys_tau(order):
    expected = scipy.stats.kendalltau(range(12), order).statistic
    assert kendall_tau_a(range(12), order) == pytest.approx(expected, abs=1e-12)


def test_ties_count_as_neither_but_stay_in_the_denominator():
    assert kendall_tau_a([1, 2, 3, 4], [1, 1, 2, 3]) == pytest.approx(5 / 6)
    assert kendall_tau_a([1, 1, 1], [1, 2, 3]) == 0.0


def test_infinity_is_the_largest_number():
    assert kendall_tau_a([1, 2, math.inf, math.inf], [1, 2, 3, 4]) == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, math.nan], [1.0, 2.0])],
)
def test_tau_refuses_what_has_no_order(x, y):
    with pytest.raises(ValueError, match="Kendall"):
        kendall_tau_a(x, y)


def test_perfect_accuracy_is_half_an_image_wrong():
    assert log_classification_error(1.0, 5000) == pytest.approx(math.log(0.5 / 5000))
    assert log_classification_error(4999 / 5000, 5000) == pytest.approx(math.log(1 / 5000))
    assert log_classification_error(0.93, 5000) == pytest.approx(math.log(0.07))


@pytest.mark.parametrize("count", [5_000, 10_000, 60_000])
def test_equal_numbers_of_wrong_images_tie_in_any_precision(count):
    for wrong in (0, 1, 337, count // 3):
        exact = 1 - wrong / count
        rounded = float(np.float32(exact))
        assert log_classification_error(exact, count) == log_classification_error(rounded, count)


def random_measurements(seed, runs=3, choices=7):
    rng = np.random.default_rng(seed)
    errors = rng.integers(0, 5, (runs, choices)).astype(float)
    return errors, errors + rng.integers(0, 4, (runs, choices)).astype(float)


def tau_of_resample(errors, log_errors, groups, drawn, drawn_runs):
    """The resample written out: every drawn item in a list, pairs of copies left out."""
    items = [i for i, times in enumerate(drawn.astype(int)) for _ in range(times)]
    sizes = np.bincount(groups)
    runs = [r for r, times in enumerate(drawn_runs.astype(int)) for _ in range(times)]
    taus = []
    for run in runs:
        score = weight = 0.0
        for a, b in itertools.permutations(range(len(items)), 2):
            i, j = items[a], items[b]
            if i == j or groups[i] != groups[j]:
                continue
            pair = 1 / (sizes[groups[i]] * (sizes[groups[i]] - 1))
            dx, dy = errors[run, i] - errors[run, j], log_errors[run, i] - log_errors[run, j]
            score += pair * np.sign(dx) * np.sign(dy)
            weight += pair
        taus.append(score / weight if weight else math.nan)
    return float(np.mean(taus))


@pytest.mark.parametrize("groups", [[0] * 7, [0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 2, 2, 3]])
def test_bootstrap_is_the_resample_written_out(groups):
    errors, log_errors = random_measurements(seed=1)
    groups = np.array(groups)
    estimate = estimate_tau(errors[None], log_errors[None], groups, resamples=60, seed=5)
    items, shares = resample_weights(7, 1, cross_runs(np.full(7, 3)), resamples=60, seed=5)
    expected = [
        tau_of_resample(errors, log_errors, groups, *drawn)
        for drawn in zip(items, 3 * shares[:, 0], strict=True)
    ]
    np.testing.assert_allclose(estimate.resampled, expected, atol=1e-12)


def test_drawn_weights_resample_as_many_as_there_are():
    items, shares = resample_weights(7, 1, cross_runs(np.full(7, 3)), resamples=50, seed=0)
    runs = 3 * shares[:, 0]
    assert (items.sum(axis=1) == 7).all()
    np.testing.assert_allclose(runs, runs.round(), atol=1e-12)
    np.testing.assert_allclose(runs.sum(axis=1), 3)
    assert len(np.unique(items, axis=0)) > 40


def test_copies_of_an_item_do_not_pull_tau_towards_zero():
    ranks = np.arange(6.0)[None, None]
    estimate = estimate_tau(ranks, ranks, np.zeros(6, int), resamples=200)
    assert np.nanmin(estimate.resampled) == pytest.approx(1.0)
    assert (estimate.mean, estimate.lower, estimate.upper) == pytest.approx((1.0, 1.0, 1.0))
    assert math.isnan(estimate.std)


def test_interval_covers_about_95_percent_of_the_true_taus():
    # A bivariate normal with correlation rho has tau = 2 / pi * arcsin(rho).
    rho, covered, studies = 0.7, 0, 200
    truth = 2 / math.pi * math.asin(rho)
    rng = np.random.default_rng(0)
    for seed in range(studies):
        x, noise = rng.normal(size=(2, 1, 1, 40))
        y = rho * x + math.sqrt(1 - rho**2) * noise
        estimate = estimate_tau(x, y, np.zeros(40, int), resamples=300, seed=seed)
        covered += estimate.lower <= truth <= estimate.upper
    assert 0.88 <= covered / studies <= 0.99


def test_groups_are_averaged_and_lone_choices_left_out():
    errors, log_errors = random_measurements(seed=2)
    groups = np.array([0, 0, 0, 1, 1, 2, 2])
    estimate = estimate_tau(errors[None], log_errors[None], groups, resamples=10)
    for run in range(3):
        taus = [
            tau_by_pairs(errors[run, groups == g], log_errors[run, groups == g]) for g in range(3)
        ]
        assert estimate.per_run[0, run] == pytest.approx(np.mean(taus))

    apart = np.array([0, 0, 0, 1, 2, 3, 4])
    lone = estimate_tau(errors[None], log_errors[None], apart, resamples=10)
    assert lone.choices == 3
    assert lone.per_run[0, 0] == pytest.approx(tau_by_pairs(errors[0, :3], log_errors[0, :3]))
    with pytest.raises(ValueError, match="at least two choices"):
        estimate_tau(errors[None], log_errors[None], np.arange(7), resamples=10)


def test_mean_and_std_are_over_the_runs():
    drawn, none = np.linspace(0, 1, 41), np.zeros((1, 5, 5))
    estimate = TauEstimate(np.array([[0.2, 0.4, 0.9]]), drawn, none, np.arange(5), 5)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.std == pytest.approx(math.sqrt(0.13))
    assert (estimate.lower, estimate.upper) == pytest.approx((0.025, 0.975))


def test_an_interval_of_few_networks_holds_nothing_that_no_tau_can_be():
    drawn = np.random.default_rng(0).uniform(-0.5, 0.9, 400)
    high, low = (
        drawn_tau([[mean + apart], [mean - apart]], 0.1, drawn)
        for mean, apart in ((0.2, 0.4), (-0.1, -0.4))
    )
    assert max(high.scaled) > 1
    assert (high.lower, high.upper) == (-1.0, 1.0)
    apart = difference(high, replace(low, resampled=-3 * drawn))
    assert max(apart.scaled) > 2
    assert apart.upper == 2.0


def test_difference_is_taken_on_the_same_resamples():
    errors, log_errors = (own[None] for own in random_measurements(seed=3))
    groups = np.zeros(7, int)
    a, b = (estimate_tau(e, log_errors, groups, resamples=50) for e in (errors, 2 * errors))
    assert (difference(a, b).lower, difference(a, b).upper) == (0.0, 0.0)
    with pytest.raises(ValueError, match="same runs and resamples"):
        difference(a, estimate_tau(errors, log_errors, groups, resamples=51))
    left, right = (
        estimate_tau(errors, log_errors, groups, numbers=np.arange(k, k + 7), resamples=50)
        for k in (0, 7)
    )
    # Of other choices nothing cancels.
    apart = math.hypot(left.uncertainty[0], right.uncertainty[0])
    assert difference(left, right).uncertainty[0] == pytest.approx(apart)
    assert difference(a, b).uncertainty[0] == 0


def tau_of_networks(errors, log_errors, counts, items, shares):
    """A resample of several networks written out: every run of a choice beside every other's."""
    most, fewer = sorted(set(counts), reverse=True)
    total = pairs = 0.0
    for network, (a, b) in itertools.product(
        range(len(errors)), itertools.product(range(most), range(fewer))
    ):
        run = [a if count == most else b for count in counts]
        for i, j in itertools.permutations(range(len(counts)), 2):
            weight = items[i] * items[j] * shares[network, fewer * a + b]
            signs = [
                np.sign(own[network, run[i], i] - own[network, run[j], j])
                for own in (errors, log_errors)
            ]
            total, pairs = total + weight * signs[0] * signs[1], pairs + weight
    return total / pairs if pairs else math.nan


def test_bootstrap_of_networks_with_fewer_runs_of_some_choices():
    counts = np.array([3, 2, 3, 2, 2])
    errors, log_errors = (
        np.stack(own)
        for own in zip(*(random_measurements(seed, choices=5) for seed in range(4)), strict=True)
    )
    for own in (errors, log_errors):
        own[:, 2, counts == 2] = math.nan
    options = {"counts": counts, "resamples": 25, "seed": 5}
    estimate = estimate_tau(errors, log_errors, np.zeros(5, int), **options)
    drawn = resample_weights(5, 4, cross_runs(counts), resamples=25, seed=5)
    expected = [
        tau_of_networks(errors, log_errors, counts, *one) for one in zip(*drawn, strict=True)
    ]
    np.testing.assert_allclose(estimate.resampled, expected, atol=1e-12)
    even = np.ones(5), np.full((4, 6), 1 / 24)
    assert estimate.mean == pytest.approx(tau_of_networks(errors, log_errors, counts, *even))
    assert estimate.per_run.shape == (4, 3)
    assert estimate.std == pytest.approx(np.std(estimate.by_network, ddof=1))


def test_networks_and_their_runs_are_drawn_with_replacement():
    crossing = cross_runs(np.array([5, 2, 5]))
    _, shares = resample_weights(3, 4, crossing, resamples=4000, seed=0)
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), 1)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 40, rtol=0.1)
    networks = 4 * shares.sum(axis=2)
    np.testing.assert_allclose(networks, networks.round(), atol=1e-12)
    # Of a multinomial distribution.
    assert networks[:, 0].var() == pytest.approx(4 * 1 / 4 * 3 / 4, rel=0.1)


def test_the_standard_error_is_the_sum_over_pairs_with_a_choice_in_common():
    """Written out, for groups, the network of many runs, and the covariance of two networks."""
    errors, log_errors = (
        np.stack(own) for own in zip(*(random_measurements(seed) for seed in range(2)), strict=True)
    )
    groups, count = np.array([0, 0, 0, 0, 1, 1, 1]), 7
    both = estimate_tau(errors, log_errors, groups, resamples=2)
    pairs = [p for p in itertools.combinations(range(count), 2) if groups[p[0]] == groups[p[1]]]
    size = np.bincount(groups)
    parts = []
    for network in range(2):
        signs = {
            p: np.mean([np.sign(np.diff(e[list(p)]) * np.diff(y[list(p)])) for e, y in runs])
            for runs in [list(zip(errors[network], log_errors[network], strict=True))]
            for p in pairs
        }
        share = {(i, j): 1 / math.comb(size[groups[i]], 2) / len(size) for i, j in pairs}
        tau = sum(share[p] * signs[p] for p in pairs)
        assert both.by_network[network] == pytest.approx(tau)
        parts.append({p: share[p] * (signs[p] - tau) for p in pairs})
    factor = count * (count - 1) / (count - 2) ** 2

    def covariance(one, other):
        shared = ((p, q) for p, q in itertools.product(pairs, pairs) if set(p) & set(q))
        return factor * sum(one[p] * other[q] for p, q in shared)

    def variance(one):
        by_choice = (sum(one[p] for p in pairs if i in p) for i in range(count))
        # The floor, half of the jackknife.
        return max(covariance(one, one), factor * sum(own**2 for own in by_choice) / 2)

    each = (variance(parts[0]) + variance(parts[1])) / 2
    common = max(covariance(*parts), 0)
    apart = max(both.by_network.var(ddof=1), each - common) / 2
    assert both.uncertainty[0] == pytest.approx(math.sqrt(common + apart))
    freedom = (common + apart) ** 2 / (apart**2 + common**2 / (count - 1))
    assert both.uncertainty[1] == pytest.approx(freedom)
