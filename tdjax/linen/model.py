"""The factorised Linen model: the user's own, with some of its layers answered by chains.

Nothing of the user's model is rewritten: a method interceptor, entered inside the model's own
methods, lets a chain of thin layers answer in place of a layer's call.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from tdjax.linen.kinds import KINDS
from tdjax.plan import Plan, PlannedLayer

Interceptor = Callable[[Callable[..., Any], Any, Any, Any], Any]


def factorize(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with the layers of the plan factorised: same signature, fewer parameters.

    `init`, `apply` with any method, `TrainState`, `jax.jit` and nesting inside other modules work
    as before. The result is an instance of a subclass of the model's class; equal models with
    equal plans are equal.

    Raises TypeError for something that is not a Linen module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {type(model).__name__}")
    values = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.init and field.name != "parent"
    }
    return _factorised_class(type(model), plan)(**values)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=512)
def _factorised_class(cls: type[nn.Module], plan: Plan) -> type[nn.Module]:
    """A subclass whose methods run inside the interceptor; cached, so that jit caches hold."""
    entries = {entry.layer.path: entry for entry in plan.factorised}
    methods = {name: _inside(method, entries) for name, method in _own_methods(cls).items()}
    # Here for functions given as `method`, which call submodules outside the model's methods.
    for name in ("apply", "init_with_output"):
        methods[name] = _inside(getattr(cls, name), entries)
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**methods, **about, "_dense_class": cls})


def _own_methods(cls: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """The methods that the user's classes define, those that Flax calls or hides left out."""
    found: dict[str, Callable[..., Any]] = {}
    bases = set(nn.Module.__mro__)
    for base in reversed([base for base in cls.__mro__ if base not in bases]):
        for name, value in vars(base).items():
            hidden = name == "setup" or (name.startswith("__") and name != "__call__")
            if inspect.isfunction(value) and not hidden and not hasattr(value, "nowrap"):
                found[name] = value
    return found


def _inside(method: Callable[..., Any], entries: Mapping[str, PlannedLayer]) -> Callable[..., Any]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Without a scope the model is the root of what it calls.
        prefix = () if self.scope is None else self.path
        with nn.intercept_methods(_interceptor(entries, prefix)):
            return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    # What jit wrappers and readers ask for; `__wrapped__` would pass on Flax's compact mark.
    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    # The method itself is known to Flax, and would be seen twice.
    return nn.nowrap(call)


def _interceptor(entries: Mapping[str, PlannedLayer], prefix: tuple[str, ...]) -> Interceptor:
    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, context.module.path
        # Inside another model the path is absolute, the plan's is not.
        within = path[: len(prefix)] == prefix
        entry = entries.get("/".join(path[len(prefix) :])) if within else None
        kind = KINDS.get(_class(module))
        if entry is None or kind is None or context.method_name not in kind.methods:
            return next_fun(*args, **kwargs)
        return kind.methods[context.method_name](module, entry, *args, **kwargs)

    return intercept


def _class(module: nn.Module) -> type:
    """The class of a module; of a factorised one, that of the model it was made of."""
    return getattr(module, "_dense_class", type(module))
