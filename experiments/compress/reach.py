"""How far a network can be compressed, known before it is trained."""

from __future__ import annotations

from collections.abc import Sequence

from tdjax.allocation.choices import COSTS, ChoiceOptions, choices_of, costs_of
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
    column = COSTS.index(cost)
    dense = int(costs_of(PlannedLayer(layer))[column])
    found = choices_of(layer, "energy", ChoiceOptions((cost,), tuple(methods)))
    return dense - min([dense, *(int(own.costs[:, column].min()) for own in found)])
