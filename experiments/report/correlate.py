"""Kendall's tau-a between approximation error and performance error, with a bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int

from experiments.report.estimates import TauEstimate

Numbers = Sequence[float | int] | np.ndarray


def log_classification_error(accuracy: float, count: int) -> float:
    """The performance error log(1 - accuracy) of a network tested on `count` images.

    No image wrong is taken as half an image, log(0.5 / count): order and ties stay as they are.
    """
    # Hundredths of an image: equal numbers of images must tie, whatever precision the accuracy
    # was averaged in.
    wrong = round((1.0 - accuracy) * count, 2)
    return math.log(max(wrong, 0.5) / count)


def concordance(
    x: Float[np.ndarray, "*runs items"], y: Float[np.ndarray, "*runs items"]
) -> Float[np.ndarray, "*runs items items"]:
    """For every pair of items: 1 where x and y order it alike, -1 where not, 0 for a tie in either.

    Raises `ValueError` where x or y holds NaN, which has no order.
    """
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("Kendall's tau needs numbers that can be ordered, got NaN")
    return _order(x) * _order(y)


def _order(x: Float[np.ndarray, "*runs items"]) -> Float[np.ndarray, "*runs items items"]:
    # Compared, not subtracted: infinity minus infinity would be NaN.
    left, right = x[..., :, None], x[..., None, :]
    return (left > right).astype(float) - (left < right).astype(float)


def kendall_tau_a(x: Numbers, y: Numbers) -> float:
    """Kendall's tau-a, 2 (k - d) / (m (m - 1)), of m pairs of numbers.

    k counts concordant and d discordant pairs of items; a tie in x or y is neither, but counts in
    the denominator (this is what sets tau-a apart from tau-b).

    Args:
        x: m >= 2 numbers, shape (m,).
        y: as many numbers.

    Returns:
        A number in [-1, 1].

    Raises:
        ValueError: for fewer than two items, different lengths, or NaN.

    Source: M. G. Kendall, "A new measure of rank correlation", Biometrika 30, 1938.
    """
    left, right = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if left.ndim != 1 or left.shape != right.shape or left.size < 2:
        raise ValueError(
            "Kendall's tau needs two vectors of one length, at least 2; "
            f"got shapes {left.shape} and {right.shape}"
        )
    return float(concordance(left, right).sum() / (left.size * (left.size - 1)))


def pair_weights(groups: Int[np.ndarray, " items"]) -> Float[np.ndarray, "items items"]:
    """1 / (m_g (m_g - 1)) for two different items of the same group of m_g, else 0.

    The sum of these weights times the concordance, over the sum of these weights, is the mean over
    the groups of tau within a group; with a single group it is tau itself.
    """
    same = (groups[:, None] == groups[None, :]).astype(float)
    size = same.sum(axis=1, keepdims=True)
    np.fill_diagonal(same, 0.0)
    return same / np.maximum(size * (size - 1), 1.0)


@dataclass(frozen=True)
class Crossing:
    """Every run of a choice beside every run of those that have fewer.

    Arguments:
        counts: the numbers of runs that occur, the highest first.
        runs: which run of each count stands in each crossed run, the first count's slowest.
        kinds: which of the counts each choice has.
    """

    counts: tuple[int, ...]
    runs: Int[np.ndarray, "crossed counts"]
    kinds: Int[np.ndarray, " choices"]

    def taken(self, x: Float[np.ndarray, "runs choices"]) -> Float[np.ndarray, "crossed choices"]:
        """What each choice has in each crossed run."""
        # The last digit of a sum depends on how its terms lie in memory.
        return np.ascontiguousarray(x[self.runs[:, self.kinds], np.arange(x.shape[1])])


def cross_runs(counts: Int[np.ndarray, " choices"]) -> Crossing:
    """How to put choices with unequal numbers of runs side by side, from these numbers."""
    values, kinds = np.unique(-counts, return_inverse=True)
    each = tuple((-values).tolist())
    return Crossing(each, np.array(list(product(*map(range, each)))), kinds)


def resample_weights(
    items: int, networks: int, crossing: Crossing, resamples: int, seed: int
) -> tuple[Float[np.ndarray, "resamples items"], Float[np.ndarray, "resamples networks crossed"]]:
    """How often each item is drawn, and the share of each network's crossed run, in each resample.

    Items are drawn with replacement, and networks; of each network drawn as many runs as there
    are, of every count of runs apart. The shares of a resample sum to 1.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(items, np.full(items, 1 / items), size=resamples)
    times = rng.multinomial(networks, np.full(networks, 1 / networks), size=resamples)
    shares = (times / networks)[:, :, None]
    for count, run in zip(crossing.counts, crossing.runs.T, strict=True):
        runs = rng.multinomial(times * count, np.full(count, 1 / count))
        # Copies of a network drawn twice put their runs together.
        shares = shares * (runs / np.maximum(times * count, 1)[:, :, None])[:, :, run]
    return drawn.astype(float), shares


def estimate_tau(
    errors: Float[np.ndarray, "networks runs choices"],
    log_errors: Float[np.ndarray, "networks runs choices"],
    groups: Int[np.ndarray, " choices"],
    *,
    counts: Int[np.ndarray, " choices"] | None = None,
    numbers: Int[np.ndarray, " choices"] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> TauEstimate:
    """Tau-a within the groups, averaged over them, for each network and run, with a bootstrap.

    What is resampled: each resample draws networks with replacement, of all choices (across the
    groups) as many with replacement, and within each network drawn as many runs with replacement.
    Every network sees the same choices: these are what a study's configuration names, each
    measured on each network, so that they are crossed with networks, not nested in them, and an
    error that is wrong about a choice may be so on every network. With w_i the number of times
    choice i was drawn, v_nr the share of run r of network n, S_ij(nr) the concordance of the pair
    in that run and M_ij the pair's weight within its group (`pair_weights`),

        tau* = sum_nr v_nr sum_{i != j} w_i w_j M_ij S_ij(nr) / sum_{i != j} w_i w_j M_ij.

    A choice drawn twice is never paired with its own copy: such pairs are ties by construction and
    would pull tau towards 0. Choices of one layer are not independent, so the interval speaks of
    other choices on these layers with these methods, not of other layers.

    Choices with fewer runs are paired in all of these with every run of the others, and their runs
    are drawn apart.

    Args:
        errors: approximation errors.
        log_errors: performance errors.
        groups: which group each choice belongs to; pairs are formed inside a group only.
        counts: how many runs each choice has, the first ones; what else an array holds is not
            looked at. None: all of them.
        numbers: of the choices among all those that are compared, ascending. None: from 0.
        resamples: number of bootstrap resamples.
        seed: the same seed and sizes give the same draws, whatever the errors.

    Raises:
        ValueError: where no group holds two choices, or a value is NaN.

    Source: A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007.
    """
    weights = pair_weights(groups)
    paired = int((weights.sum(axis=1) > 0).sum())
    if not paired:
        raise ValueError("tau needs a group of at least two choices")
    networks, runs, choices = errors.shape
    crossing = cross_runs(np.full(choices, runs) if counts is None else counts)
    drawn, shares = resample_weights(choices, networks, crossing, resamples, seed)
    drawn_pairs = np.einsum("bi,bi->b", drawn @ weights, drawn)
    drawn_pairs[drawn_pairs == 0] = np.nan
    per_run, pairs, resampled = [], [], np.zeros(resamples)
    # One network after the other: together they may not fit into memory.
    for network, (own, performance) in enumerate(zip(errors, log_errors, strict=True)):
        weighted = concordance(crossing.taken(own), crossing.taken(performance)) * weights
        per_run.append(weighted.sum(axis=(1, 2)) / weights.sum())
        mean = weighted.mean(axis=0) / weights.sum()
        pairs.append(mean - mean.sum() * weights / weights.sum())
        side_by_side = weighted.transpose(1, 0, 2).reshape(choices, -1)
        sums = (drawn @ side_by_side).reshape(resamples, -1, choices)
        resampled += np.einsum("bri,bi,br->b", sums, drawn, shares[:, network])
    return TauEstimate(
        per_run=np.stack(per_run).reshape(networks, crossing.counts[0], -1).mean(axis=2),
        resampled=resampled / drawn_pairs,
        pairs=np.stack(pairs),
        numbers=np.arange(choices) if numbers is None else numbers,
        choices=paired,
    )
