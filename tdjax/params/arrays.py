"""One layer's array: decomposed into the kernels of its stages, and multiplied out again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax
from jaxtyping import Array, Float, Shaped

from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.sparse import scattered
from tdjax.params.kernels import Weights, correct_kernel, decompose_kernel
from tdjax.params.options import DEFAULTS, Options
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import format_chain

# Names among a layer's factors of its sparse correction; no stage has them.
VALUES, INDICES = "values", "indices"

# By name: the kernels of a layer's stages, floating, and the values and the places, int32, of the
# nonzeros of its sparse correction.
Factors = dict[str, Shaped[Array, "*_"]]


@on_any_mesh
def decompose_array(
    array: Float[Array, "*_"],
    entry: PlannedLayer,
    options: Options = DEFAULTS,
    *,
    weights: Weights | None = None,
) -> Factors:
    """The kernels of a layer's stages from the array that holds its kernel.

    With a sparse correction also the values of its nonzeros, and their places in the flattened
    kernel, rising.

    The layers of a stack are decomposed side by side, under `jax.vmap`; their factors are stacked
    along the same axis.

    Arguments:
        array: as among the parameters, shape `entry.layer.storage.whole_shape`.
        options, weights: see `decompose_kernel`.
    """
    layer, storage, chain = entry.layer, entry.layer.storage, format_chain(entry.chain)

    def one(array: Array, key: Array | None, weights: Weights | None) -> Factors:
        kernel, own = storage.to_kernel(array, layer.kernel_shape), replace(options, key=key)
        if entry.nonzeros:
            found = correct_kernel(kernel, entry, own, weights=weights)
            kernels = chain.to_kernels(found.part)
            return {**kernels, VALUES: found.values, INDICES: found.indices}
        return chain.to_kernels(decompose_kernel(kernel, entry, own, weights=weights))

    key = options.key
    if storage.stack is None:
        return one(array, key, weights)
    keys = None if key is None else jax.random.split(key, storage.copies)
    stacked = (storage.stack, None if keys is None else 0, None if weights is None else 0)
    return jax.vmap(one, in_axes=stacked, out_axes=stack_axes(entry))(array, keys, weights)


def stack_axes(entry: PlannedLayer) -> dict[str, int]:
    """By name, the axes of a stack's factors along which its layers lie."""
    axis = entry.layer.storage.stack
    assert axis is not None
    axes = {stage.name: axis for stage in entry.chain.stages}
    # Vectors, like a bias: they have no further axis.
    return {**axes, VALUES: min(axis, 1), INDICES: min(axis, 1)} if entry.nonzeros else axes


@on_any_mesh
def reconstruct_array(
    factors: Mapping[str, Shaped[Array, "*_"]], entry: PlannedLayer
) -> Float[Array, "*_"]:
    """The inverse of `decompose_array`: the array that held the kernel."""
    storage = entry.layer.storage

    def one(factors: Mapping[str, Array]) -> Array:
        return storage.from_kernel(reconstruct_kernel(factors, entry))

    if storage.stack is None:
        return one(factors)
    axes = stack_axes(entry)
    own = {name: factors[name] for name in axes}
    return jax.vmap(one, in_axes=(axes,), out_axes=storage.stack)(own)


def reconstruct_kernel(
    factors: Mapping[str, Shaped[Array, "*_"]], entry: PlannedLayer
) -> Float[Array, "*_"]:
    """The dense kernel that a layer's factors stand for, shape `entry.layer.kernel_shape`."""
    chain = entry.chain
    kernel = chain.reconstruct({stage.name: factors[stage.name] for stage in chain.stages})
    if not entry.nonzeros:
        return kernel
    return kernel + scattered(factors[VALUES], factors[INDICES], entry.layer.kernel_shape)
