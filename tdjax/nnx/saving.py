"""An NNX model as nested mappings of arrays that a checkpoint takes, and back into a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from tdjax.hints import did_you_mean
from tdjax.nnx.boxes import boxed
from tdjax.nnx.graph import modules_of, place_of
from tdjax.nnx.model import dense_module, factorised_module, is_factorised, with_chains
from tdjax.params.arrays import INDICES, VALUES
from tdjax.params.corrections import COLLECTION, unpacked
from tdjax.params.partitioning import box_factor, unboxed
from tdjax.params.placing import factor_shardings, placed, sharding_of
from tdjax.params.quantised import Quantised, is_quantised
from tdjax.params.stored import is_around
from tdjax.params.tree import find, join_path, put, split_path
from tdjax.plan.plan import Plan
from tdjax.plan.stage import CORRECTION, INPUT
from tdjax.pruning.prunable import names_of

Model = TypeVar("Model", bound=nnx.Module)
Names = tuple[str, ...]
# What a checkpoint holds beside parameters: statistics, keys and counters of random numbers.
OTHER = "state"
# Their names, or that of what holds them, in a mapping that tells no kinds of variables.
STATISTICS, HOLDER = ("mean", "var"), "batch_stats"


def variables_of(source: Any, plan: Plan | None = None) -> dict[str, Any]:
    """The arrays of a factorised model, of its state, or of a mapping of that, as Linen has them.

    Keys that are numbers, of lists, become names; keys of random numbers their data. Arrays that
    are no parameters lie under "state", the indices of sparse corrections under "sparsity". A
    shared input factor lies with the layer that the plan says.
    """
    state = nnx.state(source) if isinstance(source, nnx.Module) else source
    params = _parameters(state)
    tree: dict[str, Any] = {"params": {}}
    for path, leaf in jax.tree.leaves_with_path(state, is_leaf=is_around):
        names = names_of(path)
        group = "params" if names in params else OTHER
        names = _with_lender(names, plan)
        if names[-2:] == (CORRECTION, INDICES):
            group = COLLECTION
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        put(
            tree.setdefault(group, {}),
            join_path(*names[:-1]),
            {names[-1]: jax.random.key_data(leaf) if key else _plain(leaf)},
        )
    return tree


def _with_lender(names: Names, plan: Plan | None) -> Names:
    """The names of an array, those of a shared input factor where the plan has it.

    NNX names what is at several paths by the first of them in its own order.
    """
    path = join_path(*names[:-2]) if names[-2:-1] == (INPUT,) else None
    for entry in () if plan is None or path is None else plan.factorised:
        if entry.layer.path == path and entry.shares is not None:
            return (*split_path(entry.shares), *names[-2:])
    return names


def _plain(leaf: Any) -> Any:
    """A leaf as Linen has it."""
    return leaf.values if is_quantised(leaf) and leaf.scale is None else leaf


def restored(like: Model, tree: Mapping[str, Any], plan: Plan) -> Model:
    """A factorised model from what `variables_of` gave, nothing being decomposed.

    Arguments:
        like: the model that was factorised, as arrays or shapes, or one factorised by this plan;
            it is not changed. Its settings and modes stay, and where the checkpoint has parameters
            alone, all other arrays.

    Raises ValueError for a model that lacks some of the arrays, has others, or other shapes.
    """
    arrays, params = _by_names(tree), unpacked(tree, plan).params
    model, made = _model_like(like, params, plan)
    graph, state = nnx.split(model)
    leaves, structure = jax.tree.flatten(state, is_leaf=is_around)
    names = [
        _with_lender(names_of(path), plan)
        for path, _ in jax.tree.leaves_with_path(state, is_leaf=is_around)
    ]
    own = {_with_lender(name, plan) for name in _parameters(state)}
    whole = any(group == OTHER for group in tree)
    extra = sorted("/".join(name) for name in arrays.keys() - set(names))
    if extra:
        raise ValueError(
            f"load_factorised: like has no {extra[0]!r}, which was saved"
            f"{did_you_mean(extra[0], ('/'.join(name) for name in names))}: pass a model as the "
            "one that was saved"
        )
    found = [
        leaf if name in made else _value(name, leaf, arrays.get(name), needed=whole or name in own)
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(structure, found))


def _model_like(
    like: Model, params: Mapping[str, Any], plan: Plan
) -> tuple[Model, Collection[Names]]:
    """A factorised copy of a model, and the names of its arrays that are those of a checkpoint."""
    modules = modules_of(like)
    if plan.factorised and all(is_factorised(modules, entry) for entry in plan.factorised):
        for entry in plan.factorised:
            factorised_module(modules, entry)
        return nnx.clone(like), ()
    factors = _factors(params, plan, modules)
    made = jax.tree.leaves_with_path(factors, is_leaf=is_around)
    return with_chains(like, plan, factors), {names_of(path) for path, _ in made}


def _parameters(state: Any) -> set[Names]:
    """The names of what is a parameter, of a state or of a mapping without kinds of variables."""
    if isinstance(state, nnx.State):
        params = nnx.filter_state(state, nnx.Param)
        found = jax.tree.leaves_with_path(params, is_leaf=is_around)
        return {names_of(path) for path, _ in found}
    return {
        names_of(path)
        for path, leaf in jax.tree.leaves_with_path(state, is_leaf=is_around)
        if jnp.issubdtype(unboxed(leaf).dtype, jnp.inexact) and not _is_statistic(names_of(path))
    }


def _is_statistic(names: Names) -> bool:
    return names[-1] in STATISTICS or HOLDER in names


def _by_names(tree: Mapping[str, Any]) -> dict[Names, Any]:
    """All arrays of a checkpoint, without the groups and boxes that they lie in."""
    groups = tree.values() if isinstance(tree.get("params"), Mapping) else (tree,)
    return {
        names_of(path): unboxed(leaf)
        for group in groups
        for path, leaf in jax.tree.leaves_with_path(group, is_leaf=is_around)
    }


def _factors(params: Mapping[str, Any], plan: Plan, modules: Mapping[str, Any]) -> dict[str, Any]:
    """The factors of a plan's layers, named and laid out as the dense layers are."""
    factors: dict[str, Any] = {}
    for entry in plan.factorised:
        module, own = dense_module(modules, entry), find(params, entry.layer.path) or {}
        weight = getattr(module, place_of(entry.layer)[1])
        box = boxed(weight, entry.layer.storage)
        places = factor_shardings(box, entry)
        chain: dict[str, Any] = {}
        for stage in entry.stages:
            array = placed(unboxed(own[stage.name]["kernel"]), places[stage.name])
            chain[stage.name] = {"kernel": box_factor(box, array, entry, stage)}
        if entry.nonzeros:
            chain[CORRECTION] = {
                name: placed(unboxed(own[CORRECTION][name]), places[CORRECTION])
                for name in (VALUES, INDICES)
            }
        put(factors, entry.layer.path, chain)
    for entry in plan.layers:
        if entry.form is None and entry.dtype is not None:
            name, own = entry.layer.storage.name, find(params, entry.layer.path) or {}
            put(factors, entry.layer.path, {name: placed(unboxed(own[name]), None)})
    return factors


def _value(names: Names, leaf: Any, saved: Any, *, needed: bool) -> Any:
    """What takes the place of an array of the model, or of a shape."""
    text = "/".join(names)
    if saved is None:
        if needed or isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(f"load_factorised: like has {text!r}, which was not saved")
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # Of shapes the kind of the keys is known by their dtype alone.
        kind = jax.random.key_impl(jnp.empty(leaf.shape, leaf.dtype))
        saved = jax.random.wrap_key_data(jnp.asarray(saved), impl=kind)
    if saved.shape != leaf.shape:
        raise ValueError(
            f"load_factorised: {text!r} was saved with shape {saved.shape}, but that of like is "
            f"{leaf.shape}"
        )
    found = placed(saved, sharding_of(leaf))
    halved = is_quantised(leaf) and leaf.scale is None
    return Quantised(found, None) if halved else found
