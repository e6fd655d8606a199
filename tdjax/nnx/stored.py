"""NNX models whose arrays are stored in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flax import nnx

from tdjax.nnx.boxes import boxed, variable_like
from tdjax.nnx.graph import modules_of, raw_of
from tdjax.nnx.model import dense_module, factorised_module
from tdjax.params.quantised import is_quantised
from tdjax.params.tree import join_path, layer_params, put
from tdjax.plan.plan import Plan, PlannedLayer

Model = TypeVar("Model", bound=nnx.Module)


def with_kernels(
    model: Model, plan: Plan, change: Callable[[Mapping[str, Any], Plan], Mapping[str, Any]]
) -> Model:
    """A copy of a factorised model with other arrays in place of those that a plan stores.

    Arguments:
        change: nested mappings of the arrays by path, as Linen has them -> such mappings.

    Raises KeyError or ValueError where the model's layers are not those of the plan.
    """
    copy = nnx.clone(model)
    modules = modules_of(copy)
    entries = [entry for entry in plan.layers if entry.dtype is not None]
    params: dict[str, Any] = {}
    for entry in entries:
        for name, module, attribute in _holders(modules, entry):
            leaf = _leaf(getattr(module, attribute), entry)
            put(params, join_path(entry.layer.path, name), {attribute: leaf})
    made = change(params, plan)
    for entry in entries:
        for name, module, attribute in _holders(modules, entry):
            value = layer_params(made, join_path(entry.layer.path, name))[attribute]
            before = getattr(module, attribute)
            setattr(module, attribute, variable_like(before, value, entry.layer.storage))
    return copy


def _holders(modules: Mapping[str, Any], entry: PlannedLayer) -> list[tuple[str, Any, str]]:
    """What holds the arrays of a layer: a name below its path, a module, and an attribute."""
    if entry.form is None:
        return [("", dense_module(modules, entry), entry.layer.storage.name)]
    module: Any = factorised_module(modules, entry)
    if entry.layer.is_member:
        module = modules[entry.layer.path]
    return [(stage.name, getattr(module, stage.name), "kernel") for stage in entry.stages]


def _leaf(variable: Any, entry: PlannedLayer) -> Any:
    raw = raw_of(variable)
    return raw if is_quantised(raw) else boxed(variable, entry.layer.storage)
