"""What each choice for a layer loses, as each strategy measures it, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.allocation.choices import (
    AT_SHARES,
    SAMPLED,
    TIME,
    ChoiceOptions,
    Choices,
    RankBounds,
    share_choices,
)
from tdjax.allocation.curves import Moments, low_rank_losses, singular_values, tucker_losses
from tdjax.allocation.rounding import (
    Sample,
    dense_loss,
    dense_parts,
    parts_of,
    rounding_losses,
)
from tdjax.decompose.inputs import as_numpy, at_hand
from tdjax.moments.collect import LayerMoments
from tdjax.params.arrays import Factors, decompose_array
from tdjax.params.kernels import Weights
from tdjax.params.options import Options
from tdjax.plan.chain import chain_of
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import format_chain

# Of CP and Tucker where a loss is found by decomposing.
SWEEPS = 25
# Of a share of time that goes away, less than any that counts.
TIE = 1e-9
Errors = Float[np.ndarray, " _"]


def uniform(layer: Layer, choices: Choices, options: ChoiceOptions) -> Errors:
    """The share that goes away of the first cost; of equal times that of fewer weights is more."""
    dense, column = options.costs_of(PlannedLayer(layer)), options.column
    gone = 1 - choices.costs[:, column] / dense[column]
    if options.costs[0] == TIME:
        gone += TIE * (1 - choices.costs[:, 0] / dense[0])
    return gone


def alds(layer: Layer, array: Any, choices: Sequence[Choices], objective: str) -> list[Errors]:
    """sqrt(k) times the greatest first dropped singular value of k groups, over norm(W)_2.

    An upper bound of the relative error in the operator norm of the folded kernel W (Theorem 1).
    Without the root, as in the released code, it is none, and favours many groups.
    """
    parts = parts_of(array, layer)
    forms = [own.form for own in choices if own.form is not None]
    folds = {form.fold for form in forms}
    largest = {fold: _operator_norms(parts, layer, fold) for fold in folds}
    found = []
    for own, form in zip(choices, forms, strict=True):
        values = singular_values(_folded(parts, layer, form)) / largest[form.fold]
        errors = np.append(np.max(values, axis=(0, 1)), 0.0)
        scale = math.sqrt(form.splits) if objective == "bound" else 1.0
        found.append(scale * errors[own.ranks[:, 0]])
    return found


def _folded(
    parts: Float[np.ndarray, "*_"], layer: Layer, form: Form
) -> Float[np.ndarray, "p k m n"]:
    """The matrices that kernels are folded to, one for each group of channels."""
    chain = format_chain(chain_of(layer, form))
    rows, columns = chain.rank_shape
    matrices = np.stack([chain.tensor_view(part) for part in parts])
    return matrices.reshape(len(parts), form.splits, rows, columns)


def _operator_norms(
    parts: Float[np.ndarray, "*_"], layer: Layer, fold: str
) -> Float[np.ndarray, "p 1 1"]:
    """Of the kernels, folded; next to nothing in place of 0, as a kernel of zeros loses nothing."""
    whole = singular_values(_folded(parts, layer, Form("svd", fold=fold)))
    return np.maximum(whole[:, :, :1], np.finfo(parts.dtype).tiny)


def operator_bound(array: Any, entry: PlannedLayer) -> float:
    """What no low-rank layer's relative error in the operator norm exceeds; 0 for a dense one.

    The norm is that of the kernel W as it is folded: sqrt(k) times the greatest first dropped
    singular value of its k groups, over norm(W)_2, for factors from truncated SVDs (Liebenwein et
    al. 2021, Theorem 1).
    """
    if entry.form is None:
        return 0.0
    (rank,), parts = entry.form.ranks, parts_of(array, entry.layer)
    values = singular_values(_folded(parts, entry.layer, entry.form))
    if rank >= values.shape[-1]:
        return 0.0
    largest = _operator_norms(parts, entry.layer, entry.form.fold)
    return math.sqrt(entry.form.splits) * float(np.max(values[:, :, rank:] / largest))


def energy(
    layer: Layer, array: Any, choices: Sequence[Choices], options: ChoiceOptions
) -> list[Errors]:
    """The relative error of the weights."""
    whole = float(np.linalg.norm(parts_of(array, layer))) or 1.0
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


def _losses(
    layer: Layer,
    array: Any,
    choices: Sequence[Choices],
    options: ChoiceOptions,
    weights: Weights | None,
) -> list[Errors]:
    """tr(G E^T S E) of every choice, all feature groups and layers of a stack together."""
    data = _Data(layer, array, options, weights)
    samples: dict[Form, list[Sample]] = {}
    losses = []
    for own in choices:
        if own.form is None:
            assert own.dtype is not None
            losses.append(np.array([dense_loss(array, layer, own.dtype, data.lost)]))
            continue
        if own.form not in samples and (own.dtype or own.method in AT_SHARES):
            samples[own.form] = data.samples(own.form)
        lost = _decomposed(data, own, samples.get(own.form, []))
        if own.dtype is not None:
            lost = lost + rounding_losses(own, samples[own.form], data.lost)
        losses.append(lost)
    return losses


class _Data(NamedTuple):
    """A layer, and what its errors are measured by."""

    layer: Layer
    array: Any
    options: ChoiceOptions
    weights: Weights | None

    @property
    def moments(self) -> tuple[Moments, Moments]:
        """Of inputs and outputs."""
        return _flat_moments(self.weights, self.layer)

    def samples(self, form: Form) -> list[Sample]:
        """A format decomposed at some shares."""
        few = share_choices(self.layer, form, SAMPLED, RankBounds())
        array, found = jnp.asarray(self.array, jnp.float32), []
        if self.weights is None:
            # A program for each shape and rank would take longer on any device.
            array = at_hand(array)
        for number, costs in enumerate(few.costs):
            entry = few.entry(self.layer, number)
            factors = _factors(array, entry, self.options.key, self.weights)
            found.append(Sample(entry, int(costs[0]), factors))
        return found

    def lost(self, parts: Float[np.ndarray, "*_"]) -> float:
        """tr(G E^T S E) of a change E of the layer's kernels."""
        # What rank 0 loses is all there is.
        return float(low_rank_losses(parts, *self.moments)[:, 0].sum())


def _decomposed(data: _Data, own: Choices, samples: Sequence[Sample]) -> Errors:
    """What ranks leave out, of formats that know it; others are interpolated between samples."""
    parts = parts_of(data.array, data.layer)
    if own.method == "svd":
        return low_rank_losses(parts, *data.moments).sum(axis=0)[own.ranks[:, 0]]
    if own.method == "tucker":
        grid, rows = np.unique(own.ranks[:, 0], return_inverse=True)
        surface = tucker_losses(parts, tuple(grid.tolist()), *data.moments).sum(axis=0)
        return surface[rows, own.ranks[:, 1]]
    column = data.options.size_column
    lost = (data.lost(parts - dense_parts(factors, entry)) for entry, _, factors in samples)
    logs = [math.log(max(own, 1e-30)) for own in lost]
    sizes = [float(data.options.costs_of(entry)[column]) for entry, _, _ in samples]
    return np.exp(np.interp(own.costs[:, column], sizes, logs))


def _factors(
    array: Array, entry: PlannedLayer, key: Array | None, weights: Weights | None
) -> Factors:
    return decompose_array(array, entry, Options(key=key, max_iters=SWEEPS), weights=weights)


def _lost(array: Array, entry: PlannedLayer, key: Array | None, weights: Weights | None) -> float:
    """tr(G E^T S E) of one entry, decomposed."""
    factors = _factors(array, entry, key, weights)
    left = parts_of(array, entry.layer) - dense_parts(factors, entry)
    return float(low_rank_losses(left, *_flat_moments(weights, entry.layer))[:, 0].sum())


def _scale(moments: LayerMoments) -> float:
    """From tr(G E^T S E) to the rise of an example's loss."""
    return 0.5 * float(moments.rows) / float(moments.examples)


def _flat_moments(weights: Weights | None, layer: Layer) -> tuple[Moments, Moments]:
    """The moments of inputs and outputs, the layers of a stack and their groups on one axis."""

    def flat(moment: Array | None) -> Moments:
        if moment is None:
            return None
        array = as_numpy(moment)
        return array if layer.storage.stack is None else array.reshape(-1, *array.shape[2:])

    return (None, None) if weights is None else (flat(weights.inputs), flat(weights.outputs))
