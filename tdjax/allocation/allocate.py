"""Formats and ranks of all layers of a model, chosen together under one budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Array

from tdjax.allocation.choices import (
    AT_SHARES,
    BYTES,
    COSTS,
    KNOWN,
    MACS,
    PARAMS,
    PREFERRED,
    TIME,
    ChoiceOptions,
    RankBounds,
    check_known,
)
from tdjax.allocation.clock import clock_of
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
from tdjax.allocation.problem import Problem, Rules, pose
from tdjax.allocation.rounding import ROUNDED
from tdjax.allocation.search import (
    Table,
    exchanged,
    frontier,
    least_maximum,
    least_sum,
    total,
)
from tdjax.allocation.shared import best_sharing, sharing_of
from tdjax.hints import known_are
from tdjax.moments.collect import LayerMoments
from tdjax.plan.dtypes import DTYPES, FLOAT32
from tdjax.plan.form import METHODS
from tdjax.plan.layers import Inventory
from tdjax.plan.plan import Plan
from tdjax.plan.wishes import LossRise
from tdjax.timings.timings import Timings

# How the errors of the layers become what a strategy makes least.
TOGETHER = {name: np.add if name == "loss" else np.maximum for name in KNOWN}
STRATEGIES = tuple(KNOWN)
OBJECTIVES = ("bound", "released")
# As many as are weighed against each other.
MOST_LIMITS = 2


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
) -> Plan:
    """See `tdjax.allocate`; CP starts from random factors of `key`.

    Arguments:
        shared: groups of paths of layers that may share an input factor.
    """
    check_one("allocate", budget, target)
    strategy = strategy_of(strategy, target)
    shares = NOTHING if budget is None else shares_of(budget, cost)
    problem = posed(
        model, tuple(shares.of) or (cost or PARAMS,), strategy, methods, moments, splits=splits,
        objective=objective, rules=rules, multiple_of=multiple_of, dtypes=dtypes, key=key,
        timings=timings,
    )  # fmt: skip
    if target is not None and strategy != "loss":
        raise ValueError(
            f"allocate: a target of the loss is for strategy 'loss', not {strategy!r}: leave out "
            "one of them"
        )

    if not shared:
        return chosen(problem, shares)[0] if target is None else _within_rise(problem, target)
    _check_shared(problem)

    def solve(problem: Problem) -> tuple[Plan, float]:
        if target is None:
            return chosen(problem, shares)
        plan = _within_rise(problem, target)
        # Of time there is none here, see `_check_shared`.
        counted = plan.size, float(plan.macs), plan.bytes
        return plan, counted[problem.options.column]

    return best_sharing(sharing_of(problem, shared), solve)


def _check_shared(problem: Problem) -> None:
    """Refuse shared input factors where what they lose or take is not known."""
    if problem.strategy != "loss":
        raise ValueError(
            "allocate: shared input factors are weighed by the loss that moments predict: pass "
            f"strategy='loss', not {problem.strategy!r}, or leave out shared"
        )
    if "svd" not in problem.options.methods:
        raise ValueError("allocate: shared input factors are those of 'svd': add it to methods")
    if problem.options.clock is not None:
        raise ValueError(
            "allocate: the time of layers that share an input factor is not known: leave out "
            "timings and a budget of time, or shared"
        )
    if problem.model.work is not None:
        raise ValueError(
            "allocate: shared input factors are not known for models whose layers run under "
            "conditions: leave out shared"
        )


def strategy_of(strategy: str | None, target: LossRise | None) -> str:
    """The strategy, or the one that is meant where none is named."""
    return strategy or ("energy" if target is None else "loss")


def check_reach(
    model: Inventory,
    budget: Budget | None,
    cost: str | None,
    methods: Sequence[str],
    rules: Rules,
    multiple_of: int,
    timings: Timings | None = None,
    dtypes: Sequence[str] | None = None,
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
    dtypes: Sequence[str] | None = None,
    key: Array | None = None,
    timings: Timings | None = None,
) -> Problem:
    """The problem of a network, all names checked; see `tdjax.allocate`."""
    named = [("strategy", strategy, STRATEGIES), ("objective", objective, OBJECTIVES)]
    for name, value, values in [*named, *(("cost", cost, COSTS) for cost in costs)]:
        if value not in values:
            raise ValueError(f"allocate: {name} {value!r}: {known_are(value, values)}")
    if len(costs) > MOST_LIMITS:
        raise ValueError(f"allocate: budget of {', '.join(costs)}: two limits at most; leave one")
    if TIME in costs and timings is None:
        raise ValueError("allocate: time needs timings of the layers; tdjax.time_layers gives them")
    options = ChoiceOptions(
        costs,
        _methods(methods, strategy),
        None if splits is None else tuple(splits),
        RankBounds(multiple_of=int(multiple_of)),
        objective,
        jax.random.key(0) if key is None else key,
        clock=None if timings is None else clock_of(timings, model.layers),
        dtypes=_dtypes(dtypes, strategy, costs, timed=timings is not None),
    )
    if BYTES in costs:
        _check_float32(model)
    return pose(model, strategy, options, rules, moments)


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
    numbers = numbers_within(problem, target.rise - problem.decided_rise)
    if numbers is None:
        raise ValueError(
            f"allocate: a rise of the loss by {target.rise:g} is out of reach: strategy 'loss' "
            f"predicts {problem.decided_rise + least_rise(problem):.4g} at least{problem.told()}"
        )
    return problem.plan(numbers)


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


def _dtypes(
    dtypes: Sequence[str] | None, strategy: str, costs: Sequence[str], *, timed: bool
) -> tuple[str, ...]:
    """The numbers that layers may be stored in, checked; None for all that go."""
    if dtypes is None:
        known = BYTES in costs and strategy in ROUNDED and not timed
        return DTYPES if known else (FLOAT32,)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"allocate: dtypes {dtype!r}: {known_are(dtype, DTYPES)}")
    if not dtypes:
        raise ValueError("allocate: dtypes must name at least one")
    if tuple(dtypes) == (FLOAT32,):
        return (FLOAT32,)
    if BYTES not in costs:
        raise ValueError(
            f"allocate: dtypes {', '.join(dtypes)}, but no bytes are counted: pass cost='bytes'"
        )
    if strategy not in ROUNDED:
        raise ValueError(
            f"allocate: strategy {strategy!r} does not know what rounding loses: leave out dtypes, "
            f"or take {' or '.join(map(repr, ROUNDED))}"
        )
    if timed:
        raise ValueError("allocate: timings are those of float32: leave out dtypes or timings")
    return tuple(dict.fromkeys(dtypes))


def _check_float32(model: Inventory) -> None:
    """Refuse a network whose bytes are not those of float32."""
    for layer in model.layers:
        dtype = getattr(model.array_of(layer), "dtype", None) if layer.obstacle is None else None
        if dtype is not None and str(dtype) != FLOAT32:
            raise ValueError(
                f"allocate: layer {layer.path!r} holds {dtype}: bytes are counted of networks in "
                "float32"
            )
