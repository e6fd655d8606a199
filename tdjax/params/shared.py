"""Layers that share one input factor, decomposed as one: their matrices side by side, and apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.inputs import as_numpy
from tdjax.params.arrays import Factors, stack_axes
from tdjax.params.kernels import Weights
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.shared import joined

# Moments of the same input, summed up by other programs, differ by rounding.
ROUNDING = 1e-3


def joined_array(
    arrays: Sequence[Float[Array, "*_"]], layers: Sequence[Layer]
) -> Float[Array, "*_"]:
    """The matrices side by side, (D, T_1 + T_2 + ...), with the layers of a stack in front.

    Arguments:
        arrays: that hold the kernels, one for each layer.
    """
    return jnp.concatenate(
        [_kernel(jnp.asarray(a), own) for a, own in zip(arrays, layers, strict=True)], axis=-1
    )


def _kernel(array: Float[Array, "*_"], layer: Layer) -> Float[Array, "*_"]:
    storage = layer.storage

    def one(array: Float[Array, "*_"]) -> Float[Array, "d t"]:
        return storage.to_kernel(array, layer.kernel_shape)

    return one(array) if storage.stack is None else jax.vmap(one, in_axes=storage.stack)(array)


def joined_weights(weights: Sequence[Weights], layers: Sequence[Layer]) -> Weights:
    """The weights of matrices side by side: of their input, and of the outputs of each.

    Raises ValueError where the moments of the inputs differ, and where some know the gradient at
    their outputs and others do not.
    """
    first, paths = weights[0], [layer.path for layer in layers]
    for other, path in zip(weights[1:], paths[1:], strict=True):
        if not _alike(first.inputs, other.inputs):
            raise ValueError(
                f"layers {paths[0]!r} and {path!r} share an input factor, but their moments say "
                "that they do not read the same input: leave one of them out of the group "
                "(moments with kronecker='nearest' weigh the inputs of each layer by its own)"
            )
    outputs = [own.outputs for own in weights]
    if all(own is None for own in outputs):
        return Weights(first.inputs, None)
    if any(own is None for own in outputs):
        raise ValueError(
            f"layers {', '.join(map(repr, paths))} share an input factor, but not all of them "
            "have moments of the gradient: pass norm='covariance' or leave those out of the group"
        )
    return Weights(first.inputs, block_diagonal([jnp.asarray(own) for own in outputs]))


def block_diagonal(moments: Sequence[Float[Array, "*g t t"]]) -> Float[Array, "*g n n"]:
    """Moments as the blocks of one, for each group and layer of a stack."""
    front = moments[0].shape[:-2]
    blocks = [own.reshape(-1, *own.shape[-2:]) for own in moments]
    made = jax.vmap(jax.scipy.linalg.block_diag)(*blocks)
    return made.reshape(*front, *made.shape[-2:])


def _alike(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    if one is other or isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return True
    a, b = as_numpy(one), as_numpy(other)
    return a.shape == b.shape and bool(np.abs(a - b).max() <= ROUNDING * np.abs(a).max())


def parted(factors: Factors, members: Sequence[PlannedLayer]) -> list[Factors]:
    """The factors of layers that share one, from those of their matrices side by side.

    The first has the input factor.
    """
    widths = np.cumsum([entry.layer.kernel_shape[-1] for entry in members])[:-1]
    outputs = jnp.split(factors["output"], widths, axis=-1)
    found: list[Factors] = []
    for number, (entry, output) in enumerate(zip(members, outputs, strict=True)):
        own: Factors = {"output": output} if number else {**factors, "output": output}
        if entry.layer.storage.stack is not None:
            axes = stack_axes(entry)
            own = {name: jnp.moveaxis(array, 0, axes[name]) for name, array in own.items()}
        found.append(own)
    return found


def joined_factors(factors: Sequence[Factors], members: Sequence[PlannedLayer]) -> Factors:
    """The inverse of `parted`."""
    found = []
    for entry, own in zip(members, factors, strict=True):
        if entry.layer.storage.stack is not None:
            axes = stack_axes(entry)
            own = {name: jnp.moveaxis(array, axes[name], 0) for name, array in own.items()}
        found.append(own)
    return {**found[0], "output": jnp.concatenate([own["output"] for own in found], axis=-1)}


def parted_shift(
    shift: Float[Array, "*_"] | None, members: Sequence[PlannedLayer]
) -> Sequence[Float[Array, "*_"] | None]:
    """What each layer's bias takes on, from what that of all side by side would."""
    if shift is None:
        return [None] * len(members)
    widths = np.cumsum([entry.layer.kernel_shape[-1] for entry in members])[:-1]
    return jnp.split(shift, widths, axis=-1)


def joined_entry(members: Sequence[PlannedLayer]) -> PlannedLayer:
    """Layers that share an input factor as one; one alone as it is."""
    if len(members) == 1:
        return members[0]
    return PlannedLayer(joined([entry.layer for entry in members]), members[0].form)
