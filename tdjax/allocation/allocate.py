"""Formats and ranks of all layers of a model, chosen together under one budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Array

from tdjax.allocation.choices import AT_SHARES, COSTS, MACS, PARAMS, PREFERRED
from tdjax.allocation.exact import distinct, nearest, smallest
from tdjax.allocation.joint import MOST_ENTRIES, joint_table, within_both
from tdjax.allocation.limits import (
    NOTHING,
    ROUNDING,
    TOLERANCE,
    Budget,
    Limit,
    Shares,
    check_one,
    limits_of,
    shares_of,
)
from tdjax.allocation.pairs import WHAT as PAIRS
from tdjax.allocation.pairs import pair_wholes
from tdjax.allocation.posing import STRATEGIES, posed, strategy_of
from tdjax.allocation.problem import Problem, Rules
from tdjax.allocation.search import (
    Table,
    exchanged,
    frontier,
    least_maximum,
    least_sum,
    total,
)
from tdjax.allocation.shared import WHAT as SHARED
from tdjax.allocation.shared import sharing_wholes
from tdjax.allocation.together import Together, best_together, check_some_reach, check_weighed
from tdjax.moments.collect import LayerMoments
from tdjax.plan.layers import Inventory
from tdjax.plan.pair import Pair
from tdjax.plan.plan import Plan
from tdjax.plan.wishes import LossRise
from tdjax.progress import Progress
from tdjax.timings.timings import Timings

# How the errors of the layers become what a strategy makes least.
TOGETHER = {name: np.add if name == "loss" else np.maximum for name in STRATEGIES}


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
    dtypes: Sequence[str] | None = None,
    target: LossRise | None = None,
    key: Array | None = None,
    timings: Timings | None = None,
    shared: Sequence[Sequence[str]] | None = None,
    pairs: Sequence[Pair] | None = None,
    progress: Progress = False,
) -> Plan:
    """See `tdjax.allocate`; CP starts from random factors of `key`.

    Arguments:
        shared: groups of paths of layers that may share an input factor.
        pairs: of layers between which fewer numbers may pass.
    """
    check_one("allocate", budget, target)
    strategy = strategy_of(strategy, target)
    shares = NOTHING if budget is None else shares_of(budget, cost)
    problem = posed(
        model, tuple(shares.of) or (cost or PARAMS,), strategy, methods, moments, splits=splits,
        objective=objective, rules=rules, multiple_of=multiple_of, dtypes=dtypes, key=key,
        timings=timings, progress=progress,
    )  # fmt: skip
    if target is not None and strategy != "loss":
        raise ValueError(
            f"allocate: a target of the loss is for strategy 'loss', not {strategy!r}: leave out "
            "one of them"
        )

    def solved(problem: Problem) -> tuple[Plan, float]:
        if target is None:
            return chosen(problem, shares)
        numbers, column = _within_rise(problem, target), problem.options.column
        return problem.plan(numbers), float(problem.fixed[column]) + _cost(problem, column, numbers)

    for what, argument, asked in ((SHARED, "shared", shared), (PAIRS, "pairs", pairs)):
        if asked:
            check_weighed(problem, what, argument)
    if not shared and not pairs:
        return solved(problem)[0]

    return best_together(_together(problem, shared, pairs), solved)


def _together(
    problem: Problem, shared: Sequence[Sequence[str]] | None, pairs: Sequence[Pair] | None
) -> Together:
    """The layers that may be chosen for together."""
    wholes = sharing_wholes(problem, shared) if shared else []
    return Together(problem, (*wholes, *(pair_wholes(problem, pairs) if pairs else [])))


def check_reach(
    model: Inventory,
    budget: Budget | None,
    cost: str | None,
    methods: Sequence[str],
    rules: Rules,
    multiple_of: int,
    timings: Timings | None = None,
    dtypes: Sequence[str] | None = None,
    shared: Sequence[Sequence[str]] | None = None,
    pairs: Sequence[Pair] | None = None,
) -> None:
    """Refuse what `allocate` would with strategy "loss", as far as shapes tell, before any work."""
    shares = NOTHING if budget is None else shares_of(budget, cost)
    costs = tuple(shares.of) or (cost or PARAMS,)
    if model.work is not None:
        # What its layers cost does not add up.
        rest = {name: own for name, own in shares.of.items() if name != MACS}
        shares = shares._replace(of=rest)
    # Its choices are those of "loss".
    problem = posed(
        model, costs, "energy", methods, None, rules=rules, multiple_of=multiple_of,
        dtypes=dtypes, timings=timings,
    )  # fmt: skip
    if not shared and not pairs:
        limits_of(problem, shares)
    else:
        check_some_reach(_together(problem, shared, pairs), shares)


def chosen(problem: Problem, shares: Shares) -> tuple[Plan, float]:
    """The plan within a budget, and the sum of the errors of the free layers.

    Raises ValueError for a budget out of reach.
    """
    problem, numbers = chosen_numbers(problem, shares)
    lost = sum(float(problem.errors[path][number]) for path, number in numbers.items())
    return problem.plan(numbers), lost


def chosen_numbers(problem: Problem, shares: Shares) -> tuple[Problem, dict[str, int]]:
    """The choices within a budget, and the problem whose choices they are.

    Raises ValueError for a budget out of reach.
    """
    if problem.model.work is not None and MACS in shares.of:
        return problem, _of_branches(problem, shares)
    return _within(problem, limits_of(problem, shares))


def _within(problem: Problem, limits: Sequence[Limit]) -> tuple[Problem, dict[str, int]]:
    if len(limits) > 1:
        return problem, _within_limits(problem, limits)
    return _within_limit(problem, limits[0])


def _of_branches(problem: Problem, shares: Shares) -> dict[str, int]:
    """The choices for a network of whose branches the costliest is held to the budget.

    What the layers cost adds up, what branches cost does not: of all layers together as much is
    allowed as keeps the network within the budget, found by halving. Raises ValueError where none
    is within it.
    """
    share, column = shares.of[MACS], COSTS.index(MACS)
    rest = {cost: own for cost, own in shares.of.items() if cost != MACS}
    others = limits_of(problem, Shares(rest, met=False))
    dense = problem.plan({}).macs_before
    most = share * float(dense) * (1 + ROUNDING)
    every = [own.costs[:, column] for own in problem.free.values()]
    low, high = sum(int(own.min()) for own in every), sum(int(own.max()) for own in every)

    def within(most: int) -> dict[str, int] | None:
        limit = Limit(MACS, column, share, int(problem.whole[column]), 0, 0, most)
        try:
            return _within(problem, [*others, limit])[1] if every else {}
        except ValueError:
            # Too little for what else is limited.
            return None

    best = None
    while low <= high:
        middle = (low + high) // 2
        numbers = within(middle)
        if numbers is None or problem.plan(numbers).macs <= most:
            best, low = best if numbers is None else numbers, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise ValueError(
            f"allocate: budget {share:g} of the macs is out of reach: no ranks were found that "
            f"keep the costliest branches within it{problem.told()}"
        )
    return best


def _within_limit(problem: Problem, limit: Limit) -> tuple[Problem, dict[str, int]]:
    """The choices under one limit, and the problem whose choices they are: it may be a finer one.

    Raises ValueError where none is near enough.
    """
    few = sum(len(free.costs) for free in problem.free.values()) <= MOST_ENTRIES
    found = None if few and limit.least <= 0 else _searched(problem, limit)
    found = found or _searched_exactly(problem, limit)
    methods = {own.method for free in problem.free.values() for own in free.choices}
    at_shares = problem.strategy == "uniform" or not AT_SHARES.isdisjoint(methods)
    if _cost(problem, limit.column, found) < limit.least and at_shares:
        problem = problem.fine
        (limit,) = limits_of(problem, Shares({limit.cost: limit.share}, met=True))
        found = _searched_exactly(problem, limit)
    reached = limit.fixed + _cost(problem, limit.column, found)
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


def _within_rise(problem: Problem, target: LossRise) -> dict[str, int]:
    """The cheapest choices within a predicted rise of the loss. Raises ValueError for none."""
    numbers = numbers_within(problem, target.rise - problem.decided_rise)
    if numbers is None:
        raise ValueError(
            f"allocate: a rise of the loss by {target.rise:g} is out of reach: strategy 'loss' "
            f"predicts {problem.decided_rise + least_rise(problem):.4g} at least{problem.told()}"
        )
    return numbers


def numbers_within(problem: Problem, most: float) -> dict[str, int] | None:
    """The cheapest choices whose errors add up to no more; None where there are none."""
    tables = _tables(problem, problem.options.column)
    if least_rise(problem) > most:
        return None
    return _numbers(problem.free, tables, smallest(tables, most)) if tables else {}


def least_rise(problem: Problem) -> float:
    """The least sum of errors that there is."""
    # In the order in which the search adds them up.
    tables = _tables(problem, problem.options.column)
    return sum((float(table.error[-1]) for table in tables), 0.0)


def _tables(problem: Problem, column: int) -> list[Table]:
    return [
        frontier(free.costs[:, column], problem.errors[path]) for path, free in problem.free.items()
    ]


def _search(together: np.ufunc) -> Callable[[Sequence[Table], int], list[int]]:
    return least_sum if together is np.add else least_maximum


def _cost(problem: Problem, column: int, numbers: Mapping[str, int]) -> int:
    costs = (problem.free[path].costs[number] for path, number in numbers.items())
    return sum(int(own[column]) for own in costs)


def _numbers(
    paths: Iterable[str], tables: Sequence[Table], places: Sequence[int]
) -> dict[str, int]:
    numbers = (int(table.which[place]) for table, place in zip(tables, places, strict=True))
    return dict(zip(paths, numbers, strict=True))
