"""What a budget is: shares of the whole network by what they count, and what layers may cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tdjax.allocation.problem import Problem
from tdjax.plan.costs import LATENCY, PARAMS, TIME
from tdjax.plan.wishes import LossRise

# A share of the whole network that is kept, or limits of shares by the names of costs.
Budget = float | Mapping[str, float]
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
        column: of it, in arrays of costs.
        share: of the whole network that was asked for.
        whole: cost of the dense network.
        fixed: what is no choice of these layers.
        least, most: bounds of the sum; the least is not above 0 where there is none.
    """

    cost: str
    column: int
    share: float
    whole: int
    fixed: int
    least: int
    most: int


def check_one(function: str, budget: Budget | None, target: LossRise | None) -> None:
    """Refuse neither or both of two that stand for each other."""
    if budget is None and target is None:
        raise TypeError(
            f"{function}: missing a required argument: 'budget', as 0.5, or 'target', as "
            "tdjax.LossRise(0.05)"
        )
    if budget is not None and target is not None:
        raise TypeError(f"{function}: a target takes the place of a budget: leave out one of them")


def in_time(
    function: str, budgets: Sequence[Budget | None], cost: str | None, batch: int | None
) -> tuple[list[Budget | None], str | None, int | None]:
    """Budgets, cost and batch with `LATENCY` as the time of a batch of one.

    Raises ValueError where another batch is asked for beside it.
    """
    names = {cost, *(name for own in budgets if isinstance(own, Mapping) for name in own)}
    if LATENCY not in names:
        return list(budgets), cost, batch
    if batch not in (None, 1):
        raise ValueError(f"{function}: {LATENCY!r} and batch {batch}: leave one of them out")
    if TIME in names:
        raise ValueError(f"{function}: {LATENCY!r} is time: leave one of them out")
    plain: list[Budget | None] = [
        {TIME if name == LATENCY else name: share for name, share in own.items()}
        if isinstance(own, Mapping)
        else own
        for own in budgets
    ]
    return plain, TIME if cost == LATENCY else cost, 1


def names_of(budgets: Iterable[Budget | None], cost: str | None) -> tuple[str, ...]:
    """What budgets limit, or a cost is of."""
    names = (name for own in budgets if isinstance(own, Mapping) for name in own)
    return tuple(dict.fromkeys([*names, *([] if cost is None else [cost])]))


def shares_of(budget: Budget, cost: str | None) -> Shares:
    """A budget as shares by the name of a cost, checked."""
    if not isinstance(budget, Mapping):
        found = Shares({PARAMS if cost is None else cost: float(budget)}, met=True)
    elif cost is None:
        found = Shares({name: float(share) for name, share in budget.items()}, met=False)
    else:
        raise ValueError("allocate: a budget by name says what it counts: leave out cost")
    for share in found.of.values():
        if not 0 < share < 1:
            raise ValueError(f"allocate: budget {share} is no share between 0 and 1")
    return found


def limits_of(problem: Problem, shares: Shares) -> list[Limit]:
    """What the free layers may cost. Raises ValueError for a budget out of reach."""
    found = []
    for cost, share in shares.of.items():
        column = problem.options.known.index(cost)
        whole, fixed = int(problem.whole[column]), int(problem.fixed[column])
        # In floating point a budget of 0.29 of 100 is less than 29.
        most = math.floor(share * whole + ROUNDING * whole)
        least = math.ceil((share - TOLERANCE) * whole - ROUNDING * whole) if shares.met else 0
        # More than the layers take, all of them dense, nothing spends.
        least = min(least, int(problem.kept[column]))
        every = [own.costs[:, column] for own in problem.free.values()]
        low = fixed + sum(int(own.min()) for own in every)
        high = fixed + sum(int(own.max()) for own in every)
        if not every or low > most or high < least:
            raise ValueError(
                f"allocate: budget {share:g} of the {cost} is out of reach: what can be chosen "
                f"reaches {low / whole:.4g} to {high / whole:.4g}{problem.told()}"
            )
        found.append(Limit(cost, column, share, whole, fixed, least - fixed, most - fixed))
    return found
