"""Layers of pairs, decomposed together: what passes between them, and what is made of it.

With z what the consumer reads, M its second moment (or covariance) and W the consumer's kernel, z B
passes in place of z, and W becomes Q = (B^T M B)^-1 B^T M W: of all kernels that read z B the one
that changes the outputs least, whatever they are weighed by. Of units B are columns of the
identity, of heads a matrix for each head, which goes into the producers. Source of the pairs: Lin
et al., "MoDeGPT: modular decomposition for large language model compression", 2024; the choices of
units and of heads are our own. Everything in float64, on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from tdjax.decompose.inputs import as_numpy
from tdjax.params.bias import around_mean
from tdjax.params.kernels import Weights
from tdjax.params.units import units_in_order
from tdjax.plan.layers import Layer
from tdjax.plan.pairing import Paired

# Added to M, relative to its mean diagonal: of what never passes nothing is known.
RIDGE = 1e-6
Matrix = Float[np.ndarray, "m n"]


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
    stacked = layer.storage.stack is not None
    parts = _kernels(array, layer)
    inputs, outputs = (
        [None] * len(parts) if own is None else list(as_numpy(own) if stacked else [as_numpy(own)])
        for own in weights
    )
    made = []
    for kernel, moment, gradient in zip(parts, inputs, outputs, strict=True):
        size = len(kernel)
        whole = np.eye(size) if moment is None else _full(moment[0])
        scale = np.trace(whole) / size or 1.0
        whole = whole + RIDGE * scale * np.eye(size)
        target = kernel if gradient is None else kernel @ _root(_full(gradient[0]))
        made.append(Seen(whole, kernel, target))
    return made


def _full(moment: Any) -> Matrix:
    own = np.asarray(moment, np.float64)
    return np.diag(own) if own.ndim == 1 else own


def _root(moment: Matrix) -> Matrix:
    """R with R R^T the moment."""
    values, vectors = np.linalg.eigh(moment)
    return vectors * np.sqrt(np.maximum(values, 0))


def _kernels(array: Any, layer: Layer) -> list[Matrix]:
    """The kernels of a layer, one but of a stack."""
    own, storage = as_numpy(array).astype(np.float64), layer.storage
    every = [own] if storage.stack is None else list(np.moveaxis(own, storage.stack, 0))
    return [np.transpose(one, storage.order).reshape(layer.kernel_shape) for one in every]


class Passage(NamedTuple):
    """What passes from producers to a consumer, the best first.

    Arguments:
        order: of units, all of them; None of heads.
        bases: of heads, (h, d, d), orthonormal columns; None of units.
    """

    order: Int[np.ndarray, " t"] | None
    bases: Float[np.ndarray, "h d d"] | None

    def produced(self, kernel: Matrix, rank: int) -> Matrix:
        """K B, of a kernel (C, T), or of a bias as one of a single row; head after head."""
        if self.order is not None:
            return kernel[:, np.sort(self.order[:rank])]
        return self._of_heads(kernel, rank).reshape(len(kernel), -1)

    def by_worth(self, kernel: Matrix) -> Matrix:
        """K B of all that may pass, the first of each head first."""
        if self.order is not None:
            return kernel[:, self.order]
        every = self._of_heads(kernel, len(kernel[0]))
        return every.swapaxes(1, 2).reshape(len(kernel), -1)

    def _of_heads(self, kernel: Matrix, rank: int) -> Float[np.ndarray, "c h r"]:
        assert self.bases is not None
        heads, size, _ = self.bases.shape
        parts = kernel.reshape(len(kernel), heads, size).swapaxes(0, 1)
        return (parts @ self.bases[:, :, :rank]).swapaxes(0, 1)


def passage(own: Seen, heads: int | None) -> Passage:
    """Which units pass, or what of each head.

    Of a head it is what the best low rank of its part of the consumer's kernel reads, in the norm
    of its own moment and of the outputs.
    """
    if heads is None:
        return Passage(units_in_order(own.moment, own.target), None)
    size = len(own.moment) // heads
    bases = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        left = np.linalg.cholesky(own.moment[part, part])
        weighed = left.T @ own.target[part]
        # Left singular vectors, the greatest value first.
        directions = np.linalg.eigh(weighed @ weighed.T)[1][:, ::-1]
        read = np.linalg.solve(left.T, directions)
        bases.append(np.linalg.qr(read)[0])
    return Passage(None, np.stack(bases))


def losses(own: Seen, heads: int | None) -> Float[np.ndarray, " _"]:
    """tr(G E^T M E) where so much passes, of each head or of all units, beginning with nothing."""
    found, step = passage(own, heads), heads or 1
    read = own.moment @ own.target
    whole = np.sum(read * own.target)
    # One factorisation serves all numbers of what passes: each is the front of the next.
    left = np.linalg.cholesky(found.by_worth(found.by_worth(own.moment).T))
    gains = np.linalg.solve(left, found.by_worth(read.T).T)
    kept = np.cumsum(np.sum(gains**2, axis=1))[step - 1 :: step]
    return np.maximum(whole - np.concatenate([[0.0], kept]), 0.0)


class PairFactors(NamedTuple):
    """What becomes of a layer of a pair.

    Arguments:
        kept: the kernel of its only stage, of a stack with its layers in front.
        shift: what its bias takes on, (T,), or (copies, T); None for nothing.
    """

    kept: Any
    shift: Any


def decompose_pair(
    pair: Paired,
    arrays: Mapping[str, Any],
    biases: Mapping[str, Any],
    weights: Weights,
    mean: Any,
) -> dict[str, PairFactors]:
    """What becomes of the layers of a pair, by path.

    Arguments:
        arrays: that hold the kernels, by path.
        biases: of the producers that have one.
        weights: of the consumer.
        mean: of what it reads, where its bias is to be corrected; else None.
    """
    consumer = pair.consumer.layer
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arrays, weights))):
        raise ValueError(
            f"layer {consumer.path!r}: pairs are decomposed on the host, not inside of jax.jit or "
            "jax.vmap"
        )
    (rank,) = pair.consumer.ranks
    if mean is not None:
        weights = around_mean(weights, mean)
        mean = np.asarray(as_numpy(mean), np.float64).reshape(consumer.copies, -1)
    every = seen(arrays[consumer.path], consumer, weights)
    passages = [passage(own, pair.heads) for own in every]
    reads, shifts = [], []
    for number, (own, found) in enumerate(zip(every, passages, strict=True)):
        passing = found.produced(own.moment, rank)
        square = found.produced(passing.T, rank)
        read = np.linalg.solve(square, passing.T @ own.kernel)
        reads.append(read)
        if mean is not None:
            lost = mean[number] @ own.kernel
            shifts.append(lost - (found.produced(mean[number][None], rank) @ read)[0])
    made = {consumer.path: PairFactors(_together(reads, consumer), _rows(shifts, consumer))}
    for entry in pair.producers:
        layer = entry.layer
        kernels = _kernels(arrays[layer.path], layer)
        kept = [found.produced(k, rank) for k, found in zip(kernels, passages, strict=True)]
        moved = []
        if layer.path in biases:
            old = np.asarray(as_numpy(biases[layer.path]), np.float64)
            for row, found in zip(old.reshape(layer.copies, -1), passages, strict=True):
                new = entry.chain.rows_out(found.produced(row[None], rank))
                moved.append(np.asarray(new, np.float64)[0] - row)
        made[layer.path] = PairFactors(_together(kept, layer), _rows(moved, layer))
    return made


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
