"""The layer table of a Linen model, from a pass over shapes alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from tdjax.allocation.auto import best_format
from tdjax.arguments.called import Method, call_model, calling_the_model
from tdjax.functions.own import Members, Owner, Untraceable, record_own
from tdjax.linen.intercept import Interceptor, apply_inside, dense_class
from tdjax.linen.kinds import KINDS
from tdjax.linen.own import found_call, is_lifted, recorded
from tdjax.linen.place import Path, Place
from tdjax.linen.watch import Watching, watch
from tdjax.params.partitioning import is_boxed, unboxed
from tdjax.params.tree import find, join_path, layer_params, mappings
from tdjax.plan.decide import plan_layers
from tdjax.plan.layers import Inventory, Layer, is_weight
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule
from tdjax.trace.inputs import same_inputs
from tdjax.trace.pairs import pairs_of
from tdjax.trace.recorder import CalledLayer, Recorder, trace_model
from tdjax.trace.trace import Trace, TracedCall

_passes = itertools.count()
# The collection that batch normalisation keeps means and variances in.
STATISTICS = "batch_stats"


def make_plan(
    model: nn.Module,
    variables: Mapping[str, Any],
    rules: Sequence[Rule],
    sample: Any,
    method: Method = None,
) -> Plan:
    """Decide for every layer of a Linen model which format it gets.

    Arguments:
        model: any Linen module; nothing in it needs to know of this library.
        variables: as `model.init` returns them; arrays or shapes. Method "auto" needs arrays.
        rules: the first whose path matches a layer decides; see `tdjax.Rule`.
        sample: one batch as the model takes it, arrays or shapes: the input, a tuple of
            positional or a dict of keyword arguments. The first axis is the batch.
        method: how the model is called, see `tdjax.make_plan`.

    Raises ValueError for a rule that matches no layer or asks for ranks out of range, TypeError
    for something that is not a Linen module.
    """
    found = inventory(model, variables, sample, method)
    choose = best_format(found.array_of)
    return plan_layers(found.layers, rules, found.other, choose, found.other_macs, found.work)


def inventory(
    model: nn.Module, variables: Mapping[str, Any], sample: Any, method: Method = None
) -> Inventory:
    """The layers of a model with the arrays that they hold. Arguments and errors as `make_plan`."""
    traced = _traced(model, variables, sample, method)
    table = _with_the_rest(traced, variables)
    params = variables["params"]
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

    def array_of(layer: Layer) -> Any:
        return unboxed(layer_params(params, layer.path)[layer.storage.name])

    def bias_of(layer: Layer) -> Any:
        return unboxed(layer_params(params, layer.path).get("bias"))

    other = total - sum(layer.size for layer in table)
    return Inventory(
        table, other, array_of, traced.other_macs, traced.branched, same_inputs(traced),
        partial(pairs_of, traced), bias_of,
    )  # fmt: skip


def layer_table(
    model: nn.Module, variables: Mapping[str, Any], sample: Any, method: Method = None
) -> tuple[Layer, ...]:
    """All modules of a model that hold a weight array, in the order in which they are called.

    No arithmetic is done: the model is traced with shapes. Arguments and errors as `make_plan`.
    Modules that cannot be factorised are listed with the obstacle.
    """
    return _with_the_rest(_traced(model, variables, sample, method), variables)


def _with_the_rest(traced: Trace, variables: Mapping[str, Any]) -> tuple[Layer, ...]:
    """The layers of a pass, and all modules with weights that it did not meet."""
    table, params = dict(traced.layers), jax.eval_shape(lambda: plain(variables))["params"]
    for path, own in mappings(params):
        members = {join_path(path, name) for name in own}
        if _weights(own) and path not in table and members.isdisjoint(table):
            reason = "its module is called by another method, or not at all"
            table[path] = _unsupported(path, params, "a module", reason)
    return tuple(table.values())


def plain(variables: Any) -> Any:
    """Variables without the boxes of metadata around them."""
    return jax.tree.map(unboxed, variables, is_leaf=is_boxed)


def leaves(model: nn.Module, variables: Mapping[str, Any]) -> list[Any]:
    """What the program of `trace` takes in front of the arrays of the sample."""
    return jax.tree.leaves(plain(variables))


def trace(
    model: nn.Module, variables: Mapping[str, Any], sample: Any, method: Method = None
) -> Trace:
    """The calls of all modules that hold a weight array, as they are in the traced program.

    The program takes the leaves of `plain(variables)`, then the arrays of the sample. Arguments
    and errors as `layer_table`; ValueError also for variables without the statistics of a batch
    normalisation, which would otherwise be those of an untrained one.
    """
    traced = _traced(model, variables, sample, method)
    made = [names for names in traced.kept if names[0] == STATISTICS]
    if not set(made) <= set(traced.arrays):
        raise ValueError(
            f"variables has no {STATISTICS!r}, or not all that the model reads, such as "
            f"{'/'.join(made[0])!r}: pass all variables of the trained model, not 'params' alone"
        )
    return traced


def _traced(
    model: nn.Module, variables: Mapping[str, Any], sample: Any, method: Method = None
) -> Trace:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {type(model).__name__}")
    shapes = jax.eval_shape(lambda: plain(variables))
    recorder = Recorder()
    recording = partial(_recording, recorder, shapes["params"])

    def run(variables: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # All collections may change; the name of no collection is new every time, which makes
        # `nn.jit` in the model trace again, and the calls inside it show.
        mutable = nn.DenyList(f"tdjax_{next(_passes)}")
        call = partial(call_model, method=method, args=args, kwargs=kwargs)
        outputs, recorder.kept = apply_inside(model, recording, variables, call, mutable=mutable)
        return outputs

    with calling_the_model(sample):
        return trace_model(recorder, run, shapes, sample)


def _recording(recorder: Recorder, params: Any, place: Place) -> Interceptor:
    """An interceptor that hands the calls of modules with weights to a recorder.

    Arguments:
        params: of the model, as shapes.
        place: of the model. Those that it applies inside are other models.
    """
    kinds: dict[str, str] = {}
    running: Counter[Path] = Counter()

    def asked(names: Path, name: str) -> None:
        if not running[names]:
            recorder.asked["params", *names, name] = "the model asks for it, or its shape"

    watching = Watching(asked)

    def watched(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        names = place.path_of(context.module)
        if names is None:
            return next_fun(*args, **kwargs)
        watch(context.module, place, watching)
        running[names] += 1
        try:
            return record(next_fun, args, kwargs, context, names)
        finally:
            running[names] -= 1

    def record(next_fun: Any, args: Any, kwargs: Any, context: Any, names: Path) -> Any:
        module, method = context.module, context.method_name
        _trace_anew(module)
        kind = KINDS.get(dense_class(type(module)))
        known = method == "__call__" if kind is None else method in kind.methods
        if not known or method == "setup" or not _owns_weights(params, names):
            return next_fun(*args, **kwargs)
        path, name = join_path(*names), type(module).__name__
        kernel = None if kind is None else module.variables["params"][kind.weight]
        if kind is not None and isinstance(kernel, jax.Array):
            kinds[path] = name
            own = _own_shapes(params, path)
            array = ("params", *names, kind.weight)
            layer = CalledLayer(path, module, kind.weight, own, kind.describe, array=array)
            return recorder.call(layer, kernel, method, next_fun, args, kwargs)
        if kind is None and is_lifted(module):
            return next_fun(*args, **kwargs)
        if kind is None:
            found = found_call(module, args, kwargs)
        else:
            found = f"its {kind.weight} is no array, but {type(kernel).__name__}"
        if not isinstance(found, str | Members):
            kinds[path] = name
            array = ("params", *names, found.name)
            return record_own(found, path, array, recorder, _own_shapes(params, path))
        number = recorder.number()
        owner = Owner(path, ("params", *names), _own_shapes(params, path), recorder)
        output, taken = _output_of(owner, found, module, next_fun, args, kwargs)
        # A transformed class calls the plain one, which was here first.
        if kinds.setdefault(path, name) == name and not taken:
            reason = found.reason if isinstance(found, Members) else found
            recorder.calls[number] = TracedCall(_unsupported(path, params, name, reason))
        return output

    return watched


def _output_of(
    owner: Owner, found: str | Members, module: Any, next_fun: Any, args: Any, kwargs: Any
) -> tuple[Any, bool]:
    """What a module that is no layer returns, and whether arrays of it are layers."""
    if isinstance(found, str):
        return next_fun(*args, **kwargs), False
    try:
        return recorded(owner, module, args, kwargs)
    except Untraceable:
        return next_fun(*args, **kwargs), False


def _own_shapes(params: Any, path: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a module by name, of those below it none."""
    own = layer_params(params, path).items()
    return {name: leaf.shape for name, leaf in own if not isinstance(leaf, Mapping)}


class _New:
    """A value that is never found in a cache."""

    def __hash__(self) -> int:
        """Another number every time."""
        return next(_passes)


def _trace_anew(module: Any) -> None:
    """Let `nn.jit` below a module trace each of its own: equal ones would share their marks."""
    if module.scope is not None:
        module.scope.flags = {**module.scope.flags, "tdjax": _New()}


def _unsupported(path: str, params: Any, kind: str, obstacle: str) -> Layer:
    arrays = _weights(layer_params(params, path))
    largest = max(arrays, key=lambda leaf: math.prod(leaf.shape))
    return Layer(path, kind, tuple(largest.shape), obstacle=obstacle)


def _owns_weights(params: Any, path: Sequence[str]) -> bool:
    own = find(params, join_path(*path))
    return own is not None and bool(_weights(own))


def _weights(own: Mapping[str, Any]) -> list[Any]:
    """The arrays of a module that are weights."""
    return [leaf for name, leaf in own.items() if is_weight(str(name), getattr(leaf, "shape", ()))]
