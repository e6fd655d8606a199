"""CP decomposition in the norm of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import Info, Swept, iterate, safe_ratio
from tdjax.decompose.formats import CP
from tdjax.decompose.moment import PRECONDITIONER_RIDGE, ModeMoment, kronecker_solve, lay_out
from tdjax.decompose.products import HIGHEST, even_scales, khatri_rao
from tdjax.decompose.second_moment import in_full
from tdjax.decompose.weighted import (
    WeightedTarget,
    conjugate_gradients,
    dot,
    robust_cholesky,
    solve_with,
    weighted_target,
)

CPFactor = Float[Array, "_ r"]

# Conjugate gradient steps on the factor of the input channels in each sweep.
STEPS = 3
# Unknowns up to which a factor of the window is solved for directly.
DIRECT_UP_TO = 1536
# Relative to the least squares problem of the output factor: bounds terms that cancel each other.
TERM_RIDGE = 1e-7
# What becomes of the length of an extrapolation that lowered the error, and of one that did not.
GROW, SHRINK, LEAST_REACH = 1.5, 0.5, 0.5


class CPProblem(NamedTuple):
    """What stays through all sweeps.

    Arguments:
        target: x and S.
        moment: S seen from the last input mode, the channels.
        positions: sizes of the input modes before it, the window.
        steps: conjugate gradient steps on the factor of the channels.
    """

    target: WeightedTarget
    moment: ModeMoment
    positions: tuple[int, ...]
    steps: int


class CPState(NamedTuple):
    """Factors of the window, the input channels, the output; S Z for the product Z of the first.

    `reach` is how far beyond a sweep the next one tries to go, in lengths of its change.
    """

    window: tuple[CPFactor, ...]
    channels: CPFactor
    output: CPFactor
    image: Float[Array, "d r"]
    reach: Float[Array, ""]

    def to_cp(self) -> CP:
        """The factors as a format."""
        return CP((*self.window, self.channels, self.output))


@partial(jax.jit, static_argnames=("max_iters", "steps"))
def weighted_cp(
    x: Float[Array, "*n"],
    weight: Float[Array, "d d"] | Float[Array, " d"],
    start: CP,
    tol: float | Float[Array, ""],
    *,
    max_iters: int,
    steps: int = STEPS,
) -> tuple[CP, Info]:
    """CP decomposition that lowers tr(E^T S E), E the difference as a (D, T) matrix.

    With Z the Khatri-Rao product of the input factors and A the output factor, a sweep improves
    the factor of the last input mode by preconditioned conjugate gradients, solves for those of
    the window, whose normal equations all come from one product with S, and for A, each with the
    others fixed: A = x^T S Z (Z^T S Z)^-1.

    Arguments:
        x: (n_1, ..., n_N), float.
        weight: S, (D, D) or its diagonal, with D = n_1 * ... * n_{N-1}.
        start: CP of that shape.
        tol: stop once a sweep changes the relative error by less.
        max_iters: sweeps at most, static.
        steps: conjugate gradient steps, static.

    Returns: CP with column norms spread evenly over the factors and `Info`, whose errors are in
    the norm of S.
    """
    *positions, size, _ = x.shape
    dense = in_full(weight)
    k = math.prod(positions)
    moment = lay_out(dense.reshape(k, size, k, size).transpose(1, 0, 2, 3))
    problem = CPProblem(weighted_target(x, dense), moment, tuple(positions), steps)
    first = _started(problem, start)
    state, progress = iterate(
        partial(_sweep, problem),
        first,
        _error(problem, first),
        max_iters=max_iters,
        tol=tol,
        stop_when_worse=True,
    )
    cp = state.to_cp()
    error = problem.target.error_of(cp)
    return cp, Info(error, progress.iterations, progress.errors, progress.converged)


def _started(problem: CPProblem, start: CP) -> CPState:
    """The first state, its output factor solved for."""
    dtype = problem.target.matrix.dtype
    *window, channels, output = (factor.astype(dtype) for factor in start.factors)
    image = _combined(_images(problem, channels), window)
    state = CPState(tuple(window), channels, output, image, jnp.ones((), dtype))
    return _balanced(_with_output(problem, state))


def _sweep(problem: CPProblem, old: CPState) -> Swept:
    """Renew all factors, then go on in the same direction as long as that helps.

    Alternating least squares creeps along curved valleys, which this shortens (Bro 1998).
    """
    new = _renewed(problem, old)
    further = _beyond(problem, old, new)
    errors = _error(problem, new), _error(problem, further)
    helps = errors[1] < errors[0]
    state = jax.tree.map(partial(jnp.where, helps), further, new)
    reach = jnp.where(helps, GROW * state.reach, jnp.maximum(SHRINK * state.reach, LEAST_REACH))
    return Swept(state._replace(reach=reach), jnp.where(helps, *errors[::-1]))


def _renewed(problem: CPProblem, state: CPState) -> CPState:
    """Every factor once."""
    state = state._replace(channels=_improved_channels(problem, state))
    parts = _images(problem, state.channels)
    state = _with_output(problem, state._replace(image=_combined(parts, state.window)))
    target = jnp.matmul(problem.target.product, state.output, precision=HIGHEST)
    window = list(state.window)
    for mode, n in enumerate(problem.positions):
        # A mode of one position only scales the columns, which any other factor does.
        if n > 1:
            window[mode] = _improved_window(problem, mode, parts, state, target)
            state = state._replace(window=tuple(window))
    return _balanced(_with_output(problem, state._replace(image=_combined(parts, state.window))))


def _beyond(problem: CPProblem, old: CPState, new: CPState) -> CPState:
    """What lies as far again in the direction of the last change, its output solved for."""
    window = tuple(b + new.reach * (b - a) for a, b in zip(old.window, new.window, strict=True))
    channels = new.channels + new.reach * (new.channels - old.channels)
    image = problem.target.weighed(khatri_rao([*window, channels]))
    state = CPState(window, channels, new.output, image, new.reach)
    return _balanced(_with_output(problem, state))


def _error(problem: CPProblem, state: CPState) -> Float[Array, ""]:
    target = problem.target
    inputs = khatri_rao([*state.window, state.channels])
    crossed = dot(jnp.matmul(target.product, state.output, precision=HIGHEST), inputs)
    own = dot(_gram(state.output), _gram_in(state.image, inputs))
    return target.error_by(target.squared - 2 * crossed + own, state.to_cp())


def _improved_channels(problem: CPProblem, state: CPState) -> CPFactor:
    """The factor of the last input mode after a few conjugate gradient steps."""
    target, moment = problem.target, problem.moment
    gram = _gram(state.output)
    window = _window_of(state.window, state.channels)

    def normal(factor: CPFactor) -> CPFactor:
        inputs = (window[:, None, :] * factor).reshape(-1, factor.shape[1])
        image = target.weighed(inputs)
        return _gathered(jnp.matmul(image, gram, precision=HIGHEST), window)

    wanted = jnp.matmul(target.product, state.output, precision=HIGHEST)
    residual = _gathered(wanted - jnp.matmul(state.image, gram, precision=HIGHEST), window)
    small = gram * jnp.matmul(
        window.T, jnp.matmul(moment.window, window, precision=HIGHEST), precision=HIGHEST
    )
    ridge = PRECONDITIONER_RIDGE * jnp.diagonal(small)
    inner = robust_cholesky(small + jnp.diag(ridge))
    precondition = partial(kronecker_solve, moment.channels, inner)
    return state.channels + conjugate_gradients(normal, residual, precondition, problem.steps)


def _gathered(field: Float[Array, "d r"], window: CPFactor) -> CPFactor:
    """Rows of a field by position and channel, summed over the positions as the window weighs."""
    return jnp.sum(field.reshape(len(window), -1, field.shape[1]) * window[:, None, :], axis=0)


def _improved_window(
    problem: CPProblem,
    mode: int,
    parts: Float[Array, "d k r"],
    state: CPState,
    target: Float[Array, "d r"],
) -> CPFactor:
    """One factor of the window, solved for.

    Arguments:
        parts: see `_images`.
        target: S x A.
    """
    positions, rank = problem.positions, parts.shape[2]
    n, before = positions[mode], math.prod(positions[:mode])
    left = _window_of(state.window[:mode], state.channels)
    right = _window_of(state.window[mode + 1 :], state.channels)
    others = left[:, None, None, :] * right[:, None, :] * state.channels
    # S applied to all factors but this one, at each of its positions.
    shaped = parts.reshape(len(parts), before, n, -1, rank)
    image = jnp.einsum("dbnar,br,ar->dnr", shaped, left, right)
    rest = others.reshape(-1, rank)
    gathered = jnp.einsum("er,neq->nrq", rest, _by_position(image, before, n), precision=HIGHEST)
    gathered = gathered.reshape(n, rank, n, rank) * _gram(state.output)[:, None, :]
    normal = gathered.reshape(n * rank, n * rank)
    wanted = jnp.einsum("er,ner->nr", rest, _by_position(target, before, n)).reshape(-1)
    present = state.window[mode].reshape(-1)
    return _solved((normal + normal.T) / 2, wanted, present).reshape(n, rank)


def _by_position(field: Array, before: int, n: int) -> Float[Array, "n rest q"]:
    """The rows of a field, by position in a mode of size n with `before` rows of modes ahead."""
    split = field.reshape(before, n, -1, *field.shape[1:])
    return jnp.moveaxis(split, 1, 0).reshape(n, len(field) // n, -1)


def _with_output(problem: CPProblem, state: CPState) -> CPState:
    """The output factor, solved for."""
    normal = _gram_in(state.image, khatri_rao([*state.window, state.channels]))
    wanted = jnp.matmul(state.image.T, problem.target.matrix, precision=HIGHEST)
    scale = jnp.sqrt(jnp.diagonal(normal))
    unit = jnp.where(scale > 0, scale, 1.0)
    scaled = normal / unit / unit[:, None] + jnp.diag(jnp.where(scale > 0, 0.0, 1.0))
    factor = robust_cholesky(scaled + TERM_RIDGE * jnp.eye(len(scaled), dtype=scaled.dtype))
    solved = solve_with(factor, wanted / unit[:, None], scaled) / unit[:, None]
    return state._replace(output=solved.T)


def _balanced(state: CPState) -> CPState:
    """Column norms spread evenly; S Z follows Z."""
    factors = [*state.window, state.channels, state.output]
    scales = even_scales(factors)
    *window, channels, output = (f * s for f, s in zip(factors, scales, strict=True))
    image = safe_ratio(state.image, scales[-1])
    return CPState(tuple(window), channels, output, image, state.reach)


def _images(problem: CPProblem, channels: CPFactor) -> Float[Array, "d k r"]:
    """S applied to the channel factor at each position of the window by itself."""
    assert problem.target.weight is not None
    rows = problem.target.weight.reshape(-1, len(channels))
    image = jnp.matmul(rows, channels, precision=HIGHEST)
    return image.reshape(-1, math.prod(problem.positions), channels.shape[1])


def _combined(parts: Float[Array, "d k r"], window: Sequence[CPFactor]) -> Float[Array, "d r"]:
    """S Z, from what `_images` gives."""
    return jnp.sum(parts * _window_of(window, parts), axis=1)


def _window_of(factors: Sequence[CPFactor], like: Float[Array, "*_ r"]) -> CPFactor:
    """The Khatri-Rao product of factors of the window: a row of ones where there are none."""
    return khatri_rao(factors) if factors else jnp.ones((1, like.shape[-1]), like.dtype)


def _solved(
    normal: Float[Array, "n n"], wanted: Float[Array, " n"], present: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The solution of normal z = wanted, or a step towards it from the present one."""
    scale = jnp.sqrt(jnp.diagonal(normal))
    unit = jnp.where(scale > 0, scale, 1.0)
    scaled = normal / unit / unit[:, None]
    residual = (wanted - jnp.matmul(normal, present, precision=HIGHEST)) / unit

    def apply(z: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.matmul(scaled, z, precision=HIGHEST)

    if len(normal) > DIRECT_UP_TO:
        return present + conjugate_gradients(apply, residual, lambda z: z, 10) / unit
    factor = robust_cholesky(scaled + TERM_RIDGE * jnp.eye(len(scaled), dtype=scaled.dtype))
    # Conjugate gradients take back what the ridge changed, and cannot make the error worse.
    change = conjugate_gradients(apply, residual, lambda z: solve_with(factor, z[:, None])[:, 0], 2)
    return present + change / unit


def _gram(factor: CPFactor) -> Float[Array, "r r"]:
    return jnp.matmul(factor.T, factor, precision=HIGHEST)


def _gram_in(image: Float[Array, "d r"], whole: Float[Array, "d r"]) -> Float[Array, "r r"]:
    product = jnp.matmul(whole.T, image, precision=HIGHEST)
    return (product + product.T) / 2
