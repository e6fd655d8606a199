"""Low rank by groups of rows: one truncated SVD each, or all of them together in a norm.

Source: Liebenwein et al., "Compressing neural networks: towards determining the optimal layer-wise
decomposition" (ALDS), NeurIPS 2021, in the Frobenius norm.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tdjax.decompose.als import Info, Swept, info_on_host, iterate, relative_error
from tdjax.decompose.coordinates import Coordinates, Norm, coordinates_of, measured, posed
from tdjax.decompose.formats import GroupedLowRank
from tdjax.decompose.grouped_on_host import low_rank_blocks
from tdjax.decompose.inputs import as_float, check_ranks, is_at_hand, placed_like, whole_ranks
from tdjax.decompose.low_rank_on_host import split_evenly
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.norms import is_on_host, posed_on_host
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.second_moment import times
from tdjax.decompose.svd import best_by_root, truncated_svd
from tdjax.decompose.weighted import dot, robust_cholesky, root_ratio, solve_with


@on_any_mesh
@whole_ranks
def grouped_svd(
    matrix: Any,
    rank: int,
    splits: int,
    *,
    norm: Norm | None = None,
    max_iters: int = 100,
    tol: float | Float[Array, ""] = 1e-8,
    pad: bool = False,
) -> tuple[GroupedLowRank, Info]:
    """Approximate each of k blocks of consecutive rows of a matrix by one of rank r.

    In the Frobenius norm the blocks do not meet, and each is a truncated SVD. A second moment
    couples them: starting from what is best for its diagonal blocks alone, sweeps renew one block
    after the other, each the best with the others fixed. No sweep raises the error.

    >>> import jax, tdjax
    >>> matrix = jax.random.normal(jax.random.key(0), (12, 8))
    >>> grouped, info = tdjax.grouped_svd(matrix, rank=2, splits=3)
    >>> grouped.left.shape, grouped.right.shape
    ((3, 4, 2), (3, 2, 8))

    Arguments:
        matrix: (m, n), float; half precision is raised to float32.
        rank: r of every block, static, 1 <= r <= min(m / k, n).
        splits: k, static; it divides m.
        norm: None for Frobenius, or a `tdjax.Norm`.
        max_iters: sweeps at most, static; 0 leaves the blocks uncoupled.
        tol: stop once a sweep changes the relative error by less.
        pad: compile no program for rank and splits, where NumPy can do without.

    Returns: GroupedLowRank with left (k, m / k, r) and right (k, r, n), and `Info`, whose errors
    are in the norm.

    Raises ValueError for NaN or Inf, a shape that is not two-dimensional, splits that do not
    divide the rows, a rank out of range.
    """
    x = as_float(matrix, ndim=2)
    rows, columns = x.shape
    if splits < 1 or rows % splits:
        raise ValueError(f"grouped_svd: {splits} splits do not divide {rows} rows")
    (rank,) = check_ranks((rank,), (min(rows // splits, columns),), "grouped_svd")

    if pad and _is_for_host(x, norm, tol):
        return _on_host(x, rank, splits, norm, float(tol), max_iters)
    problem = posed(x, _with_rows_weighed(coordinates_of(norm, x)))
    y, weight = problem.array, problem.weight
    found, info = (
        _uncoupled(y, rank=rank, splits=splits, max_iters=max_iters)
        if weight is None
        else _coupled(y, weight, tol, rank=rank, splits=splits, max_iters=max_iters)
    )
    found = problem.back(found)
    return found, measured(norm, x, found, info)


def _is_for_host(x: Array, norm: Norm | None, tol: float | Array) -> bool:
    """Whether `tdjax.decompose.grouped_on_host` knows the problem."""
    seen = is_at_hand(x) and not isinstance(tol, jax.core.Tracer)
    return seen and is_on_host(norm) and (norm is None or not norm.is_rounded(x.dtype))


def _on_host(
    x: Float[Array, "m n"], rank: int, splits: int, norm: Norm | None, tol: float, max_iters: int
) -> tuple[GroupedLowRank, Info]:
    problem = posed_on_host(x, norm)
    blocks = problem.array.reshape(splits, -1, x.shape[1])
    state, errors, converged = low_rank_blocks(blocks, problem.inputs, rank, tol, max_iters)
    left, right = state.left, state.right
    if problem.root is not None:
        pairs = zip(left, right, strict=True)
        both = [split_evenly(own, problem.back(other.T).T) for own, other in pairs]
        left, right = (np.stack(own) for own in zip(*both, strict=True))
    half = x.dtype.type(math.sqrt(problem.scale))
    found = GroupedLowRank(placed_like(x, half * left), placed_like(x, half * right))
    return found, info_on_host(x, state.error, errors, converged, max_iters)


def _with_rows_weighed(space: Coordinates) -> Coordinates:
    """The coordinates with a root of the rows, which mixes blocks, made part of their weight."""
    if space.roots is None or (root := space.roots[0]) is None:
        return space
    weighed = root if space.row_weight is None else times(space.row_weight, root)
    weight = jnp.matmul(root.T, weighed, precision=HIGHEST)
    return replace(
        space,
        roots=(None, *space.roots[1:]),
        inverses=space.inverses and (None, *space.inverses[1:]),
        row_weight=weight,
        exponent=None,
    ).at_unit_scale(weight.dtype)


@partial(jax.jit, static_argnames=("rank", "splits", "max_iters"))
def _uncoupled(
    x: Float[Array, "m n"], *, rank: int, splits: int, max_iters: int
) -> tuple[GroupedLowRank, Info]:
    """A truncated SVD of each block."""
    parts = jax.vmap(lambda block: truncated_svd(block, rank))(x.reshape(splits, -1, x.shape[1]))
    result = GroupedLowRank(parts.left, parts.right)
    return result, _without_sweeps(relative_error(x, result.to_tensor()), max_iters)


class _CoupledBlocks(NamedTuple):
    """A matrix of k blocks of rows in the norm tr(E^T S E).

    Arguments:
        blocks: (k, m / k, n).
        weight: S, (m, m) or its diagonal, (m,).
        squared: the squared norm of the matrix.
        diagonal: S_ii, (k, m / k, m / k), the blocks on the diagonal of S; None for a diagonal S.
        roots: L_i with S_ii = L_i L_i^T, of that shape; for a diagonal S (k, m / k).
    """

    blocks: Float[Array, "k m n"]
    weight: Array
    squared: Float[Array, ""]
    diagonal: Float[Array, "k m m"] | None
    roots: Array


class _ApproximatedBlocks(NamedTuple):
    """What the blocks are, and the matrix less their products, (k, m / k, n)."""

    result: GroupedLowRank
    rest: Float[Array, "k m n"]


@partial(jax.jit, static_argnames=("rank", "splits", "max_iters"))
def _coupled(
    x: Float[Array, "m n"],
    weight: Array,
    tol: float | Float[Array, ""],
    *,
    rank: int,
    splits: int,
    max_iters: int,
) -> tuple[GroupedLowRank, Info]:
    """Block coordinate descent on tr(E^T S E), E the matrix less its approximation."""
    problem = _in_blocks(x, weight, splits)
    start = _best_alone(problem, rank)
    if problem.diagonal is None or splits == 1:
        # Nothing couples the blocks.
        return start.result, _without_sweeps(_error(problem, start.rest), max_iters)
    state, progress = iterate(
        partial(_sweep, problem, rank=rank),
        start,
        _error(problem, start.rest),
        max_iters=max_iters,
        tol=tol,
        stop_when_worse=True,
    )
    error = _error(problem, state.rest)
    return state.result, Info(error, progress.iterations, progress.errors, progress.converged)


def _in_blocks(x: Float[Array, "m n"], weight: Array, splits: int) -> _CoupledBlocks:
    rows = x.shape[0] // splits
    blocks, squared = x.reshape(splits, rows, -1), dot(x, times(weight, x))
    if weight.ndim == 1:
        return _CoupledBlocks(blocks, weight, squared, None, jnp.sqrt(weight).reshape(splits, rows))
    # (k, rows, k, rows) at equal k, which the diagonal moves to the end.
    pairs = weight.reshape(splits, rows, splits, rows)
    diagonal = jnp.moveaxis(jnp.diagonal(pairs, axis1=0, axis2=2), -1, 0)
    return _CoupledBlocks(
        blocks, weight, squared, diagonal, jax.vmap(partial(robust_cholesky, solves=True))(diagonal)
    )


def _best_alone(problem: _CoupledBlocks, rank: int) -> _ApproximatedBlocks:
    """Each block the best as if the others did not count."""
    blocks = problem.blocks
    parts = jax.vmap(lambda block, root: best_by_root(block, root, rank))(blocks, problem.roots)
    result = GroupedLowRank(parts.left, parts.right)
    return _ApproximatedBlocks(result, blocks - result.to_tensor().reshape(blocks.shape))


def _error(problem: _CoupledBlocks, rest: Float[Array, "k m n"]) -> Float[Array, ""]:
    flat = rest.reshape(-1, rest.shape[2])
    return root_ratio(dot(flat, times(problem.weight, flat)), problem.squared)


def _sweep(problem: _CoupledBlocks, state: _ApproximatedBlocks, rank: int) -> Swept:
    """Renew one block after the other."""
    state = jax.lax.fori_loop(
        0, len(problem.blocks), lambda i, state: _renewed(problem, i, state, rank), state
    )
    return Swept(state, _error(problem, state.rest))


def _renewed(
    problem: _CoupledBlocks, i: Int[Array, ""], state: _ApproximatedBlocks, rank: int
) -> _ApproximatedBlocks:
    """Block i renewed, the best with the others fixed.

    Up to a constant, the error is then the S_ii norm of what is left when the new block i is taken
    from W~_i + S_ii^-1 (S E)_i: a Newton step from the present one.
    """
    (left, right), rest = (state.result.left, state.result.right), state.rest
    assert problem.diagonal is not None
    strips = problem.weight.reshape(*rest.shape[:2], -1)
    slope = jnp.matmul(strips[i], rest.reshape(-1, rest.shape[2]), precision=HIGHEST)
    root = problem.roots[i]
    target = problem.blocks[i] - rest[i] + solve_with(root, slope, problem.diagonal[i])
    best = best_by_root(target, root, rank)
    return _ApproximatedBlocks(
        GroupedLowRank(left.at[i].set(best.left), right.at[i].set(best.right)),
        rest.at[i].set(problem.blocks[i] - best.to_tensor()),
    )


def _without_sweeps(error: Float[Array, ""], max_iters: int) -> Info:
    nothing = jnp.full((max_iters,), jnp.nan, error.dtype)
    return Info(error, jnp.asarray(0), nothing, jnp.asarray(True))
