"""Truncated SVD, and the leading singular subspaces that Tucker and tensor train build on."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.als import safe_ratio
from tdjax.decompose.coordinates import Norm, check_known, coordinates_of, posed
from tdjax.decompose.formats import LowRank
from tdjax.decompose.inputs import as_float, check_ranks, is_at_hand, placed_like, whole_ranks
from tdjax.decompose.low_rank_on_host import GRAM_TAIL, best_low_rank
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.norms import is_on_host, weights_on_host
from tdjax.decompose.on_host import unit
from tdjax.decompose.padding import Kept, cut, first, rounded_up
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.weighted import robust_cholesky


@on_any_mesh
@whole_ranks
def truncated_svd(
    matrix: Any, rank: int, *, norm: Norm | None = None, pad: bool = False
) -> LowRank:
    """Best approximation of a matrix by one of rank r (Eckart and Young 1936).

    The singular values are split evenly between the two factors, which keeps gradients with
    respect to both of one size.

    >>> import jax, jax.numpy as jnp, tdjax
    >>> matrix = jax.random.normal(jax.random.key(0), (9, 6))
    >>> lowrank = tdjax.truncated_svd(matrix, 2)
    >>> dropped = jnp.linalg.svd(matrix, compute_uv=False)[2:]
    >>> error = jnp.linalg.norm(matrix - lowrank.to_tensor())
    >>> bool(jnp.allclose(error, jnp.linalg.norm(dropped), rtol=1e-4))
    True

    Arguments:
        matrix: (m, n), float; half precision is raised to float32.
        rank: r, static, 1 <= r <= min(m, n).
        norm: None for Frobenius, or a `tdjax.Norm`.
        pad: compile one program for many ranks, see `tdjax.decompose.padding`, or none where NumPy
            can do it.

    Returns: LowRank with left (m, r) and right (r, n).

    Raises ValueError for NaN or Inf, a shape that is not two-dimensional, a rank out of range.
    """
    check_known(norm)
    x = as_float(matrix, ndim=2)
    (rank,) = check_ranks((rank,), (min(x.shape),), "truncated_svd")
    if not pad:
        return _low_rank(x, norm, None, rank=rank)
    if is_at_hand(x) and is_on_host(norm):
        return _low_rank_on_host(x, norm, rank)
    padded = _low_rank(x, norm, rank, rank=rounded_up(rank, min(x.shape)))
    return LowRank(*cut((padded.left, padded.right), ((None, rank), (rank,))))


@partial(jax.jit, static_argnames=("rank",))
def _low_rank(x: Float[Array, "m n"], norm: Norm | None, kept: Kept, *, rank: int) -> LowRank:
    problem = posed(x, coordinates_of(norm, x))
    y, weight = problem.array, problem.weight
    if weight is None:
        return problem.back(_truncated_svd(y, rank, kept))
    root = jnp.sqrt(weight) if weight.ndim == 1 else robust_cholesky(weight)
    return problem.back(best_by_root(y, root, rank, kept))


def _low_rank_on_host(x: Float[Array, "m n"], norm: Norm | None, rank: int) -> LowRank:
    (matrix,), (scale,) = unit(np.asarray(x)[None])
    factors = best_low_rank(matrix, rank, *weights_on_host(norm, x))
    half = x.dtype.type(math.sqrt(scale))
    return LowRank(*(placed_like(x, half * factor) for factor in factors))


def _truncated_svd(x: Float[Array, "m n"], rank: int, kept: Kept) -> LowRank:
    if x.shape[0] < x.shape[1]:
        flipped = _truncated_svd(x.T, rank, kept)
        return LowRank(flipped.right.T, flipped.left.T)
    return _projected(x, leading_subspace(x.T, rank, kept=kept))


def best_by_root(x: Float[Array, "m n"], root: Array, rank: int, kept: Kept = None) -> LowRank:
    """The best in norm(L^T E): x projected on the leading right singular vectors of L^T x.

    No inverse of the root is needed, so that a nearly singular L L^T does no harm.

    Arguments:
        root: L, (m, m), or its diagonal, (m,).
        kept: see `leading_subspace`.
    """
    rooted = root[:, None] * x if root.ndim == 1 else jnp.matmul(root.T, x, precision=HIGHEST)
    return _projected(x, leading_subspace(rooted.T, rank, kept=kept))


def _projected(x: Float[Array, "m n"], basis: Float[Array, "n r"]) -> LowRank:
    """x B B^T, its scale split evenly between the factors."""
    scaled = jnp.matmul(x, basis, precision=HIGHEST)
    root = jnp.sqrt(jnp.linalg.norm(scaled, axis=0))
    return LowRank(safe_ratio(scaled, root), root[:, None] * basis.T)


def leading_subspace(
    x: Float[Array, "m n"], rank: int, *, accurate: bool = True, kept: Kept = None
) -> Float[Array, "m r"]:
    """Orthonormal basis of the space of the `rank` leading left singular vectors.

    From the eigenvectors of the Gram matrix of the shorter side, many times faster than an SVD;
    where nearly nothing is dropped (`GRAM_TAIL`), `accurate` falls back to the SVD. Under `vmap`
    both are computed. A full rank costs no decomposition: any basis spans the whole space.

    Arguments:
        kept: traced; the columns behind so many are zero, and those before span the space of as
            many singular vectors. `rank` is at most m then.
    """
    m, n = x.shape
    if kept is None and rank >= m:
        return jnp.eye(m, dtype=x.dtype)
    if kept is None and rank >= n:
        # Beyond n columns any orthonormal ones will do: nothing of x is left for them.
        mode = "reduced" if rank == n else "complete"
        return jnp.linalg.qr(x, mode=mode)[0][:, :rank]

    def by_svd(x: Float[Array, "m n"]) -> Float[Array, "m r"]:
        return _widened(jnp.linalg.svd(x, full_matrices=False)[0][:, :rank], rank)

    if m <= n:
        values, vectors = jnp.linalg.eigh(jnp.matmul(x, x.T, precision=HIGHEST))

        def by_gram(x: Float[Array, "m n"]) -> Float[Array, "m r"]:
            return vectors[:, ::-1][:, :rank]
    else:
        values, vectors = jnp.linalg.eigh(jnp.matmul(x.T, x, precision=HIGHEST))

        def by_gram(x: Float[Array, "m n"]) -> Float[Array, "m r"]:
            right = vectors[:, ::-1][:, :rank]
            basis = jnp.linalg.qr(jnp.matmul(x, right, precision=HIGHEST))[0]
            return _widened(basis, rank)

    if accurate:
        behind = ~first(rank if kept is None else kept, len(values))[::-1]
        tail = jnp.sum(jnp.where(behind, values, 0.0))
        basis = jax.lax.cond(tail > GRAM_TAIL * jnp.sum(values), by_gram, by_svd, x)
    else:
        basis = by_gram(x)
    return basis if kept is None else jnp.where(first(kept, rank), basis, 0.0)


def _widened(basis: Float[Array, "m n"], rank: int) -> Float[Array, "m r"]:
    """With any further columns that are orthonormal to those there are, up to `rank`."""
    missing = rank - basis.shape[1]
    if missing <= 0:
        return basis
    # For columns of zeros QR takes whatever completes the others.
    return jnp.linalg.qr(jnp.pad(basis, ((0, 0), (0, missing))))[0]
