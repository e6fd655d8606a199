"""From what layers take alone to what they take inside a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Whole(NamedTuple):
    """One network, dense or compressed.

    Arguments:
        layers: seconds of its layers, each alone, added up.
        network: seconds of the whole.
    """

    layers: float
    network: float


class Fit(NamedTuple):
    """What a network takes: rest + factor * layers.

    Arguments:
        factor: by what seconds of layers alone are multiplied to be those in the network.
        rest: seconds of what is no layer's.
    """

    factor: float
    rest: float

    def seconds(self, layers: float) -> float:
        """Of a network whose layers take so long alone."""
        return self.rest + self.factor * layers


# Networks whose layers differ by less than this share of the dense ones say nothing of a factor.
LEAST_APART = 0.1
# A layer in a network has other neighbours in the caches, but computes the same.
FACTORS = (0.5, 2.0)
# A dense network that is off by more than this share of its time is another program than its
# layers and the rest. Other work on the machine may put it off by half of that.
ODD = 0.3


def fit_of(dense: Whole, others: Sequence[Whole]) -> Fit:
    """The line through networks of which all but the layers is the same.

    By least squares of relative errors, with neither part below zero; through the dense network
    too, but where it does not lie on the line of the others.

    Arguments:
        dense: with a plan that keeps all layers dense.
        others: the same network with some of its layers compressed.
    """
    if not dense.layers:
        return Fit(1.0, dense.network)
    every = [dense, *others]
    apart = max(own.layers for own in every) - min(own.layers for own in every)
    if apart < LEAST_APART * dense.layers:
        return _with_factor(min(1.0, dense.network / dense.layers), [dense])
    line = _line(others) if len(others) > 1 else _line(every)
    odd = abs(line.seconds(dense.layers) - dense.network) > ODD * dense.network
    return line if odd else _line(every)


def _line(points: Sequence[Whole]) -> Fit:
    layers, network = (np.array(own) for own in zip(*points, strict=True))
    system = np.stack([layers, np.ones_like(layers)], axis=1) / network[:, None]
    slope = float(np.linalg.lstsq(system, np.ones_like(network))[0][0])
    least, most = FACTORS
    return _with_factor(min(max(slope, least), most), points)


def _with_factor(factor: float, points: Sequence[Whole]) -> Fit:
    """The best rest for a factor; where that is below zero, the best factor without any."""
    layers, network = (np.array(own) for own in zip(*points, strict=True))
    weights = 1 / network**2
    rest = float(np.sum(weights * (network - factor * layers)) / np.sum(weights))
    if rest >= 0:
        return Fit(factor, rest)
    return Fit(float(np.sum(weights * network * layers) / np.sum(weights * layers**2)), 0.0)
