"""Linear algebra in the norm tr(G E^T S E) by NumPy, for arrays that lie in a CPU's memory.

What is computed once for each layer of a network is over before a program for its shape would be
compiled. Where there are programs, inside `jax.jit` and on other devices, the same is done by
`tdjax.decompose.svd` and `tdjax.decompose.norms`.

Roots are (p, n, n), lower triangular, R R^T = S, or diagonal, (p, n); without the axis of p for
one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

# Rows of a triangular matrix that are solved for at once.
BLOCK = 64

Array = np.ndarray
Arrays = Float[Array, "*_"]


def unit(arrays: Arrays) -> tuple[Arrays, Float[Array, " p"]]:
    """Each of some arrays (p, ...) divided by a power of two, its largest entry up to 1; these."""
    exponents = np.frexp(np.abs(arrays).max(axis=tuple(range(1, arrays.ndim))))[1]
    column = exponents.reshape(-1, *(1,) * (arrays.ndim - 1))
    return np.ldexp(arrays, -column), np.ldexp(1.0, exponents)


class Weight(NamedTuple):
    """Second moments as they lie in memory, and what makes definite ones of entries up to 1.

    M = array / 4^half + shift on the diagonal, made symmetric: a moment is large, and to copy it
    takes as long as a good part of what is done with it.

    Arguments:
        array: (p, n, n), or diagonals (p, n).
        half: (p,), whole numbers.
        shift: (p,).
    """

    array: Arrays
    half: Int[Array, " p"]
    shift: Float[Array, " p"]

    @property
    def scales(self) -> Float[Array, " p"]:
        """What M is to be multiplied by for the moments themselves."""
        return np.ldexp(1.0, 2 * self.half)

    def times(self, matrices: Float[Array, "p n t"]) -> Float[Array, "p n t"]:
        """M Y, but for making M symmetric."""
        shift = _column(self.shift, matrices)
        if self.array.ndim == 2:
            return self.diagonals()[..., None] * matrices
        # In two steps, as the square of the scale may be beyond the dtype.
        scale = _column(np.ldexp(np.ones_like(self.shift), -self.half), matrices)
        product = np.matmul(self.array, scale * matrices)
        product *= scale
        if shift.any():
            product += shift * matrices
        return product

    def diagonals(self) -> Float[Array, "p n"]:
        """The diagonal of M."""
        array, scale = self.array, np.ldexp(np.ones_like(self.shift), -self.half)[:, None]
        own = array if array.ndim == 2 else np.diagonal(array, axis1=1, axis2=2)
        return own * scale * scale + self.shift[:, None]

    def in_full(self) -> Arrays:
        """M, (p, n, n), or its diagonals, (p, n), where the moments are given by them."""
        if self.array.ndim == 2:
            return self.diagonals()
        scale = _column(np.ldexp(np.ones_like(self.shift), -self.half), self.array)
        half = self.array * (scale / 2)
        half *= scale
        found = half + half.swapaxes(1, 2)
        np.einsum("pii->pi", found)[:] += self.shift[:, None]
        return found

    def in_double(self) -> Weight:
        """The same in double precision."""
        return Weight(self.array.astype(float), self.half, self.shift.astype(float))


def weight_of(moments: Arrays, ridge: float) -> Weight:
    """Moments with `ridge` times their mean diagonals added; identities in place of zeros.

    Arguments:
        moments: (p, n, n) or diagonals (p, n); the largest entries of the former lie on the
            diagonal, as those of second moments do.
    """
    full = moments.ndim == 3
    diagonals = np.diagonal(moments, axis1=1, axis2=2) if full else moments
    half = (np.frexp(np.abs(diagonals).max(axis=1))[1] + 1) // 2
    scale = np.ldexp(np.ones(len(half), moments.dtype), -half)[:, None]
    means = (diagonals * scale * scale).mean(axis=1)
    if (means > 0).all():
        return Weight(moments, half, (ridge * means).astype(moments.dtype))
    kept = _column(means > 0, moments)
    shift = np.where(means > 0, ridge * means, 1.0).astype(moments.dtype)
    return Weight(np.where(kept, moments, 0), half, shift)


def _column(values: Shaped[Array, " p"], like: Arrays) -> Shaped[Array, "*_"]:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def root_of(moments: Arrays, *, solves: bool = False) -> Arrays:
    """Some root of each moment; `solves` as for `cholesky`."""
    if moments.ndim > 2:
        return cholesky(moments, solves=solves)
    least = np.finfo(moments.dtype).eps * moments.max(axis=1, keepdims=True) if solves else 0.0
    return np.sqrt(np.maximum(moments, least))


def times(roots: Arrays, matrices: Float[Array, "*p d t"]) -> Float[Array, "*p d t"]:
    """R^T W."""
    if roots.ndim < matrices.ndim:
        return roots[..., None] * matrices
    return np.matmul(roots.swapaxes(-1, -2), matrices)


def cholesky(matrices: Float[Array, "*p n n"], *, solves: bool = False) -> Float[Array, "*p n n"]:
    """Lower Cholesky factors; see `tdjax.decompose.weighted.robust_cholesky`."""
    found = _attempt(matrices, solves)
    if found is not None:
        return found
    if matrices.ndim > 2:
        return np.stack([cholesky(matrix, solves=solves) for matrix in matrices])
    return np.linalg.cholesky(definite(matrices, solves=solves))


def definite(matrix: Float[Array, "n n"], *, solves: bool = True) -> Float[Array, "n n"]:
    """A matrix with the least of a ladder of shifts that makes it definite."""
    for own in _shifted(matrix):
        if _attempt(own, solves) is not None:
            break
    return own


def _shifted(matrix: Float[Array, "n n"]) -> Iterator[Float[Array, "n n"]]:
    """The matrix itself, then with more and more on its diagonal, up to the mean of that."""
    yield matrix
    shift = float(np.finfo(matrix.dtype).eps)
    while shift < 1:
        yield matrix + matrix.dtype.type(shift) * _mean(matrix) * eye(matrix)
        shift *= 10


class Triangle(NamedTuple):
    """A lower triangular matrix L, and the inverses of its blocks on the diagonal."""

    factor: Float[Array, "n n"]
    corners: list[Float[Array, "_ _"]]

    def solve(self, right: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Z with L Z = right."""
        found = right.copy()
        for own, corner in zip(_blocks(self.factor), self.corners, strict=True):
            rest = found[own]
            if own.start:
                rest = rest - self.factor[own, : own.start] @ found[: own.start]
            found[own] = corner @ rest
        return found

    def solve_transposed(self, right: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Z with L^T Z = right."""
        found = right.copy()
        pairs = zip(_blocks(self.factor), self.corners, strict=True)
        for own, corner in reversed(list(pairs)):
            rest = found[own]
            if own.stop < len(found):
                rest = rest - self.factor[own.stop :, own].T @ found[own.stop :]
            found[own] = corner.T @ rest
        return found

    def solve_whole(self, right: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Z with L L^T Z = right."""
        return self.solve_transposed(self.solve(right))


def factor_in_blocks(matrix: Float[Array, "n n"]) -> Triangle:
    """Lower Cholesky factor of a matrix made definite, in its own precision.

    NumPy's is in double precision throughout; this takes a third of its time for large matrices.
    """
    for own in _shifted(matrix):
        found = _in_blocks(own)
        if found is not None:
            return found
    raise np.linalg.LinAlgError("no shift makes the matrix definite")


def _in_blocks(matrix: Float[Array, "n n"]) -> Triangle | None:
    """The factor, None where rounding leaves none, or pivots that are rounding."""
    factor, corners = np.zeros_like(matrix), []
    for own in _blocks(matrix):
        panel = matrix[own.start :, own]
        if own.start:
            before = factor[own.start :, : own.start]
            panel = panel - before @ factor[own, : own.start].T
        size = panel.shape[1]
        corner = _attempt(panel[:size], solves=False)
        if corner is None:
            return None
        corners.append(np.linalg.inv(corner))
        factor[own, own] = corner
        if own.stop < len(factor):
            factor[own.stop :, own] = panel[size:] @ corners[-1].T
    least = np.finfo(matrix.dtype).eps * _mean(matrix)
    return Triangle(factor, corners) if (np.diagonal(factor) ** 2 >= least).all() else None


def _blocks(matrix: Float[Array, "n n"]) -> list[slice]:
    n = len(matrix)
    return [slice(start, min(n, start + BLOCK)) for start in range(0, n, BLOCK)]


def _attempt(matrices: Float[Array, "*p n n"], solves: bool) -> Float[Array, "*p n n"] | None:
    """The factors, None where rounding leaves none."""
    try:
        found = np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        return None
    least = np.finfo(matrices.dtype).eps * _mean(matrices)[..., 0] if solves else 0.0
    sound = np.diagonal(found, axis1=-2, axis2=-1) ** 2 >= least
    return found if sound.all() else None


def _mean(matrices: Float[Array, "*p n n"]) -> Float[Array, "*p 1 1"]:
    """The mean diagonals, 1 in place of 0."""
    means = np.diagonal(matrices, axis1=-2, axis2=-1).mean(axis=-1)
    return np.where(means > 0, means, 1.0).astype(matrices.dtype)[..., None, None]


def eye(matrices: Float[Array, "*p n n"]) -> Float[Array, "n n"]:
    """The identity of some matrices."""
    return np.eye(matrices.shape[-1], dtype=matrices.dtype)


def conjugate_gradients(
    normal: Callable[[Arrays], Arrays],
    residual: Arrays,
    precondition: Callable[[Arrays], Arrays],
    steps: int,
) -> Arrays:
    """See `tdjax.decompose.weighted.conjugate_gradients`."""
    found, left = np.zeros_like(residual), residual
    direction = fresh = precondition(left)
    energy = np.vdot(left, fresh)
    for _ in range(steps):
        image = normal(direction)
        curvature = np.vdot(direction, image)
        # Rounding can turn the curvature of a negligible direction negative.
        if not (curvature > 0 and energy > 0):
            break
        found = found + energy / curvature * direction
        left = left - energy / curvature * image
        fresh = precondition(left)
        following = np.vdot(left, fresh)
        direction, energy = fresh + following / energy * direction, following
    return found


def sum_of_products(y: Float[Array, "*n"], z: Float[Array, "*n"]) -> float:
    """<y, z>, summed in double precision."""
    return float(np.einsum("...i,...i->...", y, z).sum(dtype=float))
