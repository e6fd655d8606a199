"""The layer table of an NNX model, from a pass over shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from flax import nnx

from tdjax.allocation.auto import best_format
from tdjax.arguments.called import Method, call_model, calling_the_model
from tdjax.functions.own import Members, Owner, Untraceable, record_own
from tdjax.nnx.graph import (
    array_of,
    become,
    holds_array,
    modules_of,
    own_params,
    place_of,
    shape_of,
    weights_of,
    with_calls,
)
from tdjax.nnx.kinds import KINDS
from tdjax.nnx.own import found_call, member_weights, own_obstacle, recorded
from tdjax.params.tree import join_path, split_path
from tdjax.plan.decide import plan_layers
from tdjax.plan.layers import Inventory, Layer, is_weight, tied_obstacle
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule
from tdjax.trace.inputs import same_inputs
from tdjax.trace.marks import is_differentiated
from tdjax.trace.pairs import pairs_of
from tdjax.trace.recorder import CalledLayer, Recorder, trace_model
from tdjax.trace.trace import Trace, TracedCall


def make_plan(model: nnx.Module, rules: Sequence[Rule], sample: Any, method: Method = None) -> Plan:
    """Decide for every layer of an NNX model which format it gets.

    Arguments:
        model: any NNX module, also one of shapes alone; method "auto" needs arrays.
        rules: the first whose path matches a layer decides; see `tdjax.Rule`.
        sample: one batch as the model takes it, arrays or shapes: the input, a tuple of
            positional or a dict of keyword arguments. The first axis is the batch.
        method: how the model is called, see `tdjax.make_plan`.

    Raises ValueError for a rule that matches no layer or asks for ranks out of range, TypeError
    for something that is not an NNX module.
    """
    found = inventory(model, sample, method)
    choose = best_format(found.array_of)
    return plan_layers(found.layers, rules, found.other, choose, found.other_macs, found.work)


def inventory(model: nnx.Module, sample: Any, method: Method = None) -> Inventory:
    """The layers of a model with the arrays that they hold. Arguments and errors as `make_plan`."""
    traced, modules = trace(model, sample, method), modules_of(model)
    table = tuple(_with_the_rest(model, modules, traced.layers).values())
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    total = sum(math.prod(leaf.shape) for leaf in params)

    def kernel_of(layer: Layer) -> Any:
        path, name = place_of(layer)
        return array_of(getattr(modules[path], name))

    def bias_of(layer: Layer) -> Any:
        bias = getattr(modules[place_of(layer)[0]], "bias", None)
        return None if bias is None else array_of(bias)

    other = total - sum(layer.size for layer in table)
    return Inventory(
        table, other, kernel_of, traced.other_macs, traced.branched, same_inputs(traced),
        partial(pairs_of, traced), bias_of,
    )  # fmt: skip


def layer_table(model: nnx.Module, sample: Any, method: Method = None) -> tuple[Layer, ...]:
    """All modules of a model that hold a weight array, in the order in which they are called.

    No arithmetic is done: a copy of the model is traced with shapes. Arguments and errors as
    `make_plan`. Modules that cannot be factorised are listed with the obstacle. A module at several
    paths is listed under the first of them.
    """
    layers = trace(model, sample, method).layers
    return tuple(_with_the_rest(model, modules_of(model), layers).values())


def leaves(model: nnx.Module) -> list[Any]:
    """What the program of `trace` takes in front of the arrays of the sample."""
    return jax.tree.leaves(nnx.state(model))


def trace(model: nnx.Module, sample: Any, method: Method = None) -> Trace:
    """The calls of all layers that can be factorised, as they are in the traced program.

    The program takes the leaves of `nnx.split(model)[1]`, then the arrays of the sample. Arguments
    and errors as `layer_table`.
    """
    recording = _Recording(modules_of(model), Recorder())
    graph, state = nnx.split(model)

    def run(state: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        copy: Any = nnx.merge(graph, state)
        for path, module in modules_of(copy).items():
            if type(module) in _RECORDED and holds_array(getattr(module, _weight(module))):
                module.tdjax_recorded = _RecordedAt(path, recording)
                become(module, _RECORDED[type(module)])
            elif type(module) not in KINDS and member_weights(module):
                module.tdjax_recorded = _RecordedAt(path, recording)
                cls: Any = type(module)
                become(module, _own_recorded_class(cls))
        outputs = call_model(copy, method, args, kwargs)
        recording.recorder.kept = nnx.state(copy)
        return outputs

    with calling_the_model(sample):
        return trace_model(recording.recorder, run, state, sample)


class _Recording:
    """One pass over a model."""

    def __init__(self, modules: dict[str, Any], recorder: Recorder) -> None:
        self.modules = modules
        self.recorder = recorder
        self.calling: Counter[str] = Counter()
        self.uses = Counter(id(p) for m in modules.values() for p in own_params(m).values())

    def layer(self, path: str) -> CalledLayer:
        """What is known of a layer before it is called."""
        module = self.modules[path]
        kind = KINDS[type(module)]
        shapes = {name: shape_of(param) for name, param in own_params(module).items()}
        shared = self.uses[id(getattr(module, kind.weight))] > 1
        obstacle = tied_obstacle(kind.weight) if shared else None
        array = (*split_path(path), kind.weight)
        return CalledLayer(path, module, kind.weight, shapes, kind.describe, obstacle, array)


@dataclasses.dataclass(frozen=True, eq=False)
class _RecordedAt:
    """Where a layer's calls are recorded.

    A static attribute, equal to itself alone: transformations of NNX in the model carry it along,
    and trace again.
    """

    path: str
    recording: _Recording


def _recorded(cls: type, method: str) -> Callable[..., Any]:
    """A method of a class whose calls are recorded."""
    answer = getattr(cls, method)

    @functools.wraps(answer)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        path, recording = self.tdjax_recorded.path, self.tdjax_recorded.recording
        layer = recording.layer(path)
        recording.calling[path] += 1
        try:
            kernel, bound = array_of(getattr(self, layer.weight)), functools.partial(answer, self)
            if is_differentiated(kernel) and layer.array is not None:
                recording.recorder.asked[layer.array] = "the model takes a gradient by it"
            return recording.recorder.call(layer, kernel, method, bound, args, kwargs)
        finally:
            recording.calling[path] -= 1

    return call


def _recorded_class(cls: type) -> type:
    """A subclass whose calls are recorded, and who asks for its array outside of them."""
    weight = KINDS[cls].weight
    made: Any = with_calls(cls, _recorded)

    def get(self: Any, name: str) -> Any:
        if name == weight:
            place = super(made, self).__getattribute__("tdjax_recorded")
            recording = place.recording
            if not recording.calling[place.path]:
                names = (*split_path(place.path), weight)
                recording.recorder.asked.setdefault(names, "the model asks for it, or its shape")
        return super(made, self).__getattribute__(name)

    made.__getattribute__ = get
    return made


_RECORDED = {cls: _recorded_class(cls) for cls in KINDS}


@functools.lru_cache(maxsize=1024)
def _own_recorded_class(cls: Any) -> type:
    """A subclass of a class that is not Flax's own, whose calls are recorded where it is a layer.

    Its methods but the call are those of the class; what they read of the array is seen.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        path, recording = self.tdjax_recorded.path, self.tdjax_recorded.recording
        params = own_params(recording.modules[path])
        shared = any(recording.uses[id(param)] > 1 for param in params.values())
        found = "its arrays are another module's" if shared else found_call(self, cls, args, kwargs)
        shapes = {name: shape_of(param) for name, param in params.items()}
        if not isinstance(found, str | Members):
            array = (*split_path(path), found.name)
            return record_own(found, path, array, recording.recorder, shapes)
        number, taken = recording.recorder.number(), False
        try:
            if isinstance(found, str):
                output = cls.__call__(self, *args, **kwargs)
            else:
                owner = Owner(path, split_path(path), shapes, recording.recorder)
                names = list(member_weights(recording.modules[path]))
                output, taken = recorded(owner, self, cls, names, args, kwargs)
        except Untraceable:
            output = cls.__call__(self, *args, **kwargs)
        # The others are listed behind all that is called.
        if not taken and own_obstacle(recording.modules[path]) is None:
            reason = found.reason if isinstance(found, Members) else found
            largest = max(_weights(shapes), key=math.prod)
            entry = Layer(path, cls.__name__, largest, obstacle=reason)
            recording.recorder.calls[number] = TracedCall(entry)
        return output

    return type(cls.__name__, (cls,), {"__call__": functools.wraps(cls.__call__)(call)})


def _with_the_rest(
    model: nnx.Module, modules: dict[str, Any], seen: dict[str, Layer]
) -> dict[str, Layer]:
    """The entries of a pass, and those of all modules with weights that it did not meet."""
    table = dict(seen)
    for path, param in weights_of(model):
        # A parameter in a list or a mapping belongs to the module around that.
        depth = next(k for k in range(len(path) - 1, -1, -1) if join_path(*path[:k]) in modules)
        owner, shape = join_path(*path[:depth]), shape_of(param)
        module = modules[owner]
        weight, known = getattr(module, _weight(module), None), table.get(owner)
        other = holds_array(weight) and param is not weight
        if owner in seen or join_path(*path) in seen or other:
            continue
        if known is None or math.prod(known.kernel_shape) < math.prod(shape):
            obstacle = _obstacle(module, weight)
            table[owner] = Layer(owner, type(module).__name__, shape, obstacle=obstacle)
    return table


def _obstacle(module: Any, weight: Any) -> str:
    """Why a module that was not recorded cannot be factorised."""
    name = type(module).__name__
    if type(module) not in KINDS:
        return own_obstacle(module) or f"{name} is called by another method, or not at all"
    if not holds_array(weight):
        return f"its {_weight(module)} is no array, but {type(weight).__name__}"
    return f"{name} was not called"


def _weight(module: Any) -> str:
    """The name of a layer's array; empty for what is no layer."""
    kind = KINDS.get(type(module))
    return "" if kind is None else kind.weight


def _weights(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes of those parameters of a module that are weights."""
    return [shape for name, shape in shapes.items() if is_weight(name, shape)]
