"""Functions of one's own that others are handed: of how many arguments.

Each check returns what is wrong, as in `tdjax.arguments.checks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from tdjax.arguments.described import described
from tdjax.arguments.numeric import Problem
from tdjax.hints import known_are
from tdjax.moments.losses import NAMES


def check_loss(value: Any) -> Problem:
    """A loss for each example, or the name of one; None for none."""
    if isinstance(value, str):
        known = (
            f"is a str: pass a function of (outputs, batch), or a name; {known_are(value, NAMES)}"
        )
        return None if value in NAMES else TypeError(known)
    return None if value is None else _function_of("loss_fn", ("outputs", "batch"), value)


def check_loss_to_measure(value: Any) -> Problem:
    """A loss for each example, of labels."""
    return _function_of("loss_fn", ("outputs", "batch"), value)


def check_metric(value: Any) -> Problem:
    """What a batch is judged by."""
    return _function_of("metric_fn", ("outputs", "batch"), value)


def check_row_weights(value: Any) -> Problem:
    """What the rows of a batch weigh; None for all alike."""
    return None if value is None else _function_of("row_weights", ("batch",), value)


def check_augment(value: Any) -> Problem:
    """What changes a batch by chance; None for nothing."""
    return None if value is None else _function_of("augment", ("key", "batch"), value)


def _function_of(name: str, arguments: Sequence[str], value: Any) -> Problem:
    given = ", ".join(arguments)
    if not callable(value):
        return TypeError(f"is {described(value)}: pass a function of ({given})")
    try:
        signature = inspect.signature(value)
    except ValueError:
        # Of a builtin, nothing is known.
        return None
    try:
        signature.bind(*arguments)
    except TypeError:
        return TypeError(f"takes {signature}: it is called as {name}({given})")
    return None
