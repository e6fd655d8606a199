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


# Networks whose layers differ by less than this share of the dense ones say nothing of a factor.
LEAST_APART = 0.1
# A layer in a network has other neighbours in the caches, but computes the same.
FACTORS = (0.5, 2.0)


def factor_of(dense: Whole, others: Sequence[Whole]) -> float:
    """By what seconds of layers alone are multiplied to be those in the network.

    network = rest + factor * layers, by least squares of relative errors through the dense network:
    what is no layer's, the rest, is the same in all of them. Where the layers alone add up to more
    than the network, the factor makes them equal.

    Arguments:
        others: the same network with some of its layers compressed.
    """
    if not dense.layers:
        return 1.0
    fits = dense.network / dense.layers
    apart = np.array([dense.layers - own.layers for own in others])
    gained = np.array([dense.network - own.network for own in others])
    weights = np.array([1 / own.network for own in others])
    if not len(others) or np.abs(apart).max() < LEAST_APART * dense.layers:
        return min(1.0, fits)
    found = float(np.sum(weights**2 * apart * gained) / np.sum(weights**2 * apart**2))
    return min(float(np.clip(found, *FACTORS)), fits)
