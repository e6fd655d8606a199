"""Linear algebra in the norm tr(G E^T S E) by NumPy, for arrays that lie in a CPU's memory.

What is computed once for each layer of a network is over before a program for its shape would be
compiled. Where there are programs, inside `jax.jit` and on other devices, the same is done by
`tdjax.decompose.svd` and `tdjax.decompose.norms`.

Roots are (p, n, n), lower triangular, R R^T = S, or diagonal, (p, n); without the axis of p for
one alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# The Gram matrix squares the singular values: what it says of a subspace is uncertain by about
# eps * norm(x)^2 in energy. While the dropped energy is a thousand times that or more, the
# truncation error is right to three digits; below, a true SVD takes over.
GRAM_TAIL = 1e-3

Array = np.ndarray
Arrays = Float[Array, "*_"]


def unit(arrays: Arrays) -> tuple[Arrays, Float[Array, " p"]]:
    """Each of some arrays (p, ...) divided by a power of two, its largest entry up to 1; these."""
    exponents = np.frexp(np.abs(arrays).max(axis=tuple(range(1, arrays.ndim))))[1]
    column = exponents.reshape(-1, *(1,) * (arrays.ndim - 1))
    return np.ldexp(arrays, -column), np.ldexp(1.0, exponents)


def regularised(moments: Arrays, ridge: float) -> tuple[Arrays, Float[Array, " p"]]:
    """Moments of entries up to 1, plus `ridge` times their mean diagonals, and their scales.

    Identities in place of zeros.
    """
    moments, scales = unit(moments)
    full = moments.ndim == 3
    identity = eye(moments) if full else np.ones_like(moments)
    diagonals = np.diagonal(moments, axis1=1, axis2=2) if full else moments
    means = diagonals.mean(axis=1).reshape(-1, *(1,) * (moments.ndim - 1))
    symmetric = (moments + moments.swapaxes(1, 2)) / 2 if full else moments
    return np.where(means > 0, symmetric + ridge * means * identity, identity), scales


def root_of(moments: Arrays, *, solves: bool = False) -> Arrays:
    """Some root of each moment; `solves` as for `cholesky`."""
    if moments.ndim > 2:
        return cholesky(moments, solves=solves)
    least = np.finfo(moments.dtype).eps * moments.max(axis=1, keepdims=True) if solves else 0.0
    return np.sqrt(np.maximum(moments, least))


def root_or_none(moment: Arrays | None) -> Arrays | None:
    """A root of one moment that equations can be solved with; None of None."""
    return None if moment is None else root_of(moment[None], solves=True)[0]


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
    shifted, shift = matrix, float(np.finfo(matrix.dtype).eps)
    while shift < 1 and _attempt(shifted, solves) is None:
        shifted = matrix + matrix.dtype.type(shift) * _mean(matrix) * eye(matrix)
        shift *= 10
    return shifted


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


def energies(matrices: Float[Array, "*p m n"]) -> Float[Array, "*p r"]:
    """Squared singular values, descending."""
    m, n = matrices.shape[-2:]
    short = matrices.swapaxes(-1, -2) if m > n else matrices
    grams = np.matmul(short, short.swapaxes(-1, -2))
    return np.maximum(np.linalg.eigvalsh(grams)[..., ::-1], 0.0)


def best_low_rank(
    x: Float[Array, "m n"], rank: int, rows: Arrays | None, columns: Arrays | None
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """The two factors that are best in norm(L^T E R), the singular values split evenly.

    Arguments:
        rows, columns: L, (m, m), and R, (n, n), or their diagonals; None for the identity.
    """
    if x.shape[0] < x.shape[1]:
        right, left = best_low_rank(x.T, rank, columns, rows)
        return left.T, right.T
    turned = x if columns is None else times(columns, x.T).T
    basis = _leading_columns(turned if rows is None else times(rows, turned), rank)
    back = basis
    if columns is not None:
        back = basis / columns[:, None] if columns.ndim == 1 else np.linalg.solve(columns.T, basis)
    return _split_evenly(turned @ basis, back.T)


def _leading_columns(x: Float[Array, "m n"], rank: int) -> Float[Array, "n r"]:
    """The leading right singular vectors of a matrix of no more columns than rows."""
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0.0)
    if values[: len(values) - rank].sum() > GRAM_TAIL * values.sum():
        return vectors[:, ::-1][:, :rank]
    return np.linalg.svd(x, full_matrices=False)[2][:rank].T


def _split_evenly(
    left: Float[Array, "m r"], right: Float[Array, "r n"]
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """Orthogonal factors of the same product, the singular values split evenly."""
    rows, upper = np.linalg.qr(left)
    columns, lower = np.linalg.qr(right.T)
    u, values, vt = np.linalg.svd(upper @ lower.T)
    root = np.sqrt(values)
    return rows @ (u * root), (root[:, None] * vt) @ columns.T
