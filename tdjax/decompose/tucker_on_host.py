"""Tucker decomposition of a kernel's channels in the norm tr(G E^T S E), by NumPy.

The method is that of `tdjax.decompose.weighted_tucker`, for the case that convolutions have: the
window whole, both channel modes compressed. At its own ranks a layer of a small network is
decomposed in a hundredth of the time that compiling a program for its shape takes, and in a fifth
of what it takes at ranks rounded up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.decompose.als import CANCELS_BELOW
from tdjax.decompose.low_rank_on_host import eigh
from tdjax.decompose.moment import PRECONDITIONER_RIDGE
from tdjax.decompose.on_host import cholesky, definite, eye, solved

Array = np.ndarray
STEPS = 2


class Problem(NamedTuple):
    """What stays through all sweeps; the input channels first, the window K as one mode.

    Arguments:
        x: (C, K, T).
        moment: S[c, k, l, d].
        product: S x, (C, K, T).
        energy: x^T S x, (T, T).
        channels: the inverse of the mean of S over equal window positions, (C, C).
        window: how window positions correlate, (K, K).
    """

    x: Float[Array, "c k t"]
    moment: Float[Array, "c k k c"]
    product: Float[Array, "c k t"]
    energy: Float[Array, "t t"]
    channels: Float[Array, "c c"]
    window: Float[Array, "k k"]

    @property
    def squared(self) -> float:
        """The squared norm of x."""
        return float(np.trace(self.energy))

    def image(self, factor: Float[Array, "c r"]) -> Float[Array, "c k k r"]:
        """S (U x I)."""
        return np.matmul(self.moment.reshape(-1, len(factor)), factor).reshape(
            *self.moment.shape[:3], -1
        )


class State(NamedTuple):
    """Input factor U, core, output factor A, S applied to what is left of x A, relative error."""

    factor: Float[Array, "c r"]
    core: Float[Array, "r k m"]
    output: Float[Array, "t m"]
    residual: Float[Array, "c k m"]
    error: float


def sweep_to_rest(
    x: Float[Array, "k c t"],
    moment: Float[Array, "d d"],
    ranks: tuple[int, int],
    tol: float,
    max_iters: int,
) -> tuple[State, list[float], bool]:
    """The factors where sweeps end, the errors on the way, and whether the last is below `tol`.

    Arguments:
        x: the window as one mode, entries around 1.
        moment: S of the rows (window, channels), definite.
        ranks: of input and output channels.
    """
    problem = _posed(x, moment)
    state = _fitted(problem, _first_factor(problem, ranks[0]), ranks[1])
    errors: list[float] = []
    while len(errors) < max_iters:
        better = _fitted(problem, np.linalg.qr(_improved(problem, state))[0], ranks[1])
        fell = state.error - better.error
        # NaN is no fall.
        if not fell >= 0:
            errors.append(state.error)
            return state, errors, abs(fell) < tol
        state = better
        errors.append(state.error)
        if fell < tol:
            return state, errors, True
    return state, errors, False


def _posed(x: Float[Array, "k c t"], moment: Float[Array, "d d"]) -> Problem:
    k, c, t = x.shape
    matrix = x.reshape(-1, t)
    product = moment @ matrix
    spread = np.ascontiguousarray(moment.reshape(k, c, k, c).transpose(1, 0, 2, 3))
    mean = np.einsum("ckkd->cd", spread) / k
    mean = mean + PRECONDITIONER_RIDGE * np.mean(np.diagonal(mean)) * eye(mean)
    inverse = np.linalg.inv(definite(mean))
    return Problem(
        x.transpose(1, 0, 2), spread, product.reshape(k, c, t).transpose(1, 0, 2),
        matrix.T @ product, inverse, np.einsum("ckld,cd->kl", spread, inverse) / c,
    )  # fmt: skip


def _first_factor(problem: Problem, rank: int) -> Float[Array, "c r"]:
    """The best one if S were its Kronecker approximation and only the inputs compressed."""
    c = len(problem.x)
    weighed = np.tensordot(problem.x, cholesky(problem.window), ((1,), (0,))).reshape(c, -1)
    root = cholesky(problem.channels)
    # With P = R R^T the inverse of the channels' moment, R^-1 is a root of the moment.
    rooted = np.linalg.solve(root, weighed)
    basis = eigh(rooted @ rooted.T)[1][:, ::-1][:, :rank]
    return np.linalg.qr(root @ basis)[0]


def _fitted(problem: Problem, factor: Float[Array, "c r"], rank: int) -> State:
    """Core and output factor that are best together, the input factor fixed."""
    c, k, t = problem.x.shape
    r, image = factor.shape[1], problem.image(factor)
    small = (factor.T @ image.reshape(c, -1)).reshape(r, k, k, r).transpose(0, 1, 3, 2)
    small = small.reshape(r * k, r * k)
    target = (factor.T @ problem.product.reshape(c, -1)).reshape(r * k, t)
    whole = solved((small + small.T) / 2, target)
    seen = target.T @ whole
    output = eigh((seen + seen.T) / 2)[1][:, ::-1][:, :rank]
    core = (whole @ output).reshape(r, k, -1)
    weighed = image.reshape(c * k, k * r) @ core.transpose(1, 0, 2).reshape(k * r, -1)
    residual = problem.product @ output - weighed.reshape(c, k, -1)
    return State(factor, core, output, residual, _error(problem, factor, core, output, residual))


def _error(
    problem: Problem,
    factor: Float[Array, "c r"],
    core: Float[Array, "r k m"],
    output: Float[Array, "t m"],
    residual: Float[Array, "c k m"],
) -> float:
    """The relative one: within the output factor, measured, and beyond it."""
    if problem.squared <= 0:
        return 0.0
    approximation = np.tensordot(factor, core, 1)
    within = np.vdot(problem.x @ output - approximation, residual)
    beyond = problem.squared - np.vdot(output, problem.energy @ output)
    error = float(np.sqrt(max(0.0, within + beyond) / problem.squared))
    if error >= CANCELS_BELOW:
        return error
    left = problem.x - approximation @ output.T
    weighed = np.tensordot(problem.moment, left, ((2, 3), (1, 0)))
    return float(np.sqrt(max(0.0, np.vdot(left, weighed)) / problem.squared))


def _improved(problem: Problem, state: State) -> Float[Array, "c r"]:
    """The input factor after conjugate gradient steps on its normal equations, the rest fixed."""
    c, (r, k, _) = len(problem.x), state.core.shape
    flat = state.core.reshape(r * k, -1)
    gram = (flat @ flat.T).reshape(r, k, r, k)
    weights = gram.transpose(1, 3, 2, 0).reshape(k * k * r, r)
    small = np.einsum("akbl,kl->ab", gram, problem.window)
    small = (small + small.T) / 2
    ridge = PRECONDITIONER_RIDGE * np.mean(np.diagonal(small))
    inner = np.linalg.inv(definite(small + ridge * eye(small)))
    left = state.residual.reshape(c, -1) @ state.core.reshape(r, -1).T
    found = np.zeros_like(state.factor)
    direction = fresh = problem.channels @ left @ inner
    energy = np.vdot(left, fresh)
    for _ in range(STEPS):
        image = problem.image(direction).reshape(c, -1) @ weights
        curvature = np.vdot(direction, image)
        if not (curvature > 0 and energy > 0):
            break
        found = found + energy / curvature * direction
        left = left - energy / curvature * image
        fresh = problem.channels @ left @ inner
        following = np.vdot(left, fresh)
        direction, energy = fresh + following / energy * direction, following
    return state.factor + found
