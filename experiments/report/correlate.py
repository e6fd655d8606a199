"""Kendall's tau-a between approximation error and performance error, with bootstrap intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

CONFIDENCE = 0.95

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


@dataclass(frozen=True)
class TauEstimate:
    """Tau in each run, its bootstrap resamples, and how many choices it orders.

    A resample that holds no pair of different items is NaN, and counts for nothing.
    """

    per_run: Float[np.ndarray, " runs"]
    resampled: Float[np.ndarray, " resamples"]
    choices: int

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return float(self.per_run.mean())

    @property
    def std(self) -> float:
        """Standard deviation over the runs (ddof=1); NaN for a single run."""
        return float(self.per_run.std(ddof=1)) if self.per_run.size > 1 else math.nan

    def bounds(self, error: float) -> tuple[float, float]:
        """A lower and an upper bound, each wrong with at most this probability.

        The mean less and plus Student's t quantile, of one degree of freedom less than there are
        choices, times the standard deviation of the resamples: unlike quantiles of the resamples
        it needs no more of them the smaller the probability is. NaN where no resample is defined.
        """
        defined = self.resampled[~np.isnan(self.resampled)]
        if not defined.size:
            return math.nan, math.nan
        half = float(stats.t.isf(error, max(self.choices - 1, 1)) * defined.std())
        return self.mean - half, self.mean + half

    @property
    def lower(self) -> float:
        """Lower end of the 95 % percentile interval."""
        return percentile_interval(self.resampled)[0]

    @property
    def upper(self) -> float:
        """Upper end of the 95 % percentile interval."""
        return percentile_interval(self.resampled)[1]


def percentile_interval(resampled: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap resamples, NaN left out; NaN where all are."""
    defined = resampled[~np.isnan(resampled)]
    if not defined.size:
        return math.nan, math.nan
    lower, upper = np.quantile(defined, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(lower), float(upper)


def difference(a: TauEstimate, b: TauEstimate) -> TauEstimate:
    """a - b, run by run and resample by resample.

    Meaningful for two estimates over the same choices, drawn with the same seed: both then saw the
    same resamples, and what they share cancels. Raises `ValueError` where the sizes differ.
    """
    if a.per_run.shape != b.per_run.shape or a.resampled.shape != b.resampled.shape:
        raise ValueError("only estimates with the same runs and resamples can be compared")
    return TauEstimate(a.per_run - b.per_run, a.resampled - b.resampled, min(a.choices, b.choices))


def pair_weights(groups: Int[np.ndarray, " items"]) -> Float[np.ndarray, "items items"]:
    """1 / (m_g (m_g - 1)) for two different items of the same group of m_g, else 0.

    The sum of these weights times the concordance, over the sum of these weights, is the mean over
    the groups of tau within a group; with a single group it is tau itself.
    """
    same = (groups[:, None] == groups[None, :]).astype(float)
    size = same.sum(axis=1, keepdims=True)
    np.fill_diagonal(same, 0.0)
    return same / np.maximum(size * (size - 1), 1.0)


def resample_weights(
    items: int, runs: int, resamples: int, seed: int
) -> tuple[Float[np.ndarray, "resamples items"], Float[np.ndarray, "resamples runs"]]:
    """How often each item and each run is drawn in every resample (multinomial, whole numbers)."""
    rng = np.random.default_rng(seed)
    drawn_items = rng.multinomial(items, np.full(items, 1 / items), size=resamples)
    drawn_runs = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)
    return drawn_items.astype(float), drawn_runs.astype(float)


def estimate_tau(
    errors: Float[np.ndarray, "runs choices"],
    log_errors: Float[np.ndarray, "runs choices"],
    groups: Int[np.ndarray, " choices"],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> TauEstimate:
    """Tau-a within the groups, averaged over them, for each run, with a two-level bootstrap.

    What is resampled: each resample draws `choices` choices with replacement from all of them
    (across the groups), and independently `runs` runs with replacement; every run drawn sees the
    same choices. With w_i the number of times choice i was drawn, v_r that of run r, S_ij(r) the
    concordance of the pair in run r and M_ij the pair's weight within its group (`pair_weights`),

        tau* = sum_r v_r sum_{i != j} w_i w_j M_ij S_ij(r) / (runs * sum_{i != j} w_i w_j M_ij).

    A choice drawn twice is never paired with its own copy: such pairs are ties by construction and
    would pull tau towards 0. Choices of one layer are not independent, so the interval speaks of
    other choices on these layers with these methods, not of other layers or networks.

    Args:
        errors: approximation errors.
        log_errors: performance errors.
        groups: which group each choice belongs to; pairs are formed inside a group only.
        resamples: number of bootstrap resamples.
        seed: the same seed and sizes give the same draws, whatever the errors.

    Raises:
        ValueError: where no group holds two choices, or a value is NaN.
    """
    weights = pair_weights(groups)
    paired = int((weights.sum(axis=1) > 0).sum())
    if not paired:
        raise ValueError("tau needs a group of at least two choices")
    weighted = concordance(errors, log_errors) * weights
    per_run = weighted.sum(axis=(1, 2)) / weights.sum()

    runs, choices = errors.shape
    drawn, drawn_runs = resample_weights(choices, runs, resamples, seed)
    side_by_side = weighted.transpose(1, 0, 2).reshape(choices, runs * choices)
    sums = (drawn @ side_by_side).reshape(resamples, runs, choices)
    agreement = np.einsum("bri,bi,br->b", sums, drawn, drawn_runs)
    pairs = runs * np.einsum("bi,bi->b", drawn @ weights, drawn)
    resampled = np.divide(agreement, pairs, out=np.full(resamples, np.nan), where=pairs > 0)
    return TauEstimate(per_run, resampled, paired)
