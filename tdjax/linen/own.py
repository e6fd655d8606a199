"""Linen layers of classes that are not Flax's own; see `tdjax.functions.own`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import lift
from flax.linen.transforms import decorator_lift_transform
from jaxtyping import Array

from tdjax.functions.own import (
    Members,
    OwnCall,
    Owner,
    are_of_one,
    member_name,
    multiplied_out,
    output_of_members,
    own_call,
    own_output,
)
from tdjax.linen.initial import rescaled
from tdjax.linen.intercept import dense_class
from tdjax.params.check import factor_shapes
from tdjax.params.partitioning import box_factor, is_boxed, unboxed
from tdjax.params.stored import bare, is_around
from tdjax.plan.layers import is_weight
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage

# Modules whose call runs as a function of their arrays, by the counters of their scopes.
_lifted: ContextVar[frozenset[int]] = ContextVar("lifted", default=frozenset())


def found_call(
    module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> OwnCall | Members | str:
    """A call of a module as one of a layer; where it is none that can be factorised, why."""
    params = module.variables.get("params", {})
    inner = [name for name, leaf in params.items() if isinstance(leaf, Mapping)]
    if inner:
        arrays = ", ".join(sorted(set(params) - set(inner)))
        return Members(f"it holds modules beside its own {arrays}")
    if not module.scope.path:
        return Members("it is the model itself")
    if set(module.variables) > {"params"}:
        return Members("it needs or keeps more than its parameters")
    return own_call(_alone(module, keeps=True), params, args, kwargs)


def recorded(
    owner: Owner, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, bool]:
    """What a call returns, and whether arrays of the module are layers; see `Owner.record`."""
    taken: list[bool] = []

    def run(*call: Any) -> Any:
        output, found = owner.record(*call)
        taken.append(found)
        return output

    weights = [name for name, shape in owner.shapes.items() if is_weight(name, shape)]
    return lifted(module, weights, run, args, kwargs), taken[0]


def answer(
    module: Any,
    entry: PlannedLayer,
    method: str,
    next_fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """What a module returns with a chain in place of its kernel."""
    if method == "setup":
        # It would ask for the kernel.
        return None
    if method != "__call__":
        return next_fun(*args, **kwargs)
    if module.is_mutable_collection("params"):
        _initialise(module, entry, args, kwargs)
    params = jax.tree.map(bare, dict(module.variables["params"]), is_leaf=is_around)
    factors = {stage.name: params.pop(stage.name) for stage in entry.stages}
    if not are_of_one(entry, factors):
        return next_fun(*args, **kwargs)
    return own_output(entry, _alone(module), params, factors, args, kwargs)


def answer_by_members(
    module: Any,
    entries: Sequence[PlannedLayer],
    method: str,
    next_fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """What a module returns with chains in place of some of its arrays."""
    if is_lifted(module):
        return next_fun(*args, **kwargs)
    params = module.variables.get("params", {})
    names = [member_name(entry) for entry in entries]
    if not all(isinstance(params.get(name), Mapping) for name in names):
        output = next_fun(*args, **kwargs)
        if method != "setup" and module.is_mutable_collection("params"):
            _make_members(module, entries)
        return output
    if method != "__call__":
        with _multiplied_out(module, entries):
            return next_fun(*args, **kwargs)

    def run(apply: Any, own: Mapping[str, Any], args: Any, kwargs: Any) -> Any:
        factors = jax.tree.map(bare, {**own}, is_leaf=is_around)
        return output_of_members(entries, apply, factors, args, kwargs)

    return lifted(module, names, run, args, kwargs)


def is_lifted(module: Any) -> bool:
    """Whether a module's call runs by way of `lifted`."""
    return id(module.scope.rng_counters) in _lifted.get()


def lifted(
    module: Any,
    names: Sequence[str],
    run: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """What a module's call returns, and keeps, by way of a function of some of its arrays.

    Arguments:
        names: of the arrays.
        run: (apply, arrays by name, args, kwargs) -> what `apply(arrays, *args, **kwargs)` returns.
    """

    def transform(call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(
            scopes: Any, repack: Any, groups: Any, rngs: Any, *args: Any, **kwargs: Any
        ) -> Any:
            ((*others, own),) = groups
            params = dict(own["params"])
            chosen = {name: params.pop(name) for name in names}

            def apply(chosen: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
                whole = {**own, "params": {**params, **chosen}}
                scope = scopes(((*others, whole),), rngs)
                output = call(scope, *args, **kwargs)
                ((*rest, kept),) = repack(scope)
                if "params" in kept:
                    left = {k: x for k, x in kept["params"].items() if k not in names}
                    kept = {**kept, "params": left}
                return output, ((*rest, kept),)

            return run(apply, chosen, args, kwargs)

        return lift.pack(inner, (True,), (True,), (True,), enable_kwargs=True)

    method: Any = dense_class(type(module)).__call__
    before = _lifted.set(_lifted.get() | {id(module.scope.rng_counters)})
    try:
        return decorator_lift_transform(transform, method)(module, *args, **kwargs)
    finally:
        _lifted.reset(before)


@contextmanager
def _multiplied_out(module: Any, entries: Sequence[PlannedLayer]) -> Iterator[None]:
    """Let a module find its own arrays: in `setup`, and by methods that are not its call."""
    scope, params = module.scope, module.variables["params"]
    arrays = {}
    for entry in entries:
        name = member_name(entry)
        factors = jax.tree.map(bare, dict(params[name]), is_leaf=is_around)
        arrays[name] = multiplied_out(entry, factors)
    before = scope._variables
    scope._variables = {**before, "params": {**params, **arrays}}
    try:
        yield
    finally:
        scope._variables = before


def _make_members(module: Any, entries: Sequence[PlannedLayer]) -> None:
    """Put factors in place of the arrays that a module has drawn."""
    for entry in entries:
        name, storage = member_name(entry), entry.layer.storage
        drawn = module.variables.get("params", {}).get(name)
        if drawn is None or isinstance(drawn, Mapping):
            continue
        stacked = unboxed(drawn).shape == storage.whole_shape
        factors = {
            stage.name: {
                "kernel": _factor(drawn, entry, stage, module.make_rng("params"), stacked=stacked)
            }
            for stage in entry.stages
        }
        module.scope.put_variable("params", name, factors)


def _alone(module: Any, *, keeps: bool = False) -> Callable[..., Any]:
    """A module's call as a function of its parameters.

    Arguments:
        keeps: whether to refuse, with a ValueError, a call that keeps something.
    """
    clone = _clone(module)
    rngs = {name: module.make_rng(name) for name in module.scope.rngs}

    def apply(params: Any, *args: Any, **kwargs: Any) -> Any:
        call = partial(clone.apply, {"params": params}, *args, **kwargs, rngs=rngs)
        if not keeps:
            return call()
        output, kept = call(mutable=nn.DenyList("params"))
        if jax.tree.leaves(kept):
            raise ValueError("the module keeps more than parameters")
        return output

    return apply


def _clone(module: Any) -> Any:
    clone = module.clone(parent=None, name=None)
    # Of a model taken apart, a module that would answer with a chain itself.
    object.__setattr__(clone, "__class__", dense_class(type(module)))
    return clone


def _initialise(
    module: Any, entry: PlannedLayer, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Make the parameters of a module, those of the chain in place of its kernel."""
    scope, name = module.scope, entry.layer.storage.name
    if all(scope.has_variable("params", stage.name) for stage in entry.stages):
        return
    keys = {stream: module.make_rng(stream) for stream in scope.rngs}
    values = dict(_clone(module).init(keys, *args, **kwargs).get("params", {}))
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


def _factor(
    drawn: Any, entry: PlannedLayer, stage: Stage, key: Array, *, stacked: bool = False
) -> Any:
    """A factor of a layer that is trained from scratch, where it would draw a kernel."""
    kernel, last = unboxed(drawn), stage == entry.stages[-1]
    size = jnp.sqrt(jnp.mean(jnp.square(kernel.astype(jnp.float32))))
    shape = factor_shapes(entry)[stage.name] if stacked else stage.kernel_shape
    array = jax.random.normal(key, shape, kernel.dtype)
    array = rescaled(array, key, size, ranks=entry.ranks, parts=len(entry.stages), last=last)
    return box_factor(drawn, array, entry, stage, stacked=stacked) if is_boxed(drawn) else array
