"""What is not ours: a function, named in a configuration as "package.module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from experiments.workdir.fields import FieldError
from experiments.workdir.ranges import shown
from tdjax.files import one_line
from tdjax.hints import did_you_mean


def is_own(name: str) -> bool:
    """Whether a name is that of a function of your own."""
    return ":" in name


def own_function(field: str, name: str) -> Callable[..., Any]:
    """The function that a field names; modules are found in the current folder too.

    Raises FieldError where there is no such module or function, or the module cannot be imported.
    """
    path, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(path)
    except Exception as error:
        # Of another module the file that asks for it is to blame.
        missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
        is_absent = missing is not None and f"{path}.".startswith(f"{missing}.")
        what = (
            f"there is no module {missing!r} in {here} or among the installed packages"
            if is_absent
            else f"its module cannot be imported: {type(error).__name__}: {one_line(error)}"
        )
        raise FieldError(field, f"is {shown(name)}: {what}") from error
    found = getattr(module, attribute, None)
    if found is None:
        known = [own for own in vars(module) if not own.startswith("_")]
        problem = f"{path!r} has no {attribute!r}{did_you_mean(attribute, known)}"
        raise FieldError(field, f"is {shown(name)}: {problem}")
    if not callable(found):
        raise FieldError(field, f"is {shown(name)}: that is no function but {shown(found)}")
    function: Callable[..., Any] = found
    return function
