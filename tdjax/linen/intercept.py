"""A Linen model whose methods run inside an interceptor: a subclass of the user's own class."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

Interceptor = Callable[[Callable[..., Any], Any, Any, Any], Any]
# From the path of the model inside another one.
MakeInterceptor = Callable[[tuple[str, ...]], Interceptor]


def rebuilt(model: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """An instance of a subclass with the fields of a model."""
    values = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.init and field.name != "parent"
    }
    return cls(**values)


def intercepted_class(cls: type[nn.Module], interceptor: MakeInterceptor) -> type[nn.Module]:
    """A subclass whose methods run inside the interceptor; callers cache it for jit to do so."""
    methods = {name: _inside(method, interceptor) for name, method in _own_methods(cls).items()}
    # Here for functions given as `method`, which call submodules outside the model's methods.
    for name in ("apply", "init_with_output"):
        methods[name] = _inside(getattr(cls, name), interceptor)
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    dense = getattr(cls, "_dense_class", cls)
    return type(cls.__name__, (cls,), {**methods, **about, "_dense_class": dense})


def dense_class(module: nn.Module) -> type:
    """The class of a module; of an intercepted one, that of the model it was made of."""
    return getattr(module, "_dense_class", type(module))


def _own_methods(cls: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """The methods that the user's classes define, those that Flax calls or hides left out."""
    found: dict[str, Callable[..., Any]] = {}
    bases = set(nn.Module.__mro__)
    for base in reversed([base for base in cls.__mro__ if base not in bases]):
        for name, value in vars(base).items():
            hidden = name == "setup" or (name.startswith("__") and name != "__call__")
            # Methods that were put inside an interceptor before are there to stay.
            hidden |= hasattr(value, "nowrap") and not hasattr(value, "tdjax_inside")
            if inspect.isfunction(value) and not hidden:
                found[name] = value
    return found


def _inside(method: Callable[..., Any], interceptor: MakeInterceptor) -> Callable[..., Any]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Without a scope the model is the root of what it calls.
        prefix = () if self.scope is None else self.path
        with nn.intercept_methods(interceptor(prefix)):
            return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    # What jit wrappers and readers ask for; `__wrapped__` would pass on Flax's compact mark.
    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    call.tdjax_inside = True  # type: ignore[attr-defined]
    # The method itself is known to Flax, and would be seen twice.
    return nn.nowrap(call)
