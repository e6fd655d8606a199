"""Tensor train by successive truncated SVDs, and by alternating least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.als import Info, info_on_host
from tdjax.decompose.coordinates import Norm, Posed, coordinates_of, measured, posed
from tdjax.decompose.formats import TT
from tdjax.decompose.inputs import as_float, is_at_hand, placed_like, whole_ranks
from tdjax.decompose.low_rank_on_host import leading_rows
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.norms import Covariance, Kronecker, is_on_host, posed_on_host
from tdjax.decompose.on_host import unit
from tdjax.decompose.padding import cut, in_steps, is_small
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.svd import leading_subspace
from tdjax.decompose.threads import one_thread
from tdjax.decompose.weighted_tt import weighted_tt
from tdjax.decompose.weighted_tt_on_host import multiplied, sweep_to_rest


@on_any_mesh
@whole_ranks
def tt_svd(
    x: Any,
    ranks: Sequence[int] | None = None,
    *,
    eps: float | None = None,
    norm: Norm | None = None,
    pad: bool = False,
) -> TT:
    """Tensor train of the modes in the order given (Oseledets 2011, TT-SVD).

    The error is at most the root of the sum of the squared truncation tails, hence at most
    sqrt(N - 1) times the best possible.

    >>> import jax, jax.numpy as jnp, tdjax
    >>> x = jax.random.normal(jax.random.key(0), (6, 3, 3, 8))
    >>> [core.shape for core in tdjax.tt_svd(x, (4, 6, 8)).cores]
    [(1, 6, 4), (4, 3, 6), (6, 3, 8), (8, 8, 1)]
    >>> near = tdjax.tt_svd(x, eps=0.1)
    >>> bool(jnp.linalg.norm(x - near.to_tensor()) <= 0.1 * jnp.linalg.norm(x))
    True

    Arguments:
        x: (n_1, ..., n_N), float; half precision is raised to float32.
        ranks: the N - 1 interior ranks, static. A rank above what its unfolding can have is
            clipped; the achieved ranks are those of the result.
        eps: in place of ranks, the relative error to stay within. The ranks then depend on the
            values, so it cannot be used inside `jit` or `vmap`.
        norm: None for Frobenius, or a `tdjax.Norm`. With a second moment each
            core is the best when the moment, compressed by the cores before, is taken for the
            nearest product of one for this core's modes and one for those behind; the last two
            are best together.
        pad: compile no program for the ranks, where NumPy can do without.

    Returns: TT with cores (r_{k-1}, n_k, r_k), all but the last with orthonormal columns; with a
    second moment, all but the last two.

    Raises ValueError for NaN or Inf, a rank below 1, both or neither of `ranks` and `eps`, `eps`
    with a second moment.
    """
    x = as_float(x)
    if (ranks is None) == (eps is None):
        raise ValueError("tt_svd: give exactly one of ranks and eps")
    if eps is not None and not eps >= 0:
        raise ValueError(f"tt_svd: eps must not be negative, got {eps}")
    if pad and ranks is not None and norm is None and is_at_hand(x):
        return _on_host(x, clip_ranks(x.shape, ranks))
    problem = posed(x, coordinates_of(norm, x))
    if eps is not None:
        if problem.weight is not None:
            raise ValueError("tt_svd: eps needs a norm of the modes; give ranks with a moment")
        return _back(problem, _within(problem.array, eps), -1)
    clipped = clip_ranks(x.shape, ranks or ())
    if problem.weight is None:
        return _back(problem, _tt_svd(problem.array, clipped), -1)
    found, _ = weighted_tt(problem.array, problem.weight, None, 0.0, ranks=clipped, max_iters=0)
    return _back(problem, found, -2)


@on_any_mesh
@whole_ranks
def tt_als(
    x: Any,
    ranks: Sequence[int],
    *,
    norm: Norm | None = None,
    init: TT | None = None,
    max_iters: int = 100,
    tol: float | Float[Array, ""] = 1e-8,
    pad: bool = False,
) -> tuple[TT, Info]:
    """Tensor train by alternating least squares (Holtz, Rohwedder & Schneider 2012).

    A sweep renews the cores from left to right, each with the others fixed and all to its left
    orthonormal; the last two are renewed together, by a truncated SVD. Starts from `tt_svd` in the
    same norm, so that the result is never worse.

    >>> import jax, jax.numpy as jnp, tdjax
    >>> x = jax.random.normal(jax.random.key(0), (6, 3, 3, 8))
    >>> tt, info = tdjax.tt_als(x, (4, 6, 4))
    >>> start = jnp.linalg.norm(x - tdjax.tt_svd(x, (4, 6, 4)).to_tensor()) / jnp.linalg.norm(x)
    >>> bool(info.error <= start)
    True

    Arguments:
        x: (n_1, ..., n_N), float; half precision is raised to float32.
        ranks: the N - 1 interior ranks, static, clipped as `tt_svd` does.
        norm: None for Frobenius, or a `tdjax.Norm`.
        init: a TT of x's shape and the clipped ranks to start from, in place of `tt_svd`.
        max_iters: sweeps at most, static.
        tol: stop once a sweep changes the relative error by less.
        pad: without `init` compile one program for many ranks, see `tdjax.decompose.padding`, or
            none where NumPy can do it.

    Returns: TT with cores (r_{k-1}, n_k, r_k) and `Info`, whose errors are in the norm.

    Raises ValueError for NaN or Inf, a rank below 1, an `init` that does not fit.
    """
    x = as_float(x)
    clipped = clip_ranks(x.shape, ranks)
    if init is not None and (init.shape != x.shape or init.ranks != clipped):
        raise ValueError(
            f"tt_als: init has shape {init.shape} and ranks {init.ranks}, "
            f"expected {x.shape} and {clipped}"
        )
    if pad and init is None and _is_for_host(x, clipped, norm, tol):
        return _weighted_on_host(x, clipped, norm, float(tol), max_iters)
    problem = posed(x, coordinates_of(norm, x))
    start = None if init is None else problem.start(init)
    padded = pad and init is None
    asked = clip_ranks(x.shape, tuple(map(in_steps, clipped))) if padded else clipped
    found, info = weighted_tt(
        problem.array, problem.weight, start, tol, ranks=asked, max_iters=max_iters,
        kept=clipped if padded else None,
    )  # fmt: skip
    found = _back(problem, found, -2)
    info = measured(norm, x, found, info)
    if not padded:
        return found, info
    sizes = zip((1, *clipped), x.shape, (*clipped, 1), strict=True)
    return TT(cut(found.cores, tuple(sizes))), info


def _is_for_host(x: Array, ranks: tuple[int, ...], norm: Norm | None, tol: float | Array) -> bool:
    """Whether NumPy decomposes an array in the norm of second moments."""
    if not isinstance(norm, Covariance | Kronecker) or not is_on_host(norm):
        return False
    known = is_at_hand(x) and not isinstance(tol, jax.core.Tracer)
    return known and is_small(x.size // x.shape[-1], max(ranks))


def _weighted_on_host(
    x: Float[Array, "*_"], ranks: tuple[int, ...], norm: Norm | None, tol: float, max_iters: int
) -> tuple[TT, Info]:
    """`tt_als` in the norm of second moments, by NumPy."""
    problem = posed_on_host(x, norm)
    with one_thread():
        state, errors, converged = sweep_to_rest(
            problem.array, problem.weight, ranks, tol, max_iters
        )
        output, triangle = np.linalg.qr(problem.back(state.output))
    *cores, last = state.cores
    every = (*cores, problem.scale * (last @ triangle.T), output.T[:, :, None])
    arrays = [core.astype(x.dtype) for core in every]
    error = problem.error_of(multiplied(arrays).reshape(x.shape))
    found = TT(tuple(placed_like(x, array) for array in arrays))
    info = info_on_host(x, error, errors, converged, max_iters)
    return found, measured(norm, x, found, info)


def _back(problem: Posed, found: TT, core: int) -> TT:
    """See `Posed.back`; `core` is the one that is not orthonormal, where none is balanced."""
    core = -2 if problem.space.balanced else core
    return problem.space.back(found).scaled(problem.exponent, core)


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
        basis, rest = _cut(rest.reshape(previous * size, -1), rank)
        cores.append(basis.reshape(previous, size, rank))
        previous = rank
    return TT((*cores, rest.reshape(previous, x.shape[-1], 1)))


def _cut(x: Float[Array, "m n"], rank: int) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """A basis of the leading left singular vectors and x in it, a product less at full rank."""
    m, n = x.shape
    if rank == m:
        return jnp.eye(m, dtype=x.dtype), x
    if rank == n:
        return jnp.linalg.qr(x)
    basis = leading_subspace(x, rank)
    return basis, jnp.matmul(basis.T, x, precision=HIGHEST)


def _on_host(x: Float[Array, "*_"], ranks: tuple[int, ...]) -> TT:
    (rest,), (scale,) = unit(np.asarray(x)[None])
    cores: list[np.ndarray] = []
    previous = 1
    for size, rank in zip(x.shape, ranks, strict=False):
        rest = rest.reshape(previous * size, -1)
        basis = leading_rows(rest, rank)
        cores.append(basis.reshape(previous, size, rank))
        rest, previous = basis.T @ rest, rank
    cores.append(x.dtype.type(scale) * rest.reshape(previous, x.shape[-1], 1))
    return TT(tuple(placed_like(x, core) for core in cores))


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
