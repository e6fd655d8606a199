"""The formats and ranks that one layer may get, and what each of them costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tdjax.plan.decide import plan_layer
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.rules import Rule

# Ranks of a mode that are tried: all of them up to this many, then a geometric choice.
MOST_RANKS = 64
# Shares of a layer's weights at which formats are tried whose losses must be computed one by one.
SHARES = tuple(k / 100 for k in range(1, 100))
# Where the steps between those are too large for a budget.
FINE_SHARES = tuple(k / 1000 for k in range(1, 1000))


class Choices(NamedTuple):
    """Entries for one layer in one format, as arrays.

    Arguments:
        ranks: (n, number of ranks).
        cost: (n,), parameters or MACs of the layer.
        entry: (row of `ranks`, as a list) -> what a plan says of the layer.
    """

    ranks: Int[np.ndarray, "n r"]
    cost: Int[np.ndarray, " n"]
    entry: Callable[[Sequence[int]], PlannedLayer]


def cost_of(entry: PlannedLayer, cost: str) -> int:
    """Parameters ("params") or multiply-accumulates ("macs", rounded up) of a layer's weights."""
    return entry.size if cost == "params" else math.ceil(entry.macs)


def low_rank_choices(layer: Layer, cost: str, splits: int = 1) -> Choices:
    """Low rank at every rank, with the channels in k groups.

    Arguments:
        splits: k.
    """

    def entry(ranks: Sequence[int]) -> PlannedLayer:
        return PlannedLayer(layer, Form("svd", tuple(ranks), splits=splits))

    *front, t = layer.group_shape
    ranks = np.arange(1, min(math.prod(front) // splits, t) + 1)[:, None]
    # Both stages are linear in the rank.
    return Choices(ranks, ranks[:, 0] * cost_of(entry((1,)), cost), entry)


def tucker_choices(layer: Layer, cost: str) -> Choices:
    """Tucker of the channels at pairs of ranks, (r_C, r_T) in the order of their grid."""

    def entry(ranks: Sequence[int]) -> PlannedLayer:
        return PlannedLayer(layer, Form("tucker", tuple(ranks)))

    *_, c, t = layer.group_shape
    grid = np.array([(a, b) for a in rank_grid(c) for b in range(1, t + 1)])
    # The stages' costs are in proportion to r_C, r_C r_T and r_T.
    one, wide, high, both = (
        cost_of(entry(pair), cost) for pair in ((1, 1), (2, 1), (1, 2), (2, 2))
    )
    core = both - wide - high + one
    a, b = grid.T
    costs = (wide - one - core) * a + core * a * b + (high - one - core) * b
    return Choices(grid, costs, entry)


def share_choices(layer: Layer, cost: str, method: str, shares: Sequence[float]) -> Choices:
    """A format at the ranks that its rule gives for shares of the layer's weights."""
    planned = dict.fromkeys(
        plan_layer(layer, Rule(path=".*", method=method, compression=1 - share)) for share in shares
    )
    entries = {entry.ranks: entry for entry in planned if entry.size < layer.size}
    ranks = np.array(list(entries), int).reshape(len(entries), -1)
    costs = np.array([cost_of(entry, cost) for entry in entries.values()], int)
    return Choices(ranks, costs, lambda row: entries[tuple(row)])


def rank_grid(size: int) -> tuple[int, ...]:
    """The ranks of a mode that are tried."""
    if size <= MOST_RANKS:
        return tuple(range(1, size + 1))
    return tuple(np.unique(np.rint(np.geomspace(1, size, MOST_RANKS)).astype(int)).tolist())
