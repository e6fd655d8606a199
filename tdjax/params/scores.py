"""Query and key of heads, between which fewer numbers meet.

With q and k what a head's query and key put out, scores q C_q (k C_k)^T are those of the key as it
is and the query q C_q C_k^T. So what they lose is what a change of the query alone does, E = I -
C_q C_k^T behind it, measured by the moments of what the query puts out and of the gradient there,
as any layer's change is; or what one of the key alone does, which is the same for the network, and
another estimate of it: their mean is taken. The best C_q C_k^T of a head is a low rank of the
identity in either norm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.params.kernels import Weights
from tdjax.params.matrices import Matrix, kernels_of, moments_of, ridged, rows_of
from tdjax.plan.layers import Layer

Heads = Float[np.ndarray, "h d d"]
# Ranks at which losses are computed; between them they are interpolated.
MOST_RANKS = 32


class End(NamedTuple):
    """A query or a key as moments see what it puts out.

    Arguments:
        moment: (T, T), of what it puts out.
        gradient: (T, T), of the gradient there; None where only inputs are known.
    """

    moment: Matrix
    gradient: Matrix | None


def ends_of(layer: Layer, array: Any, bias: Any, weights: Weights, mean: Any) -> list[End]:
    """What a layer puts out as its moments say it, one end but of a stack.

    Arguments:
        array: that holds its kernel.
        bias: None where it has none.
        mean: of what it reads.
    """
    kernels, found = kernels_of(array, layer), []
    biases = [None] * len(kernels) if bias is None else rows_of(bias, layer)
    means = rows_of(mean, layer)
    inputs, outputs = (moments_of(own, layer) for own in weights)
    for kernel, own, row, moment, gradient in zip(
        kernels, biases, means, inputs, outputs, strict=True
    ):
        assert moment is not None
        made = kernel.T @ (moment @ kernel)
        if own is not None:
            shared = np.outer(row @ kernel, own)
            made += shared + shared.T + np.outer(own, own)
        found.append(End(ridged(made), gradient))
    return found


class Sides(NamedTuple):
    """What query and key are multiplied by, for each head the best columns first.

    Arguments:
        query, key: (h, d, d), each for its heads.
        losses: where so many columns are kept, beginning with none; the mean of both estimates.
    """

    query: Heads
    key: Heads
    losses: Float[np.ndarray, " _"]


def sides(query: End, key: End, heads: int, repeats: int) -> list[Sides]:
    """The best by a change of the query, and by one of the key.

    Where several heads of the query meet one of the key, by one of the key alone: of what one
    change of theirs loses there is no best in a closed form.
    """
    found = _side(key, query, heads, repeats)
    by_key = Sides(found.key, found.query, found.losses)
    return [by_key] if repeats > 1 else [_side(query, key, heads, 1), by_key]


def _side(own: End, other: End, heads: int, repeats: int) -> Sides:
    """As if the layer of `own` were the query, and it alone were to change.

    Arguments:
        heads: of that layer.
        repeats: heads of the other that meet each.
    """
    size = len(own.moment) // heads
    parts = other.moment.reshape(heads, repeats, size, heads, repeats, size)
    met = np.einsum("hkdgke->hdge", parts).reshape(own.moment.shape)
    weigh = met if own.gradient is None else own.gradient
    columns, others = [], []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        left = np.linalg.cholesky(own.moment[part, part])
        directions = np.linalg.eigh(left.T @ weigh[part, part] @ left)[1][:, ::-1]
        first, second = np.linalg.solve(left.T, directions), left @ directions
        # What is put out has one size at both ends.
        scale = np.einsum("ij,ik,kj->j", second, met[part, part], second) ** 0.25
        scale = np.where(scale > 0, scale, 1.0)
        columns.append(first * scale)
        others.append(second / scale)
    first, second = np.stack(columns), np.stack(others)
    lost = _losses(own.moment, weigh, first, second)
    met_by, second = (np.repeat(columns, repeats, axis=0) for columns in (first, second))
    weigh = other.gradient
    if weigh is None:
        weigh = own.moment.reshape(heads, size, heads, size)
        weigh = weigh.repeat(repeats, axis=0).repeat(repeats, axis=2).reshape(other.moment.shape)
    return Sides(first, second, (lost + _losses(other.moment, weigh, second, met_by)) / 2)


def _losses(moment: Matrix, weigh: Matrix, columns: Heads, others: Heads) -> Any:
    """tr(G E^T M E), E = I - C_q C_k^T for each head, for all numbers of columns."""
    heads, size, _ = columns.shape
    asked = np.unique(np.linspace(0, size, min(size, MOST_RANKS) + 1).round().astype(int))
    rows = moment.reshape(heads, size, -1)
    # The columns of each head in front.
    weigh = weigh.reshape(-1, heads, size).swapaxes(0, 1)
    found = []
    for rank in asked:
        change = np.eye(size) - columns[:, :, :rank] @ others[:, :, :rank].swapaxes(1, 2)
        left = (change.swapaxes(1, 2) @ rows).reshape(-1, heads, size)
        found.append(np.vdot(left.swapaxes(0, 1) @ change, weigh))
    return np.maximum(np.interp(np.arange(size + 1), asked, found), 0.0)
