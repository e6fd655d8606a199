"""What each choice for a layer loses, as each strategy measures it, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.allocation.choices import (
    SAMPLED,
    ChoiceOptions,
    Choices,
    RankBounds,
    costs_of,
    share_choices,
)
from tdjax.allocation.curves import low_rank_losses, singular_values, tucker_losses
from tdjax.moments.collect import LayerMoments
from tdjax.params.arrays import decompose_array, reconstruct_array
from tdjax.params.kernels import Weights
from tdjax.params.options import Options
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer

# Of CP and Tucker where a loss is found by decomposing.
SWEEPS = 25
Errors = Float[np.ndarray, " _"]


def uniform(layer: Layer, choices: Choices, column: int) -> Errors:
    """The share that goes away of a cost, whose column is given."""
    return 1 - choices.costs[:, column] / costs_of(PlannedLayer(layer))[column]


def alds(layer: Layer, array: Any, choices: Sequence[Choices], objective: str) -> list[Errors]:
    """sqrt(k) times the greatest first dropped singular value of k groups, over norm(W)_2.

    An upper bound of the relative error in the operator norm (Theorem 1). Without the root, as
    in the released code, it is none, and favours many groups.
    """
    parts = parts_of(array, layer)
    # A kernel of zeros loses nothing.
    largest = jnp.maximum(singular_values(parts)[:, 0, 0], jnp.finfo(parts.dtype).tiny)
    found = []
    for own in choices:
        k = own.form.splits
        values = singular_values(parts, k)
        dropped = jnp.max(values / largest[:, None, None], axis=(0, 1))
        errors = np.append(np.asarray(dropped, np.float64), 0.0)
        scale = math.sqrt(k) if objective == "bound" else 1.0
        found.append(scale * errors[own.ranks[:, 0]])
    return found


def operator_bound(array: Any, entry: PlannedLayer) -> float:
    """What no low-rank layer's relative error in the operator norm exceeds; 0 for a dense one.

    sqrt(k) times the greatest first dropped singular value of its k groups, over norm(W)_2, for
    factors from truncated SVDs (Liebenwein et al. 2021, Theorem 1).
    """
    if entry.form is None:
        return 0.0
    splits, (rank,) = entry.form.splits, entry.form.ranks
    parts = parts_of(array, entry.layer)
    whole = jnp.maximum(singular_values(parts)[:, 0, 0], jnp.finfo(parts.dtype).tiny)
    values = singular_values(parts, splits)
    if rank >= values.shape[-1]:
        return 0.0
    return math.sqrt(splits) * float(jnp.max(values[:, :, rank].max(axis=1) / whole))


def energy(
    layer: Layer, array: Any, choices: Sequence[Choices], options: ChoiceOptions
) -> list[Errors]:
    """The relative error of the weights."""
    whole = float(jnp.linalg.norm(jnp.asarray(array, jnp.float32))) or 1.0
    return [np.sqrt(losses) / whole for losses in _losses(layer, array, choices, options, None)]


def loss(
    layer: Layer,
    array: Any,
    choices: Sequence[Choices],
    options: ChoiceOptions,
    moments: LayerMoments,
) -> list[Errors]:
    """How much the loss of an example rises, by its second-order expansion.

    Half of tr(G E^T S E) for each row that an example sends through the layer, rows and gradients
    taken to be independent (Martens and Grosse 2015).
    """
    scale, weights = _scale(moments), Weights(moments.inputs, moments.outputs)
    return [scale * losses for losses in _losses(layer, array, choices, options, weights)]


def loss_rise(array: Any, entry: PlannedLayer, key: Array | None, moments: LayerMoments) -> float:
    """What `loss` says of one entry, of any form: it is decomposed to know that."""
    weights = Weights(moments.inputs, moments.outputs)
    return _scale(moments) * _lost(jnp.asarray(array, jnp.float32), entry, key, weights)


def parts_of(array: Any, layer: Layer) -> Float[Array, "*_"]:
    """The kernels of all layers of a stack and all feature groups, (p, *window, C, T)."""
    storage, groups = layer.storage, layer.groups

    def one(array: Array) -> Array:
        kernel = storage.to_kernel(array, layer.kernel_shape).astype(jnp.float32)
        return jnp.stack(jnp.split(kernel, groups, axis=-1))

    array = jnp.asarray(array)
    if storage.stack is None:
        return one(array)
    found = jax.vmap(one, in_axes=storage.stack)(array)
    return found.reshape(-1, *found.shape[2:])


def _losses(
    layer: Layer,
    array: Any,
    choices: Sequence[Choices],
    options: ChoiceOptions,
    weights: Weights | None,
) -> list[Errors]:
    """tr(G E^T S E) of every choice, all feature groups and layers of a stack together."""
    parts, found = parts_of(array, layer), []
    inputs, outputs = _flat_moments(weights, layer)
    for own in choices:
        if own.form.method == "svd":
            curve = jnp.sum(low_rank_losses(parts, inputs, outputs), axis=0)
            found.append(np.asarray(curve, np.float64)[own.ranks[:, 0]])
        elif own.form.method == "tucker":
            grid, rows = np.unique(own.ranks[:, 0], return_inverse=True)
            surface = jnp.sum(tucker_losses(parts, tuple(grid.tolist()), inputs, outputs), axis=0)
            found.append(np.asarray(surface, np.float64)[rows, own.ranks[:, 1]])
        else:
            found.append(_sampled(layer, array, own, options, weights))
    return found


def _sampled(
    layer: Layer, array: Any, many: Choices, options: ChoiceOptions, weights: Weights | None
) -> Errors:
    """A format decomposed at some shares, the logarithm of its loss interpolated between them."""
    few = share_choices(layer, many.form.method, SAMPLED, RankBounds())
    array = jnp.asarray(array, jnp.float32)
    entries = [PlannedLayer(layer, few.form_of(number)) for number in range(len(few.costs))]
    lost = (_lost(array, entry, options.key, weights) for entry in entries)
    logs = [math.log(max(own, 1e-30)) for own in lost]
    column = options.column
    return np.exp(np.interp(many.costs[:, column], few.costs[:, column], logs))


def _lost(array: Array, entry: PlannedLayer, key: Array | None, weights: Weights | None) -> float:
    """tr(G E^T S E) of one entry, decomposed."""
    factors = decompose_array(array, entry, Options(key=key, max_iters=SWEEPS), weights=weights)
    left = parts_of(array - reconstruct_array(factors, entry), entry.layer)
    # What rank 0 loses is all there is.
    return float(jnp.sum(low_rank_losses(left, *_flat_moments(weights, entry.layer))[:, 0]))


def _scale(moments: LayerMoments) -> float:
    """From tr(G E^T S E) to the rise of an example's loss."""
    return 0.5 * float(moments.rows / moments.examples)


def _flat_moments(weights: Weights | None, layer: Layer) -> tuple[Array | None, Array | None]:
    """The moments of inputs and outputs, the layers of a stack and their groups on one axis."""
    if weights is None:
        return None, None
    inputs, outputs = (
        moment
        if moment is None or layer.storage.stack is None
        else moment.reshape(-1, *moment.shape[2:])
        for moment in weights
    )
    return inputs, outputs
