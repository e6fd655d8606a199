"""Estimates of tau with a given mean and standard error, for whatever is decided from them."""

import numpy as np

from experiments.report.estimates import TauEstimate


def drawn_tau(per_run, deviation, resampled, choices=45, seed=0):
    """Of networks that differ in nothing but `per_run`; choices vary independently of each other.

    Arguments:
        per_run: tau by network and run.
        deviation: standard error of each network over choices.
        resampled: tau in each resample.
    """
    per_run = np.asarray(per_run, float)
    own = np.random.default_rng(seed).standard_normal((len(per_run), choices))
    pairs = own[:, :, None] + own[:, None, :]
    pairs[:, np.arange(choices), np.arange(choices)] = 0.0
    for network, found in enumerate(pairs):
        alone = TauEstimate(per_run[:1], resampled, found[None], np.arange(choices), choices)
        pairs[network] *= deviation / alone.uncertainty[0]
    return TauEstimate(per_run, np.asarray(resampled), pairs, np.arange(choices), choices)
