"""CP in the norm tr(E^T S E) by NumPy: the sweeps of `tdjax.decompose.weighted_cp`.

A program for each shape and rank takes many seconds to compile, and most kernels less than one to
decompose. In double precision, which small arrays hardly feel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.decompose.als import CANCELS_BELOW, iterate_on_host
from tdjax.decompose.moment import PRECONDITIONER_RIDGE
from tdjax.decompose.moment_on_host import lay_out
from tdjax.decompose.on_host import (
    Triangle,
    conjugate_gradients,
    definite,
    eye,
    factor_in_blocks,
    sum_of_products,
)
from tdjax.decompose.products import khatri_rao
from tdjax.decompose.weighted_cp import (
    DIRECT_UP_TO,
    GROW,
    LEAST_REACH,
    SHRINK,
    STEPS,
    TERM_RIDGE,
)

Array = np.ndarray
Factor = Float[Array, "_ r"]
Square = Float[Array, "_ _"]


class Problem(NamedTuple):
    """What stays through all sweeps.

    Arguments:
        matrix: x, (D, T).
        weight: S, (D, D).
        product: S x.
        squared: tr(x^T S x).
        channels: the inverse of the mean of S over equal window positions, (C, C).
        window: how window positions correlate, (K, K).
        positions: sizes of the modes of the window.
    """

    matrix: Float[Array, "d t"]
    weight: Float[Array, "d d"]
    product: Float[Array, "d t"]
    squared: float
    channels: Square
    window: Square
    positions: tuple[int, ...]


class State(NamedTuple):
    """As `tdjax.decompose.weighted_cp.CPState`, with the relative error."""

    window: tuple[Factor, ...]
    channels: Factor
    output: Factor
    image: Float[Array, "d r"]
    reach: float
    error: float

    @property
    def inputs(self) -> Float[Array, "d r"]:
        """Z, the Khatri-Rao product of the input factors."""
        return khatri_rao([*self.window, self.channels])


def sweep_to_rest(
    x: Float[Array, "*n"],
    weight: Float[Array, "d d"],
    start: Sequence[Factor],
    tol: float,
    max_iters: int,
) -> tuple[list[Factor], list[float], bool]:
    """The factors where sweeps end, the errors on the way, and whether it is at rest.

    Arguments:
        x: (n_1, ..., n_N), entries around 1.
        weight: S, with D = n_1 * ... * n_{N-1}.
        start: a factor for each mode; that of the last is solved for before it is used.
    """
    problem = _posed(x.astype(float), weight.astype(float))
    *window, channels, output = (np.asarray(factor, float) for factor in start)
    image = problem.weight @ khatri_rao([*window, channels])
    first = _settled(problem, State(tuple(window), channels, output, image, 1.0, math.inf))
    state, errors, converged = iterate_on_host(
        partial(_swept, problem),
        first,
        max_iters=max_iters,
        tol=tol,
        eps=float(np.finfo(float).eps),
    )
    return [*state.window, state.channels, state.output], errors, converged


def _posed(x: Float[Array, "*n"], weight: Square) -> Problem:
    *positions, size, outputs = x.shape
    matrix = x.reshape(-1, outputs)
    product, moment = weight @ matrix, lay_out(weight, size, first=False)
    squared = sum_of_products(matrix, product)
    return Problem(
        matrix, weight, product, squared, moment.channels, moment.window, tuple(positions)
    )


def _swept(problem: Problem, old: State) -> State:
    """All factors renewed, and as far again in the direction of the change where that helps."""
    new = _renewed(problem, old)
    further = _beyond(problem, old, new)
    if further.error < new.error:
        return further._replace(reach=GROW * old.reach)
    return new._replace(reach=max(SHRINK * old.reach, LEAST_REACH))


def _renewed(problem: Problem, state: State) -> State:
    """Every factor once."""
    state = state._replace(channels=_improved_channels(problem, state))
    # S applied to the channel factor at each position of the window by itself.
    rows = problem.weight.reshape(-1, len(state.channels))
    positions, rank = problem.positions, state.channels.shape[1]
    parts = (rows @ state.channels).reshape(-1, math.prod(positions), rank)
    state = _with_output(problem, state._replace(image=_combined(parts, state.window)))
    target = problem.product @ state.output
    window = list(state.window)
    for mode, n in enumerate(positions):
        # A mode of one position only scales the columns, which any other factor does.
        if n > 1:
            window[mode] = _improved_window(problem, mode, parts, state, target)
            state = state._replace(window=tuple(window))
    return _settled(problem, state._replace(image=_combined(parts, state.window)))


def _beyond(problem: Problem, old: State, new: State) -> State:
    """What lies as far again in the direction of the last change."""
    reach = old.reach
    window = tuple(b + reach * (b - a) for a, b in zip(old.window, new.window, strict=True))
    channels = new.channels + reach * (new.channels - old.channels)
    further = new._replace(window=window, channels=channels)
    return _settled(problem, further._replace(image=problem.weight @ further.inputs))


def _settled(problem: Problem, state: State) -> State:
    """With the output factor solved for, column norms spread evenly, and the error known."""
    state = _balanced(_with_output(problem, state))
    crossed = sum_of_products(problem.product @ state.output, state.inputs)
    own = sum_of_products(_gram(state.output), _gram_in(state.image, state.inputs))
    squared = problem.squared - 2 * crossed + own
    whole = problem.squared or 1.0
    if not squared >= CANCELS_BELOW**2 * whole:
        rest = problem.matrix - state.inputs @ state.output.T
        squared = sum_of_products(rest, problem.weight @ rest)
    return state._replace(error=math.sqrt(max(0.0, squared) / whole))


def _with_output(problem: Problem, state: State) -> State:
    """The output factor, solved for."""
    normal, wanted = _gram_in(state.image, state.inputs), state.image.T @ problem.matrix
    return state._replace(output=_scaled_solution(normal, wanted).T)


def _scaled_solution(normal: Square, wanted: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """normal z = wanted solved for, with a ridge that bounds terms which cancel each other."""
    scaled, unit = _scaled(normal)
    return _ridged_factor(scaled).solve_whole(wanted / unit[:, None]) / unit[:, None]


def _scaled(normal: Square) -> tuple[Square, Float[Array, " n"]]:
    """A matrix with a diagonal of ones, and the roots of the diagonal that it had."""
    scale = np.sqrt(np.maximum(np.diagonal(normal), 0.0))
    unit = np.where(scale > 0, scale, 1.0)
    return normal / unit / unit[:, None] + np.diag(np.where(scale > 0, 0.0, 1.0)), unit


def _ridged_factor(scaled: Square) -> Triangle:
    return factor_in_blocks(scaled + TERM_RIDGE * eye(scaled))


def _improved_channels(problem: Problem, state: State) -> Factor:
    """The factor of the last input mode after a few conjugate gradient steps."""
    gram, window = _gram(state.output), _window_of(state.window, state.channels)

    def gathered(field: Float[Array, "d r"]) -> Factor:
        """Rows by position and channel, summed over the positions as the window weighs."""
        return np.einsum("kcr,kr->cr", field.reshape(len(window), -1, field.shape[1]), window)

    def normal(factor: Factor) -> Factor:
        inputs = (window[:, None, :] * factor).reshape(-1, factor.shape[1])
        return gathered(problem.weight @ inputs @ gram)

    residual = gathered(problem.product @ state.output - state.image @ gram)
    small = gram * (window.T @ problem.window @ window)
    small = (small + small.T) / 2
    small += np.diag(PRECONDITIONER_RIDGE * np.diagonal(small))
    inner = np.linalg.inv(definite(small))
    return state.channels + conjugate_gradients(
        normal, residual, lambda right: problem.channels @ right @ inner, STEPS
    )


def _improved_window(
    problem: Problem,
    mode: int,
    parts: Float[Array, "d k r"],
    state: State,
    target: Float[Array, "d r"],
) -> Factor:
    """One factor of the window, solved for.

    Arguments:
        parts: S applied to the channel factor at each position of the window.
        target: S x A.
    """
    positions, rank = problem.positions, parts.shape[2]
    n, before = positions[mode], math.prod(positions[:mode])
    left = _window_of(state.window[:mode], state.channels)
    right = _window_of(state.window[mode + 1 :], state.channels)
    rest = (left[:, None, None, :] * right[:, None, :] * state.channels).reshape(-1, rank)
    # S applied to all factors but this one, at each of its positions.
    shaped = parts.reshape(len(parts), before, n, -1, rank)
    image = np.einsum("dbnar,br,ar->dnr", shaped, left, right, optimize=True)
    gathered = np.matmul(rest.T, _by_position(image.reshape(len(parts), -1), before, n))
    normal = gathered.reshape(n, rank, n, rank) * _gram(state.output)[:, None, :]
    normal = normal.reshape(n * rank, n * rank)
    wanted = np.einsum("er,ner->nr", rest, _by_position(target, before, n)).reshape(-1)
    present = state.window[mode].reshape(-1)
    return _solved((normal + normal.T) / 2, wanted, present).reshape(n, rank)


def _by_position(field: Float[Array, "d q"], before: int, n: int) -> Float[Array, "n e q"]:
    """The rows of a field, by position in a mode of size n with `before` rows of modes ahead."""
    split = field.reshape(before, n, -1, field.shape[1])
    return split.swapaxes(0, 1).reshape(n, len(field) // n, -1)


def _solved(
    normal: Square, wanted: Float[Array, " n"], present: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The solution of normal z = wanted, or a step towards it from the present one."""
    scaled, unit = _scaled(normal)
    residual = (wanted - normal @ present) / unit

    def apply(z: Float[Array, " n"]) -> Float[Array, " n"]:
        return scaled @ z

    if len(normal) > DIRECT_UP_TO:
        return present + conjugate_gradients(apply, residual, lambda z: z, 10) / unit
    factor = _ridged_factor(scaled)
    # Conjugate gradients take back what the ridge changed, and cannot make the error worse.
    return present + conjugate_gradients(apply, residual, factor.solve_whole, 2) / unit


def _balanced(state: State) -> State:
    """Column norms spread evenly; S Z follows Z."""
    factors = [*state.window, state.channels, state.output]
    scales = even_scales(factors)
    *window, channels, output = (own * scale for own, scale in zip(factors, scales, strict=True))
    image = state.image * np.divide(1, scales[-1], where=scales[-1] > 0, out=scales[-1].copy())
    return state._replace(window=tuple(window), channels=channels, output=output, image=image)


def even_scales(factors: Sequence[Factor]) -> Float[Array, "m r"]:
    """See `tdjax.decompose.products.even_scales`; columns of a dead term become zeros."""
    norms = np.stack([np.linalg.norm(factor, axis=0) for factor in factors])
    logs = np.log(np.where(norms > 0, norms, 1.0))
    return np.where((norms > 0).all(axis=0), np.exp(logs.mean(axis=0) - logs), 0.0)


def _combined(parts: Float[Array, "d k r"], window: Sequence[Factor]) -> Float[Array, "d r"]:
    """S Z."""
    return np.einsum("dkr,kr->dr", parts, _window_of(window, parts))


def _window_of(factors: Sequence[Factor], like: Float[Array, "*_ r"]) -> Factor:
    """The Khatri-Rao product of factors of the window: a row of ones where there are none."""
    return khatri_rao(factors) if factors else np.ones((1, like.shape[-1]))


def _gram(factor: Factor) -> Square:
    return factor.T @ factor


def _gram_in(image: Float[Array, "d r"], whole: Float[Array, "d r"]) -> Square:
    product = whole.T @ image
    return (product + product.T) / 2
