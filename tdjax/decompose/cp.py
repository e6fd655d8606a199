"""CP decomposition by alternating least squares with a dimension tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import CANCELS_BELOW, Info, iterate, relative_error, safe_ratio
from tdjax.decompose.coordinates import Norm, coordinates_of
from tdjax.decompose.formats import CP
from tdjax.decompose.inputs import as_float, check_ranks, whole_ranks
from tdjax.decompose.products import HIGHEST, khatri_rao
from tdjax.decompose.svd import leading_subspace
from tdjax.decompose.weighted_cp import weighted_cp
from tdjax.hints import known_are

INITS = ("random", "normal", "hosvd")

Factor = Float[Array, "n r"]
Gram = Float[Array, "r r"]
Factors = list[Float[Array, "_ r"]]
State = tuple[Factors, Float[Array, " r"]]

# Up to these ranks the R x R normal equations are solved by factorisation. Above them a few
# conjugate gradient steps from the present factor take half the time or less, and on convolution
# kernels end at the same error or a lower one after 100 sweeps. Ranks above the largest mode make
# the equations ill conditioned, and factorisation worth its price for longer.
EXACT_UP_TO = 64
EXACT_UP_TO_BELOW_MODE = 24
CG_STEPS = 5
# Where the Frobenius solution that a weighted decomposition starts from may stop.
START_TOLERANCE = 1e-5


@whole_ranks
def cp_als(
    x: Any,
    rank: int,
    *,
    key: Array | None = None,
    init: str | CP = "random",
    max_iters: int = 100,
    tol: float | Float[Array, ""] = 1e-8,
    norm: Norm | None = None,
) -> tuple[CP, Info]:
    r"""Canonical polyadic decomposition by alternating least squares (Kolda & Bader 2009).

    Each update of factor n lowers the squared error with the others fixed, whose normal equations
    are A_n V = MTTKRP_n(x), V the Hadamard product of the other factors' Gram matrices. A
    dimension tree serves all modes with two large matrix products a sweep: the modes are cut in
    two, x is contracted with one half's factors, and the halves are cut again on the small array
    that is left (Phan et al. 2013).

    >>> import jax, tdjax
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> factors = [jax.random.normal(key, (n, 2)) for key, n in zip(keys, (5, 6, 7))]
    >>> x = tdjax.CP(tuple(factors)).to_tensor()
    >>> cp, info = tdjax.cp_als(x, 2, key=keys[3], init="normal")
    >>> cp.shape, cp.ranks, bool(info.error < 1e-2)
    ((5, 6, 7), (2,), True)

    Arguments:
        x: (n_1, ..., n_N), float; half precision is raised to float32.
        rank: number of terms R, static.
        key: PRNG key for the start; needed unless `init` is a CP or "hosvd" with R <= all n_k.
        init: "random" (uniform on [0, 1)), "normal", "hosvd" (leading singular vectors of each
            unfolding, filled up with normal columns), or a CP of the same shape and rank.
        max_iters: sweeps at most, static, at least 1.
        tol: stop once a sweep changes the relative error by less.
        norm: None for Frobenius, or a `tdjax.Norm`. In the norm of a second
            moment the Frobenius solution from `init` comes first, then sweeps as in
            `weighted_cp`; a CP is started from as it is.

    Returns: CP with column norms spread evenly over the factors, and `Info`.

    Raises ValueError for NaN or Inf, a rank below 1 or above prod(n) / max(n), a missing key,
    an unknown `init` or one that does not fit.
    """
    x = as_float(x)
    (rank,) = check_ranks((rank,), (x.size // max(x.shape),), "cp_als")
    if max_iters < 1:
        raise ValueError(f"cp_als: max_iters must be at least 1, got {max_iters}")
    _check_init(init, key, x.shape, rank)
    space = coordinates_of(norm, x)
    y, weight = space.of_array(x), space.row_weight
    start = space.of_format(init) if isinstance(init, CP) else None
    key = jax.random.key(0) if start is not None or key is None else key
    kind = init if isinstance(init, str) else "given"
    frobenius = partial(_cp_als, y, key, rank=rank, init=kind, max_iters=max_iters)
    if weight is None:
        found, info = frobenius(start, tol)
    else:
        if start is None:
            # Sweeps in the Frobenius norm are many times cheaper, and end near enough to stop.
            start, _ = frobenius(None, jnp.maximum(tol, START_TOLERANCE))
        found, info = weighted_cp(y, weight, start, tol, max_iters=max_iters)
    return space.back(found), info


def _check_init(init: str | CP, key: Array | None, shape: tuple[int, ...], rank: int) -> None:
    if isinstance(init, CP):
        if init.shape != shape or init.ranks != (rank,):
            raise ValueError(
                f"cp_als: init has shape {init.shape} and rank {init.ranks[0]}, "
                f"expected {shape} and {rank}"
            )
    elif init not in INITS:
        raise ValueError(f"cp_als: init {init!r}: {known_are(init, INITS)}, or give a CP")
    elif key is None and (init != "hosvd" or rank > min(shape)):
        raise ValueError(f"cp_als: init {init!r} draws random numbers, pass key=")


@partial(jax.jit, static_argnames=("rank", "init", "max_iters"))
def _cp_als(
    x: Float[Array, "*_"],
    key: Array,
    start: CP | None,
    tol: float | Array,
    *,
    rank: int,
    init: str,
    max_iters: int,
) -> tuple[CP, Info]:
    squared = jnp.sum(jnp.square(x))
    drawn = initial_factors(x, rank, key, init) if start is None else start.factors
    pairs = [_normalise(factor.astype(x.dtype)) for factor in drawn]
    factors = [unit for unit, _ in pairs]
    scale = jnp.ones((rank,), x.dtype) if start is None else reduce(mul, [n for _, n in pairs])
    # Brought to the norm of x: too large a start swamps the first updates, too small a one lets
    # them forget it, and with it the differences between its columns.
    energy = scale @ reduce(mul, [_gram(factor) for factor in factors]) @ scale
    scale = scale * jnp.sqrt(safe_ratio(squared, energy))

    exact_up_to = EXACT_UP_TO if rank > max(x.shape) else EXACT_UP_TO_BELOW_MODE
    middle = split_point(x.shape)
    first, second = tuple(range(middle)), tuple(range(middle, x.ndim))
    # Both layouts of x are made once, outside the loop.
    rows = x.reshape(math.prod(x.shape[:middle]), -1)
    columns = rows.T

    def sweep(state: State) -> tuple[State, Float[Array, ""]]:
        factors, scale = list(state[0]), state[1]
        grams = [_gram(factor) for factor in factors]

        def update(mode: int, product: Factor) -> Float[Array, ""]:
            """Renew one factor; returns the squared error after it."""
            nonlocal scale
            normal = reduce(mul, [gram for m, gram in enumerate(grams) if m != mode])
            solved = solve_normal(normal, product, factors[mode] * scale, exact_up_to=exact_up_to)
            factors[mode], scale = _normalise(solved)
            grams[mode] = _gram(factors[mode])
            own = jnp.sum(normal * _gram(solved))
            return squared - 2 * jnp.sum(product * solved) + own

        def visit(contracted: Float[Array, "... r"], modes: tuple[int, ...]) -> Float[Array, ""]:
            """Renew the factors of `modes`, given x contracted with all other factors."""
            if len(modes) == 1:
                return update(modes[0], contracted)
            k = split_point(contracted.shape[:-1])
            right = khatri_rao([factors[mode] for mode in modes[k:]])
            folded = contracted.reshape(*contracted.shape[:k], *right.shape)
            visit(pairwise_sum(folded * right, axis=k), modes[:k])
            left = khatri_rao([factors[mode] for mode in modes[:k]])
            folded = contracted.reshape(left.shape[0], *contracted.shape[k:])
            left = left.reshape(left.shape[0], *(1,) * (contracted.ndim - k - 1), rank)
            return visit(pairwise_sum(folded * left, axis=0), modes[k:])

        for matrix, group, others in ((rows, first, second), (columns, second, first)):
            outside = khatri_rao([factors[mode] for mode in others])
            contracted = jnp.matmul(matrix, outside, precision=HIGHEST)
            loss = visit(contracted.reshape(*(x.shape[mode] for mode in group), rank), group)
        error = jnp.sqrt(jnp.maximum(0.0, safe_ratio(loss, squared)))

        def measured() -> Float[Array, ""]:
            return relative_error(x, CP((*factors[:-1], factors[-1] * scale)).to_tensor())

        return (factors, scale), jax.lax.cond(error < CANCELS_BELOW, measured, lambda: error)

    (factors, scale), progress = iterate(
        sweep, (factors, scale), jnp.asarray(jnp.inf, x.dtype), max_iters=max_iters, tol=tol
    )
    share = scale ** (1 / x.ndim)
    cp = CP(tuple(factor * share for factor in factors))
    error = relative_error(x, cp.to_tensor())
    return cp, Info(error, progress.iterations, progress.errors, progress.converged)


def initial_factors(x: Float[Array, "*_"], rank: int, key: Array, init: str) -> Factors:
    """Starting factors (n_k, rank) of one of the kinds that `cp_als` describes."""
    keys = jax.random.split(key, x.ndim)
    draw = jax.random.uniform if init == "random" else jax.random.normal
    factors = [draw(k, (n, rank), x.dtype) for k, n in zip(keys, x.shape, strict=True)]
    if init != "hosvd":
        return factors
    for mode, size in enumerate(x.shape):
        known = min(rank, size, x.size // size)
        basis = leading_subspace(jnp.moveaxis(x, mode, 0).reshape(size, -1), known)
        factors[mode] = factors[mode].at[:, :known].set(basis)
    return factors


def split_point(shape: Sequence[int]) -> int:
    """Where to cut the modes in two so that the two products of sizes have the least sum.

    The Khatri-Rao product of one side and the array contracted with it hold that many rows.
    """
    cuts = range(1, len(shape))
    return min(cuts, key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))


def solve_normal(
    normal: Gram, product: Factor, present: Factor, *, exact_up_to: int = EXACT_UP_TO
) -> Factor:
    """Solve A @ normal = product for A.

    Up to rank `exact_up_to` by a Cholesky factorisation with a relative ridge and one step of
    refinement, which takes the bias of the ridge away where the equations are well posed. Above
    it, or where the factorisation breaks down, by conjugate gradients from the present factor,
    each row with step sizes of its own.

    Arguments:
        normal: (R, R), symmetric positive semi-definite, unit diagonal.
        product: (n, R).
        present: (n, R).
    """
    rank = normal.shape[0]

    def by_gradients() -> Factor:
        return conjugate_gradients(normal, product, present, CG_STEPS)

    if rank > exact_up_to:
        return by_gradients()
    ridge = 4 * jnp.finfo(normal.dtype).eps * rank
    factor = jnp.linalg.cholesky(normal + ridge * jnp.eye(rank, dtype=normal.dtype))

    def by_factor(right: Factor) -> Factor:
        return jax.scipy.linalg.cho_solve((factor, True), right.T).T

    # Refining the present factor would save a solve, but where the equations are singular nothing
    # holds it: its rounding errors, divided by the ridge, would grow from sweep to sweep.
    solution = by_factor(product)
    residual = product - jnp.matmul(solution, normal, precision=HIGHEST)
    refined = solution + by_factor(residual)
    return jax.lax.cond(jnp.isfinite(refined).all(), lambda: refined, by_gradients)


def conjugate_gradients(normal: Gram, product: Factor, start: Factor, steps: int) -> Factor:
    """A few conjugate gradient steps on A @ normal = product, for all rows of A side by side."""

    def squares(rows: Factor) -> Float[Array, "n 1"]:
        return jnp.sum(rows * rows, axis=1, keepdims=True)

    solution = start
    residual = product - jnp.matmul(start, normal, precision=HIGHEST)
    direction, energy = residual, squares(residual)
    for _ in range(steps):
        image = jnp.matmul(direction, normal, precision=HIGHEST)
        length = safe_ratio(energy, jnp.sum(direction * image, axis=1, keepdims=True))
        solution = solution + length * direction
        residual = residual - length * image
        following = squares(residual)
        direction = residual + safe_ratio(following, energy) * direction
        energy = following
    return solution


def pairwise_sum(x: Float[Array, "*_"], axis: int) -> Float[Array, "*_"]:
    """Sum over a leading axis by adding halves.

    The last axis stays contiguous in every addition; XLA's own reduction over another axis does
    not vectorise on CPU and takes 10 to 40 times as long.
    """
    x = jnp.moveaxis(x, axis, 0)
    left_over = []
    while x.shape[0] > 1:
        half, odd = divmod(x.shape[0], 2)
        if odd:
            left_over.append(x[-1])
        x = x[:half] + x[half : 2 * half]
    return sum(left_over, x[0])


def _normalise(factor: Factor) -> tuple[Factor, Float[Array, " r"]]:
    norms = jnp.linalg.norm(factor, axis=0)
    return safe_ratio(factor, norms), norms


def _gram(factor: Factor) -> Gram:
    return jnp.matmul(factor.T, factor, precision=HIGHEST)
