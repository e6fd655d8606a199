"""The parameters of a plan's layers as it stores them, and in full again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from tdjax.arguments.checks import check_mapping
from tdjax.params.corrections import unpacked, with_params
from tdjax.params.leaves import of_leaves, tree_of_plan
from tdjax.params.partitioning import is_boxed, unboxed
from tdjax.params.quantised import array_of, is_quantised
from tdjax.params.stored import stored, stored_kernels
from tdjax.params.tree import copied, find, join_path, layer_params, put
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.sharing import units_of

Params = Mapping[str, Any]


def stored_params(params: Any, plan: Plan) -> Any:
    """See `tdjax.quantize`; of parameters, variables, or the parameters of a function."""
    return _of_any("quantize", params, plan, stored_tree)


def full_params(params: Any, plan: Plan) -> Any:
    """See `tdjax.dequantize`, as `stored_params`."""
    return _of_any("dequantize", params, plan, in_full)


def _of_any(name: str, params: Any, plan: Plan, change: Callable[..., Any]) -> Any:
    if of_leaves(plan):
        leaves = tree_of_plan(params, plan)
        return leaves.filled(change(leaves.mapping, plan), plan)
    check_mapping(name, params)
    own, variables = unpacked(params, plan)
    tree = change(own, plan)
    return tree if variables is None else with_params(variables, tree, plan)


def stored_tree(params: Params, plan: Plan) -> dict[str, Any]:
    """`stored_params` of nested mappings; what is not among them is left out."""
    result = copied(params)
    entries = [entry for entry in plan.layers if entry.dtype is not None]
    for entry in (own for own in entries if own.form is None):
        path, own = entry.layer.path, find(params, entry.layer.path)
        if own is not None:
            name = entry.layer.storage.name
            put(result, path, {name: stored(full_array(own[name]), entry)})
    for unit in units_of([own for own in entries if own.form is not None]):
        if all(find(params, entry.layer.path) is None for entry in unit):
            continue
        # Of layers that share an input factor none can be scaled without the others.
        leaves = [_kernels(layer_params(params, entry.layer.path), entry) for entry in unit]
        kernels = [{name: full_array(leaf) for name, leaf in own.items()} for own in leaves]
        # Those that are stored so already stay bit for bit.
        anew = not any(is_quantised(leaf) for own in leaves for leaf in own.values())
        for entry, own in zip(unit, stored_kernels(kernels, unit, anew=anew), strict=True):
            for name, kernel in own.items():
                put(result, join_path(entry.layer.path, name), {"kernel": kernel})
    return result


def in_full(params: Params, plan: Plan) -> dict[str, Any]:
    """`full_params` of nested mappings; what is not among them is left out."""
    result = copied(params)
    for entry in plan.layers:
        path, own = entry.layer.path, find(params, entry.layer.path)
        if entry.dtype is None or own is None:
            continue
        names = [stage.name for stage in entry.stages] or [entry.layer.storage.name]
        for name in (name for name in names if name in own):
            if entry.form is None:
                put(result, path, {name: full_array(own[name])})
            else:
                put(result, join_path(path, name), {"kernel": full_array(own[name]["kernel"])})
    return result


def as_stored(
    factors: Sequence[Mapping[str, Any]], unit: Sequence[PlannedLayer]
) -> list[dict[str, Any]]:
    """What the factors of a layer, or of layers that share, stand for once a plan has stored them.

    Arguments:
        factors: of each layer.
    """
    kernels = [
        {stage.name: full_array(own[stage.name]) for stage in entry.stages}
        for own, entry in zip(factors, unit, strict=True)
    ]
    made = stored_kernels(kernels, unit)
    return [
        {**own, **{name: full_array(kernel) for name, kernel in new.items()}}
        for own, new in zip(factors, made, strict=True)
    ]


def _kernels(own: Params, entry: PlannedLayer) -> dict[str, Any]:
    """The kernels of a layer's stages."""
    missing = [stage.name for stage in entry.stages if stage.name not in own]
    if missing:
        raise KeyError(f"layer {entry.layer.path!r} has no factors {', '.join(missing)}")
    return {stage.name: own[stage.name]["kernel"] for stage in entry.stages}


def full_array(leaf: Any) -> Any:
    """A leaf in float32, where it is stored in less."""
    if is_quantised(leaf):
        return array_of(leaf)
    array = unboxed(leaf)
    # What others have made of it says nothing of that.
    if getattr(array, "dtype", None) != jnp.bfloat16:
        return leaf
    full = jnp.asarray(array).astype(jnp.float32)
    return leaf.replace_boxed(full) if is_boxed(leaf) else full
