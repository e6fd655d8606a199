"""Layers that are chosen for together against layers each by itself, in one budget.

Such layers are to the budget one layer, a whole, whose loss is known at every rank as any layer's
is. Which wholes there are is decided as ranks are: at a price for what is limited the layers that
hang together have a best way to spend. The best plan over a range of prices is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tdjax.allocation.choices import Choices
from tdjax.allocation.free import Given
from tdjax.allocation.limits import Shares, limits_of
from tdjax.allocation.problem import Problem
from tdjax.moments.collect import LayerMoments
from tdjax.plan.dtypes import dtype_problem
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan, PlannedLayer

# A plan, and how good it is: the less the better.
Solved = tuple[Plan, float]
Solve = Callable[[Problem], Solved]
Group = tuple[Layer, ...]
# Prices at which wholes are decided.
PRICES = 24
# Ways to take layers together that hang together; of more the first are weighed.
MOST_COVERS = 512


@dataclass(frozen=True, eq=False)
class Whole:
    """Layers that may be chosen for together.

    Arguments:
        layers: in the order of the model.
        layer: what they are to the budget.
        form: of that, without its rank.
        ranks: (n,), those that there are to choose from.
        apart: the layers of a plan, from the whole's entry where that has a form.
        array, moments: of the whole, where its loss is measured as a layer's.
        lost: what choices lose, where that is known otherwise.
    """

    layers: Group
    layer: Layer
    form: Form
    ranks: Int[np.ndarray, " n"]
    apart: Callable[[PlannedLayer], Sequence[PlannedLayer]]
    array: Callable[[], Any] | None = None
    moments: Callable[[], LayerMoments] | None = None
    lost: Callable[[Choices], Float[np.ndarray, " n"]] | None = None

    def given(self, dtypes: Sequence[str]) -> Given:
        """What is to be chosen for it, of some numbers to store it in."""
        known = [own for own in dtypes if all(_takes(layer, own) for layer in self.layers)]
        return Given(self.form, self.ranks[:, None], known, self._shapes, self.lost)

    def _shapes(self, ranks: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of all arrays of its layers."""
        entry = PlannedLayer(self.layer, replace(self.form, ranks=ranks))
        return [stage.kernel_shape for own in self.apart(entry) for stage in own.stages]


@dataclass(frozen=True, eq=False)
class Together:
    """A problem, and the wholes that its layers may be parts of.

    Arguments:
        problem: of the layers each by itself.
        wholes: of layers that no rule is for.
    """

    problem: Problem
    wholes: tuple[Whole, ...]

    @cached_property
    def joint(self) -> Problem:
        """The problem of all wholes, each as one layer, for as many examples as the problem's."""
        counted = {layer.path: layer for layer in self.problem.counted.layers}
        layers = tuple(
            replace(own.layer, positions=counted[own.layers[0].path].positions)
            for own in self.wholes
        )
        moments = None
        if self.problem.moments is not None:
            measured = (own for own in self.wholes if own.moments is not None)
            moments = {own.layer.path: own.moments() for own in measured if own.moments}
        model = self.problem.counted._replace(layers=layers, array_of=self._array_of)
        return replace(self.problem, model=model, rules={}, moments=moments, given=self._given)

    @cached_property
    def _given(self) -> dict[str, Given]:
        dtypes = self.problem.options.dtypes
        return {own.layer.path: own.given(dtypes) for own in self.wholes}

    def of(self, which: frozenset[int]) -> Problem:
        """The problem in which the wholes of these numbers are one layer each."""
        found = self.of_shapes(which)
        # What is known of all layers is not measured again.
        known = {**self.problem.predicted, **self.joint.predicted}
        vars(found)["predicted"] = {path: known[path] for path in found.free}
        return found

    def of_shapes(self, which: frozenset[int]) -> Problem:
        """The same, of which nothing is measured yet."""
        joint, problem, layers = self.joint, self.problem, list[Layer]()
        taken = {own.path: self.wholes[number] for number in which for own in self._of(number)}
        for layer in problem.model.layers:
            whole = taken.get(layer.path)
            if whole is None:
                layers.append(layer)
            elif layer == whole.layers[0]:
                layers.append(whole.layer)
        model = problem.model._replace(layers=tuple(layers), array_of=self._array_of)
        moments = None
        if problem.moments is not None:
            moments = {**problem.moments, **(joint.moments or {})}
        found = replace(problem, model=model, moments=moments, given=self._given)
        known = {**problem.layers, **joint.layers}
        every = (own.path for own in layers if own.path in known)
        vars(found)["layers"] = {path: known[path] for path in every}
        return found

    def _of(self, number: int) -> Group:
        return self.wholes[number].layers

    @cached_property
    def clusters(self) -> list[tuple[Group, list[frozenset[int]]]]:
        """Layers that hang together by wholes, and the ways in which these exclude no other."""
        found: list[list[int]] = []
        for number in range(len(self.wholes)):
            paths = _paths(self._of(number))
            near = [own for own in found if any(paths & _paths(self._of(k)) for k in own)]
            found = [own for own in found if own not in near]
            found.append(sorted({number}.union(*near)))
        clusters = []
        for numbers in found:
            layers = {layer.path: layer for number in numbers for layer in self._of(number)}
            clusters.append((tuple(layers.values()), self._covers(numbers)))
        return clusters

    def _covers(self, numbers: Sequence[int]) -> list[frozenset[int]]:
        """Sets of wholes that have no layer in common, the empty one first."""
        found: list[tuple[frozenset[int], frozenset[str]]] = [(frozenset(), frozenset())]
        for number in numbers:
            paths = _paths(self._of(number))
            found += [(own | {number}, known | paths) for own, known in found if not known & paths]
            found = found[:MOST_COVERS]
        return [own for own, _ in found]

    @cached_property
    def smallest(self) -> frozenset[int]:
        """The wholes with which least is spent where all is made as small as it can be."""
        chosen = frozenset[int]()
        for layers, covers in self.clusters:
            spent = self._over(layers, covers, self._cheapest)
            chosen |= covers[int(np.argmin(spent))]
        return chosen

    @cached_property
    def candidates(self) -> list[frozenset[int]]:
        """Numbers of wholes: none, those that spend least, and what is best at some prices."""
        prices = self._prices()
        chosen = [frozenset[int]() for _ in prices]
        for layers, covers in self.clusters:
            best = np.argmin(self._over(layers, covers, partial(self._least, prices)), axis=0)
            chosen = [own | covers[k] for own, k in zip(chosen, best, strict=True)]
        return list(dict.fromkeys([frozenset(), self.smallest, *chosen]))

    def _over(
        self, layers: Group, covers: Sequence[frozenset[int]], least: Callable[[Problem, str], Any]
    ) -> Float[np.ndarray, "*_"]:
        """What layers come to, for each way to take them together.

        Arguments:
            least: what the layer at a path comes to in a problem.
        """
        own = {layer.path: least(self.problem, layer.path) for layer in layers}
        wholes = {
            number: least(self.joint, self.wholes[number].layer.path)
            for number in frozenset().union(*covers)
        }
        found = []
        for cover in covers:
            taken = {layer.path for number in cover for layer in self._of(number)}
            left = sum(lost for path, lost in own.items() if path not in taken)
            found.append(left + sum(wholes[number] for number in cover))
        return np.stack(found)

    def _cheapest(self, problem: Problem, path: str) -> Any:
        """The least that a layer costs."""
        return self._costs(problem, path).min()

    def _least(self, prices: Float[np.ndarray, " n"], problem: Problem, path: str) -> Any:
        """The least that a layer loses and costs together, at each price."""
        costs = self._costs(problem, path)
        lost = problem.predicted[path] if path in problem.free else np.zeros(1)
        return np.min(lost + prices[:, None] * costs, axis=1)

    def _costs(self, problem: Problem, path: str) -> Float[np.ndarray, " m"]:
        """What is limited of each choice for a layer, or of what is decided for it."""
        free = problem.free.get(path)
        if free is not None:
            return self._limited(free.costs)
        entry = problem.layers[path]
        assert isinstance(entry, PlannedLayer)
        return self._limited(problem.options.costs_of(entry)[None])

    def _prices(self) -> Float[np.ndarray, " n"]:
        """Prices of what is limited, at which layers begin and cease to be worth their cost."""
        problem, found = self.problem, []
        for path in {layer.path for layers, _ in self.clusters for layer in layers}:
            if path not in problem.free:
                continue
            cost, lost = self._limited(problem.free[path].costs), problem.predicted[path]
            spared = cost.max() - cost
            found.append(lost[spared > 0] / spared[spared > 0])
        every = np.concatenate(found) if found else np.zeros(0)
        every = every[every > 0]
        return np.quantile(every, np.linspace(0.02, 0.98, PRICES)) if len(every) else every

    def _limited(self, costs: Int[np.ndarray, "*n k"]) -> Float[np.ndarray, "*n"]:
        """Of costs those that are limited, as shares of the whole network, added up."""
        options = self.problem.options
        columns = [options.known.index(cost) for cost in options.costs]
        shares: Float[np.ndarray, "*n"] = costs[..., columns] / self.problem.whole[columns]
        return shares.sum(axis=-1)

    def apart(self, plan: Plan) -> Plan:
        """A plan of the model's own layers, from one in which some are wholes."""
        wholes = {own.layer.path: own for own in self.wholes}
        made: dict[str, PlannedLayer] = {}
        for entry in plan.layers:
            whole = wholes.get(entry.layer.path)
            if whole is None:
                made[entry.layer.path] = entry
                continue
            own: Sequence[PlannedLayer]
            own = [PlannedLayer(layer, reason=entry.reason) for layer in whole.layers]
            if entry.form is not None:
                own = whole.apart(entry)
            made |= {one.layer.path: one for one in own}
        layers = tuple(made[own.path] for own in self.problem.model.layers)
        return Plan(
            **{own.name: getattr(plan, own.name) for own in fields(plan)} | {"layers": layers}
        )

    def _array_of(self, layer: Layer) -> Any:
        for own in self.wholes:
            if own.layer.path == layer.path and own.array is not None:
                return own.array()
        return self.problem.model.array_of(layer)


def _takes(layer: Layer, dtype: str) -> bool:
    """Whether the factors of a layer can be stored so."""
    return dtype_problem(layer, dtype, dense=False) is None


def _paths(layers: Group) -> frozenset[str]:
    return frozenset(layer.path for layer in layers)


def check_weighed(problem: Problem, what: str, argument: str) -> None:
    """Refuse wholes where what they lose is not known."""
    if problem.strategy != "loss":
        raise ValueError(
            f"allocate: {what} are weighed by the loss that moments predict: pass "
            f"strategy='loss', not {problem.strategy!r}, or leave out {argument}"
        )


def check_counted(problem: Problem, what: str, argument: str) -> None:
    """Refuse wholes where what they cost is not known."""
    if problem.options.clock is not None:
        raise ValueError(
            f"allocate: the time of {what} is not known: leave out timings and a budget of time, "
            f"or {argument}"
        )
    if problem.model.work is not None:
        raise ValueError(
            f"allocate: {what} are not known for models whose layers run under conditions: leave "
            f"out {argument}"
        )


def check_some_reach(together: Together, shares: Shares) -> None:
    """Refuse, with a ValueError, a budget out of reach whether layers go together or not."""
    try:
        limits_of(together.problem, shares)
    except ValueError:
        limits_of(together.of_shapes(together.smallest), shares)


def best_together(together: Together, solve: Solve) -> Plan:
    """The best plan that is found. Raises ValueError where there is none.

    Arguments:
        solve: the best plan of a problem; raises ValueError where there is none.
    """
    known: dict[frozenset[int], Solved | ValueError] = {}

    def solved(which: frozenset[int]) -> float:
        if which not in known:
            try:
                known[which] = solve(together.of(which))
            except ValueError as error:
                known[which] = error
        best = known[which]
        return np.inf if isinstance(best, ValueError) else best[1]

    best = min(together.candidates, key=solved)
    found = known[best]
    if isinstance(found, ValueError):
        raise found
    return together.apart(found[0])
