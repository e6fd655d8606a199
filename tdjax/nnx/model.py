"""The factorised NNX model: a copy of the user's own, some of its layers replaced by chains.

A module of the copy becomes a factorised one in place, by a change of its class and attributes:
whatever refers to it keeps doing so, under several names, in tuples, and in circles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from tdjax.hints import did_you_mean
from tdjax.moments.collect import LayerMoments
from tdjax.nnx import own
from tdjax.nnx.boxes import boxed, variable_like
from tdjax.nnx.graph import array_of, become, modules_of, place_of
from tdjax.nnx.kinds import KINDS, FactorArray, keep, release, stage_of
from tdjax.nnx.own import MemberFactors, member_weights
from tdjax.nnx.sparse import make_sparse
from tdjax.params.arrays import INDICES, VALUES
from tdjax.params.factorize import dense_tree, factor_tree
from tdjax.params.options import Options
from tdjax.params.tree import layer_params, put
from tdjax.plan.form import PAIRED
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.stage import CORRECTION, INPUT
from tdjax.progress import Progress, Steps

Model = TypeVar("Model", bound=nnx.Module)
DENSE = {kind.factorised: cls for cls, kind in KINDS.items()}


def dense_class(cls: type) -> Any:
    """The class that a factorised layer's was made of; None of other modules."""
    return DENSE.get(cls) or vars(cls).get(own.DENSE)


def factorize(
    model: Model,
    plan: Plan,
    *,
    key: Array | None = None,
    init: str = Options.init,
    max_iters: int = Options.max_iters,
    tol: float | Float[Array, ""] = Options.tol,
    moments: Mapping[str, LayerMoments] | None = None,
    norm: str | None = None,
    correct_bias: bool = False,
    progress: Progress = True,
) -> Model:
    """A copy of a model with the layers of the plan factorised; the model is not changed.

    `nnx.jit`, `nnx.grad`, `nnx.Optimizer`, `nnx.split` and `nnx.merge` work as before. Where a
    layer had a `kernel`, a factorised layer has modules named as the stages of its chain with a
    `kernel` each; its other attributes, the bias among them, stay. Of a module whose arrays are
    layers by themselves, each factorised one becomes a module with those of its chain. A module
    at several paths stays one module. A sparse correction is a module `sparse` with its (k,)
    `values`, an `nnx.Param`, and `indices`, a variable of another kind. Half-precision kernels
    are decomposed in float32 and cast back.

    Arguments:
        model: any NNX module. For shapes alone, call this inside `nnx.eval_shape`.
        plan: from `tdjax.make_plan`.
        key: PRNG key for the random starts of CP; needed if the plan has such a layer.
        init, max_iters, tol: see `tdjax.cp_als` and `tdjax.tucker_als`.
        moments, norm, correct_bias, progress: see `tdjax.factorize_params`.

    Raises KeyError or ValueError for a model that does not fit the plan, ValueError for NaN or
    Inf in a kernel; both name the layer. TypeError for something that is not an NNX module.
    """
    params = own_arrays(model, plan, bias=correct_bias)
    options = Options(
        key=key, init=init, max_iters=max_iters, tol=tol,
        moments=moments, norm=norm, correct_bias=correct_bias, steps=Steps("factorize", progress),
    )  # fmt: skip
    return with_chains(model, plan, factor_tree(params, plan, options))


def own_arrays(model: nnx.Module, plan: Plan, *, bias: bool) -> dict[str, Any]:
    """The arrays that hold the kernels of a plan's layers, by path, and their biases if asked."""
    modules = modules_of(model)
    params: dict[str, Any] = {}
    for entry in plan.layers:
        if entry.form is None and not entry.dtype:
            continue
        module, storage = dense_module(modules, entry), entry.layer.storage
        weight = getattr(module, place_of(entry.layer)[1])
        if isinstance(array_of(weight), jax.ShapeDtypeStruct):
            raise ValueError(
                f"layer {entry.layer.path!r} holds a shape and no array: use nnx.eval_shape"
            )
        own = {storage.name: boxed(weight, storage)}
        present = getattr(module, "bias", None)
        # What a pair's layer puts out is mixed, or chosen from, with its bias.
        asked = bias or entry.method in PAIRED
        if asked and present is not None and entry.form and not entry.layer.is_member:
            own["bias"] = array_of(present)
        put(params, entry.layer.path, own)
    return params


def with_chains(model: Model, plan: Plan, factors: Mapping[str, Any]) -> Model:
    """A copy of a model with the layers of a plan factorised, from their factors by path."""
    copy = nnx.clone(model)
    modules = modules_of(copy)
    for entry in plan.factorised:
        own = layer_params(factors, entry.layer.path)
        module: Any = dense_module(modules, entry)
        _to_chain(module, entry, own)
        if entry.shares is not None:
            # One module at several paths, which NNX stores and trains once.
            module.input = modules[entry.shares].input
    for entry in plan.layers:
        if entry.form is None:
            if entry.dtype is not None:
                _with_weight(modules, entry, layer_params(factors, entry.layer.path))
            keep(modules.get(entry.layer.path))
    return copy


def _with_weight(modules: Mapping[str, Any], entry: PlannedLayer, arrays: Any) -> None:
    """Put another array in the place of a dense layer's own."""
    module, storage = dense_module(modules, entry), entry.layer.storage
    weight = getattr(module, storage.name)
    setattr(module, storage.name, variable_like(weight, arrays[storage.name], storage))


def reconstruct(model: Model, plan: Plan) -> Model:
    """A copy of a factorised model with dense layers again, kernels multiplied out.

    The inverse of `factorize`, differentiable and safe inside `nnx.jit`.

        >>> import jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model, x = nnx.Linear(8, 8, rngs=nnx.Rngs(0)), jnp.ones((2, 8))
        >>> plan = tdjax.make_plan(model, [tdjax.Rule(path="", method="svd", rank=2)], x)
        >>> tdjax.nnx.reconstruct(tdjax.factorize(model, plan), plan).kernel.shape
        (8, 8)

    Raises KeyError or ValueError where the model's layers are not those of the plan.
    """
    modules = modules_of(model)
    params: dict[str, Any] = {}
    for entry in plan.factorised:
        module: Any = factorised_module(modules, entry)
        if entry.layer.is_member:
            module = modules[entry.layer.path]
        kernels = {stage.name: getattr(module, stage.name).kernel for stage in entry.stages}
        own = {
            name: {"kernel": boxed(kernel, entry.layer.storage)} for name, kernel in kernels.items()
        }
        if entry.nonzeros:
            sparse = getattr(module, CORRECTION)
            own[CORRECTION] = {VALUES: sparse.values[...], INDICES: sparse.indices[...]}
        put(params, entry.layer.path, own)
    kept = [entry for entry in plan.layers if entry.form is None and entry.dtype]
    for entry in kept:
        storage = entry.layer.storage
        weight = getattr(dense_module(modules, entry), storage.name)
        put(params, entry.layer.path, {storage.name: boxed(weight, storage)})
    arrays = dense_tree(params, plan)
    copy = nnx.clone(model)
    modules = modules_of(copy)
    for entry in kept:
        _with_weight(modules, entry, layer_params(arrays, entry.layer.path))
    for entry in plan.factorised:
        module = modules[place_of(entry.layer)[0]]
        _to_dense(module, entry, layer_params(arrays, entry.layer.path))
    for entry in plan.layers:
        if entry.form is None:
            release(modules.get(entry.layer.path))
    return copy


def is_factorised(modules: Mapping[str, Any], entry: PlannedLayer) -> bool:
    """Whether the layer of a plan's entry is a chain in a model, of whatever plan."""
    module = modules.get(entry.layer.path)
    return isinstance(module, MemberFactors) or dense_class(type(module)) is not None


def dense_module(modules: Mapping[str, Any], entry: PlannedLayer) -> nnx.Module:
    """The layer of a plan's entry. Raises KeyError or ValueError where the model has another."""
    return _module_at(modules, entry)


def factorised_module(modules: Mapping[str, Any], entry: PlannedLayer) -> nnx.Module:
    """The chain of a plan's entry. Raises KeyError or ValueError where the model has another."""
    return _module_at(modules, entry, factorised=True)


def _to_chain(module: Any, entry: PlannedLayer, factors: Any) -> None:
    kind, storage = KINDS.get(type(module)), entry.layer.storage
    if entry.layer.is_member:
        _to_member(module, entry, factors)
        return
    weight = getattr(module, storage.name)
    delattr(module, storage.name)
    for stage in entry.stages:
        thin: Any = stage_of(module, stage, entry)
        thin.kernel = variable_like(weight, factors[stage.name]["kernel"], storage)
        setattr(module, stage.name, thin)
    if entry.correction is not None and kind is not None:
        thin, sparse = kind.thin(module, entry.correction), factors[CORRECTION]
        values = variable_like(weight, sparse[VALUES], storage)
        make_sparse(thin, values, sparse[INDICES], entry.correction.kernel_shape)
        setattr(module, CORRECTION, thin)
    if "bias" in factors:
        module.bias[...] = factors["bias"]
    module.planned = entry
    cls: Any = type(module)
    become(module, own.factorised_class(cls) if kind is None else kind.factorised)


def _to_member(module: Any, entry: PlannedLayer, factors: Any) -> None:
    """Put the factors of one of a module's arrays in its place."""
    cls: Any = type(module)
    _, name = place_of(entry.layer)
    weight, held = getattr(module, name), MemberFactors()
    delattr(module, name)
    for stage in entry.stages:
        thin: Any = FactorArray()
        thin.kernel = variable_like(weight, factors[stage.name]["kernel"], entry.layer.storage)
        setattr(held, stage.name, thin)
    setattr(module, name, held)
    module.planned_members = (*getattr(module, "planned_members", ()), entry)
    become(module, own.members_class(dense_class(cls) or cls))


def _to_dense(module: Any, entry: PlannedLayer, arrays: Any) -> None:
    storage = entry.layer.storage
    if entry.layer.is_member:
        _, name = place_of(entry.layer)
        factor = getattr(getattr(module, name), entry.stages[0].name).kernel
        delattr(module, name)
        setattr(module, name, variable_like(factor, arrays[storage.name], storage))
        left = tuple(other for other in module.planned_members if other != entry)
        module.planned_members = left
        if not left:
            delattr(module, "planned_members")
            become(module, dense_class(type(module)))
        return
    factor = getattr(module, entry.stages[0].name).kernel
    sparse = (CORRECTION,) if entry.nonzeros else ()
    for name in ("planned", *sparse, *(stage.name for stage in entry.chain.stages)):
        delattr(module, name)
    setattr(module, storage.name, variable_like(factor, arrays[storage.name], storage))
    become(module, dense_class(type(module)))


def _module_at(
    modules: Mapping[str, Any], entry: PlannedLayer, factorised: bool = False
) -> nnx.Module:
    """The module of a plan's entry. Raises KeyError or ValueError where it is another."""
    layer = entry.layer
    if layer.is_member:
        return _owner_at(modules, entry, factorised)
    if layer.path not in modules:
        known = ", ".join(path or "(model)" for path in sorted(modules))
        near = did_you_mean(layer.path, modules)
        raise KeyError(f"the model has no layer {layer.path!r}; its modules are: {known}{near}")
    module = modules[layer.path]
    name = type(module).__name__
    if factorised:
        if dense_class(type(module)) is None:
            raise ValueError(f"layer {layer.path!r} is not factorised, but an nnx.{name}")
        if (module.planned.stages, module.planned.form) != (entry.stages, entry.form):
            raise ValueError(f"layer {layer.path!r} was factorised by another plan")
        lender = module if entry.shares is None else modules.get(entry.shares)
        if entry.shares is not None and getattr(lender, INPUT, None) is not module.input:
            raise ValueError(f"layer {layer.path!r} has another input factor than {entry.shares!r}")
        return module
    if dense_class(type(module)) is not None:
        raise ValueError(
            f"layer {layer.path!r} of the model is factorised already: pass the model that the "
            "plan was made for, or make a plan for this one"
        )
    kind = KINDS.get(type(module))
    weight = kind.weight if kind is not None else own.own_weight(module)
    if weight != layer.storage.name or (kind is None) != layer.is_own:
        raise ValueError(f"layer {layer.path!r}: the plan was made for {layer.kind}, not {name}")
    groups = getattr(module, "feature_group_count", 1)
    if groups != layer.groups:
        raise ValueError(
            f"layer {layer.path!r} has {groups} feature groups, but the plan was made for "
            f"{layer.groups}"
        )
    return module


def _owner_at(modules: Mapping[str, Any], entry: PlannedLayer, factorised: bool) -> nnx.Module:
    """The module that has an array which is a layer by itself; see `_module_at`."""
    path, (owner, name) = entry.layer.path, place_of(entry.layer)
    module: Any = modules.get(owner)
    held = isinstance(getattr(module, name, None), MemberFactors)
    if factorised:
        if not held:
            raise ValueError(f"layer {path!r} is not factorised")
        known = {own.layer.path: (own.stages, own.form) for own in module.planned_members}
        if known.get(path) != (entry.stages, entry.form):
            raise ValueError(f"layer {path!r} was factorised by another plan")
    elif held:
        raise ValueError(
            f"layer {path!r} of the model is factorised already: pass the model that the plan was "
            "made for, or make a plan for this one"
        )
    elif module is None or type(module) in KINDS or name not in member_weights(module):
        near = did_you_mean(owner, modules)
        raise KeyError(f"the model has no array {path!r}, for which the plan was made{near}")
    return module
