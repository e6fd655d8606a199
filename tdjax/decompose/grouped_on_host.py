"""Low rank by groups of rows in the norm tr(E^T S E), by NumPy.

The method is that of `tdjax.decompose.grouped`, which compiles a program for each shape, number
of groups and rank.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.decompose.als import iterate_on_host
from tdjax.decompose.low_rank_on_host import best_low_rank
from tdjax.decompose.on_host import Triangle, Weight, factor_in_blocks, sum_of_products

Array = np.ndarray


class Problem(NamedTuple):
    """A matrix of k blocks of rows.

    Arguments:
        blocks: (k, m / k, n).
        weight: S, (1, m, m), or its diagonal; None for the identity.
        parts: S_ii by block; None for the identity.
        squared: the squared norm of the matrix.
        roots: the Cholesky factors of S_ii; None where nothing couples the blocks.
    """

    blocks: Float[Array, "k m n"]
    weight: Weight | None
    parts: list[Weight] | list[None]
    squared: float
    roots: list[Triangle] | None


class State(NamedTuple):
    """The blocks' factors, the matrix less their products, relative error."""

    left: Float[Array, "k m r"]
    right: Float[Array, "k r n"]
    rest: Float[Array, "k m n"]
    error: float


def low_rank_blocks(
    blocks: Float[Array, "k m n"], weight: Weight | None, rank: int, tol: float, max_iters: int
) -> tuple[State, list[float], bool]:
    """The factors where sweeps end, the errors on the way, and whether they are at rest.

    Arguments:
        blocks: of entries around 1.
        weight: S of all rows.
    """
    problem = _posed(blocks, weight)
    pairs = zip(blocks, problem.parts, strict=True)
    found = [best_low_rank(block, rank, part, None) for block, part in pairs]
    left, right = (np.stack(own) for own in zip(*found, strict=True))
    state = _measured(problem, left, right, blocks - left @ right)
    if problem.roots is None:
        return state, [], True
    return iterate_on_host(partial(_swept, problem), state, max_iters=max_iters, tol=tol)


def _posed(blocks: Float[Array, "k m n"], weight: Weight | None) -> Problem:
    k, m, _ = blocks.shape
    if weight is None:
        return Problem(blocks, None, [None] * k, sum_of_products(blocks, blocks), None)
    squared = sum_of_products(blocks, _weighed(weight, blocks))
    if weight.array.ndim == 2:
        diagonals = weight.array.reshape(k, 1, m)
        own = [weight._replace(array=part) for part in diagonals]
        return Problem(blocks, weight, own, squared, None)
    whole = weight.array.reshape(k, m, k, m)
    own = [weight._replace(array=whole[None, i, :, i]) for i in range(k)]
    roots = [factor_in_blocks(part.in_full()[0]) for part in own] if k > 1 else None
    return Problem(blocks, weight, own, squared, roots)


def _weighed(weight: Weight | None, y: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
    """S y."""
    if weight is None:
        return y
    return weight.times(y.reshape(1, -1, y.shape[2])).reshape(y.shape)


def _measured(
    problem: Problem,
    left: Float[Array, "k m r"],
    right: Float[Array, "k r n"],
    rest: Float[Array, "k m n"],
) -> State:
    squared = sum_of_products(rest, _weighed(problem.weight, rest))
    error = float(np.sqrt(max(0.0, squared) / (problem.squared or 1.0)))
    return State(left, right, rest, error)


def _swept(problem: Problem, state: State) -> State:
    """Renew one block after the other, the best with the others fixed.

    See `tdjax.decompose.grouped`: a Newton step from the present block, cut to its rank.
    """
    assert problem.weight is not None
    assert problem.roots is not None
    left, right, rest = (own.copy() for own in (state.left, state.right, state.rest))
    for i, (root, part) in enumerate(zip(problem.roots, problem.parts, strict=True)):
        step = root.solve_transposed(root.solve(_strip(problem.weight, rest, i)))
        target = problem.blocks[i] - rest[i] + step
        left[i], right[i] = best_low_rank(target, left.shape[2], part, None)
        rest[i] = problem.blocks[i] - left[i] @ right[i]
    return _measured(problem, left, right, rest)


def _strip(weight: Weight, y: Float[Array, "k m n"], i: int) -> Float[Array, "m n"]:
    """Block i of S y."""
    m = y.shape[1]
    scale = np.ldexp(np.ones_like(weight.shift), -weight.half)
    strip = weight.array[0, i * m : (i + 1) * m]
    return scale * (strip @ (scale * y.reshape(-1, y.shape[2]))) + weight.shift * y[i]
