"""The parameters of a plan's layers as it stores them, and in full again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from tdjax.arguments.checks import check_mapping
from tdjax.params.corrections import unpacked, with_params
from tdjax.params.leaves import of_leaves, tree_of_plan
from tdjax.params.partitioning import is_boxed, unboxed
from tdjax.params.quantised import array_of, is_quantised
from tdjax.params.stored import stored, stored_kernels
from tdjax.params.tree import copied, find, join_path, put
from tdjax.plan.plan import Plan, PlannedLayer

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
    for entry in plan.layers:
        path, own = entry.layer.path, find(params, entry.layer.path)
        if entry.dtype is None or own is None:
            continue
        if entry.form is None:
            name = entry.layer.storage.name
            put(result, path, {name: stored(full_array(own[name]), entry)})
            continue
        _check(own, entry)
        kernels = {stage.name: full_array(own[stage.name]["kernel"]) for stage in entry.stages}
        # Those that are stored so already stay bit for bit.
        anew = not any(is_quantised(own[name]["kernel"]) for name in kernels)
        for name, kernel in stored_kernels(kernels, entry, anew=anew).items():
            put(result, join_path(path, name), {"kernel": kernel})
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


def as_stored(factors: Mapping[str, Any], entry: PlannedLayer) -> dict[str, Any]:
    """What the factors of a layer stand for once its plan has stored them."""
    kernels = {stage.name: full_array(factors[stage.name]) for stage in entry.stages}
    made = stored_kernels(kernels, entry)
    return {**factors, **{name: full_array(kernel) for name, kernel in made.items()}}


def _check(own: Params, entry: PlannedLayer) -> None:
    missing = [stage.name for stage in entry.stages if stage.name not in own]
    if missing:
        raise KeyError(f"layer {entry.layer.path!r} has no factors {', '.join(missing)}")


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
