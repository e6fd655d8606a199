"""NNX layers of classes that are not Flax's own; see `tdjax.functions.own`.

A factorised one is, as those of Flax's own classes are, an instance of a subclass of its class,
with a module for each stage in place of its array and the plan's entry as `planned`. Of a module
whose arrays are layers by themselves, the entries are its `planned_members`, and in place of each
array is a module that holds those of the stages.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from tdjax.functions.own import (
    Members,
    OwnCall,
    Owner,
    member_name,
    output_of_members,
    own_call,
    own_output,
)
from tdjax.nnx.graph import array_of, become, holds_array, own_params, shape_of
from tdjax.params.factorize import weight_name
from tdjax.plan.layers import is_weight

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


class MemberFactors(nnx.Module):
    """The factors of one array of a module, by stage modules with a `kernel`."""


def member_weights(module: Any) -> dict[str, Any]:
    """The arrays of a module that may be layers by themselves, by name."""
    return {
        name: param
        for name, param in own_params(module).items()
        if is_weight(name, shape_of(param)) and holds_array(param)
    }


class _Shape:
    """What `weight_name` asks of an array."""

    def __init__(self, param: Any) -> None:
        self.shape = shape_of(param)


def found_call(module: Any, cls: type, args: Sequence[Any], kwargs: Any) -> OwnCall | Members | str:
    """A call of a module as one of a layer; where it is none that can be factorised, why.

    Arguments:
        cls: the module's own class.
    """
    obstacle = own_obstacle(module)
    if obstacle is not None:
        return Members(obstacle)
    return own_call(*_alone(module, cls), args, kwargs)


def recorded(
    owner: Owner, module: Any, cls: type, names: Sequence[str], args: Any, kwargs: Any
) -> tuple[Any, bool]:
    """What a call returns, and whether arrays of the module are layers; see `Owner.record`.

    Arguments:
        cls: the module's own class.
        names: of the arrays that may be.
    """
    apply, publish = _functional(module, cls, names)
    arrays = {name: array_of(getattr(module, name)) for name in names}
    (output, kept), taken = owner.record(apply, arrays, args, kwargs)
    publish(kept)
    return output, taken


def _functional(
    module: Any, cls: type, names: Sequence[str]
) -> tuple[Callable[..., Any], Callable[[Mapping[int, Any]], None]]:
    """A module's call as a function of some of its arrays, and what keeps what it changes.

    The first returns (output, arrays that are others now, by their place in the module's state).
    """
    bare: Any = nnx.merge(*nnx.split(module))
    for name in names:
        delattr(bare, name)
    become(bare, cls)
    graph, state = nnx.split(bare)
    leaves, structure = jax.tree.flatten(state)

    def apply(arrays: Mapping[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # With variables of its own, which know that it is traced.
        copy: Any = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
        for name, array in arrays.items():
            setattr(copy, name, nnx.Param(array))
        output = copy(*args, **kwargs)
        for name in names:
            delattr(copy, name)
        after, found = nnx.split(copy)
        if after != graph:
            raise ValueError(f"{cls.__name__} changes more than its arrays")
        pairs = enumerate(zip(leaves, jax.tree.leaves(found), strict=True))
        return output, {place: new for place, (old, new) in pairs if new is not old}

    def publish(kept: Mapping[int, Any]) -> None:
        if kept:
            now = [kept.get(place, leaf) for place, leaf in enumerate(leaves)]
            nnx.update(module, jax.tree.unflatten(structure, now))

    return apply, publish


@functools.lru_cache(maxsize=1024)
def members_class(cls: Any) -> type:
    """The class of a module of a class some of whose arrays are factorised; cached likewise."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        entries = self.planned_members
        names = [member_name(entry) for entry in entries]
        apply, publish = _functional(self, cls, names)
        factors = {
            name: {
                stage.name: {"kernel": array_of(getattr(getattr(self, name), stage.name).kernel)}
                for stage in entry.stages
            }
            for name, entry in zip(names, entries, strict=True)
        }
        output, kept = output_of_members(entries, apply, factors, args, kwargs)
        publish(kept)
        return output

    return _subclass(cls, call, members_class)


@functools.lru_cache(maxsize=1024)
def factorised_class(cls: Any) -> type:
    """The class of a factorised layer of a class; cached, so that `nnx.jit` knows it again."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        entry = self.planned
        factors = {s.name: {"kernel": array_of(getattr(self, s.name).kernel)} for s in entry.stages}
        apply, params = _alone(self, cls)
        return own_output(entry, apply, params, factors, args, kwargs)

    return _subclass(cls, call, factorised_class)


def _subclass(cls: Any, call: Callable[..., Any], make: Callable[[Any], type]) -> type:
    """A subclass with another call.

    Arguments:
        make: of the class makes this.
    """

    def reduced(self: Any, protocol: Any) -> Any:
        # For pickle and copies: the class is made again.
        made: Any = object.__reduce_ex__(self, protocol)
        new, (_, *rest), *state = made
        assert new is copyreg.__newobj__  # type: ignore[attr-defined]
        return _empty, (make, cls, *rest), *state

    about = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {"__call__": functools.wraps(cls.__call__)(call), "__reduce_ex__": reduced}
    return type(cls.__name__, (cls,), {**about, **methods, DENSE: cls})


def _empty(make: Callable[[Any], Any], cls: Any, *rest: Any) -> Any:
    made = make(cls)
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
