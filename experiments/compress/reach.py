"""How far and how nearly a network can be compressed, known before it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Int

from tdjax.allocation.choices import COSTS, ChoiceOptions, choices_of, costs_of
from tdjax.allocation.exact import distinct, nearest
from tdjax.allocation.limits import TOLERANCE
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan, PlannedLayer

Costs = Int[np.ndarray, " n"]
# Of the strategies that choose from the same: all with an error but those of ALDS.
ANY = "energy"


def least_share(dense: Plan, cost: str, methods: Sequence[str], *, strategy: str = ANY) -> float:
    """The share of the network that is left where every layer is as small as it can be.

    Arguments:
        dense: the plan that leaves every layer as it is.
        cost: what is counted, "params" or "macs".
        methods: formats that the layers may have.
        strategy: as `tdjax.allocate` knows it, of those with an error.

    Of the formats that strategies with an error choose from; "uniform" has others.
    """
    each = partial(_costs, cost=cost, methods=methods, strategy=strategy)
    whole, fixed, costs = _counted(dense, each, cost)
    return (fixed + sum(int(own.min()) for own in costs)) / whole


def nearest_share(
    dense: Plan, cost: str, methods: Sequence[str], budget: float, *, strategy: str = ANY
) -> float:
    """A share of the network, below a budget, that ranks add up to.

    As near to it as can be, or within the tolerance of `tdjax.allocate`.

    Arguments:
        dense, cost, methods, strategy: see `least_share`, which `budget` is not below.
    """
    each = partial(_costs, cost=cost, methods=methods, strategy=strategy)
    whole, fixed, costs = _counted(dense, each, cost)
    most = math.floor(budget * whole * (1 + 1e-9)) - fixed
    spent = _filled(costs, most)
    # Where there are many layers, what is left is little.
    if spent < most - TOLERANCE * whole:
        _, _, costs = _counted(dense, partial(each, fine=True), cost)
        tables = [distinct(own, np.zeros(len(own))) for own in costs]
        places = nearest(tables, most, most, np.add)
        exact = sum(int(table.cost[place]) for table, place in zip(tables, places, strict=True))
        spent = max(spent, exact)
    return (fixed + spent) / whole


def _filled(costs: Sequence[Costs], most: int) -> int:
    """A total near below `most`: of each layer in turn the greatest cost that fits."""
    left = most - sum(int(own.min()) for own in costs)
    for own in costs:
        more = own - own.min()
        left -= int(more[more <= left].max())
    return most - left


def _counted(
    dense: Plan, each: Callable[[Layer], Costs], cost: str
) -> tuple[int, int, list[Costs]]:
    """The cost of a network, of what stays as it is, and all that each other layer may cost."""
    whole = dense.size if cost == "params" else math.ceil(dense.macs)
    layers = [entry.layer for entry in dense.layers if entry.layer.obstacle is None]
    costs = [each(layer) for layer in layers]
    return whole, whole - sum(int(own[-1]) for own in costs), costs


def _costs(
    layer: Layer, *, cost: str, methods: Sequence[str], strategy: str = ANY, fine: bool = False
) -> Costs:
    """All that a layer may cost, last what it costs as it is."""
    column = COSTS.index(cost)
    dense = costs_of(PlannedLayer(layer))[column]
    options = ChoiceOptions((cost,), tuple(methods), fine=fine)
    found = choices_of(layer, strategy, options)
    counted = (own.costs[:, column] for own in found)
    return np.concatenate([*(own[own < dense] for own in counted), [dense]])
