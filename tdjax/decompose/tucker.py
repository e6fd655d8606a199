"""Tucker decomposition: sequentially truncated HOSVD, then HOOI sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.als import (
    CANCELS_BELOW,
    Info,
    Swept,
    info_on_host,
    iterate,
    relative_error,
    safe_ratio,
)
from tdjax.decompose.coordinates import Norm, check_known, coordinates_of, measured, posed
from tdjax.decompose.formats import Tucker
from tdjax.decompose.hooi_on_host import hooi
from tdjax.decompose.inputs import as_float, check_ranks, is_at_hand, placed_like, whole_ranks
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.norms import Covariance, Kronecker, is_on_host, posed_on_host
from tdjax.decompose.padding import Kept, cut, rounded_up
from tdjax.decompose.products import HIGHEST, mode_products
from tdjax.decompose.svd import leading_subspace
from tdjax.decompose.tucker_on_host import sweep_to_rest
from tdjax.decompose.weighted_tucker import weighted_tucker

Ranks = tuple[int | None, ...]
Factors = tuple[Float[Array, "_ _"] | None, ...]


@on_any_mesh
@whole_ranks
def tucker_als(
    x: Any,
    ranks: Sequence[int | None],
    *,
    max_iters: int = 100,
    tol: float | Float[Array, ""] = 1e-8,
    norm: Norm | None = None,
    pad: bool = False,
) -> tuple[Tucker, Info]:
    """Tucker decomposition by higher-order orthogonal iteration (De Lathauwer et al. 2000).

    Starts from the sequentially truncated HOSVD; each sweep then renews every factor as the
    leading singular vectors of x projected on the others, so the error only falls. In the norm of
    a second moment other steps do the same: see `weighted_tucker`.

    >>> import jax, tdjax
    >>> kernel = jax.random.normal(jax.random.key(0), (3, 3, 16, 32))
    >>> tucker, info = tdjax.tucker_als(kernel, (None, None, 8, 12))
    >>> tucker.core.shape, [None if f is None else f.shape for f in tucker.factors]
    ((3, 3, 8, 12), [None, None, (16, 8), (32, 12)])

    Arguments:
        x: (n_1, ..., n_N), float; half precision is raised to float32.
        ranks: for each mode its rank, or None where the mode is not compressed; static.
        max_iters: sweeps at most, static; 0 gives the HOSVD itself.
        tol: stop once a sweep changes the relative error by less.
        norm: None for Frobenius, or a `tdjax.Norm`.
        pad: compile one program for many ranks, see `tdjax.decompose.padding`, or none where NumPy
            can do it.

    Returns: Tucker with orthonormal factor columns, and `Info`.

    Raises ValueError for NaN or Inf, no compressed mode, a rank below 1 or above full.
    """
    check_known(norm)
    x = as_float(x)
    ranks = _check(x.shape, ranks)
    if not pad:
        return _tucker(x, norm, tol, (None,) * x.ndim, ranks=ranks, max_iters=max_iters)
    if _is_for_host(x, ranks, norm, tol):
        return _on_host(x, ranks[-2:], norm, float(tol), max_iters)
    size = math.prod(x.shape)
    padded = tuple(
        None if rank is None else rounded_up(rank, min(n, size // n))
        for rank, n in zip(ranks, x.shape, strict=True)
    )
    tucker, info = _tucker(x, norm, tol, ranks, ranks=padded, max_iters=max_iters)
    core, *factors = cut((tucker.core, *tucker.factors), (ranks, *((None, rank) for rank in ranks)))
    return Tucker(core, tuple(factors)), info


def _is_for_host(x: Array, ranks: Ranks, norm: Norm | None, tol: float | Array) -> bool:
    """Whether NumPy knows the problem: the channels of a convolution, no moment a diagonal."""
    channels = (
        x.ndim > 2 and [rank is None for rank in ranks] == [True] * (x.ndim - 2) + [False] * 2
    )
    if not channels or not is_at_hand(x) or isinstance(tol, jax.core.Tracer):
        return False
    if not isinstance(norm, Covariance | Kronecker):
        return is_on_host(norm)
    whole = norm.second_moment.ndim == 2 and not norm.is_rounded(x.dtype)
    return is_on_host(norm) and whole


def _on_host(
    x: Float[Array, "*_"], ranks: Ranks, norm: Norm | None, tol: float, max_iters: int
) -> tuple[Tucker, Info]:
    problem, (*window, c, t) = posed_on_host(x, norm), x.shape
    kernel, both = problem.array.reshape(-1, c, t), (_rank(ranks, 0), _rank(ranks, 1))
    state, errors, converged = (
        hooi(kernel, both, tol, max_iters)
        if problem.inputs is None
        else sweep_to_rest(kernel, problem.inputs, both, tol, max_iters)
    )
    core, output = state.core, state.output
    if problem.root is not None:
        output, triangle = np.linalg.qr(problem.back(output))
        core = core @ triangle.T
    core = (x.dtype.type(problem.scale) * core).reshape(*window, *core.shape[1:])
    arrays = [placed_like(x, array) for array in (core, state.factor, output)]
    info = info_on_host(x, state.error, errors, converged, max_iters)
    return Tucker(arrays[0], (*(None for _ in window), *arrays[1:])), info


@partial(jax.jit, static_argnames=("ranks", "max_iters"))
def _tucker(
    x: Float[Array, "*_"],
    norm: Norm | None,
    tol: float | Array,
    kept: tuple[Kept, ...],
    *,
    ranks: Ranks,
    max_iters: int,
) -> tuple[Tucker, Info]:
    problem = posed(x, coordinates_of(norm, x))
    y, weight = problem.array, problem.weight
    found, info = (
        _hooi(y, tol, kept, ranks=ranks, max_iters=max_iters)
        if weight is None
        else weighted_tucker(y, weight, tol, ranks=ranks, max_iters=max_iters, kept=kept)
    )
    found = problem.back(found)
    return found, measured(norm, x, found, info)


@on_any_mesh
@whole_ranks
def hosvd(x: Any, ranks: Sequence[int | None], *, norm: Norm | None = None) -> Tucker:
    """Sequentially truncated higher-order SVD (Vannieuwenhoven et al. 2012).

    >>> import jax, tdjax
    >>> kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 8))
    >>> tdjax.hosvd(kernel, (None, None, 4, 4)).ranks
    (4, 4)

    Its error is at most sqrt(N) times the best possible. Arguments and errors as `tucker_als`.
    """
    return tucker_als(x, ranks, max_iters=0, norm=norm)[0]


def _hooi(
    x: Float[Array, "*_"],
    tol: float | Array,
    kept: tuple[Kept, ...],
    *,
    ranks: Ranks,
    max_iters: int,
) -> tuple[Tucker, Info]:
    total = jnp.linalg.norm(x)
    start = Tucker(*_st_hosvd(x, ranks, kept))
    tucker, progress = iterate(
        partial(_hooi_sweep, x, total, ranks, kept),
        start,
        _projection_error(x, total, start),
        max_iters=max_iters,
        tol=tol,
        stop_when_worse=True,
    )
    error = relative_error(x, tucker.to_tensor())
    return tucker, Info(error, progress.iterations, progress.errors, progress.converged)


def _hooi_sweep(
    x: Float[Array, "*_"],
    total: Float[Array, ""],
    ranks: Ranks,
    kept: tuple[Kept, ...],
    tucker: Tucker,
) -> Swept:
    """Every factor renewed, the leading singular vectors of x projected on the others."""
    factors, core, gained = list(tucker.factors), tucker.core, jnp.zeros_like(total)
    for mode in _compressed(ranks):
        others = [f if k != mode else None for k, f in enumerate(factors)]
        projected = mode_products(x, _transposed(others))
        seen = _unfold(projected, mode)
        factor = leading_subspace(seen, _rank(ranks, mode), accurate=False, kept=kept[mode])
        core = mode_products(projected, [factor.T if k == mode else None for k in range(x.ndim)])
        present = factors[mode]
        assert present is not None
        gained = gained + _gain(seen, _unfold(core, mode), present, factor)
        factors[mode] = factor
    renewed = Tucker(core, tuple(factors))
    fall = safe_ratio(gained, total * total)
    return Swept(renewed, _projection_error(x, total, renewed), fall)


def _gain(
    x: Float[Array, "m n"],
    kept: Float[Array, "r n"],
    present: Float[Array, "m r"],
    factor: Float[Array, "m r"],
) -> Float[Array, ""]:
    """The energy of x in the space of its leading singular vectors, over that in another one.

    What lies in either space alone makes the difference, free of cancellation.

    Arguments:
        kept: x projected on `factor`.
        present, factor: orthonormal columns that span the other space and the leading one, from
            `leading_subspace`.
    """
    both = jnp.matmul(present.T, factor, precision=HIGHEST)
    came = factor - jnp.matmul(present, both, precision=HIGHEST)
    went = present - jnp.matmul(factor, both.T, precision=HIGHEST)
    if x.shape[0] > x.shape[1]:
        lost = jnp.matmul(went.T, x, precision=HIGHEST)
        won = jnp.matmul(came, kept, precision=HIGHEST)
        return jnp.sum(won * won) - jnp.sum(lost * lost)
    # The same Gram matrix that the factor's columns are eigenvectors of, so that it is there
    # already, and that what they keep are orthogonal rows.
    gram = jnp.matmul(x, x.T, precision=HIGHEST)
    lost = jnp.sum(went * jnp.matmul(gram, went, precision=HIGHEST))
    won = jnp.sum(came * came, axis=0) @ jnp.sum(kept * kept, axis=1)
    return won - jnp.maximum(lost, 0.0)


def _st_hosvd(
    x: Float[Array, "*_"], ranks: Ranks, kept: tuple[Kept, ...]
) -> tuple[Float[Array, "*_"], Factors]:
    """Truncate one mode after the other, each on the core that the ones before have left."""
    core = x
    factors: list[Float[Array, "_ _"] | None] = [None] * x.ndim
    for mode in _compressed(ranks):
        factor = leading_subspace(_unfold(core, mode), _rank(ranks, mode), kept=kept[mode])
        factors[mode] = factor
        core = mode_products(core, [factor.T if k == mode else None for k in range(x.ndim)])
    return core, tuple(factors)


def _projection_error(
    x: Float[Array, "*_"], total: Float[Array, ""], tucker: Tucker
) -> Float[Array, ""]:
    """Relative error of a projection onto orthonormal factors: by Pythagoras, where that is exact.

    A small one is measured, so that sweeps stop before the Gram matrices' rounding shows in it.
    """
    kept = safe_ratio(jnp.linalg.norm(tucker.core), total)
    error = jnp.where(total == 0, 0.0, jnp.sqrt(jnp.maximum(0.0, 1.0 - kept * kept)))
    return jax.lax.cond(
        error < CANCELS_BELOW, lambda: relative_error(x, tucker.to_tensor()), lambda: error
    )


def _unfold(x: Float[Array, "*_"], mode: int) -> Float[Array, "_ _"]:
    return jnp.moveaxis(x, mode, 0).reshape(x.shape[mode], -1)


def _transposed(factors: Sequence[Float[Array, "_ _"] | None]) -> list[Array | None]:
    return [None if factor is None else factor.T for factor in factors]


def _compressed(ranks: Ranks) -> list[int]:
    return [mode for mode, rank in enumerate(ranks) if rank is not None]


def _rank(ranks: Ranks, mode: int) -> int:
    rank = ranks[mode]
    assert rank is not None
    return rank


def _check(shape: tuple[int, ...], ranks: Sequence[int | None]) -> Ranks:
    if len(ranks) != len(shape):
        raise ValueError(f"tucker: {len(shape)} modes, but ranks {tuple(ranks)}")
    modes = [mode for mode, rank in enumerate(ranks) if rank is not None]
    if not modes:
        raise ValueError("tucker: every rank is None, nothing would be compressed")
    size = math.prod(shape)
    checked = check_ranks(
        [rank for rank in ranks if rank is not None],
        [min(shape[mode], size // shape[mode]) for mode in modes],
        "tucker",
    )
    by_mode = dict(zip(modes, checked, strict=True))
    return tuple(by_mode.get(mode) for mode in range(len(shape)))
