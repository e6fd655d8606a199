"""A second moment seen from one mode of a kernel, by NumPy: see `tdjax.decompose.moment`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.decompose.low_rank_on_host import leading_eigenvectors
from tdjax.decompose.moment import PRECONDITIONER_RIDGE
from tdjax.decompose.on_host import (
    Triangle,
    cholesky,
    conjugate_gradients,
    definite,
    eye,
    factor_in_blocks,
)

Array = np.ndarray
Factor = Float[Array, "_ r"]
Square = Float[Array, "_ _"]
Image = Float[Array, "c k k r"]


class ModeMoment(NamedTuple):
    """S laid out for one mode, and its approximation by a Kronecker product, window x channels.

    Arguments:
        array: S[c, k, l, d].
        channels: the inverse of the mean of S over equal window positions, (C, C).
        window: how window positions correlate, (K, K).
    """

    array: Float[Array, "c k k c"]
    channels: Square
    window: Square

    def image_of(self, factor: Factor) -> Image:
        """S (U x I): [c, k, l, a]."""
        return self.array @ factor


def lay_out(matrix: Square, rows: int, *, first: bool = True) -> ModeMoment:
    """The moment S of two modes of so many rows and the rest, seen from one of them.

    Arguments:
        first: whether it is the first of both; else the last.
    """
    others = len(matrix) // rows
    if first:
        array = matrix.reshape(rows, others, rows, others).transpose(0, 1, 3, 2)
    else:
        array = matrix.reshape(others, rows, others, rows).transpose(1, 0, 2, 3)
    mean = np.einsum("ckkd->cd", array) / others
    ridge = PRECONDITIONER_RIDGE * np.mean(np.diagonal(mean))
    inverse = np.linalg.inv(definite(mean + ridge * eye(mean)))
    window = np.tensordot(array, inverse, ((0, 3), (0, 1))) / rows
    return ModeMoment(array, inverse, window)


def leading_factor(moment: ModeMoment, x: Float[Array, "c k t"], rank: int) -> Factor:
    """See `tdjax.decompose.moment.leading_factor`."""
    spread = np.tensordot(x, cholesky(moment.window), ((1,), (0,))).reshape(len(x), -1)
    root = cholesky(moment.channels)
    # With P = R R^T the inverse of the channels' moment, R^-1 is a root of the moment.
    rooted = np.linalg.solve(root, spread)
    return np.linalg.qr(root @ leading_eigenvectors(rooted @ rooted.T, rank))[0]


def improve_factor(
    moment: ModeMoment,
    factor: Factor,
    rest: Float[Array, "r k m"],
    residual: Float[Array, "c k m"],
    steps: int,
) -> Factor:
    """See `tdjax.decompose.moment.improve_factor`."""
    r, k, m = rest.shape
    flat = rest.reshape(r * k, m)
    gram = (flat @ flat.T).reshape(r, k, r, k)
    weights = gram.transpose(1, 3, 2, 0).reshape(k * k * r, r)
    small = np.tensordot(gram, moment.window, ((1, 3), (0, 1)))
    inner = preconditioner((small + small.T) / 2)

    def normal(array: Factor) -> Factor:
        return moment.image_of(array).reshape(len(array), -1) @ weights

    gradient = residual.reshape(len(factor), -1) @ rest.reshape(r, -1).T
    return factor + conjugate_gradients(
        normal, gradient, lambda right: moment.channels @ right @ inner, steps
    )


def preconditioner(small: Square) -> Square:
    """The inverse of the inner half of a Kronecker approximation."""
    ridge = PRECONDITIONER_RIDGE * np.mean(np.diagonal(small))
    return np.linalg.inv(definite(small + ridge * eye(small)))


def filled(matrix: Square) -> Square:
    """A matrix with the mean of its diagonal where that is 0, as the rows and columns then are."""
    diagonal = np.diagonal(matrix)
    empty = diagonal == 0
    return matrix + np.diag(np.where(empty, diagonal.sum() / max(1, np.sum(~empty)), 0.0))


def root_for(compressed: Square) -> Triangle:
    """A Cholesky factor of what is solved with, columns of zeros left out of account."""
    return factor_in_blocks(filled(compressed))
