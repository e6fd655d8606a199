"""A second moment seen from one mode of a kernel: the pieces of weighted Tucker and tensor train.

Both formats read x, of shape (C, K, T) with the mode in question first and all other input modes
in the window K, as x[c, k, t] = sum over a and m of U[c, a] G[a, k, m] A[t, m]. With the second
moment laid out as S[c, k, l, d], from (l, d) to (c, k), the image S (U x I) of a factor is one
product of two matrices, and everything else is small beside it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.padding import Kept, first
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.svd import leading_subspace
from tdjax.decompose.weighted import conjugate_gradients, robust_cholesky, solve_with

# Of each mean over the window this share of its mean diagonal is added in the preconditioner.
PRECONDITIONER_RIDGE = 1e-4

Image = Float[Array, "c k k r"]


class ModeMoment(NamedTuple):
    """S laid out for one mode, and its approximation by a Kronecker product, window x channels.

    Arguments:
        array: S[c, k, l, d].
        channels: (C, C), Cholesky factor of the mean of S over equal window positions.
        window: (K, K), how the window positions correlate, with a mean diagonal of 1.
    """

    array: Float[Array, "c k k c"]
    channels: Float[Array, "c c"]
    window: Float[Array, "k k"]


def lay_out(array: Float[Array, "c k k c"]) -> ModeMoment:
    """The moment with its approximation, from S[c, k, l, d]."""
    size, positions = array.shape[:2]
    mean = jnp.einsum("ckkd->cd", array) / positions
    ridge = PRECONDITIONER_RIDGE * jnp.mean(jnp.diagonal(mean))
    factor = robust_cholesky(mean + ridge * jnp.eye(size, dtype=array.dtype))
    inverse = solve_with(factor, jnp.eye(size, dtype=array.dtype))
    window = jnp.einsum("ckld,cd->kl", array, inverse, precision=HIGHEST) / size
    return ModeMoment(array, factor, window)


def image_of(moment: ModeMoment, factor: Float[Array, "c r"]) -> Image:
    """S (U x I): [c, k, l, a]."""
    c, k = moment.array.shape[:2]
    product = jnp.matmul(moment.array.reshape(c * k * k, c), factor, precision=HIGHEST)
    return product.reshape(c, k, k, -1)


def compress(factor: Float[Array, "c r"], image: Image) -> Float[Array, "r k k r"]:
    """(U x I)^T S (U x I): [a, k, l, b], made symmetric."""
    c, k, _, r = image.shape
    product = jnp.matmul(factor.T, image.reshape(c, -1), precision=HIGHEST).reshape(r, k, k, r)
    return (product + product.transpose(3, 2, 1, 0)) / 2


def project(factor: Float[Array, "c r"], x: Float[Array, "c k t"]) -> Float[Array, "r k t"]:
    """U^T x along the first mode."""
    product = jnp.matmul(factor.T, x.reshape(len(x), -1), precision=HIGHEST)
    return product.reshape(-1, *x.shape[1:])


def leading_factor(
    moment: ModeMoment, x: Float[Array, "c k t"], rank: int, kept: Kept = None
) -> Float[Array, "c r"]:
    """The best orthonormal U if S were its Kronecker approximation and only this mode compressed.

    The leading left singular vectors of x in coordinates where that moment is the identity.

    Arguments:
        kept: the columns behind so many are zero.
    """
    spread = jnp.einsum(
        "ckt,kl->clt", x, robust_cholesky(moment.window), precision=HIGHEST
    ).reshape(len(x), -1)
    rooted = jnp.matmul(moment.channels.T, spread, precision=HIGHEST)
    basis = leading_subspace(rooted, rank, kept=kept)
    back = jax.scipy.linalg.solve_triangular(moment.channels, basis, lower=True, trans=1)
    return orthonormal(back, kept)[0]


def orthonormal(
    factor: Float[Array, "c r"], kept: Kept
) -> tuple[Float[Array, "c r"], Float[Array, "r r"]]:
    """QR decomposition; columns behind `kept`, which are zero, stay so."""
    basis, triangle = jnp.linalg.qr(factor)
    return basis if kept is None else jnp.where(first(kept, basis.shape[1]), basis, 0.0), triangle


def improve_factor(
    moment: ModeMoment,
    factor: Float[Array, "c r"],
    rest: Float[Array, "r k m"],
    residual: Float[Array, "c k m"],
    steps: int,
) -> Float[Array, "c r"]:
    """Lower the error in U, the rest G fixed, by conjugate gradients from the present one.

    Their preconditioner is the inverse of the normal equations of the Kronecker approximation.

    Arguments:
        moment: S.
        factor: U.
        rest: G.
        residual: S applied to what is left of x, projected on the output factor.
        steps: static.
    """
    r, k, m = rest.shape
    flat = rest.reshape(r * k, m)
    gram = jnp.matmul(flat, flat.T, precision=HIGHEST).reshape(r, k, r, k)
    # [k, l, a, b]: with it the second product of the normal equations needs no transposition.
    weights = gram.transpose(1, 3, 2, 0).reshape(k * k * r, r)
    small = jnp.einsum("akbl,kl->ab", gram, moment.window, precision=HIGHEST)
    small = (small + small.T) / 2
    ridge = PRECONDITIONER_RIDGE * jnp.mean(jnp.diagonal(small))
    inner = robust_cholesky(small + ridge * jnp.eye(r, dtype=small.dtype))

    def normal(array: Float[Array, "c r"]) -> Float[Array, "c r"]:
        image = image_of(moment, array).reshape(len(array), -1)
        return jnp.matmul(image, weights, precision=HIGHEST)

    gradient = jnp.matmul(
        residual.reshape(len(factor), -1), rest.reshape(r, -1).T, precision=HIGHEST
    )
    precondition = partial(kronecker_solve, moment.channels, inner)
    return factor + conjugate_gradients(normal, gradient, precondition, steps)


def kronecker_solve(
    channels: Float[Array, "c c"], inner: Float[Array, "r r"], right: Float[Array, "c r"]
) -> Float[Array, "c r"]:
    """A z B = right solved for z, given the Cholesky factors of A and B."""
    return solve_with(inner, solve_with(channels, right).T).T


def filled(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """A matrix with the mean of its diagonal where that is 0, as the rows and columns then are."""
    diagonal = jnp.diagonal(matrix)
    empty = diagonal == 0
    unit = jnp.sum(diagonal) / jnp.maximum(1, jnp.sum(~empty))
    return matrix + jnp.diag(jnp.where(empty, unit, 0.0))


def fit_rest(
    compressed: Float[Array, "n n"],
    product: Float[Array, "n t"],
    rank: int | None,
    kept: Kept = None,
) -> tuple[Float[Array, "n m"], Float[Array, "t m"] | None]:
    """The core and the orthonormal output factor that are best together, the rest fixed.

    With the array P G A^T: G A^T is the solution of the normal equations P^T S P, cut to rank m in
    their norm, which a Cholesky factor turns into a truncated SVD.

    Arguments:
        compressed: P^T S P.
        product: P^T S x.
        rank: m, static; None where the output mode stays whole.
        kept: the columns of A behind so many are zero.

    Returns: G and A, or None for the identity. Where P has columns of zeros, so has G rows.
    """
    compressed = filled(compressed)
    factor = robust_cholesky(compressed, solves=True)
    if rank is None:
        return solve_with(factor, product, compressed), None
    rooted = jax.scipy.linalg.solve_triangular(factor, product, lower=True)
    output = leading_subspace(rooted.T, rank, accurate=False, kept=kept)
    right = jnp.matmul(product, output, precision=HIGHEST)
    return solve_with(factor, right, compressed), output
