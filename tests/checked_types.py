"""Types are checked as the library runs, without what that costs where mypy says as much.

The hook of jaxtyping checks the arguments of every call twice and its result once, in one scope,
for the sizes of axes that annotations share; it does so for functions that name no axis too, and
writes these checks anew for every function inside a function, each time that one runs. All that
is a fifth of the suite's time. Here functions that name no axis are checked once, by beartype, and
those inside others by mypy alone.
"""

import dataclasses
import inspect
import re

import jaxtyping
from beartype import beartype

_checked_with_axes = jaxtyping.jaxtyped


def _names_axes(function):
    """Whether an annotation is jaxtyping's, by its own name or by one that the module gave it."""
    names = re.findall(r"\w+", str(function.__annotations__))
    return any("jaxtyping." in repr(function.__globals__.get(name)) for name in names)


def _checked(value, typechecker):
    if inspect.isclass(value):
        if dataclasses.is_dataclass(value):
            value.__init__ = _checked(value.__init__, typechecker)
        return value
    if inspect.isfunction(value) and not _names_axes(value):
        return value if "<locals>" in value.__qualname__ else beartype(value)
    return _checked_with_axes(value, typechecker=typechecker)


def install():
    """Put these checks in the place of jaxtyping's own, which its hook calls by this name."""
    jaxtyping.jaxtyped = lambda typechecker: lambda value: _checked(value, typechecker)
