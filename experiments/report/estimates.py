"""An estimate of tau over networks, runs and choices: its mean, spread, intervals and bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class TauEstimate:
    """Tau in each run of each network, its bootstrap resamples, and what each pair does to it.

    A resample that holds no pair of different choices is NaN, and counts for nothing.

    Arguments:
        per_run: of every network and run.
        resampled: over networks, choices and runs together.
        pairs: by how much each pair of choices, in either order, lifts tau of every network above
            what it would be if all pairs were alike.
        numbers: of the choices among all of the study, ascending.
        choices: how many take part in a pair.
        most: how far from 0 it can be, 1 for a tau.
    """

    per_run: Float[np.ndarray, "networks runs"]
    resampled: Float[np.ndarray, " resamples"]
    pairs: Float[np.ndarray, "networks choices choices"]
    numbers: Int[np.ndarray, " choices"]
    choices: int
    most: float = 1.0

    @property
    def by_network(self) -> Float[np.ndarray, " networks"]:
        """Mean over the runs of each network."""
        return self.per_run.mean(axis=1)

    @property
    def mean(self) -> float:
        """Mean over the networks and runs."""
        return float(self.per_run.mean())

    @property
    def std(self) -> float:
        """Standard deviation (ddof=1) between networks; of one, over its runs; NaN for one run."""
        values = self.by_network if len(self.per_run) > 1 else self.per_run[0]
        return float(values.std(ddof=1)) if values.size > 1 else math.nan

    @cached_property
    def uncertainty(self) -> tuple[float, float]:
        """Standard error of the mean, and its degrees of freedom.

        Of one network it says what other choices would do, see `_covariance`, with one degree of
        freedom less than there are choices, and speaks of that network alone; what runs do is in
        it, as each choice has its own. Of several, two independent parts add up: what is common to
        all networks, the mean covariance of two networks' taus under other choices; and what is
        apart in each, the variance between networks over their number, of one degree of freedom
        less than there are networks. That has in it how networks differ, what choices do on one of
        them alone, and runs; so few networks may by luck show less than the choices prove, which
        is then taken instead. The degrees of freedom of the sum are Satterthwaite's.

        Source: F. E. Satterthwaite, "An approximate distribution of estimates of variance
        components", Biometrics Bulletin 2, 1946.
        """
        networks, most, covariance = len(self.per_run), max(self.choices - 1, 1), self._covariance
        each = covariance.diagonal().mean()
        if networks == 1:
            return math.sqrt(each), most
        common = max((covariance.sum() / networks - each) / (networks - 1), 0.0)
        apart = max(self.by_network.var(ddof=1), each - common) / networks
        inverse = apart**2 / (networks - 1) + common**2 / most
        return math.sqrt(common + apart), (common + apart) ** 2 / inverse if inverse else most

    @property
    def _covariance(self) -> Float[np.ndarray, "networks networks"]:
        """Of networks' taus over choices drawn anew, the same ones on all networks.

        Pairs are dependent where they have a choice in common: the sum of the products of all such
        pairs of pairs. A pair has both of its choices in common with itself, and would count twice
        in the sum over choices. The factor is that of leaving out one choice at a time (jackknife),
        whose variance is that sum; it is at most twice the true one, which is the floor.

        Sources: P. M. Aronow, C. Samii and V. A. Assenova, "Cluster-robust variance estimation for
        dyadic data", Political Analysis 23, 2015; B. Efron and C. Stein, "The jackknife estimate of
        variance", Annals of Statistics 9, 1981.
        """
        count = max(self.choices, 3)
        factor = 4 * count * (count - 1) / (count - 2) ** 2
        by_choice = self.pairs.sum(axis=2)
        jackknife = factor * by_choice @ by_choice.T
        flat = self.pairs.reshape(len(self.pairs), -1)
        found = jackknife - factor / 2 * flat @ flat.T
        np.fill_diagonal(found, np.maximum(found.diagonal(), jackknife.diagonal() / 2))
        return found

    def bounds(self, error: float) -> tuple[float, float]:
        """A lower and an upper bound, each wrong with at most this probability.

        The mean less and plus Student's t quantile times the standard error, see `uncertainty`.
        """
        deviation, freedom = self.uncertainty
        half = float(stats.t.isf(error, freedom) * deviation)
        return self.mean - half, self.mean + half

    @property
    def scaled(self) -> Float[np.ndarray, " resamples"]:
        """The resamples; of several networks as far from the mean as `uncertainty` says.

        Resamples of N networks vary by (N - 1) / N of what networks do, which is itself known from
        N values alone: the interval of the scaled ones is as long as that of `bounds`.
        """
        defined = self.resampled[~np.isnan(self.resampled)]
        spread = float(defined.std()) if defined.size and len(self.per_run) > 1 else 0.0
        if not spread:
            return self.resampled
        deviation, freedom = self.uncertainty
        wrong = (1 - CONFIDENCE) / 2
        factor = deviation / spread * stats.t.isf(wrong, freedom) / stats.norm.isf(wrong)
        return self.mean + factor * (self.resampled - self.mean)

    @property
    def lower(self) -> float:
        """Lower end of the 95 % percentile interval of the scaled resamples, within `most`."""
        return self._interval[0]

    @property
    def upper(self) -> float:
        """Upper end of the same."""
        return self._interval[1]

    @cached_property
    def _interval(self) -> tuple[float, float]:
        # Scaled for few networks, resamples may lie where no tau can be.
        lower, upper = np.clip(percentile_interval(self.scaled), -self.most, self.most)
        return float(lower), float(upper)


def percentile_interval(resampled: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap resamples, NaN left out; NaN where all are."""
    defined = resampled[~np.isnan(resampled)]
    if not defined.size:
        return math.nan, math.nan
    lower, upper = np.quantile(defined, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(lower), float(upper)


def combination(taus: Sequence[TauEstimate], weights: Sequence[float]) -> TauEstimate:
    """The sum of some taus with weights: run by run, resample by resample, pair by pair.

    Meaningful for estimates over the same networks, drawn with the same seed; over the same choices
    what they share cancels in a difference. Raises `ValueError` where the sizes differ.
    """
    if len({(tau.per_run.shape, tau.resampled.shape) for tau in taus}) > 1:
        raise ValueError("only estimates with the same runs and resamples can be compared")
    numbers = np.unique(np.concatenate([tau.numbers for tau in taus]))
    pairs = np.zeros((len(taus[0].pairs), len(numbers), len(numbers)))
    for weight, tau in zip(weights, taus, strict=True):
        at = np.searchsorted(numbers, tau.numbers)
        pairs[:, at[:, None], at] += weight * tau.pairs
    per_run = sum(w * tau.per_run for w, tau in zip(weights, taus, strict=True))
    resampled = sum(w * tau.resampled for w, tau in zip(weights, taus, strict=True))
    choices = min(tau.choices for tau in taus)
    most = sum(abs(weight) * tau.most for weight, tau in zip(weights, taus, strict=True))
    return TauEstimate(np.asarray(per_run), np.asarray(resampled), pairs, numbers, choices, most)


def difference(a: TauEstimate, b: TauEstimate) -> TauEstimate:
    """a - b, see `combination`."""
    return combination((a, b), (1.0, -1.0))
