"""Linen layers of classes that are not Flax's own; see `tdjax.functions.own`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from tdjax.functions.own import OwnCall, are_of_one, own_call, own_output
from tdjax.linen.initial import rescaled
from tdjax.linen.intercept import dense_class
from tdjax.params.partitioning import box_factor, is_boxed, unboxed
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage


def found_call(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> OwnCall | str:
    """A call of a module as one of a layer; where it is none that can be factorised, why."""
    params = module.variables.get("params", {})
    inner = [name for name, leaf in params.items() if isinstance(leaf, Mapping)]
    if inner:
        arrays = ", ".join(sorted(set(params) - set(inner)))
        return f"it holds modules beside its own {arrays}"
    if not module.scope.path:
        return "it is the model itself"
    if set(module.variables) > {"params"}:
        return "it needs or keeps more than its parameters"
    return own_call(_alone(module, keeps=True), params, args, kwargs)


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
    params = jax.tree.map(unboxed, dict(module.variables["params"]), is_leaf=is_boxed)
    factors = {stage.name: params.pop(stage.name) for stage in entry.stages}
    if not are_of_one(entry, factors):
        return next_fun(*args, **kwargs)
    return own_output(entry, _alone(module), params, factors, args, kwargs)


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


def _factor(drawn: Any, entry: PlannedLayer, stage: Stage, key: Array) -> Any:
    """A factor of a layer that is trained from scratch, where it would draw a kernel."""
    kernel, last = unboxed(drawn), stage == entry.stages[-1]
    size = jnp.sqrt(jnp.mean(jnp.square(kernel.astype(jnp.float32))))
    array = jax.random.normal(key, stage.kernel_shape, kernel.dtype)
    array = rescaled(array, key, size, ranks=entry.ranks, parts=len(entry.stages), last=last)
    return box_factor(drawn, array, entry, stage, stacked=False) if is_boxed(drawn) else array
