"""Walking an NNX model: its modules by path, and the parameters they own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

from tdjax.params.tree import join_path, split_path
from tdjax.plan.layers import Layer, is_weight


def modules_of(model: nnx.Module) -> dict[str, Any]:
    """All modules of a model by their '/'-joined path; '' is the model itself.

    A module at several paths is there once, under the first of them. Raises TypeError for
    something that is not an NNX module.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"expected a flax.nnx.Module, got {type(model).__name__}")
    return {join_path(*path): node for path, node in nnx.iter_graph(model) if _is_module(node)}


def weights_of(model: nnx.Module) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All weights and their paths, each once."""
    seen = set()
    for path, node in nnx.iter_graph(model):
        if not isinstance(node, nnx.Param) or id(node) in seen:
            continue
        if is_weight(str(path[-1]), shape_of(node)):
            seen.add(id(node))
            yield tuple(map(str, path)), node


def own_params(module: nnx.Module) -> dict[str, Any]:
    """The parameters that are attributes of a module, by name."""
    return {name: value for name, value in vars(module).items() if isinstance(value, nnx.Param)}


def place_of(layer: Layer) -> tuple[str, str]:
    """The path of the module that has a layer's array, and the name of that there."""
    if not layer.is_member:
        return layer.path, layer.storage.name
    *front, name = split_path(layer.path)
    return join_path(*front), name


def array_of(variable: Any) -> Any:
    """The array of a parameter, or its shape where a model holds shapes alone."""
    raw = raw_of(variable)
    return raw if isinstance(raw, jax.ShapeDtypeStruct) else variable[...]


def holds_array(variable: Any) -> bool:
    """Whether something is a parameter of one array: not one that was quantised to several."""
    if not isinstance(variable, nnx.Variable):
        return False
    raw = raw_of(variable)
    return hasattr(raw, "shape") and jax.tree_util.all_leaves([raw])


def shape_of(variable: Any) -> tuple[int, ...]:
    """Shape of a parameter's array; () where it holds something else."""
    return tuple(getattr(variable, "shape", ()))


def raw_of(variable: Any) -> Any:
    """What a parameter holds, as it is."""
    # Versions of Flax differ in the name, and warn of the other.
    return variable.get_raw_value() if hasattr(variable, "get_raw_value") else variable.raw_value


def become(module: nnx.Module, cls: type[nnx.Module]) -> None:
    """Turn a module into one of a sub- or superclass, in place: all that refer to it see it."""
    # NNX would take a plain assignment for one of an attribute of the module.
    object.__setattr__(module, "__class__", cls)


def with_calls(cls: type, wrap: Callable[[type, str], Callable[..., Any]]) -> type:
    """A subclass of a kind of layer, the methods that call it being wrapped.

    Arguments:
        wrap: (class, name of the method) -> the method in its place.
    """
    methods = [name for name in ("__call__", "attend") if hasattr(cls, name)]
    return type(cls.__name__, (cls,), {name: wrap(cls, name) for name in methods})


def _is_module(node: Any) -> bool:
    return isinstance(node, nnx.Module)
