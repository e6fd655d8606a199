"""Formats and ranks of all layers of a model, chosen together under one budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdjax.allocation import measures
from tdjax.allocation.choices import cost_of
from tdjax.allocation.measures import MeasureOptions, RatedChoices
from tdjax.allocation.search import (
    Errors,
    Frontier,
    exchanged,
    frontier,
    least_maximum,
    least_sum,
    total,
)
from tdjax.hints import known_are
from tdjax.moments.collect import LayerMoments
from tdjax.plan.form import METHODS
from tdjax.plan.layers import Inventory, Layer
from tdjax.plan.plan import Plan, PlannedLayer

STRATEGIES = ("uniform", "energy", "alds", "loss")
COSTS = ("params", "macs")
OBJECTIVES = ("bound", "released")
# How far from the budget a plan may be, as a share of the whole network.
TOLERANCE = 0.005


class LayerTable(NamedTuple):
    """What may become of a layer.

    Arguments:
        frontier: the choices that no other one beats, the dense layer included.
        measured: all choices, by format.
        dense: the layer as it is.
    """

    frontier: Frontier
    measured: Sequence[RatedChoices]
    dense: PlannedLayer

    def entry(self, place: int) -> PlannedLayer:
        """What a plan says of the layer at a place of its frontier."""
        number = int(self.frontier.which[place])
        for choices, _ in self.measured:
            if number < len(choices.cost):
                return choices.entry(choices.ranks[number].tolist())
            number -= len(choices.cost)
        return self.dense


def allocate(
    model: Inventory,
    *,
    budget: float,
    cost: str = "params",
    strategy: str = "energy",
    methods: Sequence[str] = ("svd", "tucker", "cp", "tt"),
    moments: Mapping[str, LayerMoments] | None = None,
    splits: Sequence[int] | None = None,
    objective: str = "bound",
    seed: int = 0,
) -> Plan:
    """See `tdjax.allocate`."""
    _check(budget, methods, strategy=strategy, cost=cost, objective=objective)
    kept = None if splits is None else tuple(splits)
    options = MeasureOptions(cost, tuple(methods), kept, objective, jax.random.key(seed))
    tables = {
        layer.path: _table(layer, _measured(layer, model, strategy, options, moments), cost)
        for layer in model.layers
        if layer.obstacle is None
    }
    places = _search(model, tables, budget, cost, strategy)
    entries = [
        tables[layer.path].entry(places[layer.path])
        if layer.path in tables
        else PlannedLayer(layer, reason=layer.obstacle)
        for layer in model.layers
    ]
    return Plan(tuple(entries), model.other, other_macs=model.other_macs)


def _measured(
    layer: Layer,
    model: Inventory,
    strategy: str,
    options: MeasureOptions,
    moments: Mapping[str, LayerMoments] | None,
) -> list[RatedChoices]:
    if strategy == "uniform":
        return measures.uniform(layer, options)
    array = _weights_of(layer, model, strategy)
    if strategy != "loss":
        return getattr(measures, strategy)(layer, array, options)
    found = _moments_of(layer, moments)
    # As of an embedding at positions that no example decides on: it stays as it is.
    return [] if found is None else measures.loss(layer, array, options, found)


def _weights_of(layer: Layer, model: Inventory, strategy: str) -> Any:
    array = model.array_of(layer)
    if isinstance(array, jax.ShapeDtypeStruct):
        raise ValueError(f"allocate: layer {layer.path!r}: strategy {strategy!r} needs its weights")
    if not bool(jnp.isfinite(array).all()):
        raise ValueError(f"allocate: layer {layer.path!r}: its weights hold NaN or Inf")
    return array


def _moments_of(layer: Layer, moments: Mapping[str, LayerMoments] | None) -> LayerMoments | None:
    """A layer's moments with the gradient at its outputs, or None where it has no gradient."""
    if moments is None or all(found.outputs is None for found in moments.values()):
        raise ValueError(
            "allocate: strategy 'loss' needs moments of the gradient; collect_moments gives them "
            "with a loss_fn"
        )
    if layer.path not in moments:
        raise ValueError(f"allocate: strategy 'loss' needs the moments of layer {layer.path!r}")
    found = moments[layer.path]
    if found.outputs is None:
        return None
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found)):
        raise ValueError(f"allocate: the moments of layer {layer.path!r} hold NaN or Inf")
    return found


def _table(layer: Layer, measured: Sequence[RatedChoices], cost: str) -> LayerTable:
    reason = (
        "the rest is better spared elsewhere" if measured else "nothing smaller is known for it"
    )
    dense = PlannedLayer(layer, reason=reason)
    costs = [choices.cost for choices, _ in measured] + [np.array([cost_of(dense, cost)])]
    errors = [own for _, own in measured] + [np.zeros(1)]
    return LayerTable(frontier(np.concatenate(costs), np.concatenate(errors)), measured, dense)


def _search(
    model: Inventory, tables: Mapping[str, LayerTable], budget: float, cost: str, strategy: str
) -> dict[str, int]:
    """The place of each layer in its table. Raises ValueError for a budget out of reach."""
    dense = {layer.path: cost_of(PlannedLayer(layer), cost) for layer in model.layers}
    whole = sum(dense.values()) + (model.other if cost == "params" else model.other_macs)
    frontiers = [table.frontier for table in tables.values()]
    fixed = whole - sum(dense[path] for path in tables)
    least = fixed + total(frontiers, [0] * len(frontiers))
    aim, slack = budget * whole, TOLERANCE * whole
    text = f"allocate: budget {budget:g} of the {cost}"
    if not frontiers or least > aim + slack:
        raise ValueError(
            f"{text} is out of reach: strategy {strategy!r} reaches {least / whole:.4g} to 1"
        )
    search, lost = (least_sum, _sum) if strategy == "loss" else (least_maximum, _greatest)
    most = max(int(aim), least) - fixed
    places = search(frontiers, most)
    if fixed + total(frontiers, places) < aim - slack:
        lower = math.ceil(aim - slack) - fixed
        nearer = exchanged(frontiers, places, lower, most, lost)
        if nearer is None:
            reached = (fixed + total(frontiers, places)) / whole
            raise ValueError(
                f"{text} cannot be met within {TOLERANCE:.1%}: the steps between ranks are too "
                f"large; {reached:.4g} is within reach"
            )
        places = nearer
    return dict(zip(tables, places, strict=True))


def _sum(errors: Errors) -> Errors:
    return np.sum(errors, axis=-1)


def _greatest(errors: Errors) -> Errors:
    return np.max(errors, axis=-1)


def _check(budget: float, methods: Sequence[str], **named: str) -> None:
    if not 0 < budget < 1:
        raise ValueError(f"allocate: budget {budget} is no share between 0 and 1")
    known = {"strategy": STRATEGIES, "cost": COSTS, "objective": OBJECTIVES}
    for name, value in [*named.items(), *(("methods", method) for method in methods)]:
        values = known.get(name, METHODS)
        if value not in values:
            raise ValueError(f"allocate: {name} {value!r}: {known_are(value, values)}")
    if not methods:
        raise ValueError("allocate: methods must name at least one")
