"""Layers that share an input factor against layers with factors of their own, in one budget.

Layers that share are to the budget one layer, their matrices side by side, whose loss is known at
every rank as any layer's is. Which of a group share, all or some or none, is decided as ranks are:
at a price for what is limited each group has a best way to spend. The best plan over a range of
prices is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tdjax.allocation.limits import Shares, limits_of
from tdjax.allocation.problem import Problem
from tdjax.moments.collect import LayerMoments
from tdjax.params.kernels import Weights
from tdjax.params.shared import joined_array, joined_weights
from tdjax.plan.dtypes import FLOAT32
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.shared import group_problem, joined
from tdjax.plan.sharing import shared

# A plan, and how good it is: the less the better.
Solved = tuple[Plan, float]
Solve = Callable[[Problem], Solved]
Group = tuple[Layer, ...]
# Of a group of more layers, fewer than all share only where one of them is left out.
MOST_PARTED = 3
# Prices at which groups are decided.
PRICES = 24


@dataclass(frozen=True, eq=False)
class Sharing:
    """A problem, and the groups of its layers that may share.

    Arguments:
        problem: of the layers each by itself.
        families: of free layers that no rule is for, of which all or some may share.
    """

    problem: Problem
    families: tuple[Group, ...]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All that may share with each other, of each family in turn."""
        return tuple(part for family in self.families for part in _parts(family))

    @cached_property
    def whole(self) -> frozenset[int]:
        """The numbers of the groups that are families."""
        return frozenset(map(self.groups.index, self.families))

    @cached_property
    def joint(self) -> Problem:
        """The problem of all groups, each as one layer."""
        layers = tuple(map(joined, self.groups))
        moments = None
        if self.problem.moments is not None:
            pairs = zip(layers, self.groups, strict=True)
            moments = {layer.path: self._moments(group) for layer, group in pairs}
        model = self.problem.model._replace(layers=layers, array_of=self._array_of)
        # How numbers are stored is the same for all that share.
        options = self.problem.options._replace(dtypes=(FLOAT32,))
        return replace(self.problem, model=model, rules={}, moments=moments, options=options)

    def of(self, which: frozenset[int]) -> Problem:
        """The problem in which the groups of these numbers share."""
        found = self.of_shapes(which)
        # What is known of all layers is not measured again.
        known = {**self.problem.predicted, **self.joint.predicted}
        vars(found)["predicted"] = {path: known[path] for path in found.free}
        return found

    def of_shapes(self, which: frozenset[int]) -> Problem:
        """The same, of which nothing is measured yet."""
        joint, problem, layers = self.joint, self.problem, list[Layer]()
        sharing = {own.path: number for number in which for own in self.groups[number]}
        for layer in problem.model.layers:
            number = sharing.get(layer.path)
            if number is None:
                layers.append(layer)
            elif layer == self.groups[number][0]:
                layers.append(joint.model.layers[number])
        model = problem.model._replace(layers=tuple(layers), array_of=self._array_of)
        moments = None
        if problem.moments is not None:
            moments = {**problem.moments, **(joint.moments or {})}
        found = replace(problem, model=model, moments=moments)
        known = {**problem.layers, **joint.layers}
        every = (own.path for own in layers if own.path in known)
        vars(found)["layers"] = {path: known[path] for path in every}
        return found

    @cached_property
    def candidates(self) -> list[frozenset[int]]:
        """Numbers of groups that share: none, all families, and what is best at some prices."""
        prices = self._prices()
        chosen: list[list[int]] = [[] for _ in prices]
        for family in self.families:
            own = {
                layer.path: _least(self.problem, layer.path, prices, self._limited)
                for layer in family
            }
            losses, numbers = [sum(own.values())], [-1]
            for part in _parts(family):
                rest = [own[layer.path] for layer in family if layer not in part]
                losses.append(
                    sum(rest, _least(self.joint, joined(part).path, prices, self._limited))
                )
                numbers.append(self.groups.index(part))
            for which, best in zip(chosen, np.argmin(losses, axis=0), strict=True):
                which += [numbers[best]] if best else []
        return list(dict.fromkeys([frozenset(), self.whole, *map(frozenset, chosen)]))

    def _prices(self) -> Float[np.ndarray, " n"]:
        """Prices of what is limited, at which layers begin and cease to be worth their cost."""
        problem, found = self.problem, []
        for layer in (layer for family in self.families for layer in family):
            cost, lost = self._limited(problem.free[layer.path].costs), problem.predicted
            spared = cost.max() - cost
            found.append(lost[layer.path][spared > 0] / spared[spared > 0])
        every = np.concatenate(found) if found else np.zeros(0)
        every = every[every > 0]
        return np.quantile(every, np.linspace(0.02, 0.98, PRICES)) if len(every) else every

    def _limited(self, costs: Int[np.ndarray, "*n k"]) -> Float[np.ndarray, "*n"]:
        """Of costs those that are limited, as shares of the whole network, added up."""
        options = self.problem.options
        columns = [options.known.index(cost) for cost in options.costs]
        shares: Float[np.ndarray, "*n"] = costs[..., columns] / self.problem.whole[columns]
        return shares.sum(axis=-1)

    def check(self, plan: Plan) -> None:
        """Refuse, with a ValueError, a plan that stores a group in fewer bits."""
        paths = {joined(group).path for group in self.groups}
        for entry in plan.layers:
            if entry.layer.path in paths and entry.dtype is not None:
                raise ValueError(
                    "allocate: shared input factors are stored in the numbers of the kernels: pass "
                    "dtypes=('float32',), or leave out shared"
                )

    def apart(self, plan: Plan) -> Plan:
        """A plan of the model's own layers, from one in which some are groups."""
        groups = {joined(group).path: group for group in self.groups}
        made: dict[str, PlannedLayer] = {}
        for entry in plan.layers:
            group = groups.get(entry.layer.path)
            if group is None:
                made[entry.layer.path] = entry
                continue
            own = [PlannedLayer(layer, reason=entry.reason) for layer in group]
            if entry.form is not None:
                own = shared(own, *entry.form.ranks)
            made |= {one.layer.path: one for one in own}
        return replace(plan, layers=tuple(made[own.path] for own in self.problem.model.layers))

    def _array_of(self, layer: Layer) -> Any:
        for group in self.groups:
            if joined(group).path == layer.path:
                return joined_array([self.problem.model.array_of(own) for own in group], group)
        return self.problem.model.array_of(layer)

    def _moments(self, group: Group) -> LayerMoments:
        own = [(self.problem.moments or {})[layer.path] for layer in group]
        weights = joined_weights([Weights(one.inputs, one.outputs) for one in own], group)
        return replace(own[0], outputs=weights.outputs)


def _parts(family: Group) -> list[Group]:
    """The layers of a family, two or more of them."""
    least = 2 if len(family) <= MOST_PARTED else len(family) - 1
    sizes = range(least, len(family) + 1)
    return [part for size in sizes for part in itertools.combinations(family, size)]


def _least(
    problem: Problem,
    path: str,
    prices: Float[np.ndarray, " n"],
    limited: Callable[[Any], Any],
) -> Any:
    """The least that a layer loses and costs together, at each price."""
    free = problem.free.get(path)
    if free is None:
        entry = problem.layers[path]
        assert isinstance(entry, PlannedLayer)
        return prices * limited(problem.options.costs_of(entry))
    return np.min(problem.predicted[path] + prices[:, None] * limited(free.costs), axis=1)


def check_weighed(problem: Problem) -> None:
    """Refuse shared input factors where what they lose is not known."""
    if problem.strategy != "loss":
        raise ValueError(
            "allocate: shared input factors are weighed by the loss that moments predict: pass "
            f"strategy='loss', not {problem.strategy!r}, or leave out shared"
        )


def sharing_of(problem: Problem, groups: Sequence[Sequence[str]]) -> Sharing:
    """The groups of a problem's layers that may share, by their paths.

    Layers that rules are for, and those that are left dense in any case, share with none.

    Raises KeyError for a path that is no layer's, ValueError for layers that do not read the same
    input, as far as shapes tell, for layers in two groups, and where it is not known what layers
    that share take.
    """
    _check_counted(problem)
    layers = {layer.path: layer for layer in problem.model.layers}
    seen: set[str] = set()
    found = []
    for paths in groups:
        if isinstance(paths, str):
            raise TypeError(f"allocate: shared: a group is a sequence of paths, got {paths!r}")
        for path in paths:
            if path not in layers:
                raise KeyError(f"allocate: shared: no layer {path!r}")
            if path in seen:
                raise ValueError(f"allocate: shared: layer {path!r} is in two groups")
            seen.add(path)
        group = tuple(layer for path, layer in layers.items() if path in set(paths))
        wrong = group_problem(group)
        if wrong is not None:
            raise ValueError(f"allocate: shared: {wrong}")
        free = tuple(own for own in group if own.path in problem.free)
        free = tuple(own for own in free if own.path not in problem.rules)
        if len(free) > 1:
            found.append(free)
    return Sharing(problem, tuple(found))


def _check_counted(problem: Problem) -> None:
    if "svd" not in problem.options.methods:
        raise ValueError("allocate: shared input factors are those of 'svd': add it to methods")
    if problem.options.clock is not None:
        raise ValueError(
            "allocate: the time of layers that share an input factor is not known: leave out "
            "timings and a budget of time, or shared"
        )
    if FLOAT32 not in problem.options.dtypes:
        raise ValueError(
            "allocate: shared input factors are stored in the numbers of the kernels: "
            "add 'float32' to dtypes, or leave out shared"
        )
    if problem.model.work is not None:
        raise ValueError(
            "allocate: shared input factors are not known for models whose layers run under "
            "conditions: leave out shared"
        )


def check_some_reach(sharing: Sharing, shares: Shares) -> None:
    """Refuse, with a ValueError, a budget out of reach whether groups share or not."""
    try:
        limits_of(sharing.problem, shares)
    except ValueError:
        limits_of(sharing.of_shapes(sharing.whole), shares)


def best_sharing(sharing: Sharing, solve: Solve) -> Plan:
    """The best plan that is found. Raises ValueError where there is none.

    Arguments:
        solve: the best plan of a problem; raises ValueError where there is none.
    """
    known: dict[frozenset[int], Solved | ValueError] = {}

    def solved(which: frozenset[int]) -> float:
        if which not in known:
            try:
                found = solve(sharing.of(which))
                sharing.check(found[0])
                known[which] = found
            except ValueError as error:
                known[which] = error
        best = known[which]
        return np.inf if isinstance(best, ValueError) else best[1]

    best = min(sharing.candidates, key=solved)
    found = known[best]
    if isinstance(found, ValueError):
        raise found
    return sharing.apart(found[0])
