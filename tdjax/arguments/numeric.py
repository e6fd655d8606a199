"""Numbers among arguments: what is wrong with one, as an error that goes on from its name."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tdjax.arguments.described import described, is_array
from tdjax.plan.costs import COSTS, LATENCY, TIME

Problem = TypeError | ValueError | None


def whole(least: int) -> Callable[[Any], Problem]:
    """A check of whole numbers from `least` on."""

    def check(value: Any) -> Problem:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return TypeError(f"is {_text(value)}: pass a whole number")
        if value < least:
            return ValueError(f"must be at least {least}, got {value}")
        return None

    return check


def whole_or_none(least: int) -> Callable[[Any], Problem]:
    """A check of whole numbers from `least` on, or None."""
    check = whole(least)
    return lambda value: None if value is None else check(value)


def seed(value: Any) -> Problem:
    """A seed, as JAX takes it."""
    problem = whole(0)(value)
    if problem is None and value >= 2**63:
        return ValueError(f"is {value}: pass a whole number below 2**63")
    return problem


def tolerance(value: Any) -> Problem:
    """A tolerance, a number or an array of one."""
    if is_array(value):
        return None if value.shape == () else TypeError(f"is {_text(value)}: pass one number")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return TypeError(f"is {_text(value)}: pass a number, as 1e-6")
    if not math.isfinite(value) or value < 0:
        return ValueError(f"is {value}: pass a number of 0 or more, as 1e-6")
    return None


def budget(value: Any) -> Problem:
    """A share of the whole, shares by the name of what is counted, or None for none."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return _share(value)
    if not value:
        return ValueError('names no limit: pass shares by name, as {"params": 0.5, "macs": 0.6}')
    for name, own in value.items():
        problem = _share(own)
        if problem is None:
            continue
        remedy = 'limits are shares of the dense network, as {"params": 0.5, "time": 0.6}'
        if name not in (*COSTS, LATENCY):
            return ValueError(f"names {name!r}: known are {', '.join((*COSTS, LATENCY))}; {remedy}")
        if name in (TIME, LATENCY):
            remedy += "; for seconds pass theirs over timings.network, of tdjax.time_layers"
        return type(problem)(f"of {name!r} {problem}; {remedy}")
    return None


def budgets(value: Any) -> Problem:
    """Several budgets."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        return TypeError(f"is {_text(value)}: pass a list of budgets, as (0.3, 0.5, 0.7)")
    problems = (_share(None) if own is None else budget(own) for own in value)
    wrong = next((problem for problem in problems if problem is not None), None)
    return None if wrong is None else type(wrong)(f"holds a budget that {wrong}")


def _share(value: Any) -> Problem:
    if is_array(value) and value.shape == ():
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return TypeError(f"is {_text(value)}: pass a share, as 0.5")
    share = float(value)
    if 0 < share < 1:
        return None
    remedy = ""
    if 2 <= share < 100:
        remedy = f": for {share:g} % pass {share / 100:g}"
    elif share >= 100:
        remedy = (
            f": for a number pass {share:g} over that of the dense network, which a plan holds: "
            "size_before, macs_before, bytes_before of tdjax.make_plan with no rules"
        )
    return ValueError(f"{share:g} is no share between 0 and 1{remedy}")


def splits(value: Any) -> Problem:
    """Numbers of groups to choose from."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return TypeError(f"is {_text(value)}: pass a list of whole numbers, as [1, 2, 4], or None")
    problems = (whole(1)(number) for number in value)
    wrong = next((problem for problem in problems if problem is not None), None)
    return None if wrong is None else type(wrong)(f"holds a number that {wrong}")


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, numbers.Number) else described(value)
