"""Low rank in the norm tr(G E^T S E) by NumPy: all that is asked of it for one layer, once.

What matters of a matrix x, (m, n) with m >= n, is the Gram matrix R^T x^T S x R for a root R of
the moment of its shorter side, G = R R^T: no root of the longer side's is needed.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tdjax.decompose.on_host import Weight, root_of, times

Array = np.ndarray
Arrays = Float[Array, "*_"]

# The Gram matrix squares the singular values: what it says of a subspace is uncertain by about
# eps * norm(x)^2 in energy. While the dropped energy is a thousand times that or more, the
# truncation error is right to three digits; below, more digits or a true SVD are needed.
GRAM_TAIL = 1e-3
# Matrices from which on eigenvectors in single precision, half the time of NumPy's double, are
# worth compiling a program for their size.
PROGRAM_FROM = 512


def energies(
    matrices: Float[Array, "*p m n"], rows: Weight | None = None, columns: Weight | None = None
) -> Float[Array, "*p r"]:
    """Squared singular values in the norm, descending.

    Arguments:
        rows, columns: S, (p, m, m), and G, (p, n, n), for matrices (p, m, n).
    """
    if matrices.shape[-2] < matrices.shape[-1]:
        return energies(matrices.swapaxes(-1, -2), columns, rows)
    root = None if columns is None else root_of(columns.in_full())
    grams = _gram(_turned(matrices, root), rows)
    return np.maximum(np.linalg.eigvalsh(grams)[..., ::-1], 0.0)


def best_low_rank(
    x: Float[Array, "m n"], rank: int, rows: Weight | None, columns: Weight | None
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """The two factors that are best in the norm, the singular values split evenly.

    Arguments:
        rows, columns: S, (1, m, m), and G, (1, n, n), or their diagonals; None for the identity.
    """
    if x.shape[0] < x.shape[1]:
        right, left = best_low_rank(x.T, rank, columns, rows)
        return left.T, right.T
    root = None if columns is None else root_of(columns.in_full(), solves=True)
    turned = _turned(x[None], root)
    basis = leading_columns(turned, rows, rank)
    left = turned[0] @ basis
    if rows is None and root is None:
        return _scaled_evenly(left, basis.T)
    back = basis
    if root is not None:
        back = basis / root[0][:, None] if root.ndim == 2 else np.linalg.solve(root[0].T, basis)
    return split_evenly(left, back.T)


def _turned(matrices: Float[Array, "*p m n"], roots: Arrays | None) -> Float[Array, "*p m n"]:
    """x R, laid out row by row."""
    if roots is None:
        return np.ascontiguousarray(matrices)
    if roots.ndim < matrices.ndim:
        return matrices * roots[..., None, :]
    return np.matmul(matrices, roots)


def _gram(y: Float[Array, "*p m n"], rows: Weight | None) -> Float[Array, "*p n n"]:
    """Y^T S Y."""
    if rows is None:
        return np.matmul(y.swapaxes(-1, -2), y)
    found = np.matmul(y.swapaxes(-1, -2), rows.times(y))
    return (found + found.swapaxes(-1, -2)) / 2


def leading_columns(
    y: Float[Array, "1 m n"], rows: Weight | None, rank: int
) -> Float[Array, "n r"]:
    """The leading right singular vectors of y in the norm of its rows."""
    n = y.shape[2]
    if rank == n:
        return np.eye(n, dtype=y.dtype)
    values, vectors = eigh(_gram(y, rows)[0])
    # Where the rows' moment couples them much, what is left of large numbers is small.
    apart = 0.0 if rows is None else np.vdot(rows.diagonals()[0], np.einsum("mn,mn->m", y[0], y[0]))
    if values[: n - rank].sum() > GRAM_TAIL * max(values.sum(), apart):
        return _first(vectors, rank)
    if y.dtype != np.float64:
        gram = _gram(y.astype(float), None if rows is None else rows.in_double())[0]
        return _first(np.linalg.eigh(gram)[1].astype(y.dtype), rank)
    rooted = y[0] if rows is None else times(root_of(rows.in_full()), y)[0]
    return np.linalg.svd(rooted, full_matrices=False)[2][:rank].T


def leading_eigenvectors(matrix: Float[Array, "n n"], rank: int) -> Float[Array, "n r"]:
    """Those of the largest eigenvalues of a symmetric matrix, the largest first."""
    return _first(eigh(matrix)[1], rank)


def _first(rising: Float[Array, "n n"], rank: int) -> Float[Array, "n r"]:
    """The last so many columns, the last first; a copy, as BLAS takes no negative strides."""
    return np.ascontiguousarray(rising[:, ::-1][:, :rank])


def leading_rows(x: Float[Array, "m n"], rank: int) -> Float[Array, "m r"]:
    """Orthonormal columns that span the space of the leading left singular vectors of a matrix.

    Arguments:
        rank: r, at most min(m, n).
    """
    if x.shape[0] <= x.shape[1]:
        return leading_columns(np.ascontiguousarray(x.T)[None], None, rank)
    return np.linalg.qr(x @ leading_columns(x[None], None, rank))[0]


def eigh(matrix: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues, rising, and eigenvectors of a symmetric matrix, in its dtype's precision."""
    if matrix.dtype == np.float64 or len(matrix) < PROGRAM_FROM:
        return np.linalg.eigh(matrix)
    found = _eigh(jax.device_put(matrix, jax.devices("cpu")[0]))
    values, vectors = map(np.asarray, found)
    return values, vectors


_eigh = jax.jit(partial(jnp.linalg.eigh, symmetrize_input=False))


def _scaled_evenly(
    left: Float[Array, "m r"], right: Float[Array, "r n"]
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """Orthogonal columns and orthonormal rows, the scale of the former split evenly."""
    root = np.sqrt(np.linalg.norm(left, axis=0))
    return left / np.where(root > 0, root, 1.0), root[:, None] * right


def split_evenly(
    left: Float[Array, "m r"], right: Float[Array, "r n"]
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """Orthogonal factors of the same product, the singular values split evenly.

    With L the Cholesky factor of left^T left, the eigenvectors U of L^T (right right^T) L and the
    squares of the singular values turn left into left L^-T U s^1/2, and right accordingly.
    """
    dtype, left, right = left.dtype, left.astype(float), right.astype(float)
    try:
        root = np.linalg.cholesky(left.T @ left)
    except np.linalg.LinAlgError:
        rows, root = np.linalg.qr(left)
        left, right, root = rows, root @ right, np.eye(len(root))
    squares, vectors = np.linalg.eigh(root.T @ (right @ right.T) @ root)
    least = max(np.finfo(float).eps * squares[-1], np.finfo(float).tiny)
    scale = np.maximum(squares, least)[::-1] ** 0.25
    turn = vectors[:, ::-1]
    left = left @ (np.linalg.solve(root.T, turn) * scale)
    right = (turn / scale).T @ root.T @ right
    return left.astype(dtype), right.astype(dtype)
