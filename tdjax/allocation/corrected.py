"""Allocation by predicted rises of the loss that measured ones correct."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Array

from tdjax.allocation.allocate import chosen_numbers, posed
from tdjax.allocation.limits import Budget, shares_of
from tdjax.allocation.measured import MeasuredRises
from tdjax.allocation.problem import Problem, Rules
from tdjax.hints import did_you_mean
from tdjax.moments.collect import LayerMoments
from tdjax.plan.layers import Inventory
from tdjax.plan.plan import Plan, PlannedLayer

AUTO = "auto"
# Of the layers that are free, the largest share of a group that is found.
SHARE = 0.25
# Plans that are tried: each for the slopes of the corrected rises at the one before.
ROUNDS = 8


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
            found.setdefault(_largest(path, paths), []).append(path)
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
    budget: Budget,
    cost: str | None,
    methods: Sequence[str],
    moments: Mapping[str, LayerMoments] | None,
    rules: Rules,
    multiple_of: int,
    key: Array,
) -> Plan:
    """The plan of the least corrected rise that is found; see `tdjax.allocate`.

    The first is the plan that predictions alone give, so that none is worse by what was measured.
    """
    shares = shares_of(budget, cost)
    problem = posed(
        model, tuple(shares.of), "loss", methods, moments, rules=rules, multiple_of=multiple_of,
        key=key,
    )  # fmt: skip
    known = [layer.path for layer in model.layers]
    for path in measured.paths:
        if path not in known:
            raise ValueError(
                f"allocate: measured: {path!r} is no layer of this network: measure the rises of "
                "the model that you pass"
            )
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


def _rises(problem: Problem, numbers: Mapping[str, int]) -> dict[str, float]:
    """The predicted rise of each free layer for some choices."""
    return {path: float(problem.predicted[path][number]) for path, number in numbers.items()}


def _largest(layer: str, layers: Sequence[str]) -> str:
    """The largest module around a layer with few enough layers; the layer where there is none."""
    names = layer.split("/")
    for depth in range(1, len(names)):
        front = "/".join(names[:depth]) + "/"
        if sum(path.startswith(front) for path in layers) <= SHARE * len(layers):
            return front
    return layer
