"""What each choice for a layer loses, as each strategy measures it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.allocation.choices import (
    FINE_SHARES,
    SHARES,
    Choices,
    cost_of,
    low_rank_choices,
    rank_grid,
    share_choices,
    tucker_choices,
)
from tdjax.allocation.curves import low_rank_losses, singular_values, tucker_losses
from tdjax.moments.collect import LayerMoments
from tdjax.params.arrays import decompose_array, reconstruct_array
from tdjax.params.kernels import Weights
from tdjax.params.options import Options
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer

# Shares at which CP and TT are decomposed; between them their loss is interpolated.
SAMPLED = (0.05, 0.15, 0.35, 0.6, 0.9)
SWEEPS = 25


class RatedChoices(NamedTuple):
    """Entries for one layer in one format, and what each of them loses.

    Arguments:
        choices: n of them.
        errors: (n,), float64, in the measure of the strategy.
    """

    choices: Choices
    errors: Float[np.ndarray, " _"]


class MeasureOptions(NamedTuple):
    """Which choices of a layer are measured, and how.

    Arguments:
        cost: "params" or "macs".
        methods: of `tdjax.plan.form.METHODS`.
        splits: groups of channels that low rank may have; None for all that divide them.
        objective: of ALDS, "bound", or "released" for that of its authors' code.
        key: for the random starts of CP.
        fine: whether formats that are tried at some shares of the weights are tried at many.
    """

    cost: str
    methods: tuple[str, ...]
    splits: tuple[int, ...] | None
    objective: str
    key: Array
    fine: bool = False


def uniform(layer: Layer, options: MeasureOptions) -> list[RatedChoices]:
    """The share that goes away, in the first format that makes the layer smaller."""
    dense = cost_of(PlannedLayer(layer), options.cost)
    for method in options.methods:
        choices = _choices(layer, options, method)
        if (choices.cost < dense).any():
            return [RatedChoices(choices, 1 - choices.cost / dense)]
    return []


def alds(layer: Layer, array: Any, options: MeasureOptions) -> list[RatedChoices]:
    """sqrt(k) times the greatest first dropped singular value of k groups, over norm(W)_2.

    An upper bound of the relative error in the operator norm (Theorem 1). Without the root, as
    in the released code, it is none, and favours many groups.
    """
    parts = parts_of(array, layer)
    # A kernel of zeros loses nothing.
    largest = jnp.maximum(singular_values(parts)[:, 0, 0], jnp.finfo(parts.dtype).tiny)
    found = []
    for k in _splits(layer, options):
        values = singular_values(parts, k)
        dropped = jnp.max(values / largest[:, None, None], axis=(0, 1))
        errors = np.append(np.asarray(dropped, np.float64)[1:], 0.0)
        scale = math.sqrt(k) if options.objective == "bound" else 1.0
        choices = low_rank_choices(layer, options.cost, k)
        found.append(RatedChoices(choices, scale * errors[: len(choices.cost)]))
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


def energy(layer: Layer, array: Any, options: MeasureOptions) -> list[RatedChoices]:
    """The relative error of the weights."""
    whole = float(jnp.linalg.norm(jnp.asarray(array, jnp.float32))) or 1.0
    return [
        RatedChoices(choices, np.sqrt(losses) / whole)
        for choices, losses in _losses(layer, array, options, None)
    ]


def loss(
    layer: Layer, array: Any, options: MeasureOptions, moments: LayerMoments
) -> list[RatedChoices]:
    """How much the loss of an example rises, by its second-order expansion.

    Half of tr(G E^T S E) for each row that an example sends through the layer, rows and gradients
    taken to be independent (Martens and Grosse 2015).
    """
    scale = 0.5 * float(moments.rows / moments.examples)
    weights = Weights(moments.inputs, moments.outputs)
    return [
        RatedChoices(choices, scale * losses)
        for choices, losses in _losses(layer, array, options, weights)
    ]


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
    layer: Layer, array: Any, options: MeasureOptions, weights: Weights | None
) -> list[RatedChoices]:
    """tr(G E^T S E) of every choice, all feature groups and layers of a stack together."""
    parts, found = parts_of(array, layer), []
    inputs, outputs = _flat_moments(weights, layer)
    matrix = layer.is_matrix or math.prod(layer.group_shape[:-2]) == 1
    if "svd" in options.methods:
        curve = jnp.sum(low_rank_losses(parts, inputs, outputs), axis=0)
        errors = np.asarray(curve, np.float64)[1:]
        found.append(RatedChoices(low_rank_choices(layer, options.cost), errors))
    if "tucker" in options.methods and not matrix:
        grid = rank_grid(layer.group_shape[-2])
        surface = jnp.sum(tucker_losses(parts, grid, inputs, outputs), axis=0)[:, 1:]
        errors = np.asarray(surface, np.float64).ravel()
        found.append(RatedChoices(tucker_choices(layer, options.cost), errors))
    for method in ("cp", "tt"):
        if method in options.methods and not matrix:
            found.append(_sampled(layer, array, options, method, weights))
    return [rated for rated in found if len(rated.choices.cost)]


def _sampled(
    layer: Layer, array: Any, options: MeasureOptions, method: str, weights: Weights | None
) -> RatedChoices:
    """A format decomposed at some shares, the logarithm of its loss interpolated between them."""
    few = share_choices(layer, options.cost, method, SAMPLED)
    many = _choices(layer, options, method)
    if len(few.cost) == 0:
        return RatedChoices(few, np.zeros(0))
    array = jnp.asarray(array, jnp.float32)
    logs = []
    for row in few.ranks:
        entry = few.entry(row.tolist())
        solver = Options(key=options.key, max_iters=SWEEPS)
        factors = decompose_array(array, entry, solver, weights=weights)
        left = parts_of(array - reconstruct_array(factors, entry), layer)
        # What rank 0 loses is all there is.
        lost = jnp.sum(low_rank_losses(left, *_flat_moments(weights, layer))[:, 0])
        logs.append(math.log(max(float(lost), 1e-30)))
    between = np.exp(np.interp(many.cost, few.cost, logs))
    inside = (many.cost >= few.cost[0]) & (many.cost <= few.cost[-1])
    choices = Choices(many.ranks[inside], many.cost[inside], many.entry)
    return RatedChoices(choices, between[inside])


def _choices(layer: Layer, options: MeasureOptions, method: str) -> Choices:
    """A format at the ranks of whole percents of the layer, or nearer to each other than those."""
    if not options.fine:
        return share_choices(layer, options.cost, method, SHARES)
    if method == "svd":
        return low_rank_choices(layer, options.cost)
    return share_choices(layer, options.cost, method, FINE_SHARES)


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


def _splits(layer: Layer, options: MeasureOptions) -> Sequence[int]:
    if layer.groups > 1 or layer.kind == "embed":
        return (1,)
    channels = layer.kernel_shape[-2]
    wanted = range(1, channels + 1) if options.splits is None else options.splits
    return [k for k in wanted if channels % k == 0]
