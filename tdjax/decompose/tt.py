"""Tensor train by successive truncated SVDs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.inputs import as_float
from tdjax.decompose.svd import leading_subspace
from tdjax.formats import HIGHEST, TT
from tdjax.norms import Norm, in_norm


def tt_svd(
    x: Any,
    ranks: Sequence[int] | None = None,
    *,
    eps: float | None = None,
    norm: Norm | None = None,
) -> TT:
    """Tensor train of the modes in the order given (Oseledets 2011, TT-SVD).

    The error is at most the root of the sum of the squared truncation tails, hence at most
    sqrt(N - 1) times the best possible.

    Arguments:
        x: (n_1, ..., n_N), float; half precision is raised to float32.
        ranks: the N - 1 interior ranks, static. A rank above what its unfolding can have is
            clipped; the achieved ranks are those of the result.
        eps: in place of ranks, the relative error to stay within. The ranks then depend on the
            values, so it cannot be used inside `jit` or `vmap`.
        norm: None for Frobenius, or a `tdjax.norms.Norm`.

    Returns: TT with cores (r_{k-1}, n_k, r_k), all but the last with orthonormal columns.

    Raises ValueError for NaN or Inf, a rank below 1, both or neither of `ranks` and `eps`.
    """
    x = as_float(x)
    if (ranks is None) == (eps is None):
        raise ValueError("tt_svd: give exactly one of ranks and eps")
    if eps is not None:
        if not eps >= 0:
            raise ValueError(f"tt_svd: eps must not be negative, got {eps}")
        return in_norm(norm, lambda y: (_within(y, eps), None), x)[0]
    clipped = clip_ranks(x.shape, ranks or ())
    return in_norm(norm, lambda y: (_tt_svd(y, clipped), None), x)[0]


def clip_ranks(shape: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """Interior ranks that TT-SVD reaches when asked for `ranks`: at most what each unfolding has.

    Raises ValueError for a wrong number of ranks or one below 1.
    """
    if len(ranks) != len(shape) - 1:
        raise ValueError(f"tt: {len(shape) - 1} interior ranks are needed, got {tuple(ranks)}")
    achieved: list[int] = []
    for k, rank in enumerate(ranks):
        if rank < 1:
            raise ValueError(f"tt: rank {rank} of {tuple(ranks)} is below 1")
        rows = (achieved[-1] if achieved else 1) * shape[k]
        achieved.append(min(int(rank), rows, math.prod(shape[k + 1 :])))
    return tuple(achieved)


@partial(jax.jit, static_argnames=("ranks",))
def _tt_svd(x: Float[Array, "*_"], ranks: tuple[int, ...]) -> TT:
    cores, rest, previous = [], x, 1
    for size, rank in zip(x.shape, ranks, strict=False):
        rest = rest.reshape(previous * size, -1)
        basis = leading_subspace(rest, rank)
        cores.append(basis.reshape(previous, size, rank))
        rest = jnp.matmul(basis.T, rest, precision=HIGHEST)
        previous = rank
    return TT((*cores, rest.reshape(previous, x.shape[-1], 1)))


def _within(x: Float[Array, "*_"], eps: float) -> TT:
    """The ranks are decided on the host, step by step, by the singular values."""
    tensor = np.asarray(x)
    allowed = (eps * np.linalg.norm(tensor)) ** 2 / max(1, tensor.ndim - 1)
    cores, rest, previous = [], tensor, 1
    for size in tensor.shape[:-1]:
        u, s, vt = np.linalg.svd(rest.reshape(previous * size, -1), full_matrices=False)
        tails = np.cumsum(s[::-1].astype(np.float64) ** 2)[::-1]
        rank = max(1, int(np.count_nonzero(tails > allowed)))
        cores.append(jnp.asarray(u[:, :rank].reshape(previous, size, rank)))
        rest, previous = s[:rank, None] * vt[:rank], rank
    return TT((*cores, jnp.asarray(rest.reshape(previous, tensor.shape[-1], 1))))
