"""Checks of arguments that are loaded with the first call: for rooms that do not know Flax."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def checked_later(function: Function) -> Function:
    """As `tdjax.arguments.checks.checked`, which loads Flax where it is imported."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        from tdjax.arguments.checks import call_text, check_arguments

        given = signature.bind(*args, **kwargs).arguments
        check_arguments(function.__name__, call_text(function.__name__, signature), given)
        return function(*args, **kwargs)

    return answer  # type: ignore[return-value]
