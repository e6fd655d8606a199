"""Tensor train in the norm tr(E^T S E) by NumPy: the sweeps of `tdjax.decompose.weighted_tt`.

A program for each shape takes many seconds to compile, and most kernels less than one to decompose.
In double precision, which small arrays hardly feel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.decompose.als import CANCELS_BELOW, iterate_on_host
from tdjax.decompose.low_rank_on_host import leading_eigenvectors
from tdjax.decompose.moment_on_host import (
    Image,
    ModeMoment,
    improve_factor,
    lay_out,
    leading_factor,
    root_for,
)
from tdjax.decompose.on_host import sum_of_products
from tdjax.decompose.weighted_tt import STEPS

Array = np.ndarray
Factor = Float[Array, "_ _"]
Square = Float[Array, "_ _"]
Core = Float[Array, "_ _ _"]
Cores = tuple[Core, ...]


class Problem(NamedTuple):
    """What stays through all sweeps.

    Arguments:
        matrix: x, (D, T).
        weight: S, (D, D).
        product: S x.
        squared: tr(x^T S x).
        first: S seen from the first mode; None with two modes only.
        sizes: of the modes but the last.
        ranks: interior ranks.
    """

    matrix: Float[Array, "d t"]
    weight: Square
    product: Float[Array, "d t"]
    squared: float
    first: ModeMoment | None
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]


class State(NamedTuple):
    """As `tdjax.decompose.weighted_tt.TTState`, with the relative error."""

    cores: Cores
    output: Float[Array, "t m"]
    image: Image | None
    error: float


class Part(NamedTuple):
    """As `tdjax.decompose.weighted_tt.TTPart`."""

    matrix: Square
    moment: ModeMoment
    product: Float[Array, "c k t"]


Choose = Callable[[int, Part, Cores], tuple[Factor, Cores]]


def sweep_to_rest(
    x: Float[Array, "*n"], weight: Square, ranks: tuple[int, ...], tol: float, max_iters: int
) -> tuple[State, list[float], bool]:
    """Where sweeps end, the errors on the way, and whether it is at rest.

    Arguments:
        x: (n_1, ..., n_N), entries around 1.
        weight: S, with D = n_1 * ... * n_{N-1}.
        ranks: interior ranks; none above what its unfolding has.
    """
    *sizes, outputs = x.shape
    matrix, weight = x.astype(float).reshape(-1, outputs), weight.astype(float)
    product = weight @ matrix
    first = lay_out(weight, sizes[0]) if len(sizes) > 1 else None
    squared = sum_of_products(matrix, product)
    problem = Problem(matrix, weight, product, squared, first, tuple(sizes), ranks)
    state = _walked(problem, partial(_leading, problem), ())
    return iterate_on_host(
        partial(_swept, problem),
        state,
        max_iters=max_iters,
        tol=tol,
        eps=float(np.finfo(float).eps),
    )


def _swept(problem: Problem, state: State) -> State:
    return _walked(problem, partial(_improved, problem, state), state.cores)


def _walked(problem: Problem, choose: Choose, present: Cores) -> State:
    """Cores from left to right; see `tdjax.decompose.weighted_tt`."""
    matrix, product = problem.weight, problem.product
    cores: list[Core] = []
    first = None
    for k, (size, rank) in enumerate(zip(problem.sizes[:-1], problem.ranks, strict=False)):
        rows = size * (problem.ranks[k - 1] if k else 1)
        moment = lay_out(matrix, rows) if k or problem.first is None else problem.first
        part = Part(matrix, moment, product.reshape(rows, -1, product.shape[1]))
        factor, present = choose(k, part, present)
        image = moment.image_of(factor)
        first = image if k == 0 else first
        matrix, product = _compressed(part, factor, image)
        cores.append(factor.reshape(-1, size, rank))
    return _with_last_two(problem, matrix, product, tuple(cores), first)


def _compressed(part: Part, factor: Factor, image: Image) -> tuple[Square, Float[Array, "n t"]]:
    """S and S x compressed by one core more."""
    c, k, _, r = image.shape
    product = np.tensordot(factor, part.product, ((0,), (0,))).reshape(r * k, -1)
    matrix = (factor.T @ image.reshape(c, -1)).reshape(r, k, k, r)
    matrix = matrix.transpose(0, 1, 3, 2).reshape(r * k, r * k)
    return (matrix + matrix.T) / 2, product


def _with_last_two(
    problem: Problem,
    matrix: Square,
    product: Float[Array, "n t"],
    cores: Cores,
    image: Image | None,
) -> State:
    """The state with the last two cores, which are best together, and its error."""
    size, rank = problem.sizes[-1], problem.ranks[-1]
    root = root_for(matrix)
    rooted = root.solve(product)
    output = leading_eigenvectors(rooted.T @ rooted, rank)
    core = root.solve_transposed(rooted @ output)
    crossed, own = sum_of_products(core, product @ output), sum_of_products(core, matrix @ core)
    every = (*cores, core.reshape(-1, size, rank))
    squared, whole = problem.squared - 2 * crossed + own, problem.squared or 1.0
    if not squared >= CANCELS_BELOW**2 * whole:
        rest = problem.matrix - multiplied(every).reshape(len(problem.matrix), rank) @ output.T
        squared = sum_of_products(rest, problem.weight @ rest)
    return State(every, output, image, math.sqrt(max(0.0, squared) / whole))


def _leading(problem: Problem, k: int, part: Part, present: Cores) -> tuple[Factor, Cores]:
    """The best core for the Kronecker approximation of what is compressed so far."""
    left, shape = problem.matrix, part.product.shape
    if k > 0:
        root = root_for(part.matrix)
        left = root.solve_whole(part.product.reshape(-1, shape[2]))
    return leading_factor(part.moment, left.reshape(shape), problem.ranks[k]), present


def _improved(
    problem: Problem, state: State, k: int, part: Part, present: Cores
) -> tuple[Factor, Cores]:
    """The present core after a few conjugate gradient steps, made orthonormal.

    What leaves it goes into the next, which starts from it.
    """
    core, rest = present[0].reshape(-1, problem.ranks[k]), multiplied(present[1:])
    image = state.image if k == 0 else part.moment.image_of(core)
    assert image is not None
    flat = rest.transpose(1, 0, 2).reshape(-1, rest.shape[2])
    wanted = part.product @ state.output
    residual = wanted - (image.reshape(-1, len(flat)) @ flat).reshape(wanted.shape)
    better = improve_factor(part.moment, core, rest, residual, STEPS)
    factor, triangle = np.linalg.qr(better)
    _, following, *others = present
    return factor, (np.tensordot(triangle, following, 1), *others)


def multiplied(cores: Sequence[Core]) -> Float[Array, "r k m"]:
    """Neighbouring cores contracted: (first rank, all their modes, last rank)."""
    product = cores[0]
    for core in cores[1:]:
        left, size = product.shape[0], product.shape[1] * core.shape[1]
        product = np.tensordot(product, core, 1).reshape(left, size, -1)
    return product
