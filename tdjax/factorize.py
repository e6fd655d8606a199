"""Parameter pytrees: kernels -> factors, factors -> kernels.

Pure functions on nested mappings; they know a plan, and nothing of modules. Where a layer's
parameters were {"kernel", "bias"}, a factorised layer has {<stage>: {"kernel"}, ..., "bias"}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax import chain
from tdjax.boxes import box_factor, box_whole, unboxed
from tdjax.decompose import cp_als, truncated_svd, tt_svd, tucker_als
from tdjax.formats import Format
from tdjax.plan import Plan, PlannedLayer

Params = Mapping[str, Any]


def factorize_params(
    params: Params,
    plan: Plan,
    *,
    key: Array | None = None,
    init: str = "normal",
    max_iters: int = 100,
    tol: float = 1e-8,
) -> dict[str, Any]:
    """Replace the kernels of all layers that the plan factorises by their factors.

    Half-precision kernels are decomposed in float32 and cast back.

    Arguments:
        params: nested mapping of arrays, as `variables["params"]`; it is not changed.
        plan: from `tdjax.make_plan`.
        key: PRNG key for the random starts of CP; needed if the plan has such a layer.
        init, max_iters, tol: see `tdjax.cp_als` and `tdjax.tucker_als`.

    Raises KeyError or ValueError for parameters that do not fit the plan, ValueError for NaN or
    Inf in a kernel; both name the layer.
    """
    for entry in plan.factorised:
        _check_kernel(params, entry)
    if key is None and any(entry.method == "cp" for entry in plan.factorised):
        raise ValueError("factorize_params: CP starts from random factors, pass key=")
    result = _copied(params)
    for index, entry in enumerate(plan.factorised):
        own = _at(result, entry.layer.path)
        stored = own.pop(entry.layer.storage.name)
        array = jnp.asarray(unboxed(stored))
        factors = decompose_array(
            array,
            entry,
            key=None if key is None else jax.random.fold_in(key, index),
            init=init,
            max_iters=max_iters,
            tol=tol,
        )
        for stage in entry.stages:
            factor = factors[stage.name].astype(array.dtype)
            own[stage.name] = {"kernel": box_factor(stored, factor, entry, stage)}
    return result


def reconstruct_params(params: Params, plan: Plan) -> dict[str, Any]:
    """Multiply the factors out to kernels of the original shapes; the inverse direction.

    Differentiable and safe inside `jit` and `vmap`. Raises KeyError where factors are missing.
    """
    result = _copied(params)
    for entry in plan.factorised:
        own, storage = _at(result, entry.layer.path), entry.layer.storage
        missing = [stage.name for stage in entry.stages if stage.name not in own]
        if missing:
            raise KeyError(f"layer {entry.layer.path!r} has no factors {', '.join(missing)}")
        stored = [own.pop(stage.name)["kernel"] for stage in entry.stages]
        factors = {
            stage.name: unboxed(factor) for stage, factor in zip(entry.stages, stored, strict=True)
        }
        own[storage.name] = box_whole(stored, reconstruct_array(factors, entry), entry)
    return result


def decompose_array(
    array: Float[Array, "*_"], entry: PlannedLayer, *, key: Array | None = None, **options: Any
) -> dict[str, Float[Array, "*_"]]:
    """The kernels of a layer's stages from the array that holds its kernel.

    The layers of a stack are decomposed side by side, under `jax.vmap`; their factors are stacked
    along the same axis.

    Arguments:
        array: as among the parameters, shape `entry.layer.storage.whole_shape`.
        key, options: see `decompose_kernel`.
    """
    layer, storage = entry.layer, entry.layer.storage

    def one(array: Array, key: Array | None) -> dict[str, Array]:
        kernel = storage.to_kernel(array, layer.kernel_shape)
        return chain.to_kernels(decompose_kernel(kernel, entry, key=key, **options), entry.stages)

    if storage.stack is None:
        return one(array, key)
    keys = None if key is None else jax.random.split(key, storage.copies)
    return jax.vmap(
        one, in_axes=(storage.stack, None if key is None else 0), out_axes=storage.stack
    )(array, keys)


def decompose_kernel(
    kernel: Float[Array, "*_"],
    entry: PlannedLayer,
    *,
    key: Array | None = None,
    init: str = "normal",
    max_iters: int = 100,
    tol: float = 1e-8,
) -> list[Format]:
    """The decompositions of one kernel, one for each feature group.

    Arguments:
        kernel: (*spatial, C / groups, T) or (in, out); see `tdjax.layers.Storage.to_kernel`.
        entry: method and ranks; it must not stay dense.
        key, init, max_iters, tol: see `factorize_params`.
    """
    method, ranks = entry.method, entry.ranks

    def decompose(part: Float[Array, "*_"], key: Array | None) -> Format:
        tensor = chain.tensor_view(part, str(method), entry.spatial)
        if method == "svd":
            return truncated_svd(tensor, ranks[0])
        if method == "tucker":
            whole = (None,) * (tensor.ndim - 2)
            return tucker_als(tensor, (*whole, *ranks), max_iters=max_iters, tol=tol)[0]
        if method == "tt":
            return tt_svd(tensor, ranks)
        assert method == "cp", method
        return cp_als(tensor, ranks[0], key=key, init=init, max_iters=max_iters, tol=tol)[0]

    return [
        decompose(part, None if key is None else jax.random.fold_in(key, group))
        for group, part in enumerate(chain.split_groups(kernel, entry.layer.groups))
    ]


def reconstruct_array(
    factors: Mapping[str, Float[Array, "*_"]], entry: PlannedLayer
) -> Float[Array, "*_"]:
    """The inverse of `decompose_array`: the array that held the kernel."""
    storage = entry.layer.storage

    def one(factors: Mapping[str, Array]) -> Array:
        return storage.from_kernel(reconstruct_kernel(factors, entry))

    if storage.stack is None:
        return one(factors)
    return jax.vmap(one, in_axes=storage.stack, out_axes=storage.stack)(dict(factors))


def reconstruct_kernel(
    kernels: Mapping[str, Float[Array, "*_"]], entry: PlannedLayer
) -> Float[Array, "*_"]:
    """The dense kernel that a layer's factors stand for, shape `entry.layer.kernel_shape`."""
    layer = entry.layer
    return chain.reconstruct(
        kernels, layer.kernel_shape, entry.stages, str(entry.method), layer.groups
    )


def replace_kernel(params: Params, path: str, kernel: Float[Array, "*_"]) -> dict[str, Any]:
    """The same parameters with the kernel of one layer replaced."""
    result = _copied(params)
    _at(result, path)["kernel"] = kernel
    return result


def weight_name(own: Params) -> str | None:
    """The name of the array that a layer's parameters hold: a kernel, or an embedding."""
    return next((name for name in ("kernel", "embedding") if name in own), None)


def layer_params(params: Params, path: str) -> Params:
    """The parameters of one layer. Raises KeyError that names the path."""
    return _at(params, path)


def _check_kernel(params: Params, entry: PlannedLayer) -> None:
    path, storage = entry.layer.path, entry.layer.storage
    own = _at(params, path)
    if storage.name not in own:
        raise KeyError(f"layer {path!r} has no {storage.name}; it has {', '.join(own)}")
    array = unboxed(own[storage.name])
    if tuple(array.shape) != storage.whole_shape:
        raise ValueError(
            f"layer {path!r}: {storage.name} of shape {tuple(array.shape)}, but the plan was made "
            f"for {storage.whole_shape}"
        )
    if not isinstance(array, jax.core.Tracer) and not bool(jnp.isfinite(array).all()):
        raise ValueError(f"layer {path!r}: the {storage.name} holds NaN or Inf")


def _copied(params: Params) -> dict[str, Any]:
    """A copy of the mappings that shares the arrays."""
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in params.items()}


def _at(params: Any, path: str) -> Any:
    """The mapping at a '/'-joined path; the whole for the empty path."""
    names: Sequence[str] = path.split("/") if path else ()
    for depth, name in enumerate(names):
        if not isinstance(params, Mapping) or name not in params:
            raise KeyError(f"no parameters at {'/'.join(names[: depth + 1])!r}")
        params = params[name]
    return params
