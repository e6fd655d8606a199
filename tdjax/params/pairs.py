"""Layers of pairs, decomposed together: what passes between them, and what is made of it.

With z what the consumer reads, M its second moment (or covariance) and W the consumer's kernel, z B
passes in place of z, and W becomes Q = (B^T M B)^-1 B^T M W: of all kernels that read z B the one
that changes the outputs least, whatever they are weighed by. Of units B are columns of the
identity, of heads a matrix for each head, which goes into the producers. Source of the pairs: Lin
et al., "MoDeGPT: modular decomposition for large language model compression", 2024; the choices of
units and of heads are our own. Everything in float64, on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tdjax.params.bias import around_mean
from tdjax.params.kernels import Weights
from tdjax.params.matrices import Matrix, kernels_of, moments_of, ridged, root_of, rows_of
from tdjax.params.scores import End, ends_of, sides
from tdjax.params.units import Units, units_in_order
from tdjax.plan.layers import Layer
from tdjax.plan.pair import Pair
from tdjax.plan.plan import PlannedLayer


class Seen(NamedTuple):
    """A consumer as its moments see it.

    Arguments:
        moment: (T, T) of what it reads.
        kernel: (T, D).
        target: (T, D), the kernel times a root of the moment of its outputs' gradient.
    """

    moment: Matrix
    kernel: Matrix
    target: Matrix


def seen(array: Any, layer: Layer, weights: Weights) -> list[Seen]:
    """A consumer's layers, one but of a stack."""
    made = []
    ends = (moments_of(own, layer) for own in weights)
    for kernel, moment, gradient in zip(kernels_of(array, layer), *ends, strict=True):
        whole = ridged(np.eye(len(kernel)) if moment is None else moment)
        target = kernel if gradient is None else kernel @ root_of(gradient)
        made.append(Seen(whole, kernel, target))
    return made


class Passage(NamedTuple):
    """What passes from producers to a consumer, the best first.

    Arguments:
        units: in their order; None of heads.
        bases: of heads, (h, d, d), orthonormal columns; None of units.
        repeats: how often the consumer reads each head.
    """

    units: Units | None
    bases: Float[np.ndarray, "h d d"] | None
    repeats: int = 1

    @property
    def read(self) -> Passage:
        """The same of what the consumer reads."""
        if self.bases is None:
            return self
        return Passage(None, np.repeat(self.bases, self.repeats, axis=0))

    def produced(self, kernel: Matrix, rank: int) -> Matrix:
        """K B, of a kernel (C, T), or of a bias as one of a single row; head after head."""
        if self.units is not None:
            return kernel[:, np.sort(self.units.order[:rank])]
        return self._of_heads(kernel, rank).reshape(len(kernel), -1)

    def by_worth(self, kernel: Matrix) -> Matrix:
        """K B of all that may pass of heads, the first of each first."""
        every = self._of_heads(kernel, len(kernel[0]))
        return every.swapaxes(1, 2).reshape(len(kernel), -1)

    def _of_heads(self, kernel: Matrix, rank: int) -> Float[np.ndarray, "c h r"]:
        assert self.bases is not None
        heads, size, _ = self.bases.shape
        parts = kernel.reshape(len(kernel), heads, size).swapaxes(0, 1)
        return (parts @ self.bases[:, :, :rank]).swapaxes(0, 1)


def passage(own: Seen, pair: Pair, most: int | None = None) -> Passage:
    """Which units pass, so many at most, or what of each head.

    Of a head it is what the best low rank of its part of the consumer's kernel reads, in the norm
    of its own moment and of the outputs. Where the consumer reads it several times, its parts lie
    side by side, in the norm of the mean of their moments: in norms that differ the best has no
    closed form, and steps towards it gained some hundredths of what is lost.
    """
    if pair.heads is None:
        return Passage(units_in_order(own.moment, own.target, most), None)
    shape = pair.heads, pair.repeats, len(own.moment) // (pair.heads * pair.repeats)
    squares = own.moment.reshape(*shape, *shape)
    # (h, d, d), and the columns of all parts side by side.
    moments = np.einsum("hkdhke->hde", squares) / pair.repeats
    targets = own.target.reshape(*shape, -1).swapaxes(1, 2).reshape(pair.heads, shape[-1], -1)
    left = np.linalg.cholesky(moments).swapaxes(1, 2)
    weighed = left @ targets
    # Left singular vectors, the greatest value first.
    directions = np.linalg.eigh(weighed @ weighed.swapaxes(1, 2))[1][:, :, ::-1]
    bases = np.linalg.qr(np.linalg.solve(left, directions))[0]
    return Passage(None, bases, pair.repeats)


def losses(own: Seen, found: Passage) -> Float[np.ndarray, " _"]:
    """tr(G E^T M E) where so much passes, of each head or of all units, beginning with nothing."""
    if found.units is not None:
        gains = found.units.gains
    else:
        found = found.read
        assert found.bases is not None
        # One factorisation serves all numbers of what passes: each is the front of the next.
        left = np.linalg.cholesky(found.by_worth(found.by_worth(own.moment).T))
        read = found.by_worth((own.moment @ own.target).T).T
        every = np.sum(np.linalg.solve(left, read) ** 2, axis=1)
        gains = every.reshape(-1, len(found.bases)).sum(axis=1)
    return np.append(np.cumsum(gains[::-1])[::-1], 0.0)


class Member(NamedTuple):
    """A layer of a pair with what is known of it.

    Arguments:
        array: that holds its kernel.
        bias: None where it has none.
        weights: see `Weights`.
        mean: of what it reads.
    """

    entry: PlannedLayer
    array: Any
    bias: Any
    weights: Weights
    mean: Any

    @property
    def layer(self) -> Layer:
        """See `PlannedLayer`."""
        return self.entry.layer

    def ends(self) -> list[End]:
        """What the layers put out, one but of a stack."""
        return ends_of(self.layer, self.array, self.bias, self.weights, self.mean)


class PairFactors(NamedTuple):
    """What becomes of a layer of a pair.

    Arguments:
        kept: the kernel of its only stage, of a stack with its layers in front.
        shift: what its bias takes on, (T,), or (copies, T); None for nothing.
    """

    kept: Any
    shift: Any


def decompose_pair(
    producers: Sequence[Member], consumer: Member, pair: Pair, *, corrected: bool
) -> dict[str, PairFactors]:
    """What becomes of the layers of a pair, by path.

    Arguments:
        corrected: whether the consumer's bias takes on what the mean of what it reads loses.
    """
    layer, (rank,) = consumer.layer, consumer.entry.ranks
    mean, weights = None, consumer.weights
    if corrected:
        weights, mean = around_mean(weights, consumer.mean), rows_of(consumer.mean, layer)
    every = seen(consumer.array, layer, weights)
    passages = [passage(own, pair, rank) for own in every]
    reads, shifts = [], []
    for number, (own, found) in enumerate(zip(every, [p.read for p in passages], strict=True)):
        passing = found.produced(own.moment, rank)
        read = np.linalg.solve(found.produced(passing.T, rank), passing.T @ own.kernel)
        reads.append(read)
        if mean is not None:
            lost = mean[number] @ own.kernel
            shifts.append(lost - (found.produced(mean[number][None], rank) @ read)[0])
    made = {layer.path: PairFactors(_together(reads, layer), _rows(shifts, layer))}
    return made | {own.layer.path: _putting_out(own, passages) for own in producers}


def decompose_scores(query: Member, key: Member, pair: Pair) -> dict[str, PairFactors]:
    """What becomes of a query and its key, by path: by whichever's change is to lose less."""
    (rank,), heads = query.entry.ranks, pair.heads
    assert heads is not None
    best = [
        min(sides(*ends, heads, pair.repeats), key=lambda side: side.losses[rank])
        for ends in zip(query.ends(), key.ends(), strict=True)
    ]
    first, second = ([Passage(None, own) for own in part] for part in
                     ([side.query for side in best], [side.key for side in best]))  # fmt: skip
    return {
        query.layer.path: _putting_out(query, first),
        key.layer.path: _putting_out(key, second),
    }


def _putting_out(member: Member, passages: Sequence[Passage]) -> PairFactors:
    """A layer that computes what passes alone."""
    layer, (rank,) = member.layer, member.entry.ranks
    kernels = kernels_of(member.array, layer)
    kept = [found.produced(own, rank) for own, found in zip(kernels, passages, strict=True)]
    moved = []
    if member.bias is not None:
        for row, found in zip(rows_of(member.bias, layer), passages, strict=True):
            new = member.entry.chain.rows_out(found.produced(row[None], rank))
            moved.append(np.asarray(new, np.float64)[0] - row)
    return PairFactors(_together(kept, layer), _rows(moved, layer))


def _together(parts: Sequence[Matrix], layer: Layer) -> Any:
    """The kernels of a stage, of a stack along its axis."""
    stack = layer.storage.stack
    made = parts[0] if stack is None else np.stack(parts, axis=stack)
    return jnp.asarray(made, jnp.float32)


def _rows(parts: Sequence[Any], layer: Layer) -> Any:
    if not parts:
        return None
    made = parts[0] if layer.storage.stack is None else np.stack(parts)
    return jnp.asarray(made, jnp.float32)
