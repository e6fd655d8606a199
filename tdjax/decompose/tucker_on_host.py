"""Tucker decomposition of a kernel's channels in the norm tr(G E^T S E), by NumPy.

The method is that of `tdjax.decompose.weighted_tucker`, for the case that convolutions have: the
window whole, both channel modes compressed. At its own ranks a layer of a small network is
decomposed in a hundredth of the time that compiling a program for its shape takes.

S is multiplied three times in a sweep: with what is left of x, whose product is the gradient of
everything, and with the two directions in which the input factor is improved. All else is products
of smaller matrices and a Cholesky factor, in the precision of x: what that leaves unsolved shows
in the gradient, and is solved for again where it matters.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.decompose.als import iterate_on_host
from tdjax.decompose.low_rank_on_host import leading_eigenvectors
from tdjax.decompose.moment import PRECONDITIONER_RIDGE
from tdjax.decompose.on_host import (
    Weight,
    cholesky,
    conjugate_gradients,
    definite,
    eye,
    factor_in_blocks,
    sum_of_products,
)

Array = np.ndarray
STEPS = 2
# What the equations for the core leave is solved for once; where that gains more than this share of
# the squared error, what is left is measured again, so often at most.
AGAIN, WORTH = 3, 1e-2
# Below this relative error what lies beyond the output factor is lost in the rounding of x^T S x.
FAINT = 1e-3
# Channels from which on half of a symmetric product is worth a call for each window position.
HALVED_FROM = 96


class Problem(NamedTuple):
    """What stays through all sweeps; the window K as one mode.

    Arguments:
        x: (K, C, T).
        weight: S of the rows (K, C), one.
        product: S x, (K, C, T).
        energy: x^T S x, (T, T).
        channels: the inverse of the mean of S over equal window positions, (C, C).
        window: how window positions correlate, (K, K).
    """

    x: Float[Array, "k c t"]
    weight: Weight
    product: Float[Array, "k c t"]
    energy: Float[Array, "t t"]
    channels: Float[Array, "c c"]
    window: Float[Array, "k k"]

    @property
    def squared(self) -> float:
        """The squared norm of x."""
        return float(np.trace(self.energy))


class State(NamedTuple):
    """Input factor U, core, output factor A, S applied to what is left of x A, relative error."""

    factor: Float[Array, "c r"]
    core: Float[Array, "k r m"]
    output: Float[Array, "t m"]
    residual: Float[Array, "k c m"]
    error: float


def sweep_to_rest(
    x: Float[Array, "k c t"],
    weight: Weight,
    ranks: tuple[int, int],
    tol: float,
    max_iters: int,
) -> tuple[State, list[float], bool]:
    """The factors where sweeps end, the errors on the way, and whether the last is below `tol`.

    Arguments:
        x: the window as one mode, entries around 1.
        weight: S of the rows (window, channels), one and in full.
        ranks: of input and output channels.
    """
    problem = _posed(x, weight)
    state = _fitted(problem, _first_factor(problem, ranks[0]), ranks[1])
    sweep = partial(_swept, problem)
    return iterate_on_host(sweep, state, max_iters=max_iters, tol=tol)


def _swept(problem: Problem, state: State) -> State:
    factor = np.linalg.qr(_improved(problem, state))[0]
    return _fitted(problem, factor, state.output.shape[1])


def _posed(x: Float[Array, "k c t"], weight: Weight) -> Problem:
    k, c, t = x.shape
    matrix, blocks = x.reshape(-1, t), _blocks(weight, c)
    product = _weighed(weight, x)
    energy = matrix.T @ product.reshape(-1, t)
    # In two steps, as in `Weight.times`.
    scale = _scale(weight)
    mean = (scale * np.einsum("kkcd->kcd", blocks)).sum(axis=0) * scale / k
    ridge = PRECONDITIONER_RIDGE * np.mean(np.diagonal(mean) + weight.shift)
    inverse = np.linalg.inv(definite(mean + (weight.shift + ridge) * eye(mean)))
    window = np.einsum("klcd,cd->kl", blocks, scale * inverse) * scale / c
    window += weight.shift * np.trace(inverse) / c * eye(window)
    return Problem(x, weight, product, (energy + energy.T) / 2, inverse, window)


def _blocks(weight: Weight, channels: int) -> Float[Array, "k k c c"]:
    """S by pairs of window positions, but for scale and shift."""
    (array,) = weight.array
    return array.reshape(-1, channels, len(array) // channels, channels).swapaxes(1, 2)


def _scale(weight: Weight) -> Float[Array, " 1"]:
    """What S is to be multiplied by on either side."""
    return np.ldexp(np.ones_like(weight.shift), -weight.half)


def _weighed(weight: Weight, y: Float[Array, "k c m"]) -> Float[Array, "k c m"]:
    """S y."""
    return weight.times(y.reshape(1, len(weight.array[0]), y.shape[2])).reshape(y.shape)


def _first_factor(problem: Problem, rank: int) -> Float[Array, "c r"]:
    """The best one if S were its Kronecker approximation and only the inputs compressed."""
    c = problem.x.shape[1]
    weighed = np.tensordot(problem.x, cholesky(problem.window), ((0,), (0,))).reshape(c, -1)
    root = cholesky(problem.channels)
    # With P = R R^T the inverse of the channels' moment, R^-1 is a root of the moment.
    rooted = np.linalg.solve(root, weighed)
    return np.linalg.qr(root @ leading_eigenvectors(rooted @ rooted.T, rank))[0]


def _fitted(problem: Problem, factor: Float[Array, "c r"], rank: int) -> State:
    """Core and output factor that are best together, the input factor fixed."""
    k, _, t = problem.x.shape
    right = np.matmul(factor.T, problem.product).reshape(-1, t)
    root = factor_in_blocks(_compressed(problem.weight, factor, k))
    rooted = root.solve(right)
    vectors = leading_eigenvectors(rooted.T @ rooted, t)
    output, dropped = vectors[:, :rank], vectors[:, rank:]
    core = root.solve_transposed(rooted @ output).reshape(k, -1, output.shape[1])
    projected, beyond = problem.x @ output, sum_of_products(dropped, problem.energy @ dropped)
    for more in reversed(range(AGAIN + 1)):
        rest = projected - np.matmul(factor, core)
        residual = _weighed(problem.weight, rest)
        squared = beyond + sum_of_products(rest, residual)
        left = root.solve(np.matmul(factor.T, residual).reshape(len(right), -1))
        core = core + root.solve_transposed(left).reshape(core.shape)
        gained = sum_of_products(left, left)
        if not more or gained <= WORTH * squared:
            break
    squared -= gained
    if squared < FAINT**2 * problem.squared:
        others = problem.x @ dropped
        squared += sum_of_products(others, _weighed(problem.weight, others)) - beyond
    whole = problem.squared or 1.0
    return State(factor, core, output, residual, float(np.sqrt(max(0.0, squared) / whole)))


def _compressed(weight: Weight, factor: Float[Array, "c r"], window: int) -> Float[Array, "n n"]:
    """(I x U)^T S (I x U) for orthonormal U, n = K r."""
    blocks, own = _blocks(weight, len(factor)), _scale(weight) * factor
    if len(factor) < HALVED_FROM:
        found = np.matmul(own.T, np.matmul(blocks, own)).swapaxes(1, 2)
    else:
        found = np.empty((window, own.shape[1], window, own.shape[1]), own.dtype)
        for k in range(window):
            behind = np.matmul(own.T, np.matmul(blocks[k, k:], own))
            found[k, :, k:] = behind.swapaxes(0, 1)
            found[k:, :, k] = behind.swapaxes(1, 2)
    found = found.reshape(window * own.shape[1], -1)
    found[np.diag_indices(len(found))] += weight.shift
    return found


def _improved(problem: Problem, state: State) -> Float[Array, "c r"]:
    """The input factor after conjugate gradient steps on its normal equations, the rest fixed."""
    core, back = state.core, state.core.swapaxes(1, 2)
    small = np.matmul(np.tensordot(problem.window, core, 1), back).sum(axis=0)
    small = (small + small.T) / 2
    ridge = PRECONDITIONER_RIDGE * np.mean(np.diagonal(small))
    inner = np.linalg.inv(definite(small + ridge * eye(small)))
    left = np.matmul(state.residual, back).sum(axis=0)

    def normal(factor: Float[Array, "c r"]) -> Float[Array, "c r"]:
        image = _weighed(problem.weight, np.matmul(factor, core))
        return np.matmul(image, back).sum(axis=0)

    return state.factor + conjugate_gradients(
        normal, left, lambda right: problem.channels @ right @ inner, STEPS
    )
