"""A Linen model some of whose layers others answer: an instance of a subclass of its class.

Nothing of the user's model is rewritten. A method interceptor, entered inside the model's own
methods, hands the calls of its modules to a `Change`. Modules that are taken out of the model, to
be called by others or to become models of their own, take their part of the change with them.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax

from tdjax.compute.convolve import is_forced
from tdjax.linen.place import Path, Place, place_of

Interceptor = Callable[[Callable[..., Any], Any, Any, Any], Any]
# What dataclasses make anew for a subclass; those of the user's class stay.
MADE = ("__init__", "__eq__", "__hash__", "__repr__")
# Models whose methods are running inside their interceptor, each with its change.
_entered: ContextVar[frozenset[tuple[int, Any]]] = ContextVar("entered", default=frozenset())
# Whether Flax copies a model, which reads its fields.
_copying: ContextVar[bool] = ContextVar("copying", default=False)


@runtime_checkable
class Change(Protocol):
    """What is done to the layers of a model. Hashable; equal changes make equal classes."""

    def interceptor(self, place: Place) -> Interceptor:
        """What the calls of the modules of a bound model go through."""

    def below(self, path: Path) -> Change | None:
        """What is left of it for a module of the model; None for nothing."""

    def __hash__(self) -> int:
        """Equal changes have equal hashes."""


class Method(NamedTuple):
    """What an interceptor asks of a call's context."""

    module: nn.Module
    method_name: str


def changed(model: nn.Module, change: Change, *, first: bool = False) -> nn.Module:
    """An instance of the changed class with the fields, and all else that the model knows.

    Arguments:
        first: make the change before those that were made: it then sees what these answer.
    """
    made: Any = dense_class(type(model)) if first else type(model)
    for own in (change, *changes_of(type(model))) if first else (change,):
        made = changed_class(made, own)
    values = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.init and field.name != "parent"
    }
    result = made(**values)
    for name in vars(model).keys() - _OF_FLAX - values.keys():
        object.__setattr__(result, name, vars(model)[name])
    return result


class _Quiet:
    """A subclass that users' classes do not hear of: they may register, or ask for more."""

    def __init_subclass__(cls) -> None:
        """As of `nn.Module` alone."""
        vars(nn.Module)["__init_subclass__"].__func__(cls)


@functools.lru_cache(maxsize=1024)
def changed_class(cls: Any, change: Change) -> type[nn.Module]:
    """A subclass whose methods run inside the interceptor; cached, so that jit caches hold."""
    methods: dict[str, Any] = {
        name: _inside(name, method, change) for name, method in _own_methods(cls).items()
    }
    for name in ("apply", "init_with_output"):
        methods[name] = _with_function_inside(getattr(cls, name), change)
    own = {"__reduce_ex__": _reduced, "clone": _cloned(cls)}
    own |= {name: _attribute(getattr(cls, name)) for name in ("__getattribute__", "__getattr__")}
    about = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    # Flax has wrapped what these methods call, which would be seen twice.
    methods = {name: nn.nowrap(method) for name, method in {**methods, **own}.items()}
    bases = (cls,) if issubclass(cls, _Quiet) else (_Quiet, cls)
    made: Any = type(cls.__name__, bases, {**methods, **about})
    for name in MADE:
        if name in vars(made):
            delattr(made, name)
    if "_unquantized_type" in vars(cls):
        # Where qwix looks, to quantise a model that it has quantised before.
        made._unquantized_type = changed_class(cls._unquantized_type, change)
    made._dense_class, made._changes = dense_class(cls), (*changes_of(cls), change)
    return made


def dense_class(cls: Any) -> type:
    """A class itself; of a changed one, the class that was changed first."""
    return getattr(cls, "_dense_class", cls)


def changes_of(cls: type) -> tuple[Any, ...]:
    """The changes that were made to a class, one after the other."""
    return getattr(cls, "_changes", ())


@contextmanager
def entered(model: nn.Module, place: Place, change: Change) -> Iterator[Interceptor | None]:
    """Run inside the interceptor of a bound model; None where that is so already."""
    running, key = _entered.get(), (place.key, change)
    if key in running:
        yield None
        return
    before = _entered.set(running | {key})
    # What `nn.jit` in the model looks at: it must not take a program of another change for its own.
    scope: Any = model.scope
    scope.flags = scope.flags.copy({f"tdjax_{hash(change)}": True, "tdjax_xla": is_forced()})
    try:
        interceptor = change.interceptor(place)
        with nn.intercept_methods(interceptor):
            yield interceptor
    finally:
        _entered.reset(before)


def streams() -> dict[str, Any]:
    """Keys for models that draw random numbers, the same at every call.

    Streams of other names fall back to "params".
    """
    return {name: jax.random.key(0) for name in ("dropout", "params")}


def apply_inside(
    model: nn.Module,
    interceptor_at: Callable[[Place], Interceptor],
    variables: Any,
    call: Callable[[nn.Module], Any],
    **settings: Any,
) -> Any:
    """`model.apply` inside an interceptor that is made for the place of the model.

    Arguments:
        call: what is called, a function of the bound model.
        settings: of `apply`, beside keys of random numbers.
    """

    def run(bound: nn.Module) -> Any:
        place = place_of(bound)
        assert place is not None
        with nn.intercept_methods(interceptor_at(place)):
            return call(bound)

    return model.apply(variables, method=run, rngs=streams(), **settings)


def _own_methods(cls: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """The methods that the user's classes define, those that Flax calls or hides left out."""
    found: dict[str, Callable[..., Any]] = {}
    bases = set(nn.Module.__mro__)
    for base in reversed([base for base in cls.__mro__ if base not in bases]):
        for name, value in vars(base).items():
            hidden = name in _OWN or (name.startswith("__") and name != "__call__")
            # Methods that were put inside an interceptor before are there to stay.
            hidden |= hasattr(value, "nowrap") and not hasattr(value, "tdjax_inside")
            if inspect.isfunction(value) and not hidden:
                found[name] = value
    return found


def _inside(name: str, method: Callable[..., Any], change: Change) -> Callable[..., Any]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        place = place_of(self)
        if place is None:
            return method(self, *args, **kwargs)
        with entered(self, place, change):
            return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    # What jit wrappers and readers ask for.
    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    call.tdjax_inside = True  # type: ignore[attr-defined]
    if hasattr(method, "method_handler_wrapped"):
        call.__wrapped__ = _unwrapped(name, method, change)  # type: ignore[attr-defined]
        call.method_handler_wrapped = True  # type: ignore[attr-defined]
    return call


def _unwrapped(name: str, method: Any, change: Change) -> Callable[..., Any]:
    """The method for those who wrap it again, as qwix does, and let Flax call what they made."""
    while hasattr(method, "method_handler_wrapped"):
        method = method.__wrapped__

    @functools.wraps(method)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        place = place_of(self)
        assert place is not None
        with entered(self, place, change) as interceptor:
            own = functools.partial(method, self)
            if interceptor is None:
                return own(*args, **kwargs)
            return interceptor(own, args, kwargs, Method(self, name))

    return call


def _with_function_inside(apply: Callable[..., Any], change: Change) -> Callable[..., Any]:
    """`apply`, the functions given as its `method` being run inside the interceptor too."""

    @functools.wraps(apply)
    def call(self: nn.Module, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        if callable(method):
            method = _function_inside(getattr(method, "__func__", method), change)
        return apply(self, *args, method=method, **kwargs)

    return call


def _function_inside(function: Callable[..., Any], change: Change) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        place = place_of(self)
        assert place is not None
        with entered(self, place, change):
            return function(self, *args, **kwargs)

    return call


def _attribute(get: Callable[..., Any]) -> Callable[..., Any]:
    def attribute(self: nn.Module, name: str) -> Any:
        value = get(self, name)
        known = name in _OF_FLAX or name.startswith("__")
        return value if known else _taken_out(self, name, value)

    return attribute


def _taken_out(model: nn.Module, name: str, value: Any) -> Any:
    """An attribute, as those outside of the model's methods see it: modules with their change."""
    if not isinstance(value, (nn.Module, tuple, list, Mapping)) or _copying.get():
        return value
    place, changes = place_of(model), changes_of(type(model))
    if place is None:
        return _changed_parts(model, name, value, changes)
    if (place.key, changes[-1]) not in _entered.get():
        for module in _held(value):
            path = place.path_of(module)
            if path:
                # In place: it is the model's own, and whoever calls it meets what the model has.
                object.__setattr__(module, "__class__", _class_below(type(module), changes, path))
    return value


def _held(value: Any) -> Iterator[nn.Module]:
    """The modules of a value, and those in their fields: a module may call another's submodule."""
    if isinstance(value, nn.Module):
        yield value
        value = [vars(value).get(name) for name in _fields(value)]
    if isinstance(value, (tuple, list, Mapping)):
        for own in value.values() if isinstance(value, Mapping) else value:
            yield from _held(own)


def _fields(model: nn.Module) -> set[str]:
    return {field.name for field in dataclasses.fields(model)} - {"parent"}


def _changed_parts(model: nn.Module, name: str, value: Any, changes: tuple[Change, ...]) -> Any:
    """A field of a model that is not bound, the modules in it changed."""
    if name not in _fields(model):
        return value

    def part(keys: Any, module: Any) -> Any:
        if not isinstance(module, nn.Module) or vars(module).get("parent") is not None:
            return module
        # As Flax names what it finds in a field.
        names = [str(getattr(key, "idx", getattr(key, "key", key))) for key in keys]
        cls = _class_below(type(module), changes, ("_".join([name, *names]),))
        made = module
        for change in changes_of(cls)[len(changes_of(type(module))) :]:
            made = changed(made, change)
        return made

    return jax.tree_util.tree_map_with_path(part, value, is_leaf=_is_module)


def _class_below(cls: Any, changes: tuple[Change, ...], path: Path) -> type:
    """The class of a module of a changed model, with what is left of the changes for it."""
    for change in changes:
        below = change.below(path)
        if below is not None and below not in changes_of(cls):
            cls = changed_class(cls, below)
    return cls


def _is_module(value: Any) -> bool:
    return isinstance(value, nn.Module)


def _cloned(cls: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(cls.clone)
    def clone(self: nn.Module, **settings: Any) -> Any:
        before = _copying.set(True)
        try:
            return cls.clone(self, **settings)
        finally:
            _copying.reset(before)

    return clone


def _reduced(self: nn.Module, protocol: Any) -> Any:
    """For pickle: the class is made again, of what it was made of."""
    # Of an object it is never the name of a global.
    made: Any = object.__reduce_ex__(self, protocol)
    make, args, *rest = made
    cls = type(self)
    if "_changes" in vars(cls) and make is copyreg.__newobj__:  # type: ignore[attr-defined]
        return _empty, (dense_class(cls), changes_of(cls)), *rest
    return make, args, *rest


def _empty(cls: Any, changes: tuple[Change, ...]) -> nn.Module:
    for change in changes:
        cls = changed_class(cls, change)
    return object.__new__(cls)


class _Plain(nn.Module):
    """What every module has."""


# Names that Flax gives to what it keeps in a module.
_OF_FLAX = frozenset(vars(_Plain())) | {"parent", "name", "scope", "children"}
_OWN = frozenset({"setup", "clone", "apply", "init_with_output"})
