"""The layer table of an NNX model, from a pass over shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from tdjax.calls import call_arguments, split_arrays
from tdjax.geometry import Call
from tdjax.layers import Layer, in_stack, of_all_calls
from tdjax.marks import Marks
from tdjax.nnx.graph import array_of, become, joined, modules_of, own_params, shape_of, weights_of
from tdjax.nnx.kinds import KINDS, Kind
from tdjax.plan import Plan, Rule, plan_layers
from tdjax.select import best_format


def make_plan(model: nnx.Module, rules: Sequence[Rule], sample: Any) -> Plan:
    """Decide for every layer of an NNX model which format it gets.

    Arguments:
        model: any NNX module, also one of shapes alone; method "auto" needs arrays.
        rules: the first whose path matches a layer decides; see `tdjax.Rule`.
        sample: one batch as the model takes it, arrays or shapes: the input, a tuple of
            positional or a dict of keyword arguments. The first axis is the batch.

    Raises ValueError for a rule that matches no layer or asks for ranks out of range, TypeError
    for something that is not an NNX module.
    """
    table = layer_table(model, sample)
    modules = modules_of(model)
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    total = sum(math.prod(leaf.shape) for leaf in params)

    def kernel_of(layer: Layer) -> Any:
        return array_of(getattr(modules[layer.path], layer.storage.name))

    other = total - sum(layer.size for layer in table)
    return plan_layers(table, rules, other, best_format(kernel_of))


def layer_table(model: nnx.Module, sample: Any) -> tuple[Layer, ...]:
    """All modules of a model that hold a weight array, in the order in which they are called.

    No arithmetic is done: a copy of the model is traced with shapes. Arguments and errors as
    `make_plan`. Modules that cannot be factorised are listed last, with the obstacle. A module at
    several paths is listed under the first of them.
    """
    modules = modules_of(model)
    arrays, frame = split_arrays(call_arguments(sample))
    batch = next((leaf.shape[0] for leaf in arrays if leaf.shape), 1)
    graph, state = nnx.split(model)
    records = _Records(modules)

    def trace(state: Any, arrays: Any) -> Any:
        copy = nnx.merge(graph, state)
        for path, module in modules_of(copy).items():
            if type(module) in _RECORDING:
                module.tdjax_record = _Record(path, records)
                become(module, _RECORDING[type(module)])
        args, kwargs = frame.join(arrays)
        return copy(*args, **kwargs)

    runs = records.marks.runs(jax.make_jaxpr(trace)(state, arrays).jaxpr)
    seen = {
        path: of_all_calls([(layer, runs.get(number, 0)) for layer, number in made], batch)
        for path, made in records.calls.items()
    }
    return tuple(_with_the_rest(model, modules, seen).values())


class _Records:
    """The calls of one pass by path: what each says of its layer, and its mark."""

    def __init__(self, modules: dict[str, Any]) -> None:
        self.modules, self.marks = modules, Marks()
        self.calls: dict[str, list[tuple[Layer, int]]] = {}
        self.uses = Counter(id(p) for m in modules.values() for p in own_params(m).values())

    def add(self, path: str, method: str, args: Any, kwargs: Any, output: Any) -> Any:
        module = self.modules[path]
        kind = KINDS[type(module)]
        given = (*args, *kwargs.values())
        equation = args[1] if len(args) > 1 else kwargs.get("einsum_str")
        call = Call(module, method, given[0], output, equation)
        layer = _described(kind, call, path)
        if layer.obstacle is None and self.uses[id(getattr(module, kind.weight))] > 1:
            layer = dataclasses.replace(layer, obstacle=f"its {kind.weight} is another module's")
        marked, number = self.marks.mark(output)
        self.calls.setdefault(path, []).append((layer, number))
        return marked


@dataclasses.dataclass(frozen=True, eq=False)
class _Record:
    """Where a layer's calls are noted.

    A static attribute, equal to itself alone: transformations of NNX in the model carry it along,
    and trace again.
    """

    path: str
    records: _Records


def _noting(cls: type, method: str) -> Callable[..., Any]:
    """A method of a class that also notes its calls."""
    answer = getattr(cls, method)

    @functools.wraps(answer)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = answer(self, *args, **kwargs)
        record = self.tdjax_record
        return record.records.add(record.path, method, args, kwargs, output)

    return call


def _recording(cls: type) -> type:
    """A subclass of a kind of layer that notes its calls."""
    methods = [name for name in ("__call__", "attend") if hasattr(cls, name)]
    return type(cls.__name__, (cls,), {name: _noting(cls, name) for name in methods})


_RECORDING = {cls: _recording(cls) for cls in KINDS}


def _described(kind: Kind, call: Call, path: str) -> Layer:
    """The entry of a layer from one call, with the stack that its array may lie in."""
    layer = dataclasses.replace(kind.describe(call), path=path)
    found = shape_of(getattr(call.module, kind.weight))
    params = own_params(call.module).values()
    other = sum(math.prod(shape_of(param)) for param in params) - math.prod(found)
    layer = dataclasses.replace(layer, other=other)
    return in_stack(layer, kind.weight, found)


def _with_the_rest(
    model: nnx.Module, modules: dict[str, Any], seen: dict[str, Layer]
) -> dict[str, Layer]:
    """The entries of a pass, and those of all modules with weights that it did not meet."""
    table = dict(seen)
    for path, param in weights_of(model):
        # A parameter in a list or a mapping belongs to the module around that.
        depth = next(k for k in range(len(path) - 1, -1, -1) if joined(path[:k]) in modules)
        owner, shape = joined(path[:depth]), shape_of(param)
        module = modules[owner]
        kind, name, known = KINDS.get(type(module)), type(module).__name__, table.get(owner)
        if owner in seen or (kind is not None and param is not getattr(module, kind.weight)):
            continue
        if known is None or math.prod(known.kernel_shape) < math.prod(shape):
            why = "is not supported" if kind is None else "was not called"
            table[owner] = Layer(owner, name, shape, obstacle=f"{name} {why}")
    return table
