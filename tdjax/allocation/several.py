"""Predicted loss against size: plans for several budgets, what they need measured once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Int

from tdjax.allocation.allocate import chosen
from tdjax.allocation.limits import Budget, shares_of
from tdjax.allocation.posing import posed
from tdjax.allocation.problem import Rules
from tdjax.moments.collect import LayerMoments
from tdjax.plan.layers import Inventory
from tdjax.plan.plan import Plan
from tdjax.progress import Progress
from tdjax.timings.timings import Timings


@dataclass(frozen=True, eq=False)
class BudgetCurve:
    """What a network is predicted to lose at each of n sizes.

    Arguments:
        params: (n,), parameters of the whole factorised network.
        macs: (n,), its multiply-accumulates for one example.
        bytes: (n,), of its weights as they are stored.
        rises: (n,), float64, the predicted rise of the mean loss of an example.
        plans: in the order of the budgets.
        seconds: (n,), float64, of one call, as timings predict it; None without them.
    """

    params: Int[np.ndarray, " n"]
    macs: Int[np.ndarray, " n"]
    bytes: Int[np.ndarray, " n"]
    rises: Float[np.ndarray, " n"]
    plans: tuple[Plan, ...]
    seconds: Float[np.ndarray, " n"] | None = None


def budget_curve(
    model: Inventory,
    budgets: Sequence[Budget],
    *,
    cost: str | None = None,
    methods: Sequence[str],
    moments: Mapping[str, LayerMoments] | None,
    rules: Rules = (),
    multiple_of: int = 1,
    dtypes: Sequence[str] | None = None,
    key: Array | None = None,
    timings: Timings | None = None,
    progress: Progress = False,
) -> BudgetCurve:
    """See `tdjax.budget_curve`."""
    # The size that is reached is part of the result.
    asked = [shares_of(budget, cost)._replace(met=False) for budget in budgets]
    if not asked:
        raise ValueError("budget_curve: no budgets; pass shares, as (0.3, 0.5, 0.7)")
    if len({tuple(shares.of) for shares in asked}) > 1:
        raise ValueError("budget_curve: all budgets must count the same, in the same order")
    problem = posed(
        model, tuple(asked[0].of), "loss", methods, moments, rules=rules, multiple_of=multiple_of,
        dtypes=dtypes, key=key, timings=timings, progress=progress,
    )  # fmt: skip
    found = [chosen(problem, shares) for shares in asked]
    plans = tuple(plan for plan, _ in found)
    return BudgetCurve(
        np.array([plan.size for plan in plans]),
        np.array([math.ceil(plan.macs) for plan in plans]),
        np.array([plan.bytes for plan in plans]),
        np.array([problem.decided_rise + lost for _, lost in found]),
        plans,
        None if timings is None else np.array([plan.seconds for plan in plans]),
    )
