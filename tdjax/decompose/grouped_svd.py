"""Low rank by groups of rows: one truncated SVD each, or all of them together in a norm.

Source: Liebenwein et al., "Compressing neural networks: towards determining the optimal layer-wise
decomposition" (ALDS), NeurIPS 2021, in the Frobenius norm.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tdjax.decompose.als import Info, iterate, relative_error
from tdjax.decompose.formats import HIGHEST, GroupedLowRank
from tdjax.decompose.inputs import as_float, check_ranks, whole_ranks
from tdjax.decompose.norms import ModeWeighted, Norm, in_norm, times
from tdjax.decompose.svd import best_by_root, truncated_svd
from tdjax.decompose.weighted import dot, robust_cholesky, root_ratio, solve_with


@whole_ranks
def grouped_svd(
    matrix: Any,
    rank: int,
    splits: int,
    *,
    norm: Norm | None = None,
    max_iters: int = 100,
    tol: float | Float[Array, ""] = 1e-8,
) -> tuple[GroupedLowRank, Info]:
    """Approximate each of k blocks of consecutive rows of a matrix by one of rank r.

    In the Frobenius norm the blocks do not meet, and each is a truncated SVD. A second moment
    couples them: starting from what is best for its diagonal blocks alone, sweeps renew one block
    after the other, each the best with the others fixed. No sweep raises the error.

    Arguments:
        matrix: (m, n), float; half precision is raised to float32.
        rank: r of every block, static, 1 <= r <= min(m / k, n).
        splits: k, static; it divides m.
        norm: None for Frobenius, or a `tdjax.decompose.norms.Norm`.
        max_iters: sweeps at most, static; 0 leaves the blocks uncoupled.
        tol: stop once a sweep changes the relative error by less.

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

    def coupled(y: Array, weight: Array) -> tuple[GroupedLowRank, Info]:
        return _weighted(y, weight, tol, rank=rank, splits=splits, max_iters=max_iters)

    def alone(y: Array) -> tuple[GroupedLowRank, Info]:
        return _blockwise(y, rank=rank, splits=splits, max_iters=max_iters)

    if isinstance(norm, ModeWeighted) and (root := norm.roots[0]) is not None:
        # Unlike one of the columns, a root of the rows mixes blocks: its square is a weight.
        weight = jnp.matmul(root.T, root, precision=HIGHEST)
        return in_norm(ModeWeighted((None, *norm.roots[1:])), lambda y: coupled(y, weight), x)
    return in_norm(norm, alone, x, coupled)


@partial(jax.jit, static_argnames=("rank", "splits", "max_iters"))
def _blockwise(
    x: Float[Array, "m n"], *, rank: int, splits: int, max_iters: int
) -> tuple[GroupedLowRank, Info]:
    parts = jax.vmap(lambda block: truncated_svd(block, rank))(x.reshape(splits, -1, x.shape[1]))
    result = GroupedLowRank(parts.left, parts.right)
    return result, _without_sweeps(relative_error(x, result.to_tensor()), max_iters)


class _State(NamedTuple):
    """What the blocks are, and the matrix less their products, (k, m / k, n)."""

    result: GroupedLowRank
    rest: Float[Array, "k m n"]


@partial(jax.jit, static_argnames=("rank", "splits", "max_iters"))
def _weighted(
    x: Float[Array, "m n"],
    weight: Array,
    tol: float | Float[Array, ""],
    *,
    rank: int,
    splits: int,
    max_iters: int,
) -> tuple[GroupedLowRank, Info]:
    """Block coordinate descent on tr(E^T S E), E the matrix less its approximation.

    With the other blocks fixed this is, up to a constant, the S_ii norm of what is left when the
    new block i is taken from W~_i + S_ii^-1 (S E)_i: a Newton step from the present one.
    """
    rows = x.shape[0] // splits
    blocks, squared = x.reshape(splits, rows, -1), dot(x, times(weight, x))

    def error(rest: Float[Array, "k r n"]) -> Float[Array, ""]:
        flat = rest.reshape(x.shape)
        return root_ratio(dot(flat, times(weight, flat)), squared)

    strips = weight.reshape(splits, rows, -1)
    if weight.ndim == 1:
        roots = jnp.sqrt(weight).reshape(splits, rows)
    else:
        # (k, rows, k, rows) at equal k, which the diagonal moves to the end.
        pairs = weight.reshape(splits, rows, splits, rows)
        diagonal = jnp.moveaxis(jnp.diagonal(pairs, axis1=0, axis2=2), -1, 0)
        roots = jax.vmap(robust_cholesky)(diagonal)
    parts = jax.vmap(lambda block, root: best_by_root(block, root, rank))(blocks, roots)
    result = GroupedLowRank(parts.left, parts.right)
    rest = blocks - result.to_tensor().reshape(blocks.shape)
    if weight.ndim == 1 or splits == 1:
        # Nothing couples the blocks.
        return result, _without_sweeps(error(rest), max_iters)

    def renewed(i: Int[Array, ""], state: _State) -> _State:
        (left, right), rest = (state.result.left, state.result.right), state.rest
        slope = jnp.matmul(strips[i], rest.reshape(x.shape), precision=HIGHEST)
        target = blocks[i] - rest[i] + solve_with(roots[i], slope, diagonal[i])
        best = best_by_root(target, roots[i], rank)
        return _State(
            GroupedLowRank(left.at[i].set(best.left), right.at[i].set(best.right)),
            rest.at[i].set(blocks[i] - best.to_tensor()),
        )

    def sweep(state: _State) -> tuple[_State, Float[Array, ""]]:
        state = jax.lax.fori_loop(0, splits, renewed, state)
        return state, error(state.rest)

    state, progress = iterate(
        sweep,
        _State(result, rest),
        error(rest),
        max_iters=max_iters,
        tol=tol,
        stop_when_worse=True,
    )
    info = Info(error(state.rest), progress.iterations, progress.errors, progress.converged)
    return state.result, info


def _without_sweeps(error: Float[Array, ""], max_iters: int) -> Info:
    nothing = jnp.full((max_iters,), jnp.nan, error.dtype)
    return Info(error, jnp.asarray(0), nothing, jnp.asarray(True))
