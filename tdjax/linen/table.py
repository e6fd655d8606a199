"""The layer table of a Linen model, from a pass over shapes alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from tdjax.boxes import is_boxed, unboxed
from tdjax.calls import call_arguments, split_arrays
from tdjax.factorize import layer_params
from tdjax.layers import VECTORS, Layer, in_stack, of_all_calls
from tdjax.linen.kinds import KINDS, Call, Kind
from tdjax.marks import Marks
from tdjax.plan import Plan, Rule, plan_layers
from tdjax.select import best_format

_passes = itertools.count()


def make_plan(
    model: nn.Module, variables: Mapping[str, Any], rules: Sequence[Rule], sample: Any
) -> Plan:
    """Decide for every layer of a Linen model which format it gets.

    Arguments:
        model: any Linen module; nothing in it needs to know of this library.
        variables: as `model.init` returns them; arrays or shapes. Method "auto" needs arrays.
        rules: the first whose path matches a layer decides; see `tdjax.Rule`.
        sample: one batch as the model takes it, arrays or shapes: the input, a tuple of
            positional or a dict of keyword arguments. The first axis is the batch.

    Raises ValueError for a rule that matches no layer or asks for ranks out of range, TypeError
    for something that is not a Linen module.
    """
    table = layer_table(model, variables, sample)
    params = variables["params"]
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

    def array_of(layer: Layer) -> Any:
        return unboxed(layer_params(params, layer.path)[layer.storage.name])

    other = total - sum(layer.size for layer in table)
    return plan_layers(table, rules, other, best_format(array_of))


def layer_table(model: nn.Module, variables: Mapping[str, Any], sample: Any) -> tuple[Layer, ...]:
    """All modules of a model that hold a weight array, in the order in which they are called.

    No arithmetic is done: the model is traced with shapes. Arguments and errors as `make_plan`.
    Modules that cannot be factorised are listed with the obstacle.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {type(model).__name__}")
    args, kwargs = call_arguments(sample)
    arrays, frame = split_arrays((args, kwargs))
    batch = next((leaf.shape[0] for leaf in arrays if leaf.shape), 1)
    shapes = jax.eval_shape(lambda: jax.tree.map(unboxed, variables, is_leaf=is_boxed))
    params = shapes["params"]
    calls: dict[str, list[tuple[Layer, int]]] = {}
    marks = Marks()

    def record(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        output = next_fun(*args, **kwargs)
        kind = KINDS.get(type(module))
        known = method == "__call__" if kind is None else method in kind.methods
        if known and method != "setup" and _owns_weights(params, module.path):
            path = "/".join(module.path)
            if kind is None:
                layer = _unsupported(path, params, type(module).__name__, "is not supported")
            else:
                given = (*args, *kwargs.values(), None)
                call = Call(module, method, given[0], output, given[1])
                layer = _described(kind, call, path, layer_params(params, path))
            output, number = marks.mark(output)
            # A transformed class calls the plain one.
            if path not in calls or calls[path][0][0].kind == layer.kind:
                calls.setdefault(path, []).append((layer, number))
        return output

    def trace(variables: Any, arrays: Any) -> Any:
        args, kwargs = frame.join(arrays)
        # Other streams fall back to "params"; nothing is drawn here.
        rngs = {name: jax.random.key(0) for name in ("dropout", "params")}
        # All collections may change; the name of no collection is new every time, which makes
        # `nn.jit` in the model trace again, and the calls inside it show.
        mutable = nn.DenyList(f"tdjax_{next(_passes)}")
        with nn.intercept_methods(record):
            return model.apply(variables, *args, **kwargs, rngs=rngs, mutable=mutable)

    runs = marks.runs(jax.make_jaxpr(trace)(shapes, arrays).jaxpr)
    seen = {
        path: of_all_calls([(layer, runs.get(number, 0)) for layer, number in made], batch)
        for path, made in calls.items()
    }
    for path in _weight_owners(params):
        if path not in seen:
            seen[path] = _unsupported(path, params, "a module", "was not called")
    return tuple(seen.values())


def _described(kind: Kind, call: Call, path: str, own: Any) -> Layer:
    """The entry of a layer from one call, with the stack that its array may lie in."""
    layer = dataclasses.replace(kind.describe(call), path=path)
    array = own[kind.weight]
    other = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(own)) - math.prod(array.shape)
    layer = dataclasses.replace(layer, other=other)
    return in_stack(layer, kind.weight, tuple(array.shape))


def _unsupported(path: str, params: Any, kind: str, why: str) -> Layer:
    arrays = _weights(layer_params(params, path))
    largest = max(arrays, key=lambda leaf: math.prod(leaf.shape))
    return Layer(path, kind, tuple(largest.shape), obstacle=f"{kind} {why}")


def _owns_weights(params: Any, path: Sequence[str]) -> bool:
    try:
        own = layer_params(params, "/".join(path))
    except KeyError:
        return False
    return isinstance(own, Mapping) and bool(_weights(own))


def _weight_owners(params: Any, path: tuple[str, ...] = ()) -> list[str]:
    if not isinstance(params, Mapping):
        return []
    own = ["/".join(path)] if _weights(params) else []
    return own + [p for name, sub in params.items() for p in _weight_owners(sub, (*path, name))]


def _weights(own: Mapping[str, Any]) -> list[Any]:
    """The arrays of a module that are weights: not its vectors, which a stack makes matrices."""
    arrays = [leaf for name, leaf in own.items() if name not in VECTORS]
    return [leaf for leaf in arrays if len(getattr(leaf, "shape", ())) >= 2]
