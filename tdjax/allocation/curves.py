"""What every rank of a kernel loses, all ranks at once.

Kernels come as parts: (p, *window, C, T), one for each feature group and layer of a stack. The
loss of an approximation with error E is tr(G E^T S E), with S and G the identity where no data
are given. All functions are pure, and computed by NumPy in single precision, at any scale: each
is asked for once for each layer, which is less than compiling a program for each shape takes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from tdjax.decompose.moment import PRECONDITIONER_RIDGE

# Added to both moments, relative to their mean diagonal, as the norms do.
RIDGE = 1e-6
Array = np.ndarray
Parts = Float[Array, "*_"]
Moments = Float[Array, "*_"] | None


def singular_values(parts: Parts, splits: int = 1) -> Float[Array, "p k r"]:
    """Singular values of the matrices (window * C / k, T) of k groups of channels, descending.

    From the Gram matrix of the shorter side, many times faster than an SVD: those above a
    thousandth of the largest are right to three digits and more.

    Arguments:
        parts: (p, *window, C, T).
        splits: k; divides C.
    """
    parts, scales = _unit(parts)
    p, c, t = len(parts), *parts.shape[-2:]
    apart = parts.reshape(p, -1, splits, c // splits, t).swapaxes(1, 2)
    values = np.sqrt(_energies(apart.reshape(p, splits, -1, t)))
    return scales[:, None, None] * values


def low_rank_losses(
    parts: Parts, inputs: Moments = None, outputs: Moments = None
) -> Float[Array, "p r"]:
    """The loss of the best matrices (window * C, T) of rank 0, 1, ..., full.

    Arguments:
        parts: (p, *window, C, T).
        inputs: S, (p, D, D) or diagonals (p, D).
        outputs: G, (p, T, T) or diagonals.
    """
    parts, scales = _unit(parts)
    scales = scales**2
    matrices = parts.reshape(len(parts), -1, parts.shape[-1])
    if inputs is not None:
        moments, own = _regularised(inputs)
        matrices, scales = _times(_root(moments), matrices), scales * own
    if outputs is not None:
        moments, own = _regularised(outputs)
        matrices = _times(_root(moments), matrices.swapaxes(1, 2))
        scales = scales * own
    return scales[:, None] * _tails(_energies(matrices))


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
        ranks: r_C, increasing.
        inputs, outputs: see `low_rank_losses`.

    Returns: for each r_C the loss at r_T = 0, 1, ..., T.
    """
    parts, scales = _unit(parts)
    p, c, t = len(parts), *parts.shape[-2:]
    kernels, scales = parts.reshape(p, -1, c, t), scales**2
    moments, own = _regularised(np.ones((p, kernels.shape[1] * c)) if inputs is None else inputs)
    scales = scales * own
    if outputs is not None:
        roots, own = _regularised(outputs)
        turned = _times(_root(roots), kernels.reshape(p, -1, t).swapaxes(1, 2))
        kernels, scales = turned.swapaxes(1, 2).reshape(kernels.shape), scales * own
    lost = [
        _tucker_losses_of(ranks, kernel, np.diag(moment) if moment.ndim == 1 else moment)
        for kernel, moment in zip(kernels, moments, strict=True)
    ]
    return scales[:, None, None] * np.stack(lost)


def _tucker_losses_of(
    ranks: tuple[int, ...], kernel: Float[Array, "k c t"], moment: Float[Array, "d d"]
) -> Float[Array, "n r"]:
    """The losses of one kernel, at r_T = 0, 1, ..., T for each r_C."""
    k, c, t = kernel.shape
    basis = _channel_basis(moment.reshape(k, c, k, c), kernel)
    # From (k, c; l, d) by the basis to (a, k; b, l).
    image = np.matmul(basis.T, moment.reshape(k, c, k * c)).reshape(-1, c) @ basis
    image = image.reshape(k, c, k, c).transpose(1, 0, 3, 2).reshape(c * k, c * k)
    turned = np.matmul(basis.T, kernel).transpose(1, 0, 2).reshape(c * k, t)
    rows = _cholesky(image).T @ turned
    kept, energies = np.zeros((t, t), rows.dtype), []
    for start, stop in zip((0, *ranks[:-1]), ranks, strict=True):
        further = rows[k * start : k * stop]
        kept = kept + further.T @ further
        energies.append(np.maximum(np.linalg.eigvalsh(kept)[::-1], 0.0))
    within = np.stack(energies)
    gone = np.sum(rows**2, dtype=np.float64) - np.sum(within, axis=1, dtype=np.float64)
    return np.maximum(gone, 0.0)[:, None] + _tails(within)


def _channel_basis(
    moment: Float[Array, "k c k c"], kernel: Float[Array, "k c t"]
) -> Float[Array, "c c"]:
    """An orthonormal basis of the channels, the first columns those that matter most.

    Where the moment is a product of one of the channels and one of the window, its first r
    columns span the best factor of r columns. See `tdjax.decompose.moment.lay_out`.
    """
    k, c, _ = kernel.shape
    mean = np.einsum("kckd->cd", moment) / k
    channels = _cholesky(mean + PRECONDITIONER_RIDGE * np.mean(np.diagonal(mean)) * _eye(mean))
    inverse = np.linalg.inv(channels)
    window = np.einsum("kcld,cd->kl", moment, inverse.T @ inverse) / c
    weighed = np.tensordot(_cholesky(window), kernel, ((0,), (0,))).swapaxes(0, 1)
    rooted = channels.T @ weighed.reshape(c, -1)
    vectors = np.linalg.eigh(rooted @ rooted.T)[1][:, ::-1]
    return np.linalg.qr(inverse.T @ vectors)[0]


def _unit(arrays: Float[Array, "*_"]) -> tuple[Float[Array, "*_"], Float[Array, " p"]]:
    """Each of some arrays in single precision, with entries up to 1, and its scale."""
    arrays = np.asarray(arrays, np.float32)
    exponents = np.frexp(np.abs(arrays).max(axis=tuple(range(1, arrays.ndim))))[1]
    column = exponents.reshape(-1, *(1,) * (arrays.ndim - 1))
    return np.ldexp(arrays, -column), np.ldexp(1.0, exponents)


def _regularised(
    moments: Float[Array, "*_"],
) -> tuple[Float[Array, "*_"], Float[Array, " p"]]:
    """Moments, of entries up to 1, with their ridge, and their scales; identities for zeros."""
    moments, scales = _unit(moments)
    full = moments.ndim == 3
    identity = _eye(moments) if full else np.ones_like(moments)
    diagonals = np.diagonal(moments, axis1=1, axis2=2) if full else moments
    means = diagonals.mean(axis=1).reshape(-1, *(1,) * (moments.ndim - 1))
    symmetric = (moments + moments.swapaxes(1, 2)) / 2 if full else moments
    return np.where(means > 0, symmetric + RIDGE * means * identity, identity), scales


def _root(moments: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """Some R of each moment R R^T, or its diagonal."""
    return np.sqrt(moments) if moments.ndim == 2 else _cholesky(moments)


def _times(roots: Float[Array, "*_"], matrices: Float[Array, "p d t"]) -> Float[Array, "p d t"]:
    """R^T W."""
    if roots.ndim == 2:
        return roots[:, :, None] * matrices
    return np.matmul(roots.swapaxes(1, 2), matrices)


def _cholesky(matrices: Float[Array, "*p n n"]) -> Float[Array, "*p n n"]:
    """See `tdjax.decompose.weighted.robust_cholesky`."""
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        if matrices.ndim > 2:
            return np.stack([_cholesky(matrix) for matrix in matrices])
    shift = float(np.finfo(matrices.dtype).eps)
    scale = float(np.mean(np.diagonal(matrices))) or 1.0
    while True:
        try:
            return np.linalg.cholesky(matrices + np.float32(shift * scale) * _eye(matrices))
        except np.linalg.LinAlgError:
            shift *= 10
            if shift >= 1:
                raise


def _eye(matrices: Float[Array, "*p n n"]) -> Float[Array, "n n"]:
    return np.eye(matrices.shape[-1], dtype=matrices.dtype)


def _energies(matrices: Float[Array, "*p m n"]) -> Float[Array, "*p r"]:
    """Squared singular values, descending."""
    m, n = matrices.shape[-2:]
    short = matrices.swapaxes(-1, -2) if m > n else matrices
    grams = np.matmul(short, short.swapaxes(-1, -2))
    return np.maximum(np.linalg.eigvalsh(grams)[..., ::-1], 0.0)


def _tails(energies: Float[Array, "*p r"]) -> Float[Array, "*p s"]:
    """What is left once the first 0, 1, ..., r are taken away."""
    tails = np.cumsum(energies[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]
    return np.concatenate([tails, np.zeros_like(tails[..., :1])], axis=-1)
