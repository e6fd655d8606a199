"""Formats and ranks of all layers of a model, chosen together under one budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from tdjax.allocation import measures
from tdjax.allocation.choices import cost_of
from tdjax.allocation.exact import distinct, nearest
from tdjax.allocation.measures import MeasureOptions, RatedChoices
from tdjax.allocation.search import (
    Table,
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
from tdjax.plan.work import exact

# How the errors of the layers become what a strategy makes least.
TOGETHER = {"uniform": np.maximum, "energy": np.maximum, "alds": np.maximum, "loss": np.add}
STRATEGIES = tuple(TOGETHER)
COSTS = ("params", "macs")
# Formats that are tried at some shares of the weights, as the ranks are too many.
AT_SHARES = frozenset(["cp", "tt"])
OBJECTIVES = ("bound", "released")
# How far from the budget a plan may be, as a share of the whole network.
TOLERANCE = 0.005
# Of a product with a budget, as a share of the whole network.
ROUNDING = 1e-12


class RatedLayer(NamedTuple):
    """All that may become of a layer.

    Arguments:
        measured: its choices, by format.
        dense: the layer as it is.
        cost: of all choices, then of the dense layer.
        error: what each of them loses.
    """

    measured: Sequence[RatedChoices]
    dense: PlannedLayer
    cost: Int[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]

    def entry(self, number: int) -> PlannedLayer:
        """What a plan says of the layer for one of the choices."""
        for choices, _ in self.measured:
            if number < len(choices.cost):
                return choices.entry(choices.ranks[number].tolist())
            number -= len(choices.cost)
        return self.dense


class Target(NamedTuple):
    """What the costs of all layers that have choices are to add up to.

    Arguments:
        whole: cost of the dense network.
        fixed: what is no choice of these layers.
        least, most: bounds of the sum.
    """

    whole: int
    fixed: int
    least: int
    most: int


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
    counted = _in_whole_numbers(model) if cost == "macs" else model
    rated = _rated(counted, strategy, options, moments)
    if cost == "macs" and model.work is not None:
        return _of_branches(model, rated, budget, strategy)
    target = _target(counted, rated, budget, options, strategy)
    found = _searched(rated, target, strategy) or _searched_exactly(rated, target, strategy)
    at_shares = strategy == "uniform" or not AT_SHARES.isdisjoint(methods)
    if _cost(rated, found) < target.least and at_shares:
        rated = _rated(counted, strategy, options._replace(fine=True), moments)
        found = _searched_exactly(rated, target, strategy)
    reached = target.fixed + _cost(rated, found)
    if reached < target.fixed + target.least:
        raise ValueError(
            f"allocate: budget {budget:g} of the {cost} cannot be met within {TOLERANCE:.1%}: the "
            f"steps between ranks are too large; {reached / target.whole:.4g} is within reach"
        )
    return _planned(model, rated, found)


def _in_whole_numbers(model: Inventory) -> Inventory:
    """The model's multiply-accumulates for so many examples that all are ints; all layers run."""
    counts = [n for layer in model.layers for n in (layer.positions, layer.lookups)]
    examples = math.lcm(*(n.denominator for n in (model.other_macs, *counts)))
    layers = (
        replace(
            layer,
            positions=exact(layer.positions * examples),
            lookups=exact(layer.lookups * examples),
        )
        for layer in model.layers
    )
    other = exact(model.other_macs * examples)
    return model._replace(layers=tuple(layers), other_macs=other, work=None)


def _of_branches(
    model: Inventory, rated: Mapping[str, RatedLayer], budget: float, strategy: str
) -> Plan:
    """The plan of a model with conditions, of whose branches the costliest is held to the budget.

    What the layers cost adds up, what branches cost does not: of all layers together as much is
    allowed as keeps the network within the budget, found by halving.
    """
    whole = float(_plan(model, {}).macs_before)
    most = budget * whole + ROUNDING * whole
    low = sum(int(layer.cost.min()) for layer in rated.values())
    high = sum(int(layer.cost[-1]) for layer in rated.values())

    def within(limit: int) -> Plan:
        target = Target(0, 0, 0, limit)
        found = _searched(rated, target, strategy) if rated else {}
        assert found is not None, "nothing is too little"
        return _planned(model, rated, found)

    best = within(low)
    if best.macs > most:
        raise ValueError(
            f"allocate: budget {budget:g} of the macs is out of reach: strategy {strategy!r} "
            f"reaches {float(best.macs) / whole:.4g} to 1"
        )
    while low < high:
        middle = (low + high + 1) // 2
        plan = within(middle)
        if plan.macs <= most:
            low, best = middle, plan
        else:
            high = middle - 1
    return best


def _planned(model: Inventory, rated: Mapping[str, RatedLayer], found: Mapping[str, int]) -> Plan:
    return _plan(model, {path: rated[path].entry(number) for path, number in found.items()})


def _plan(model: Inventory, entries: Mapping[str, PlannedLayer]) -> Plan:
    """The plan of a model, all layers that have no entry dense."""
    layers = (
        replace(entries[layer.path], layer=layer)
        if layer.path in entries
        else PlannedLayer(layer, reason=layer.obstacle)
        for layer in model.layers
    )
    return Plan(tuple(layers), model.other, other_macs=model.other_macs, work=model.work)


def _rated(
    model: Inventory,
    strategy: str,
    options: MeasureOptions,
    moments: Mapping[str, LayerMoments] | None,
) -> dict[str, RatedLayer]:
    """By path, all choices of each layer that can be factorised."""
    return {
        layer.path: _with_dense(layer, _measured(layer, model, strategy, options, moments), options)
        for layer in model.layers
        if layer.obstacle is None
    }


def _with_dense(
    layer: Layer, measured: Sequence[RatedChoices], options: MeasureOptions
) -> RatedLayer:
    """What may become of a layer, its choices and to stay as it is."""
    reason = (
        "the rest is better spared elsewhere" if measured else "nothing smaller is known for it"
    )
    dense = PlannedLayer(layer, reason=reason)
    costs = [choices.cost for choices, _ in measured] + [np.array([cost_of(dense, options.cost)])]
    errors = [own for _, own in measured] + [np.zeros(1)]
    return RatedLayer(measured, dense, np.concatenate(costs), np.concatenate(errors))


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


def _target(
    model: Inventory,
    rated: Mapping[str, RatedLayer],
    budget: float,
    options: MeasureOptions,
    strategy: str,
) -> Target:
    """What the layers may cost. Raises ValueError for a budget out of reach."""
    plan = _plan(model, {})
    whole = int(plan.size_before if options.cost == "params" else plan.macs_before)
    fixed = whole - sum(int(layer.cost[-1]) for layer in rated.values())
    cheapest = sum(int(layer.cost.min()) for layer in rated.values())
    # In floating point a budget of 0.29 of 100 is less than 29.
    most = math.floor(budget * whole + ROUNDING * whole)
    least = math.ceil((budget - TOLERANCE) * whole - ROUNDING * whole)
    if not rated or fixed + cheapest > most:
        raise ValueError(
            f"allocate: budget {budget:g} of the {options.cost} is out of reach: strategy "
            f"{strategy!r} reaches {(fixed + cheapest) / whole:.4g} to 1"
        )
    return Target(whole, fixed, least - fixed, most - fixed)


def _searched(
    rated: Mapping[str, RatedLayer], target: Target, strategy: str
) -> dict[str, int] | None:
    """The choice for each layer, or None where the search finds none of the right cost."""
    tables = [frontier(layer.cost, layer.error) for layer in rated.values()]
    together = TOGETHER[strategy]
    search = least_sum if together is np.add else least_maximum
    places = search(tables, target.most)
    if total(tables, places) >= target.least:
        return _numbers(rated, tables, places)
    lost = partial(together.reduce, axis=-1)
    nearer = exchanged(tables, places, target.least, target.most, lost)
    return None if nearer is None else _numbers(rated, tables, nearer)


def _searched_exactly(
    rated: Mapping[str, RatedLayer], target: Target, strategy: str
) -> dict[str, int]:
    """The choice for each layer; where none has the right cost, one as near below as can be."""
    tables = [distinct(layer.cost, layer.error) for layer in rated.values()]
    places = nearest(tables, target.least, target.most, TOGETHER[strategy])
    return _numbers(rated, tables, places)


def _cost(rated: Mapping[str, RatedLayer], numbers: Mapping[str, int]) -> int:
    return sum(int(rated[path].cost[number]) for path, number in numbers.items())


def _numbers(
    paths: Iterable[str], tables: Sequence[Table], places: Sequence[int]
) -> dict[str, int]:
    numbers = (int(table.which[place]) for table, place in zip(tables, places, strict=True))
    return dict(zip(paths, numbers, strict=True))


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
