"""What every rank of a kernel loses, all ranks at once.

Kernels come as parts: (p, *window, C, T), one for each feature group and layer of a stack. The
loss of an approximation with error E is tr(G E^T S E), with S and G the identity where no data
are given. All functions are pure and compiled once for each shape.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.moment import lay_out
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.second_moment import in_full, regularised
from tdjax.decompose.weighted import robust_cholesky

# Added to both moments, relative to their mean diagonal, as the norms do.
RIDGE = 1e-6
Parts = Float[Array, "*_"]
Moments = Float[Array, "*_"] | None


@partial(jax.jit, static_argnames=("splits",))
def singular_values(parts: Parts, splits: int = 1) -> Float[Array, "p k r"]:
    """Singular values of the matrices (window * C / k, T) of k groups of channels, descending.

    From the Gram matrix of the shorter side, many times faster than an SVD: those above a
    thousandth of the largest are right to three digits and more.

    Arguments:
        parts: (p, *window, C, T).
        splits: k, static; divides C.
    """
    p, c, t = len(parts), *parts.shape[-2:]
    apart = parts.reshape(p, -1, splits, c // splits, t).swapaxes(1, 2)
    return jnp.sqrt(_energies(apart.reshape(p, splits, -1, t)))


@jax.jit
def low_rank_losses(
    parts: Parts, inputs: Moments = None, outputs: Moments = None
) -> Float[Array, "p r"]:
    """The loss of the best matrices (window * C, T) of rank 0, 1, ..., full.

    Arguments:
        parts: (p, *window, C, T).
        inputs: S, (p, D, D) or diagonals (p, D).
        outputs: G, (p, T, T) or diagonals.
    """
    p, t = len(parts), parts.shape[-1]
    rooted = _rooted(parts.reshape(p, -1, t), inputs, outputs)
    return _tails(_energies(rooted))


@partial(jax.jit, static_argnames=("ranks",))
def tucker_losses(
    parts: Parts,
    ranks: tuple[int, ...],
    inputs: Moments = None,
    outputs: Moments = None,
) -> Float[Array, "p n r"]:
    """The loss of Tucker decompositions of the channels, for r_C of `ranks` and every r_T.

    For channel factors U that are the leading columns of one basis, core and output factor are
    the best there are: with the moment in that basis, channels first, S = L L^T, what a factor of
    r columns keeps is what the first r rows of channels of L^T W hold, for every r.

    Arguments:
        parts: (p, *window, C, T).
        ranks: r_C, increasing, static.
        inputs, outputs: see `low_rank_losses`.

    Returns: for each r_C the loss at r_T = 0, 1, ..., T.
    """
    p, c, t = len(parts), *parts.shape[-2:]
    kernels = parts.reshape(p, -1, c, t)
    if inputs is None:
        inputs = jnp.ones((p, kernels.shape[1] * c))
    return jax.vmap(partial(_tucker_losses_of, ranks))(kernels, inputs, outputs)


def _tucker_losses_of(
    ranks: tuple[int, ...], kernel: Float[Array, "k c t"], moment: Array, output: Array | None
) -> Float[Array, "n r"]:
    """The losses of one kernel, at r_T = 0, 1, ..., T for each r_C."""
    k, c, t = kernel.shape
    full = regularised(in_full(moment), RIDGE)
    right = kernel if output is None else jnp.matmul(kernel, _root(output), precision=HIGHEST)
    # From (k, c; l, d) to (c, k, l, d), and the kernel with its channels first.
    spread = full.reshape(k, c, k, c).transpose(1, 0, 2, 3)
    channels_first = right.transpose(1, 0, 2)
    basis = _channel_basis(spread, channels_first)
    image = jnp.einsum("ckld,ca,db->akbl", spread, basis, basis, precision=HIGHEST)
    factor = robust_cholesky(image.reshape(c * k, c * k))
    turned = jnp.einsum("ca,ckt->akt", basis, channels_first, precision=HIGHEST)
    rows = jnp.matmul(factor.T, turned.reshape(c * k, t), precision=HIGHEST)
    kept = _kept(rows, k, ranks)
    energies = jnp.maximum(jnp.linalg.eigvalsh(kept)[:, ::-1], 0.0)
    gone = jnp.sum(rows**2) - jnp.sum(energies, axis=1)
    return jnp.maximum(gone, 0.0)[:, None] + _tails(energies)


def _kept(rows: Float[Array, "rows t"], k: int, ranks: tuple[int, ...]) -> Float[Array, "n t t"]:
    """Of the first r channels, of k rows each, the Gram matrix, for every r.

    In a loop, as products of so many sizes are long to compile.
    """
    starts = np.array((0, *ranks[:-1]))
    widths = np.array(ranks) - starts
    most = k * int(widths.max())
    padded = jnp.pad(rows, ((0, most), (0, 0)))

    def further(kept: Array, own: tuple[Array, Array]) -> tuple[Array, Array]:
        start, width = own
        part = jax.lax.dynamic_slice_in_dim(padded, start, most)
        part = jnp.where(jnp.arange(most)[:, None] < width, part, 0.0)
        kept = kept + jnp.matmul(part.T, part, precision=HIGHEST)
        return kept, kept

    nothing = jnp.zeros((rows.shape[1],) * 2, rows.dtype)
    return jax.lax.scan(further, nothing, (jnp.asarray(k * starts), jnp.asarray(k * widths)))[1]


def _channel_basis(
    spread: Float[Array, "c k k c"], kernel: Float[Array, "c k t"]
) -> Float[Array, "c c"]:
    """An orthonormal basis of the channels, the first columns those that matter most.

    Where the moment is a product of one of the channels and one of the window, its first r
    columns span the best factor of r columns.
    """
    moment = lay_out(spread)
    window = robust_cholesky(moment.window)
    weighed = jnp.einsum("ckt,kl->clt", kernel, window, precision=HIGHEST)
    rooted = jnp.matmul(moment.channels.T, weighed.reshape(len(kernel), -1), precision=HIGHEST)
    vectors = jnp.linalg.eigh(jnp.matmul(rooted, rooted.T, precision=HIGHEST))[1][:, ::-1]
    back = jax.scipy.linalg.solve_triangular(moment.channels, vectors, lower=True, trans=1)
    return jnp.linalg.qr(back)[0]


def _rooted(
    matrices: Float[Array, "p d t"], inputs: Moments, outputs: Moments
) -> Float[Array, "p d t"]:
    """S^(1/2) W G^(1/2), with some root of S."""
    if inputs is not None:
        moments = jax.vmap(lambda moment: regularised(moment, RIDGE))(inputs)
        if moments.ndim == 2:
            matrices = jnp.sqrt(moments)[..., None] * matrices
        else:
            factors = jax.vmap(robust_cholesky)(moments)
            matrices = jnp.matmul(factors.swapaxes(1, 2), matrices, precision=HIGHEST)
    if outputs is not None:
        matrices = jnp.matmul(matrices, jax.vmap(_root)(outputs), precision=HIGHEST)
    return matrices


def _root(moment: Array) -> Float[Array, "t t"]:
    """Some R of a moment R R^T."""
    own = regularised(moment, RIDGE)
    return jnp.diag(jnp.sqrt(own)) if own.ndim == 1 else robust_cholesky(own)


def _energies(matrices: Float[Array, "*p m n"]) -> Float[Array, "*p r"]:
    """Squared singular values, descending."""
    m, n = matrices.shape[-2:]
    short = matrices.swapaxes(-1, -2) if m > n else matrices
    grams = jnp.matmul(short, short.swapaxes(-1, -2), precision=HIGHEST)
    return jnp.maximum(jnp.linalg.eigvalsh(grams)[..., ::-1], 0.0)


def _tails(energies: Float[Array, "*p r"]) -> Float[Array, "*p s"]:
    """What is left once the first 0, 1, ..., r are taken away."""
    tails = jnp.cumsum(energies[..., ::-1], axis=-1)[..., ::-1]
    return jnp.concatenate([tails, jnp.zeros_like(tails[..., :1])], axis=-1)
