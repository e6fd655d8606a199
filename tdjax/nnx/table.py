"""The layer table of an NNX model, from a pass over shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from tdjax.allocation.auto import best_format
from tdjax.arguments.called import calling_the_model
from tdjax.nnx.graph import array_of, become, joined, modules_of, own_params, shape_of, weights_of
from tdjax.nnx.kinds import KINDS, Kind
from tdjax.plan.decide import plan_layers
from tdjax.plan.layers import Inventory, Layer, in_stack
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule
from tdjax.trace.call import batch_size, call_arguments, split_arrays
from tdjax.trace.geometry import Call
from tdjax.trace.marks import INPUT, OUTPUT, mark
from tdjax.trace.trace import Trace, TracedCall


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
    found = inventory(model, sample)
    return plan_layers(found.layers, rules, found.other, best_format(found.array_of))


def inventory(model: nnx.Module, sample: Any) -> Inventory:
    """The layers of a model with the arrays that they hold. Arguments and errors as `make_plan`."""
    table = layer_table(model, sample)
    modules = modules_of(model)
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    total = sum(math.prod(leaf.shape) for leaf in params)

    def kernel_of(layer: Layer) -> Any:
        return array_of(getattr(modules[layer.path], layer.storage.name))

    return Inventory(table, total - sum(layer.size for layer in table), kernel_of)


def layer_table(model: nnx.Module, sample: Any) -> tuple[Layer, ...]:
    """All modules of a model that hold a weight array, in the order in which they are called.

    No arithmetic is done: a copy of the model is traced with shapes. Arguments and errors as
    `make_plan`. Modules that cannot be factorised are listed last, with the obstacle. A module at
    several paths is listed under the first of them.
    """
    return tuple(_with_the_rest(model, modules_of(model), trace(model, sample).layers).values())


def leaves(model: nnx.Module) -> list[Any]:
    """What the program of `trace` takes in front of the arrays of the sample."""
    return jax.tree.leaves(nnx.state(model))


def trace(model: nnx.Module, sample: Any) -> Trace:
    """The calls of all layers that can be factorised, as they are in the traced program.

    The program takes the leaves of `nnx.split(model)[1]`, then the arrays of the sample. Arguments
    and errors as `layer_table`.
    """
    arrays, frame = split_arrays(call_arguments(sample))
    graph, state = nnx.split(model)
    recorder = _Recorder(modules_of(model))

    def program(state: Any, arrays: Any) -> Any:
        copy = nnx.merge(graph, state)
        for path, module in modules_of(copy).items():
            if type(module) in _RECORDING:
                module.tdjax_record = _Record(path, recorder)
                become(module, _RECORDING[type(module)])
        args, kwargs = frame.join(arrays)
        return copy(*args, **kwargs)

    with calling_the_model(sample):
        jaxpr, outputs = jax.make_jaxpr(program, return_shape=True)(state, arrays)
    return Trace(jaxpr, recorder.calls, outputs, batch_size(arrays))


class _Recorder:
    """The calls of one pass."""

    def __init__(self, modules: dict[str, Any]) -> None:
        self.modules = modules
        self.calls: dict[int, TracedCall] = {}
        self.numbers = itertools.count()
        self.uses = Counter(id(p) for m in modules.values() for p in own_params(m).values())

    def call(self, path: str, method: str, answer: Any, layer: Any, args: Any, kwargs: Any) -> Any:
        """A layer's answer, with the call noted and both its ends marked."""
        kind, number = KINDS[type(self.modules[path])], next(self.numbers)
        kernel = array_of(getattr(layer, kind.weight))
        names, given = list(kwargs), [*args, *kwargs.values()]
        given[0] = mark(given[0], kernel, number, INPUT)
        args, kwargs = given[: len(args)], dict(zip(names, given[len(args) :], strict=True))
        output = answer(layer, *args, **kwargs)
        equation = args[1] if len(args) > 1 else kwargs.get("einsum_str")
        call = Call(self.modules[path], method, given[0], output, equation)
        self.calls[number] = TracedCall(self._described(kind, call, path), call)
        return mark(output, kernel, number, OUTPUT)

    def _described(self, kind: Kind, call: Call, path: str) -> Layer:
        layer = _described(kind, call, path)
        if layer.obstacle is None and self.uses[id(getattr(call.module, kind.weight))] > 1:
            return dataclasses.replace(layer, obstacle=f"its {kind.weight} is another module's")
        return layer


@dataclasses.dataclass(frozen=True, eq=False)
class _Record:
    """Where a layer's calls are noted.

    A static attribute, equal to itself alone: transformations of NNX in the model carry it along,
    and trace again.
    """

    path: str
    recorder: _Recorder


def _noting(cls: type, method: str) -> Callable[..., Any]:
    """A method of a class that also notes its calls."""
    answer = getattr(cls, method)

    @functools.wraps(answer)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        record = self.tdjax_record
        return record.recorder.call(record.path, method, answer, self, args, kwargs)

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
