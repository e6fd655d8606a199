"""CP decomposition in the norm of a layer's inputs."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import CANCELS_BELOW, Info, iterate, safe_ratio
from tdjax.decompose.formats import CP, HIGHEST, even_scales, khatri_rao
from tdjax.decompose.moment import PRECONDITIONER_RIDGE, lay_out
from tdjax.decompose.weighted import (
    conjugate_gradients,
    dot,
    robust_cholesky,
    root_ratio,
    solve_with,
)

Factor = Float[Array, "_ r"]

# Conjugate gradient steps on the factor of the input channels in each sweep.
STEPS = 3
# Unknowns up to which a factor of the window is solved for directly.
DIRECT_UP_TO = 1536
# Relative to the least squares problem of the output factor: bounds terms that cancel each other.
TERM_RIDGE = 1e-7
# What becomes of the length of an extrapolation that lowered the error, and of one that did not.
GROW, SHRINK, LEAST_REACH = 1.5, 0.5, 0.5


class State(NamedTuple):
    """Factors of the window, the input channels, the output; S Z for the product Z of the first.

    `reach` is how far beyond a sweep the next one tries to go, in lengths of its change.
    """

    window: tuple[Factor, ...]
    channels: Factor
    output: Factor
    image: Float[Array, "d r"]
    reach: Float[Array, ""]


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
    *positions, size, outputs = x.shape
    (rank,) = start.ranks
    dense = jnp.diag(weight) if weight.ndim == 1 else weight
    matrix = x.reshape(-1, outputs)
    product = jnp.matmul(dense, matrix, precision=HIGHEST)
    squared = dot(matrix, product)
    k = math.prod(positions)
    rows = dense.reshape(-1, size)
    moment = lay_out(dense.reshape(k, size, k, size).transpose(1, 0, 2, 3))

    def window_of(factors: tuple[Factor, ...]) -> Factor:
        return khatri_rao(factors) if factors else jnp.ones((1, rank), x.dtype)

    def images(channels: Factor) -> Float[Array, "d k r"]:
        """S applied to the channel factor at each position of the window by itself."""
        return jnp.matmul(rows, channels, precision=HIGHEST).reshape(-1, k, rank)

    def combined(parts: Float[Array, "d k r"], window: tuple[Factor, ...]) -> Float[Array, "d r"]:
        return jnp.sum(parts * window_of(window), axis=1)

    def improve_channels(state: State) -> Factor:
        gram = _gram(state.output)
        window = window_of(state.window)

        def gather(field: Float[Array, "d r"]) -> Factor:
            return jnp.sum(field.reshape(k, size, rank) * window[:, None, :], axis=0)

        def normal(factor: Factor) -> Factor:
            full = (window[:, None, :] * factor).reshape(-1, rank)
            image = jnp.matmul(dense, full, precision=HIGHEST)
            return gather(jnp.matmul(image, gram, precision=HIGHEST))

        target = jnp.matmul(product, state.output, precision=HIGHEST)
        residual = gather(target - jnp.matmul(state.image, gram, precision=HIGHEST))
        small = gram * jnp.matmul(
            window.T, jnp.matmul(moment.window, window, precision=HIGHEST), precision=HIGHEST
        )
        ridge = PRECONDITIONER_RIDGE * jnp.diagonal(small)
        inner = robust_cholesky(small + jnp.diag(ridge))

        def precondition(factor: Factor) -> Factor:
            return solve_with(inner, solve_with(moment.channels, factor).T).T

        return state.channels + conjugate_gradients(normal, residual, precondition, steps)

    def improve_window(
        mode: int, parts: Float[Array, "d k r"], state: State, target: Float[Array, "d r"]
    ) -> Factor:
        """One factor of the window, solved for."""
        n = positions[mode]
        before, after = math.prod(positions[:mode]), math.prod(positions[mode + 1 :])
        left, right = window_of(state.window[:mode]), window_of(state.window[mode + 1 :])
        others = left[:, None, None, :] * right[:, None, :] * state.channels
        # S applied to all factors but this one, at each of its positions.
        shaped = parts.reshape(-1, before, n, after, rank)
        image = jnp.einsum("dbnar,br,ar->dnr", shaped, left, right)
        rest = others.reshape(-1, rank)

        def by_position(field: Float[Array, d * _]) -> Array:
            """[n, rest, ...]: the rows of a field, by the position in this mode."""
            split = field.reshape(before, n, after * size, *field.shape[1:])
            return jnp.moveaxis(split, 1, 0).reshape(n, len(rest), -1)

        gathered = jnp.einsum("er,neq->nrq", rest, by_position(image), precision=HIGHEST)
        gathered = gathered.reshape(n, rank, n, rank) * _gram(state.output)[:, None, :]
        normal = gathered.reshape(n * rank, n * rank)
        wanted = jnp.einsum("er,ner->nr", rest, by_position(target)).reshape(-1)
        present = state.window[mode].reshape(-1)
        return _renewed((normal + normal.T) / 2, wanted, present).reshape(n, rank)

    def with_output(state: State) -> State:
        """The output factor, solved for."""
        normal = _gram_in(state.image, khatri_rao([*state.window, state.channels]))
        wanted = jnp.matmul(state.image.T, matrix, precision=HIGHEST)
        scale = jnp.sqrt(jnp.diagonal(normal))
        unit = jnp.where(scale > 0, scale, 1.0)
        scaled = normal / unit / unit[:, None] + jnp.diag(jnp.where(scale > 0, 0.0, 1.0))
        factor = robust_cholesky(scaled + TERM_RIDGE * jnp.eye(rank, dtype=x.dtype))
        solved = solve_with(factor, wanted / unit[:, None], scaled) / unit[:, None]
        return state._replace(output=solved.T)

    def balanced(state: State) -> State:
        """Column norms spread evenly; S Z follows Z."""
        factors = [*state.window, state.channels, state.output]
        scales = even_scales(factors)
        *window, channels, output = (f * s for f, s in zip(factors, scales, strict=True))
        image = safe_ratio(state.image, scales[-1])
        return State(tuple(window), channels, output, image, state.reach)

    def cp_of(state: State) -> CP:
        return CP((*state.window, state.channels, state.output))

    def measured(cp: CP) -> Float[Array, ""]:
        difference = matrix - cp.to_tensor().reshape(-1, outputs)
        return root_ratio(
            dot(difference, jnp.matmul(dense, difference, precision=HIGHEST)), squared
        )

    def error(state: State) -> Float[Array, ""]:
        whole = khatri_rao([*state.window, state.channels])
        crossed = dot(jnp.matmul(product, state.output, precision=HIGHEST), whole)
        own = dot(_gram(state.output), _gram_in(state.image, whole))
        found = root_ratio(squared - 2 * crossed + own, squared)
        return jax.lax.cond(found < CANCELS_BELOW, lambda: measured(cp_of(state)), lambda: found)

    def renewed(state: State) -> State:
        """Every factor once."""
        state = state._replace(channels=improve_channels(state))
        parts = images(state.channels)
        state = with_output(state._replace(image=combined(parts, state.window)))
        target = jnp.matmul(product, state.output, precision=HIGHEST)
        window = list(state.window)
        for mode, n in enumerate(positions):
            # A mode of one position only scales the columns, which any other factor does.
            if n > 1:
                window[mode] = improve_window(mode, parts, state, target)
                state = state._replace(window=tuple(window))
        return balanced(with_output(state._replace(image=combined(parts, state.window))))

    def beyond(old: State, new: State) -> State:
        """What lies as far again in the direction of the last change, its output solved for."""
        window = tuple(b + new.reach * (b - a) for a, b in zip(old.window, new.window, strict=True))
        channels = new.channels + new.reach * (new.channels - old.channels)
        image = jnp.matmul(dense, khatri_rao([*window, channels]), precision=HIGHEST)
        return balanced(with_output(State(window, channels, new.output, image, new.reach)))

    def sweep(old: State) -> tuple[State, Float[Array, ""]]:
        """Renew all factors, then go on in the same direction as long as that helps.

        Alternating least squares creeps along curved valleys, which this shortens (Bro 1998).
        """
        new = renewed(old)
        further = beyond(old, new)
        errors = error(new), error(further)
        helps = errors[1] < errors[0]
        state = jax.tree.map(partial(jnp.where, helps), further, new)
        reach = jnp.where(helps, GROW * state.reach, jnp.maximum(SHRINK * state.reach, LEAST_REACH))
        return state._replace(reach=reach), jnp.where(helps, *errors[::-1])

    *window, channels, output = (f.astype(x.dtype) for f in start.factors)
    first = State(
        tuple(window),
        channels,
        output,
        combined(images(channels), tuple(window)),
        jnp.ones((), x.dtype),
    )
    first = balanced(with_output(first))
    state, progress = iterate(
        sweep, first, error(first), max_iters=max_iters, tol=tol, stop_when_worse=True
    )
    cp = cp_of(state)
    return cp, Info(measured(cp), progress.iterations, progress.errors, progress.converged)


def _renewed(
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


def _gram(factor: Factor) -> Float[Array, "r r"]:
    return jnp.matmul(factor.T, factor, precision=HIGHEST)


def _gram_in(image: Float[Array, "d r"], whole: Float[Array, "d r"]) -> Float[Array, "r r"]:
    product = jnp.matmul(whole.T, image, precision=HIGHEST)
    return (product + product.T) / 2
