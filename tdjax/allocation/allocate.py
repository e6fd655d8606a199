"""Formats and ranks of all layers of a model, chosen together under one budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from tdjax.allocation.choices import (
    AT_SHARES,
    COSTS,
    KNOWN,
    PREFERRED,
    ChoiceOptions,
    RankBounds,
)
from tdjax.allocation.exact import distinct, nearest, smallest
from tdjax.allocation.joint import MOST_ENTRIES, joint_table, within_both
from tdjax.allocation.problem import Problem, Rules, check_known, pose
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
from tdjax.plan.layers import Inventory
from tdjax.plan.plan import Plan
from tdjax.plan.wishes import LossRise

# A share of the whole network that is kept, or limits of shares by the names of costs.
Budget = float | Mapping[str, float]
# How the errors of the layers become what a strategy makes least.
TOGETHER = {"uniform": np.maximum, "energy": np.maximum, "alds": np.maximum, "loss": np.add}
STRATEGIES = tuple(TOGETHER)
OBJECTIVES = ("bound", "released")
# How far from the budget a plan may be, as a share of the whole network.
TOLERANCE = 0.005
# Of a product with a budget, as a share of the whole network.
ROUNDING = 1e-12


class Shares(NamedTuple):
    """A budget, checked.

    Arguments:
        of: shares of the whole network by the name of a cost.
        met: whether the plan is to be within `TOLERANCE` of them, not within them alone.
    """

    of: dict[str, float]
    met: bool


NOTHING = Shares({}, met=False)


class Limit(NamedTuple):
    """What one cost of all free layers is to add up to.

    Arguments:
        cost: its name.
        share: of the whole network that was asked for.
        whole: cost of the dense network.
        fixed: what is no choice of these layers.
        least, most: bounds of the sum; the least is not above 0 where there is none.
    """

    cost: str
    share: float
    whole: int
    fixed: int
    least: int
    most: int

    @property
    def column(self) -> int:
        """Of the cost, in arrays of costs."""
        return COSTS.index(self.cost)


def allocate(
    model: Inventory,
    *,
    budget: Budget | None = None,
    cost: str | None = None,
    strategy: str | None = None,
    methods: Sequence[str] = PREFERRED,
    moments: Mapping[str, LayerMoments] | None = None,
    splits: Sequence[int] | None = None,
    objective: str = "bound",
    rules: Rules = (),
    multiple_of: int = 1,
    target: LossRise | None = None,
    key: Array | None = None,
) -> Plan:
    """See `tdjax.allocate`; CP starts from random factors of `key`."""
    check_one("allocate", budget, target)
    if strategy is None:
        strategy = "energy" if target is None else "loss"
    shares = NOTHING if budget is None else shares_of(budget, cost)
    problem = posed(
        model, tuple(shares.of) or (cost or COSTS[0],), strategy, methods, moments, splits=splits,
        objective=objective, rules=rules, multiple_of=multiple_of, key=key,
    )  # fmt: skip
    if target is None:
        return chosen(problem, shares)[0]
    if strategy != "loss":
        raise ValueError(
            f"allocate: a target of the loss is for strategy 'loss', not {strategy!r}: leave out "
            "one of them"
        )
    return _within_rise(problem, target)


def check_one(function: str, budget: Budget | None, target: LossRise | None) -> None:
    """Refuse neither or both of two that stand for each other."""
    if budget is None and target is None:
        raise TypeError(
            f"{function}: missing a required argument: 'budget', as 0.5, or 'target', as "
            "tdjax.LossRise(0.05)"
        )
    if budget is not None and target is not None:
        raise TypeError(f"{function}: a target takes the place of a budget: leave out one of them")


def check_reach(
    model: Inventory,
    budget: Budget | None,
    cost: str | None,
    methods: Sequence[str],
    rules: Rules,
    multiple_of: int,
) -> None:
    """Refuse what `allocate` would with strategy "loss", as far as shapes tell, before any work."""
    shares = NOTHING if budget is None else shares_of(budget, cost)
    costs = tuple(shares.of) or (cost or COSTS[0],)
    # Its choices are those of "loss".
    problem = posed(model, costs, "energy", methods, None, rules=rules, multiple_of=multiple_of)
    limits_of(problem, shares)


def posed(
    model: Inventory,
    costs: tuple[str, ...],
    strategy: str,
    methods: Sequence[str],
    moments: Mapping[str, LayerMoments] | None,
    *,
    splits: Sequence[int] | None = None,
    objective: str = "bound",
    rules: Rules = (),
    multiple_of: int = 1,
    key: Array | None = None,
) -> Problem:
    """The problem of a network, all names checked; see `tdjax.allocate`."""
    named = [("strategy", strategy, STRATEGIES), ("objective", objective, OBJECTIVES)]
    for name, value, values in [*named, *(("cost", cost, COSTS) for cost in costs)]:
        if value not in values:
            raise ValueError(f"allocate: {name} {value!r}: {known_are(value, values)}")
    options = ChoiceOptions(
        costs,
        _methods(methods, strategy),
        None if splits is None else tuple(splits),
        RankBounds(multiple_of=multiple_of),
        objective,
        jax.random.key(0) if key is None else key,
    )
    return pose(model, strategy, options, rules, moments)


def shares_of(budget: Budget, cost: str | None) -> Shares:
    """A budget as shares by the name of a cost, checked."""
    if not isinstance(budget, Mapping):
        found = Shares({COSTS[0] if cost is None else cost: float(budget)}, met=True)
    elif cost is None:
        found = Shares({name: float(share) for name, share in budget.items()}, met=False)
    else:
        raise ValueError("allocate: a budget by name says what it counts: leave out cost")
    for share in found.of.values():
        if not 0 < share < 1:
            raise ValueError(f"allocate: budget {share} is no share between 0 and 1")
    return found


def chosen(problem: Problem, shares: Shares) -> tuple[Plan, float]:
    """The plan within a budget, and the sum of the errors of the free layers.

    Raises ValueError for a budget out of reach.
    """
    limits = limits_of(problem, shares)
    if len(limits) > 1:
        numbers = _within_limits(problem, limits)
    else:
        problem, numbers = _within_limit(problem, limits[0])
    lost = sum(float(problem.errors[path][number]) for path, number in numbers.items())
    return problem.plan(numbers), lost


def limits_of(problem: Problem, shares: Shares) -> list[Limit]:
    """What the free layers may cost. Raises ValueError for a budget out of reach."""
    found = []
    for cost, share in shares.of.items():
        column = COSTS.index(cost)
        whole, fixed = int(problem.whole[column]), int(problem.fixed[column])
        # In floating point a budget of 0.29 of 100 is less than 29.
        most = math.floor(share * whole + ROUNDING * whole)
        least = math.ceil((share - TOLERANCE) * whole - ROUNDING * whole) if shares.met else 0
        every = [own.costs[:, column] for own in problem.free.values()]
        low = fixed + sum(int(own.min()) for own in every)
        high = fixed + sum(int(own.max()) for own in every)
        if not every or low > most or high < least:
            raise ValueError(
                f"allocate: budget {share:g} of the {cost} is out of reach: what can be chosen "
                f"reaches {low / whole:.4g} to {high / whole:.4g}{problem.told()}"
            )
        found.append(Limit(cost, share, whole, fixed, least - fixed, most - fixed))
    return found


def _within_limit(problem: Problem, limit: Limit) -> tuple[Problem, dict[str, int]]:
    """The choices under one limit, and the problem whose choices they are: it may be a finer one.

    Raises ValueError where none is near enough.
    """
    few = sum(len(free.costs) for free in problem.free.values()) <= MOST_ENTRIES
    found = None if few and limit.least <= 0 else _searched(problem, limit)
    found = found or _searched_exactly(problem, limit)
    methods = {own.form.method for free in problem.free.values() for own in free.choices}
    at_shares = problem.strategy == "uniform" or not AT_SHARES.isdisjoint(methods)
    if _cost(problem, limit, found) < limit.least and at_shares:
        problem = problem.fine
        (limit,) = limits_of(problem, Shares({limit.cost: limit.share}, met=True))
        found = _searched_exactly(problem, limit)
    reached = limit.fixed + _cost(problem, limit, found)
    if reached < limit.fixed + limit.least:
        raise ValueError(
            f"allocate: budget {limit.share:g} of the {limit.cost} cannot be met within "
            f"{TOLERANCE:.1%}: the steps between ranks are too large; "
            f"{reached / limit.whole:.4g} is within reach, and {{{limit.cost!r}: {limit.share:g}}} "
            "asks for no more than to stay within it"
        )
    return problem, found


def _searched(problem: Problem, limit: Limit) -> dict[str, int] | None:
    """The choice for each layer, or None where the search finds none of the right cost."""
    tables = _tables(problem, limit.column)
    together = TOGETHER[problem.strategy]
    places = _search(together)(tables, limit.most)
    if total(tables, places) >= limit.least:
        return _numbers(problem.free, tables, places)
    lost = partial(together.reduce, axis=-1)
    nearer = exchanged(tables, places, limit.least, limit.most, lost)
    return None if nearer is None else _numbers(problem.free, tables, nearer)


def _searched_exactly(problem: Problem, limit: Limit) -> dict[str, int]:
    """The choice for each layer; where none has the right cost, one as near below as can be."""
    tables = [
        distinct(free.costs[:, limit.column], problem.errors[path])
        for path, free in problem.free.items()
    ]
    places = nearest(tables, limit.least, limit.most, TOGETHER[problem.strategy])
    return _numbers(problem.free, tables, places)


def _within_limits(problem: Problem, limits: Sequence[Limit]) -> dict[str, int]:
    """The choices under several limits. Raises ValueError where none is within all of them."""
    columns = [limit.column for limit in limits]
    tables = [
        joint_table(free.costs[:, columns], problem.errors[path])
        for path, free in problem.free.items()
    ]
    most = np.array([limit.most for limit in limits])
    together = TOGETHER[problem.strategy]
    places = within_both(tables, most, _search(together), together)
    if places is None:
        asked = " and ".join(f"{limit.share:g} of the {limit.cost}" for limit in limits)
        raise ValueError(
            f"allocate: budget {asked} is out of reach: each alone is within it, but no ranks were "
            f"found that keep both{problem.told()}"
        )
    return {
        path: int(table.which[place])
        for path, table, place in zip(problem.free, tables, places, strict=True)
    }


def _within_rise(problem: Problem, target: LossRise) -> Plan:
    """The smallest plan within a predicted rise of the loss. Raises ValueError where none is."""
    tables = _tables(problem, problem.options.column)
    most = target.rise - problem.decided_rise
    # In the order in which the search adds them up.
    least = sum(float(table.error[-1]) for table in tables)
    if least > most:
        raise ValueError(
            f"allocate: a rise of the loss by {target.rise:g} is out of reach: strategy 'loss' "
            f"predicts {problem.decided_rise + least:.4g} at least{problem.told()}"
        )
    if not tables:
        return problem.plan({})
    return problem.plan(_numbers(problem.free, tables, smallest(tables, most)))


def _tables(problem: Problem, column: int) -> list[Table]:
    return [
        frontier(free.costs[:, column], problem.errors[path]) for path, free in problem.free.items()
    ]


def _search(together: np.ufunc) -> Callable[[Sequence[Table], int], list[int]]:
    return least_sum if together is np.add else least_maximum


def _cost(problem: Problem, limit: Limit, numbers: Mapping[str, int]) -> int:
    costs = (problem.free[path].costs[number] for path, number in numbers.items())
    return sum(int(own[limit.column]) for own in costs)


def _numbers(
    paths: Iterable[str], tables: Sequence[Table], places: Sequence[int]
) -> dict[str, int]:
    numbers = (int(table.which[place]) for table, place in zip(tables, places, strict=True))
    return dict(zip(paths, numbers, strict=True))


def _methods(methods: Sequence[str], strategy: str) -> tuple[str, ...]:
    """The methods that a strategy chooses from: of all there are those that it knows."""
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"allocate: methods {method!r}: {known_are(method, METHODS)}")
    if not methods:
        raise ValueError("allocate: methods must name at least one")
    if set(methods) == set(METHODS):
        return tuple(method for method in methods if method in KNOWN[strategy])
    check_known("methods", strategy, methods)
    return tuple(methods)
