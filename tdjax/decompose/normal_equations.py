"""The normal equations of one factor of a CP decomposition: A V = P, for a Gram matrix V."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import safe_ratio
from tdjax.decompose.products import HIGHEST

Factor = Float[Array, "n r"]
Gram = Float[Array, "r r"]

# Up to these ranks the R x R normal equations are solved by factorisation. Above them a few
# conjugate gradient steps from the present factor take half the time or less, and on convolution
# kernels end at the same error or a lower one after 100 sweeps. Ranks above the largest mode make
# the equations ill conditioned, and factorisation worth its price for longer.
EXACT_UP_TO = 64
EXACT_UP_TO_BELOW_MODE = 24
CG_STEPS = 5


def exact_up_to(rank: int, shape: Sequence[int]) -> int:
    """Up to which rank equations are solved by factorisation, for a rank and an array's shape."""
    return EXACT_UP_TO if rank > max(shape) else EXACT_UP_TO_BELOW_MODE


class Solved(NamedTuple):
    """A factor that solves its normal equations.

    Arguments:
        factor: (n, R).
        left: by how much at least the exact solution would lower the squared error further; 0
            where it was not sought, Inf where nothing is known of it.
    """

    factor: Factor
    left: Float[Array, ""]


def solve_normal(
    normal: Gram, product: Factor, present: Factor, *, exact_up_to: int = EXACT_UP_TO
) -> Solved:
    """Solve A @ normal = product for A.

    Up to rank `exact_up_to` by a Cholesky factorisation with a relative ridge and one step of
    refinement, which takes the bias of the ridge away where the equations are well posed. Above
    it, or where the factorisation breaks down, by conjugate gradients from the present factor,
    each row with step sizes of its own.

    Arguments:
        normal: (R, R), symmetric positive semi-definite, unit diagonal.
        product: (n, R).
        present: (n, R).
    """
    rank = normal.shape[0]

    def by_gradients(left: float) -> Solved:
        found = conjugate_gradients(normal, product, present, CG_STEPS)
        return Solved(found, jnp.asarray(left, normal.dtype))

    if rank > exact_up_to:
        return by_gradients(0.0)
    ridge = 4 * jnp.finfo(normal.dtype).eps * rank
    factor = jnp.linalg.cholesky(normal + ridge * jnp.eye(rank, dtype=normal.dtype))

    def by_factor(right: Factor) -> Factor:
        return jax.scipy.linalg.cho_solve((factor, True), right.T).T

    # Refining the present factor would save a solve, but where the equations are singular nothing
    # holds it: its rounding errors, divided by the ridge, would grow from sweep to sweep.
    solution = by_factor(product)
    residual = product - jnp.matmul(solution, normal, precision=HIGHEST)
    step = by_factor(residual)
    refined = solution + step
    # The residual that is left is the ridge times the step. What solving for it would gain is, by
    # Cauchy and Schwarz, at least this, and no more where the ridge outweighs the equations.
    squares, slopes = jnp.sum(step * step, axis=1), jnp.sum(step * residual, axis=1)
    left = ridge**2 * jnp.sum(safe_ratio(squares**2, slopes))
    return jax.lax.cond(
        jnp.isfinite(refined).all(), lambda: Solved(refined, left), lambda: by_gradients(jnp.inf)
    )


def gain(normal: Gram, product: Factor, present: Factor, solution: Factor) -> Float[Array, ""]:
    """By how much another factor lowers the squared error, of the squares of its own change.

    The difference of the two squared errors is mostly rounding once the change is small.
    """
    # Of a quadratic function, what its slopes at both ends say.
    slopes = 2 * product - jnp.matmul(solution + present, normal, precision=HIGHEST)
    return jnp.sum((solution - present) * slopes)


def conjugate_gradients(normal: Gram, product: Factor, start: Factor, steps: int) -> Factor:
    """A few conjugate gradient steps on A @ normal = product, for all rows of A side by side."""

    def squares(rows: Factor) -> Float[Array, "n 1"]:
        return jnp.sum(rows * rows, axis=1, keepdims=True)

    solution = start
    residual = product - jnp.matmul(start, normal, precision=HIGHEST)
    direction, energy = residual, squares(residual)
    for _ in range(steps):
        image = jnp.matmul(direction, normal, precision=HIGHEST)
        curvature = jnp.sum(direction * image, axis=1, keepdims=True)
        # Rounding can turn the curvature of a negligible direction negative.
        length = jnp.where(curvature > 0, safe_ratio(energy, curvature), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        following = squares(residual)
        direction = residual + safe_ratio(following, energy) * direction
        energy = following
    return solution
