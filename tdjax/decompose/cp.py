"""CP decomposition by alternating least squares with a dimension tree."""

from __future__ import annotations

import math
from functools import partial, reduce
from operator import mul
from typing import Any, NamedTuple

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
    resolution,
    safe_ratio,
)
from tdjax.decompose.coordinates import Norm, coordinates_of, measured, posed
from tdjax.decompose.cp_on_host import sweep_to_rest
from tdjax.decompose.cp_starts import check_init, drawn_start
from tdjax.decompose.formats import CP
from tdjax.decompose.inputs import as_float, check_ranks, is_at_hand, placed_like, whole_ranks
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.normal_equations import Factor, Gram, exact_up_to, gain, solve_normal
from tdjax.decompose.norms import Covariance, Kronecker, is_on_host, posed_on_host
from tdjax.decompose.padding import LARGE, cut, in_steps, is_small, widened
from tdjax.decompose.products import HIGHEST, khatri_rao, split_point
from tdjax.decompose.scale import at_unit_scale
from tdjax.decompose.threads import one_thread
from tdjax.decompose.weighted_cp import weighted_cp
from tdjax.decompose.weighted_cp_on_host import even_scales
from tdjax.decompose.weighted_cp_on_host import sweep_to_rest as weighted_sweeps

Factors = list[Float[Array, "_ r"]]

# Where the Frobenius solution that a weighted decomposition starts from may stop.
START_TOLERANCE = 1e-5


@on_any_mesh
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
    pad: bool = False,
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
        pad: compile one program for many ranks, see `tdjax.decompose.padding`, or none where NumPy
            can do it.

    Returns: CP with column norms spread evenly over the factors, and `Info`.

    Raises ValueError for NaN or Inf, a rank below 1 or above prod(n) / max(n), a missing key,
    an unknown `init` or one that does not fit.
    """
    x = as_float(x)
    (rank,) = check_ranks((rank,), (x.size // max(x.shape),), "cp_als")
    if max_iters < 1:
        raise ValueError(f"cp_als: max_iters must be at least 1, got {max_iters}")
    check_init(init, key, x.shape, rank)
    traced = any(isinstance(given, jax.core.Tracer) for given in (tol, key))
    if pad and not traced and _is_for_host(x, rank, norm, init):
        return _weighted_on_host(x, rank, key, init, norm, float(tol), max_iters)
    problem = posed(x, coordinates_of(norm, x))
    y, weight = problem.array, problem.weight
    start = problem.start(init) if isinstance(init, CP) else None
    drawn = start is None
    on_host = pad and is_at_hand(y) and x.size * rank < LARGE and not traced
    if start is None:
        assert isinstance(init, str)
        key = jax.random.key(0) if key is None else key
        start = drawn_start(y, key, rank, init, on_host=on_host)
    on_host = on_host and all(map(is_at_hand, start.factors))
    found = _widened(start, rank) if pad and not on_host else start
    frobenius = partial(_on_host if on_host else _cp_als, drawn=drawn, max_iters=max_iters)
    if weight is None:
        found, info = frobenius(y, found, tol)
    else:
        if drawn:
            # Sweeps in the Frobenius norm are many times cheaper, and end near enough to stop.
            found, _ = frobenius(y, found, jnp.maximum(tol, START_TOLERANCE))
        found = _widened(found, rank) if on_host else found
        found, info = weighted_cp(y, weight, found, tol, max_iters=max_iters)
    found = problem.back(found)
    info = measured(norm, x, found, info)
    return (CP(cut(found.factors, ((None, rank),) * x.ndim)) if pad else found), info


def _is_for_host(x: Array, rank: int, norm: Norm | None, init: str | CP) -> bool:
    """Whether NumPy decomposes an array in the norm of second moments."""
    known = isinstance(norm, Covariance | Kronecker) and is_on_host(norm)
    if not known or not is_at_hand(x) or x.ndim < 2:
        return False
    *positions, _, outputs = x.shape
    given = jax.tree.leaves(init) if isinstance(init, CP) else []
    small = is_small(x.size // outputs, rank, max(positions, default=1))
    return small and all(map(is_at_hand, given))


def _weighted_on_host(
    x: Float[Array, "*_"],
    rank: int,
    key: Array | None,
    init: str | CP,
    norm: Norm | None,
    tol: float,
    max_iters: int,
) -> tuple[CP, Info]:
    """`cp_als` in the norm of second moments, by NumPy."""
    problem = posed_on_host(x, norm)
    with one_thread():
        if isinstance(init, CP):
            factors = list(map(np.asarray, at_unit_scale(init).factors))
        else:
            key = jax.random.key(0) if key is None else key
            y = placed_like(x, problem.array)
            start = drawn_start(y, key, rank, init, on_host=True).factors
            # Sweeps in the Frobenius norm are many times cheaper, and end near enough to stop.
            factors = sweep_to_rest(
                problem.array, list(map(np.asarray, start)), max(tol, START_TOLERANCE), max_iters,
                drawn=True,
            )[0]  # fmt: skip
        factors, errors, converged = weighted_sweeps(
            problem.array, problem.weight, factors, tol, max_iters
        )
    factors[-1] = problem.back(factors[-1]) * problem.scale
    arrays = [
        (factor * scale).astype(x.dtype)
        for factor, scale in zip(factors, even_scales(factors), strict=True)
    ]
    error = problem.error_of((khatri_rao(arrays[:-1]) @ arrays[-1].T).reshape(x.shape))
    found = CP(tuple(placed_like(x, array) for array in arrays))
    info = info_on_host(x, error, errors, converged, max_iters)
    return found, measured(norm, x, found, info)


def _widened(start: CP, rank: int) -> CP:
    """A start whose program serves other ranks too: terms of zeros stay zeros."""
    most = _padded_rank(rank, start.shape)
    return CP(tuple(widened(factor, (len(factor), most)) for factor in start.factors))


def _on_host(
    x: Float[Array, "*_"], start: CP, tol: float | Array, *, drawn: bool, max_iters: int
) -> tuple[CP, Info]:
    """The same as `_cp_als`, by NumPy."""
    factors = list(map(np.asarray, start.factors))
    with one_thread():
        factors, error, errors, converged = sweep_to_rest(
            np.asarray(x), factors, float(tol), max_iters, drawn=drawn
        )
    info = info_on_host(x, error, errors, converged, max_iters)
    return CP(tuple(placed_like(x, factor) for factor in factors)), info


def _padded_rank(rank: int, shape: tuple[int, ...]) -> int:
    """A rank whose equations are solved as those of the rank itself are."""
    padded, largest = in_steps(rank), max(shape)
    return largest if rank <= largest < padded else padded


@partial(jax.jit, static_argnames=("drawn", "max_iters"))
def _cp_als(
    x: Float[Array, "*_"], start: CP, tol: float | Array, *, drawn: bool, max_iters: int
) -> tuple[CP, Info]:
    squared = jnp.sum(jnp.square(x))
    pairs = [_normalise(factor.astype(x.dtype)) for factor in start.factors]
    factors = [unit for unit, _ in pairs]
    norms = reduce(mul, [norm for _, norm in pairs])
    scale = jnp.ones_like(norms) if drawn else norms
    # Brought to the norm of x: too large a start swamps the first updates, too small a one lets
    # them forget it, and with it the differences between its columns.
    energy = scale @ reduce(mul, [_gram(factor) for factor in factors]) @ scale
    scale = scale * jnp.sqrt(safe_ratio(squared, energy))

    middle = split_point(x.shape)
    # Both layouts of x are made once, outside the loop.
    rows = x.reshape(math.prod(x.shape[:middle]), -1)
    problem = _Problem(x, rows, rows.T, squared, middle)
    unknown = jnp.asarray(jnp.inf, x.dtype)
    first = _Terms(factors, scale)
    state, progress = iterate(
        partial(_sweep, problem), _State(first, first, unknown), unknown,
        max_iters=max_iters, tol=tol,
    )  # fmt: skip
    # Near singular equations a sweep may end above where an earlier one did.
    back = ~(progress.last <= state.least + resolution(state.least))
    terms = jax.tree.map(partial(jnp.where, back), state.best, state.terms)
    share = terms.scale ** (1 / x.ndim)
    cp = CP(tuple(factor * share for factor in terms.factors))
    error = relative_error(x, cp.to_tensor())
    return cp, Info(error, progress.iterations, progress.errors, progress.converged)


class _Terms(NamedTuple):
    """The terms of a CP: columns of norm 1, and what each term is multiplied by."""

    factors: Factors
    scale: Float[Array, " r"]

    def to_tensor(self) -> Float[Array, "*_"]:
        """The dense array."""
        return CP((*self.factors[:-1], self.factors[-1] * self.scale)).to_tensor()


class _State(NamedTuple):
    """The terms, and those with the least error so far."""

    terms: _Terms
    best: _Terms
    least: Float[Array, ""]


class _Problem(NamedTuple):
    """What stays through all sweeps.

    Arguments:
        x: (n_1, ..., n_N).
        rows, columns: x as a matrix of its modes before and from `middle` on, and its transpose.
        squared: the square of its norm.
        middle: where the modes are cut in two.
    """

    x: Float[Array, "*_"]
    rows: Float[Array, "m n"]
    columns: Float[Array, "n m"]
    squared: Float[Array, ""]
    middle: int


class _Renewing(NamedTuple):
    """The factors while they are renewed one after the other.

    Arguments:
        factors, scale: see `_Terms`.
        grams: V_n = A_n^T A_n of each factor.
        gained, left: by how much the squared error has fallen so far, and see `Solved`.
        crossed, own: <x, t> and <t, t> for the sum t of the terms, after the last renewal.
        magnitude: <t, t> if its terms did not cancel each other.
    """

    factors: Factors
    scale: Float[Array, " r"]
    grams: list[Gram]
    gained: Float[Array, ""]
    left: Float[Array, ""]
    crossed: Float[Array, ""]
    own: Float[Array, ""]
    magnitude: Float[Array, ""]


def _sweep(problem: _Problem, state: _State) -> Swept:
    """Every factor renewed once."""
    terms, zero = state.terms, jnp.zeros_like(problem.squared)
    grams = [_gram(factor) for factor in terms.factors]
    turn = _Renewing(list(terms.factors), terms.scale, grams, zero, zero, zero, zero, zero)
    shape, modes = problem.x.shape, tuple(range(problem.x.ndim))
    first, second = modes[: problem.middle], modes[problem.middle :]
    halves = ((problem.rows, first, second), (problem.columns, second, first))
    for matrix, group, others in halves:
        outside = khatri_rao([turn.factors[mode] for mode in others])
        contracted = jnp.matmul(matrix, outside, precision=HIGHEST)
        turn = _visited(turn, contracted.reshape(*(shape[mode] for mode in group), -1), group)
    terms = _Terms(turn.factors, turn.scale)
    error = _error(problem, turn, terms)
    better = error < state.least
    best = jax.tree.map(partial(jnp.where, better), terms, state.best)
    fall, left = (safe_ratio(part, problem.squared) for part in (turn.gained, turn.left))
    return Swept(_State(terms, best, jnp.where(better, error, state.least)), error, fall, left)


def _error(problem: _Problem, turn: _Renewing, terms: _Terms) -> Float[Array, ""]:
    """The relative error by the squares, measured where they cancel."""
    loss = problem.squared - 2 * turn.crossed + turn.own
    cancels = loss < CANCELS_BELOW**2 * jnp.maximum(problem.squared, turn.magnitude)
    return jax.lax.cond(
        cancels,
        lambda: relative_error(problem.x, terms.to_tensor()),
        lambda: jnp.sqrt(jnp.maximum(0.0, safe_ratio(loss, problem.squared))),
    )


def _visited(
    turn: _Renewing, contracted: Float[Array, "... r"], modes: tuple[int, ...]
) -> _Renewing:
    """The factors of `modes` renewed, given x contracted with all other factors."""
    if len(modes) == 1:
        return _renewed(turn, modes[0], contracted)
    k = split_point(contracted.shape[:-1])
    right = khatri_rao([turn.factors[mode] for mode in modes[k:]])
    folded = contracted.reshape(*contracted.shape[:k], *right.shape)
    turn = _visited(turn, pairwise_sum(folded * right, axis=k), modes[:k])
    left = khatri_rao([turn.factors[mode] for mode in modes[:k]])
    folded = contracted.reshape(left.shape[0], *contracted.shape[k:])
    left = left.reshape(left.shape[0], *(1,) * (contracted.ndim - k - 1), left.shape[1])
    return _visited(turn, pairwise_sum(folded * left, axis=0), modes[k:])


def _renewed(turn: _Renewing, mode: int, product: Factor) -> _Renewing:
    """One factor renewed, given x contracted with all others."""
    factors, grams = list(turn.factors), list(turn.grams)
    normal = reduce(mul, [gram for m, gram in enumerate(grams) if m != mode])
    present = factors[mode] * turn.scale
    most = exact_up_to(len(turn.scale), [len(factor) for factor in factors])
    solved, left = solve_normal(normal, product, present, exact_up_to=most)
    factors[mode], scale = _normalise(solved)
    grams[mode] = _gram(factors[mode])
    products = normal * grams[mode] * jnp.outer(scale, scale)
    return _Renewing(
        factors,
        scale,
        grams,
        gained=turn.gained + gain(normal, product, present, solved),
        left=turn.left + left,
        crossed=jnp.sum(product * solved),
        own=jnp.sum(products),
        magnitude=jnp.sum(jnp.abs(products)),
    )


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
