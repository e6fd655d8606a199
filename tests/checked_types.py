"""Types are checked as the library runs, without what that costs where mypy says as much.

The hook of jaxtyping checks the arguments of every call twice and its result once, in one scope,
for the sizes of axes that annotations share; it does so for functions that name no axis too, and
writes these checks anew for every function inside a function, each time that one runs. All that
is a fifth of the suite's time. Here beartype checks arguments and result once, in such a scope
where an axis is named; functions inside others that name none are left to mypy.
"""

import dataclasses
import inspect
import re

import jaxtyping
from beartype import beartype

_in_scope = jaxtyping.jaxtyped


def _names_axes(function):
    """Whether an annotation is jaxtyping's, by its own name or by one that the module gave it."""
    names = re.findall(r"\w+", str(function.__annotations__))
    return any("jaxtyping." in repr(function.__globals__.get(name)) for name in names)


def _checked(value):
    """A function or a class as the hook finds it, innermost of its decorators."""
    if inspect.isclass(value):
        if dataclasses.is_dataclass(value):
            value.__init__ = _checked(value.__init__)
        return value
    if _names_axes(value):
        return _in_scope(beartype(value), typechecker=None)
    return value if "<locals>" in value.__qualname__ else beartype(value)


def install():
    """Put these checks in the place of jaxtyping's own, which its hook calls by this name."""
    jaxtyping.jaxtyped = lambda typechecker: _checked
