"""An estimate of tau over networks, runs and choices: its mean, spread, intervals and bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class TauEstimate:
    """Tau in each run of each network, its bootstrap resamples, and how many choices it orders.

    A resample that holds no pair of different items is NaN, and counts for nothing.

    Arguments:
        per_run: of every network and run.
        resampled: over networks, choices and runs together.
        by_choice: of every network, its runs as they are, where choices alone are drawn, the same
            ones for all networks.
        choices: that take part in a pair.
    """

    per_run: Float[np.ndarray, "networks runs"]
    resampled: Float[np.ndarray, " resamples"]
    by_choice: Float[np.ndarray, "resamples networks"]
    choices: int

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
        """Standard deviation of the mean, and its degrees of freedom; NaN of no resample.

        Of one network it is that of the resamples, with one degree of freedom less than there are
        choices, and speaks of that network alone. Of several, two independent parts add up: what
        is common to all networks, the mean covariance of two networks' taus under draws of the
        same choices; and what is apart in each, the variance between networks over their number,
        of one degree of freedom less than there are networks. That has in it how networks differ,
        what choices do on one of them alone, and runs; so few networks may by luck show less than
        the draws of choices prove, which is then taken instead. Degrees of freedom of the sum:
        F. E. Satterthwaite, Biometrics Bulletin 2, 1946.
        """
        drawn, least = self.by_choice[~np.isnan(self.resampled)], max(self.choices - 1, 1)
        networks = len(self.per_run)
        if not len(drawn):
            return math.nan, least
        if networks == 1:
            return float(self.resampled[~np.isnan(self.resampled)].std()), least
        covariance = np.cov(drawn.T, ddof=0)
        each = covariance.diagonal().mean()
        common = max((covariance.sum() / networks - each) / (networks - 1), 0.0)
        apart = max(self.by_network.var(ddof=1), each - common) / networks
        freedom = apart**2 / (networks - 1) + common**2 / least
        total = common + apart
        return math.sqrt(total), total**2 / freedom if freedom else least

    def bounds(self, error: float) -> tuple[float, float]:
        """A lower and an upper bound, each wrong with at most this probability.

        The mean less and plus Student's t quantile times the standard deviation, see
        `uncertainty`: unlike quantiles of the resamples it needs no more of them the smaller the
        probability is. NaN where no resample is defined.
        """
        deviation, freedom = self.uncertainty
        half = float(stats.t.isf(error, freedom) * deviation)
        return self.mean - half, self.mean + half

    @property
    def stretched(self) -> Float[np.ndarray, " resamples"]:
        """The resamples, of several networks drawn away from the mean.

        Resamples of N networks vary by (N - 1) / N of what networks do, and that is itself known
        from N values: the factor makes the interval of the resamples as long as that of `bounds`.
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
        """Lower end of the 95 % percentile interval of the stretched resamples."""
        return percentile_interval(self.stretched)[0]

    @property
    def upper(self) -> float:
        """Upper end of the same."""
        return percentile_interval(self.stretched)[1]


def percentile_interval(resampled: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap resamples, NaN left out; NaN where all are."""
    defined = resampled[~np.isnan(resampled)]
    if not defined.size:
        return math.nan, math.nan
    lower, upper = np.quantile(defined, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(lower), float(upper)


def combination(taus: Sequence[TauEstimate], weights: Sequence[float]) -> TauEstimate:
    """The sum of some taus with weights, run by run and resample by resample.

    Meaningful for estimates over the same networks, drawn with the same seed; over the same
    choices they saw the same resamples, and what they share cancels in a difference. Raises
    `ValueError` where the sizes differ.
    """
    if len({(tau.per_run.shape, tau.by_choice.shape) for tau in taus}) > 1:
        raise ValueError("only estimates with the same runs and resamples can be compared")
    return TauEstimate(
        per_run=sum(w * tau.per_run for w, tau in zip(weights, taus, strict=True)),
        resampled=sum(w * tau.resampled for w, tau in zip(weights, taus, strict=True)),
        by_choice=sum(w * tau.by_choice for w, tau in zip(weights, taus, strict=True)),
        choices=min(tau.choices for tau in taus),
    )


def difference(a: TauEstimate, b: TauEstimate) -> TauEstimate:
    """a - b, see `combination`."""
    return combination((a, b), (1.0, -1.0))
