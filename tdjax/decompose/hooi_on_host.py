"""HOOI of a kernel's channels by NumPy: what `tdjax.decompose.tucker` does, without a program.

The window stays whole. A sweep is two projections of x, two Gram matrices and their eigenvectors.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.decompose.als import CANCELS_BELOW, iterate_on_host
from tdjax.decompose.low_rank_on_host import leading_columns, leading_eigenvectors
from tdjax.decompose.on_host import sum_of_products

Array = np.ndarray


class Problem(NamedTuple):
    """What stays through all sweeps.

    Arguments:
        x: the window K as one mode.
        squared: its squared norm.
        rank: of the output channels.
    """

    x: Float[Array, "k c t"]
    squared: float
    rank: int


class State(NamedTuple):
    """Input factor U, core, output factor A, relative error."""

    factor: Float[Array, "c r"]
    core: Float[Array, "k r m"]
    output: Float[Array, "t m"]
    error: float


def hooi(
    x: Float[Array, "k c t"], ranks: tuple[int, int], tol: float, max_iters: int
) -> tuple[State, list[float], bool]:
    """The factors where sweeps end, the errors on the way, and whether they are at rest.

    Arguments:
        x: the window as one mode, entries around 1.
        ranks: of input and output channels.
    """
    problem = Problem(x, sum_of_products(x, x), ranks[1])
    factor = leading_columns(_tall(x.swapaxes(1, 2)), None, ranks[0])
    seen = np.matmul(factor.T, x)
    start = _projected(problem, factor, seen, leading_columns(_tall(seen), None, ranks[1]))
    state, errors, converged = iterate_on_host(
        partial(_swept, problem),
        start,
        max_iters=max_iters,
        tol=tol,
        eps=float(np.finfo(x.dtype).eps),
    )
    return state._replace(error=_measured(problem, state)), errors, converged


def _tall(x: Float[Array, "k m n"]) -> Float[Array, "1 km n"]:
    return x.reshape(1, -1, x.shape[2])


def _swept(problem: Problem, state: State) -> State:
    gram = np.zeros((problem.x.shape[1],) * 2, problem.x.dtype)
    for own in problem.x:
        seen = own @ state.output
        gram += seen @ seen.T
    factor = leading_eigenvectors(gram, state.factor.shape[1])
    seen = np.matmul(factor.T, problem.x)
    (tall,) = _tall(seen)
    return _projected(problem, factor, seen, leading_eigenvectors(tall.T @ tall, problem.rank))


def _projected(
    problem: Problem,
    factor: Float[Array, "c r"],
    seen: Float[Array, "k r t"],
    output: Float[Array, "t m"],
) -> State:
    """The core, and the error by Pythagoras where that is exact enough.

    Arguments:
        seen: x projected on `factor`.
    """
    core = seen @ output
    whole = problem.squared or 1.0
    error = np.sqrt(max(0.0, problem.squared - sum_of_products(core, core)) / whole)
    state = State(factor, core, output, float(error))
    return state if error >= CANCELS_BELOW else state._replace(error=_measured(problem, state))


def _measured(problem: Problem, state: State) -> float:
    """The relative error, from the difference itself."""
    rest = problem.x - np.matmul(state.factor, state.core @ state.output.T)
    return float(np.sqrt(sum_of_products(rest, rest) / (problem.squared or 1.0)))
