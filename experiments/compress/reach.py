"""How far a network can be compressed, known before it is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tdjax.allocation.choices import cost_of, low_rank_choices, share_choices, tucker_choices
from tdjax.allocation.measures import SAMPLED
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan, PlannedLayer


def least_share(dense: Plan, cost: str, methods: Sequence[str]) -> float:
    """The share of the network that is left where every layer is as small as it can be.

    Arguments:
        dense: the plan that leaves every layer as it is.
        cost: what is counted, "params" or "macs".
        methods: formats that the layers may have.

    Of the formats that strategies with an error choose from; "uniform" has others.
    """
    whole = dense.size if cost == "params" else dense.macs
    layers = [entry.layer for entry in dense.layers if entry.layer.obstacle is None]
    return (whole - sum(_most_spared(layer, cost, methods) for layer in layers)) / whole


def _most_spared(layer: Layer, cost: str, methods: Sequence[str]) -> int:
    dense = cost_of(PlannedLayer(layer), cost)
    matrix = layer.is_matrix or math.prod(layer.group_shape[:-2]) == 1
    costs = [dense]
    for method in methods:
        if method == "svd":
            costs += low_rank_choices(layer, cost).cost.tolist()
        elif method == "tucker" and not matrix:
            costs += tucker_choices(layer, cost).cost.tolist()
        elif not matrix:
            costs += share_choices(layer, cost, method, SAMPLED).cost.tolist()
    return dense - min(costs)
