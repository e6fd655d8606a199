"""Linen layers of classes that are not Flax's own: one matrix among arrays of a module by itself.

What such a module does with its array is read off its traced program, as of a pure function. A
chain then takes the place of the product in that program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from tdjax.functions.model import evaluated
from tdjax.functions.read import Marks, Program, known_layers, program_of
from tdjax.linen.initial import rescaled
from tdjax.linen.intercept import dense_class
from tdjax.params.factorize import weight_name
from tdjax.params.partitioning import box_factor, is_boxed, unboxed
from tdjax.plan.layers import LEAF, OWN, Layer, in_stack
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.stage import Stage
from tdjax.trace.recorder import Recorder
from tdjax.trace.trace import TracedCall


class OwnCall(NamedTuple):
    """A call of a module whose one weight is a matrix.

    Arguments:
        name: of the array.
        layer: what is known of the array by itself.
        program: of the call, of which the module's arrays are the first arguments.
    """

    name: str
    layer: Layer
    program: Program


def own_call(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> OwnCall | None:
    """A call of a module as one of a layer; None where it is none that can be factorised."""
    params = module.variables.get("params", {})
    if not _is_alone(module) or any(isinstance(leaf, Mapping) for leaf in params.values()):
        return None
    try:
        program = program_of(_alone(module, mutable=True), params, args, kwargs)
    # What a module needs beside its arrays is not known, nor what it raises without it.
    except Exception:
        return None
    kept = jax.tree.leaves(program.outputs[1])
    layers = known_layers(program)
    taken = [layer for layer in layers.values() if layer.obstacle is None]
    if kept or len(taken) != 1 or not taken[0].is_matrix or taken[0].kind == "embed":
        return None
    if taken[0].storage.stack is not None or taken[0].path != weight_name(params):
        return None
    return OwnCall(taken[0].path, taken[0], program)


def record(
    found: OwnCall, path: str, names: Sequence[str], recorder: Recorder, shapes: Mapping[str, Any]
) -> Any:
    """The output of a call, recorded.

    Arguments:
        names: along the path of the module.
        shapes: of the module's arrays among those of the model.
    """
    whole = tuple(shapes[found.name].shape)
    stored = dataclasses.replace(found.layer.storage, name=found.name)
    layer = dataclasses.replace(
        found.layer,
        path=path,
        kind=OWN,
        stored=stored,
        other=sum(math.prod(own.shape) for own in shapes.values()) - math.prod(whole),
    )
    layer = in_stack(layer, found.name, whole)
    marks = Marks({found.name: found.layer}, recorder.number, found.program.arrays)
    outputs, _ = found.program.run(marks)
    for number, made in marks.calls.items():
        called = dataclasses.replace(layer, positions=made.layer.positions)
        array = ("params", *names, found.name)
        recorder.calls[number] = TracedCall(called, made.call, array)
    return outputs


def answer(
    module: Any,
    entry: PlannedLayer,
    method: str,
    next_fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """What a module returns with a chain in place of its matrix."""
    if method == "setup":
        # It would ask for the matrix.
        return None
    if method != "__call__":
        return next_fun(*args, **kwargs)
    if module.is_mutable_collection("params"):
        _initialise(module, entry, args, kwargs)
    params = jax.tree.map(unboxed, dict(module.variables["params"]), is_leaf=is_boxed)
    stages = {stage.name: stage for stage in entry.stages}
    if any(own.kernel_shape != params[name]["kernel"].shape for name, own in stages.items()):
        # A stack of layers, which are called one by one inside.
        return next_fun(*args, **kwargs)
    name = entry.layer.storage.name
    factors = {stage: params.pop(stage) for stage in stages}
    stored = dataclasses.replace(entry.layer.storage, name=LEAF, stack=None, copies=1)
    layer = dataclasses.replace(entry.layer, path=name, kind="dense", other=0, stored=stored)
    plan = Plan((PlannedLayer(layer, entry.form),))
    apply = _alone(module, mutable=False)
    return evaluated(apply, plan, {**params, name: factors}, args, kwargs)


def _is_alone(module: Any) -> bool:
    """Whether a module is one of a model, and holds nothing but parameters."""
    return bool(module.scope.path) and set(module.variables) <= {"params"}


def _alone(module: Any, *, mutable: bool) -> Callable[..., Any]:
    """A module's call as a function of its parameters; with what it keeps where `mutable`."""
    clone = module.clone(parent=None, name=None)
    # Of a model taken apart, a module that would answer with a chain itself.
    object.__setattr__(clone, "__class__", dense_class(type(module)))
    rngs = {name: module.make_rng(name) for name in module.scope.rngs}
    state = {"mutable": nn.DenyList("params")} if mutable else {}

    def apply(params: Any, *args: Any, **kwargs: Any) -> Any:
        return clone.apply({"params": params}, *args, **kwargs, rngs=rngs, **state)

    return apply


def _initialise(
    module: Any, entry: PlannedLayer, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Make the parameters of a module, those of the chain in place of its matrix."""
    scope, name = module.scope, entry.layer.storage.name
    if all(scope.has_variable("params", stage.name) for stage in entry.stages):
        return
    clone = module.clone(parent=None, name=None)
    object.__setattr__(clone, "__class__", dense_class(type(module)))
    keys = {stream: module.make_rng(stream) for stream in scope.rngs}
    values = clone.init(keys, *args, **kwargs)["params"]
    drawn, shape = values.pop(name, None), entry.layer.storage.shape
    if drawn is None or unboxed(drawn).shape != shape:
        raise ValueError(
            f"layer {entry.layer.path!r} of the model has no {name} of shape {shape}: make "
            "the plan with the model that you factorize"
        )
    for other, value in values.items():
        scope.param(other, lambda _, value=value: value)
    for stage in entry.stages:
        scope.push(stage.name, reuse=True).param("kernel", partial(_factor, drawn, entry, stage))


def _factor(drawn: Any, entry: PlannedLayer, stage: Stage, key: Array) -> Any:
    """A factor of a layer that is trained from scratch, where it would draw a kernel."""
    kernel, last = unboxed(drawn), stage == entry.stages[-1]
    size = jnp.sqrt(jnp.mean(jnp.square(kernel.astype(jnp.float32))))
    array = jax.random.normal(key, stage.kernel_shape, kernel.dtype)
    array = rescaled(array, key, size, ranks=entry.ranks, parts=len(entry.stages), last=last)
    return box_factor(drawn, array, entry, stage, stacked=False) if is_boxed(drawn) else array
