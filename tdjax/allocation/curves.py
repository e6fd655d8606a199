"""What every rank of a kernel loses, all ranks at once.

Kernels come as parts: (p, *window, C, T), one for each feature group and layer of a stack. The
loss of an approximation with error E is tr(G E^T S E), with S and G the identity where no data
are given. All functions are pure, and computed by NumPy in single precision, at any scale: each
is asked for once for each layer, which is less than compiling a program for each shape takes.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from tdjax.decompose.low_rank_on_host import energies
from tdjax.decompose.moment import PRECONDITIONER_RIDGE
from tdjax.decompose.on_host import Weight, cholesky, eye, root_of, times, unit, weight_of

# Added to both moments, relative to their mean diagonal, as the norms do.
RIDGE = 1e-6
Array = np.ndarray
Parts = Float[Array, "*_"]
Moments = Float[Array, "*_"] | None


def singular_values(matrices: Float[Array, "p k m n"]) -> Float[Array, "p k r"]:
    """Singular values of the k matrices of each part, descending.

    From the Gram matrix of the shorter side, many times faster than an SVD: those above a
    thousandth of the largest are right to three digits and more.
    """
    matrices, scales = unit(np.asarray(matrices, np.float32))
    return scales[:, None, None] * np.sqrt(energies(matrices))


def low_rank_losses(
    parts: Parts, inputs: Moments = None, outputs: Moments = None
) -> Float[Array, "p r"]:
    """The loss of the best matrices (window * C, T) of rank 0, 1, ..., full.

    Arguments:
        parts: (p, *window, C, T).
        inputs: S, (p, D, D) or diagonals (p, D).
        outputs: G, (p, T, T) or diagonals.
    """
    parts, scales = unit(np.asarray(parts, np.float32))
    matrices = parts.reshape(len(parts), -1, parts.shape[-1])
    weights = _weight(inputs), _weight(outputs)
    scales = math.prod((own.scales for own in weights if own is not None), start=scales**2)
    return scales[:, None] * _tails(energies(matrices, *weights))


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
    parts, scales = unit(np.asarray(parts, np.float32))
    p, c, t = len(parts), *parts.shape[-2:]
    kernels, scales = parts.reshape(p, -1, c, t), scales**2
    own = _weight(np.ones((p, kernels.shape[1] * c)) if inputs is None else inputs)
    assert own is not None
    moments, scales = own.in_full(), scales * own.scales
    if (own := _weight(outputs)) is not None:
        turned = times(root_of(own.in_full()), kernels.reshape(p, -1, t).swapaxes(1, 2))
        kernels, scales = turned.swapaxes(1, 2).reshape(kernels.shape), scales * own.scales
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
    rows = cholesky(image).T @ turned
    kept, by_rank = np.zeros((t, t), rows.dtype), []
    for start, stop in zip((0, *ranks[:-1]), ranks, strict=True):
        further = rows[k * start : k * stop]
        kept = kept + further.T @ further
        by_rank.append(np.maximum(np.linalg.eigvalsh(kept)[::-1], 0.0))
    within = np.stack(by_rank)
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
    channels = cholesky(mean + PRECONDITIONER_RIDGE * np.mean(np.diagonal(mean)) * eye(mean))
    inverse = np.linalg.inv(channels)
    window = np.einsum("kcld,cd->kl", moment, inverse.T @ inverse) / c
    weighed = np.tensordot(cholesky(window), kernel, ((0,), (0,))).swapaxes(0, 1)
    rooted = channels.T @ weighed.reshape(c, -1)
    vectors = np.linalg.eigh(rooted @ rooted.T)[1][:, ::-1]
    return np.linalg.qr(inverse.T @ vectors)[0]


def _weight(moments: Moments) -> Weight | None:
    return None if moments is None else weight_of(np.asarray(moments, np.float32), RIDGE)


def _tails(values: Float[Array, "*p r"]) -> Float[Array, "*p s"]:
    """What is left once the first 0, 1, ..., r are taken away."""
    tails = np.cumsum(values[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]
    return np.concatenate([tails, np.zeros_like(tails[..., :1])], axis=-1)
