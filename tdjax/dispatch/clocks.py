"""Timings for budgets in time: those that are given, checked, or those of this device, taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from tdjax.allocation.choices import GROUPED, PARAMS, PREFERRED, TIME
from tdjax.allocation.clock import check_timed
from tdjax.allocation.limits import Budget, in_time, names_of
from tdjax.allocation.posing import posed
from tdjax.allocation.problem import Problem
from tdjax.arguments.called import Method
from tdjax.dispatch.models import kind_of, with_arrays
from tdjax.dispatch.timing import SPLITS, time_layers
from tdjax.plan.layers import Inventory
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.rules import AUTO, Rule
from tdjax.progress import Progress
from tdjax.timings.device import this_device
from tdjax.timings.grid import forms_of
from tdjax.timings.timings import Timings


class Called(NamedTuple):
    """A model as it is called.

    Arguments:
        variables: None for a model that holds its arrays.
        inventory: its layers.
    """

    model: Any
    variables: Any
    sample: Any
    method: Method
    inventory: Inventory


class Clocked(NamedTuple):
    """What is limited, and by which timings; None for those of no time and no timings."""

    budgets: Sequence[Any]
    cost: str | None
    timings: Timings | None


def clocked(
    function: str,
    source: Called,
    budgets: Sequence[Budget | None],
    cost: str | None,
    *,
    batch: int | None,
    timings: Timings | None,
    strategy: str,
    choices: Mapping[str, Any],
    progress: Progress,
) -> Clocked:
    """Budgets and their cost in the names that `tdjax.allocation` knows, with timings.

    Arguments:
        function: for messages.
        strategy, choices: all that `tdjax.allocation.posing.posed` is asked for beside costs.
        budgets, cost, batch, timings, progress: as of `tdjax.allocate`.

    Raises ValueError for timings of another device or batch, and for a batch of which nothing is
    asked; where timings are taken, for all that shapes tell, before that work.
    """
    budgets, cost, batch = in_time(function, budgets, cost, batch)
    if timings is not None:
        _check(function, timings, batch)
    elif TIME in names_of(budgets, cost):
        if jax.process_count() > 1:
            raise ValueError(
                f"{function}: each process would measure times of its own, and choose by them: "
                "pass timings, the same in all, from tdjax.time_layers in one process"
            )
        problem = posed(source.inventory, (PARAMS,), strategy, **choices)
        timings = _taken(source, batch, problem, choices.get("splits"), progress)
    elif batch is not None:
        raise ValueError(
            f"{function}: batch {batch} says whose time counts, and no time is asked for: leave it "
            'out, or pass cost="time"'
        )
    return Clocked(budgets, cost, timings)


def _check(function: str, timings: Timings, batch: int | None) -> None:
    """Refuse the timings of another device or batch; None for that of the timings."""
    device = this_device()
    if timings.device != device:
        raise ValueError(
            f"{function}: timings are those of {timings.device!r}, this is {device!r}: take them "
            "here, tdjax.time_layers(...)"
        )
    if batch not in (None, timings.batch):
        raise ValueError(
            f"{function}: timings are those of batch {timings.batch}, asked for is {batch}: "
            f"take them so, tdjax.time_layers(..., batch={batch})"
        )


def _taken(
    source: Called,
    batch: int | None,
    problem: Problem,
    splits: Sequence[int] | None,
    progress: Progress,
) -> Timings:
    """Timings of all that a strategy and rules may choose from.

    Raises ValueError for a rule that gives a layer what is not timed.
    """
    groups = set((splits or SPLITS) if problem.strategy in GROUPED else ())
    wanted = set(problem.options.methods)
    for rule in problem.rules.values():
        if isinstance(rule, Rule):
            wanted |= set(PREFERRED) if rule.method == AUTO else {rule.method}
            groups.add(rule.splits)
        else:
            wanted |= set(rule.methods or ())
    methods = tuple(own for own in PREFERRED if own in wanted)
    groups -= {1}
    for path, own in problem.layers.items():
        if isinstance(own, PlannedLayer) and own.form is not None and path in problem.rules:
            check_timed(own, forms_of(own.layer, methods, tuple(groups)), problem.rules[path])
    named = "method" not in kind_of(source.model).without
    # Which overload it is depends on the kind of the model.
    take: Callable[..., Timings] = time_layers
    return take(
        *with_arrays(source.model, source.variables), source.sample, batch=batch, methods=methods,
        splits=tuple(sorted(groups)) or None, progress=progress,
        **({"method": source.method} if named else {}),
    )  # fmt: skip
