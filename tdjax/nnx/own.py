"""NNX layers of classes that are not Flax's own; see `tdjax.functions.own`.

A factorised one is, as those of Flax's own classes are, an instance of a subclass of its class,
with a module for each stage in place of its array and the plan's entry as `planned`.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from tdjax.functions.own import OwnCall, own_call, own_output
from tdjax.nnx.graph import array_of, become, holds_array, own_params, shape_of
from tdjax.params.factorize import weight_name

# Where a factorised class keeps the one that it was made of.
DENSE = "tdjax_dense"


def own_weight(module: Any) -> str | None:
    """The name of the array of a module that may be a layer of its own class; None of others."""
    if own_obstacle(module) is not None:
        return None
    return weight_name({name: _Shape(param) for name, param in own_params(module).items()})


def own_obstacle(module: Any) -> str | None:
    """Why a module can be no layer of its own class; None where that depends on its call."""
    nodes, params = [node for _, node in nnx.iter_graph(module)], own_params(module)
    if sum(isinstance(node, nnx.Module) for node in nodes) > 1:
        return f"it holds modules beside its own {', '.join(sorted(params)) or 'arrays'}"
    if sum(isinstance(node, nnx.Variable) for node in nodes) > len(params):
        return "it holds more than parameters that are its attributes"
    odd = [name for name, param in params.items() if not holds_array(param)]
    return f"its {odd[0]} is no array" if odd else None


class _Shape:
    """What `weight_name` asks of an array."""

    def __init__(self, param: Any) -> None:
        self.shape = shape_of(param)


def found_call(module: Any, cls: type, args: Sequence[Any], kwargs: Any) -> OwnCall | str:
    """A call of a module as one of a layer; where it is none that can be factorised, why.

    Arguments:
        cls: the module's own class.
    """
    return own_call(*_alone(module, cls), args, kwargs)


@functools.lru_cache(maxsize=1024)
def factorised_class(cls: Any) -> type:
    """The class of a factorised layer of a class; cached, so that `nnx.jit` knows it again."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        entry = self.planned
        factors = {s.name: {"kernel": array_of(getattr(self, s.name).kernel)} for s in entry.stages}
        apply, params = _alone(self, cls)
        return own_output(entry, apply, params, factors, args, kwargs)

    def reduced(self: Any, protocol: Any) -> Any:
        # For pickle and copies: the class is made again.
        made: Any = object.__reduce_ex__(self, protocol)
        make, (_, *rest), *state = made
        assert make is copyreg.__newobj__  # type: ignore[attr-defined]
        return _empty, (cls, *rest), *state

    about = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {"__call__": functools.wraps(cls.__call__)(call), "__reduce_ex__": reduced}
    return type(cls.__name__, (cls,), {**about, **methods, DENSE: cls})


def _empty(cls: Any, *rest: Any) -> Any:
    made = factorised_class(cls)
    return made.__new__(made, *rest)


def _alone(module: Any, cls: type) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A module's call as a function of its own arrays by name, and those that it has."""
    own = {name: array_of(param) for name, param in own_params(module).items()}
    graph, state = nnx.split(module)

    def apply(params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        copy: Any = nnx.merge(graph, state)
        for name in [name for name, value in vars(copy).items() if isinstance(value, nnx.Module)]:
            delattr(copy, name)
        become(copy, cls)
        for name, array in params.items():
            setattr(copy, name, nnx.Param(array))
        output = copy(*args, **kwargs)
        kept = {name for name, own in vars(copy).items() if isinstance(own, nnx.Variable)}
        if kept != set(params):
            raise ValueError(f"{cls.__name__} keeps more than parameters")
        return output

    return apply, own
