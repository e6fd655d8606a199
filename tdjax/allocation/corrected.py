"""Allocation by predicted rises of the loss that measured ones correct."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Array

from tdjax.allocation.allocate import chosen_numbers, numbers_within
from tdjax.allocation.choices import PARAMS
from tdjax.allocation.limits import NOTHING, Budget, Shares, check_one, shares_of
from tdjax.allocation.measured import MeasuredRises
from tdjax.allocation.posing import posed
from tdjax.allocation.problem import Problem, Rules
from tdjax.hints import did_you_mean
from tdjax.moments.collect import LayerMoments
from tdjax.params.tree import block_around
from tdjax.plan.dtypes import FLOAT32
from tdjax.plan.layers import Inventory
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.wishes import LossRise
from tdjax.progress import Progress
from tdjax.timings.timings import Timings

AUTO = "auto"
# Plans that are tried: each for the slopes of the corrected rises at the one before.
ROUNDS = 8
# How far from a target of the rise the sum of the weighed predictions is looked for.
FARTHEST = 1e4
HALVINGS = 16


class Level(NamedTuple):
    """What is measured at one budget.

    Arguments:
        plan: in which what rules decide is dense.
        rises: predicted, by path of the layers that are free.
    """

    plan: Plan
    rises: Mapping[str, float]


def levels_of(problem: Problem, budgets: Sequence[Budget], cost: str | None) -> list[Level]:
    """The plans of which rises are measured. Raises ValueError for a budget out of reach."""
    found = []
    for budget in budgets:
        used, numbers = chosen_numbers(problem, shares_of(budget, cost)._replace(met=False))
        whole = used.plan(numbers)
        entries = tuple(
            own
            if own.layer.path in used.free
            else PlannedLayer(own.layer, reason="its rise is not measured")
            for own in whole.layers
        )
        plan = Plan(entries, whole.other, other_macs=whole.other_macs, work=whole.work)
        found.append(Level(plan, _rises(used, numbers)))
    return found


def groups_of(paths: Sequence[str], wanted: str | Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of layers.

    Arguments:
        paths: of the layers.
        wanted: "auto" for those below the largest modules with at most a quarter of the layers, or
            patterns for `re.fullmatch`, each for a group of what those before it do not match.

    Raises ValueError for a pattern that matches nothing more.
    """
    found: dict[str, list[str]] = {}
    if wanted == AUTO:
        for path in paths:
            found.setdefault(block_around(path, paths), []).append(path)
        return list(map(tuple, found.values()))
    patterns = [wanted] if isinstance(wanted, str) else wanted
    for path in paths:
        first = next((own for own in patterns if re.fullmatch(own, path)), None)
        if first is not None:
            found.setdefault(first, []).append(path)
    for pattern in patterns:
        if pattern not in found:
            raise ValueError(
                f"measure_rises: groups {pattern!r}: matches no layer that can be chosen for, and "
                f"that no pattern before it matches{did_you_mean(pattern, paths)}"
            )
    return [tuple(found[pattern]) for pattern in patterns]


def allocate_measured(
    model: Inventory,
    measured: MeasuredRises,
    *,
    budget: Budget | None,
    target: LossRise | None,
    cost: str | None,
    methods: Sequence[str],
    moments: Mapping[str, LayerMoments] | None,
    rules: Rules,
    multiple_of: int,
    key: Array,
    timings: Timings | None = None,
    progress: Progress = False,
) -> Plan:
    """The plan for a budget or a target, by what was measured; see `tdjax.allocate`."""
    check_one("allocate", budget, target)
    shares = NOTHING if budget is None else shares_of(budget, cost)
    problem = posed(
        model, tuple(shares.of) or (cost or PARAMS,), "loss", methods, moments, rules=rules,
        multiple_of=multiple_of, dtypes=(FLOAT32,), key=key, timings=timings, progress=progress,
    )  # fmt: skip
    known = [layer.path for layer in model.layers]
    for path in measured.paths:
        if path not in known:
            raise ValueError(
                f"allocate: measured: {path!r} is no layer of this network: measure the rises of "
                "the model that you pass"
            )
    if target is not None:
        return _smallest_plan(problem, measured, target.rise)
    return _best_plan(problem, measured, shares)


def _best_plan(problem: Problem, measured: MeasuredRises, shares: Shares) -> Plan:
    """The plan within a budget whose corrected rises add up to the least that is found.

    The first is the one that predictions alone give, so that none is worse by what was measured.
    """
    best, plan, seen = float("inf"), None, set()
    for _ in range(ROUNDS):
        used, numbers = chosen_numbers(problem, shares)
        rises = _rises(used, numbers)
        choice = tuple(numbers.items())
        if choice in seen:
            break
        seen.add(choice)
        rise = measured.apart(rises)
        if plan is None or rise < best:
            best, plan = rise, used.plan(numbers)
        problem = problem.weighed(measured.factors(rises))
    assert plan is not None
    return plan


def _smallest_plan(problem: Problem, measured: MeasuredRises, rise: float) -> Plan:
    """The smallest plan of those that are found whose expected rise is no greater."""
    best: tuple[int, Plan] | None = None
    for _ in range(2):
        numbers = _smallest(problem, measured, rise)
        if numbers is None:
            break
        cost = sum(
            int(problem.free[path].costs[number, problem.options.column])
            for path, number in numbers.items()
        )
        if best is None or cost < best[0]:
            best = cost, problem.plan(numbers)
        problem = problem.weighed(measured.factors(_rises(problem, numbers)))
    if best is None:
        raise ValueError(
            f"allocate: a rise of the loss by {rise:g} is out of reach, by what was measured"
            f"{problem.told()}"
        )
    return best[1]


def _smallest(problem: Problem, measured: MeasuredRises, rise: float) -> dict[str, int] | None:
    """The cheapest choices, by halving what their weighed errors may add up to.

    None where none has an expected rise as small.
    """
    low, high = math.log(rise / FARTHEST), math.log(rise * FARTHEST)
    best = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        numbers = numbers_within(problem, math.exp(middle))
        fits = numbers is None or _expected(problem, measured, numbers) <= rise
        best = numbers if fits and numbers is not None else best
        low, high = (middle, high) if fits else (low, middle)
    return best


def _expected(problem: Problem, measured: MeasuredRises, numbers: Mapping[str, int]) -> float:
    """The rise of the loss to be expected for some choices, and for what rules decide."""
    apart = measured.apart(_rises(problem, numbers))
    return measured.together.corrected(apart + problem.decided_rise)


def _rises(problem: Problem, numbers: Mapping[str, int]) -> dict[str, float]:
    """The predicted rise of each free layer for some choices."""
    return {path: float(problem.predicted[path][number]) for path, number in numbers.items()}
