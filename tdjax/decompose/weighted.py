"""What least squares in a norm <x, H x> share, and alternating least squares for any format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tdjax.decompose.als import CANCELS_BELOW, Info, Swept, iterate, safe_ratio
from tdjax.decompose.formats import Format
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.scale import at_least_single, error_ratio, shifted, unit

F = TypeVar("F", bound=Format)
Weigh = Callable[[Array], Array]


@on_any_mesh
def weighted_als(
    x: Float[Array, "*n"],
    start: F,
    weigh: Weigh,
    *,
    max_iters: int = 100,
    tol: float | Float[Array, ""] = 1e-8,
    steps: int = 10,
) -> tuple[F, Info]:
    """Alternating least squares for any format, in the norm of any operator.

    A format is linear in each of its arrays f: to_tensor = L(f), whose normal equations are
    L^T(H(L(f))) = L^T(H(x)). JAX gives L and L^T, and conjugate gradients from the present array
    lower the error whether or not they reach the solution. The methods that know their format
    need far fewer operations; this one serves every other case, and checks them.

    >>> import jax, jax.numpy as jnp, tdjax
    >>> from tdjax.decompose import weighted_als
    >>> known = jnp.ones((4, 5)).at[0, 0].set(0.0)
    >>> x = jnp.outer(jnp.arange(1.0, 5.0), jnp.ones(5)).at[0, 0].set(99.0)
    >>> start = tdjax.LowRank(jnp.ones((4, 1)), jnp.ones((1, 5)))
    >>> found, info = weighted_als(x, start, lambda e: known * e)
    >>> bool(jnp.allclose(found.to_tensor()[0, 0], 1.0, atol=1e-3))
    True

    Arguments:
        x: (n_1, ..., n_N), float.
        start: a format of that shape, of x's dtype; its ranks are kept.
        weigh: H, a symmetric positive semi-definite linear operator on arrays of that shape.
        max_iters: sweeps at most, static.
        tol: stop once a sweep changes the relative error by less.
        steps: conjugate gradient steps for each array of the format, static.

    Returns: the format and `Info`, whose errors are in the norm of H.

    Raises ValueError for a start of another shape.
    """
    if start.shape != x.shape:
        raise ValueError(f"weighted_als: start has shape {start.shape}, expected {x.shape}")
    x, exponent = unit(at_least_single(x))
    arrays, structure = jax.tree.flatten(start.scaled(-exponent))
    weighed, own = unit(weigh(x))

    def weigh_unit(y: Array) -> Array:
        return shifted(weigh(y), -own)

    problem = _GenericProblem(x, structure, weigh_unit, dot(x, weighed), steps)
    arrays, progress = iterate(
        partial(_improved_in_turn, problem),
        arrays,
        _generic_error(problem, arrays),
        max_iters=max_iters,
        tol=tol,
        stop_when_worse=True,
    )
    error = _generic_error(problem, arrays)
    info = Info(error, progress.iterations, progress.errors, progress.converged)
    return jax.tree.unflatten(structure, arrays).scaled(exponent), info


class _GenericProblem(NamedTuple):
    """An array to be approximated by a format, and how.

    Arguments:
        x: (n_1, ..., n_N).
        structure: of the format as a pytree.
        weigh: H.
        squared: <x, H x>.
        steps: conjugate gradient steps for each array of the format.
    """

    x: Float[Array, "*n"]
    structure: Any
    weigh: Weigh
    squared: Float[Array, ""]
    steps: int

    def dense(self, arrays: Sequence[Array]) -> Float[Array, "*n"]:
        """What the format of these arrays stands for."""
        return jax.tree.unflatten(self.structure, arrays).to_tensor()


def _generic_error(problem: _GenericProblem, arrays: list[Array]) -> Float[Array, ""]:
    difference = problem.x - problem.dense(arrays)
    return root_ratio(dot(difference, problem.weigh(difference)), problem.squared)


def _improved_in_turn(problem: _GenericProblem, arrays: list[Array]) -> Swept:
    arrays = list(arrays)
    for k, array in enumerate(arrays):
        arrays[k] = array + _improvement(problem, arrays, k)
    return Swept(arrays, _generic_error(problem, arrays))


def _improvement(problem: _GenericProblem, arrays: list[Array], k: int) -> Array:
    """Conjugate gradient steps on the normal equations of array k, the others fixed."""

    def image(array: Array) -> Array:
        return problem.dense([*arrays[:k], array, *arrays[k + 1 :]])

    present, forward = jax.linearize(image, arrays[k])
    back = jax.linear_transpose(forward, arrays[k])

    def normal(array: Array) -> Array:
        return back(problem.weigh(forward(array)))[0]

    (residual,) = back(problem.weigh(problem.x - present))
    return conjugate_gradients(normal, residual, lambda y: y, problem.steps)


class WeightedTarget(NamedTuple):
    """What is approximated in the norm tr(E^T S E), as a matrix.

    Arguments:
        matrix: x, (D, T).
        weight: S, (D, D); None for the identity.
        product: S x.
        squared: tr(x^T S x).
    """

    matrix: Float[Array, "d t"]
    weight: Float[Array, "d d"] | None
    product: Float[Array, "d t"]
    squared: Float[Array, ""]

    def weighed(self, matrix: Float[Array, "d m"]) -> Float[Array, "d m"]:
        """S times a matrix."""
        if self.weight is None:
            return matrix
        return jnp.matmul(self.weight, matrix, precision=HIGHEST)

    def error_of(self, found: Format) -> Float[Array, ""]:
        """Relative error of an approximation, from the difference itself."""
        difference = self.matrix - found.to_tensor().reshape(self.matrix.shape)
        return root_ratio(dot(difference, self.weighed(difference)), self.squared)

    def error_by(self, squared: Float[Array, ""], found: Format) -> Float[Array, ""]:
        """Relative error by a squared error that may cancel, measured where it does."""
        error = root_ratio(squared, self.squared)
        return jax.lax.cond(error < CANCELS_BELOW, lambda: self.error_of(found), lambda: error)


def weighted_target(x: Float[Array, "*n"], weight: Float[Array, "d d"] | None) -> WeightedTarget:
    """The target of an array (n_1, ..., n_N), with D = n_1 * ... * n_{N-1}."""
    matrix = x.reshape(-1, x.shape[-1])
    product = matrix if weight is None else jnp.matmul(weight, matrix, precision=HIGHEST)
    return WeightedTarget(matrix, weight, product, dot(matrix, product))


def conjugate_gradients(
    normal: Weigh, residual: Float[Array, "*n"], precondition: Weigh, steps: int
) -> Float[Array, "*n"]:
    """Preconditioned conjugate gradient steps from zero on normal(z) = residual.

    Each step lowers the quadratic <z, normal(z)> / 2 - <z, residual>, so from the residual of a
    present solution the sum of it and z is never worse.
    """
    direction = precondition(residual)
    start = (jnp.zeros_like(residual), residual, direction, dot(residual, direction))

    def step(_: Int[Array, ""], state: tuple[Array, ...]) -> tuple[Array, ...]:
        solution, residual, direction, energy = state
        image = normal(direction)
        curvature = dot(direction, image)
        # Rounding can turn the curvature of a negligible direction negative.
        length = jnp.where(curvature > 0, safe_ratio(energy, curvature), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        fresh = precondition(residual)
        following = dot(residual, fresh)
        direction = fresh + safe_ratio(following, energy) * direction
        return solution, residual, direction, following

    return jax.lax.fori_loop(0, steps, step, start)[0]


def robust_cholesky(matrix: Float[Array, "n n"], *, solves: bool = False) -> Float[Array, "n n"]:
    """Lower Cholesky factor of a symmetric positive semi-definite matrix.

    Where rounding leaves it indefinite, the least of a ladder of shifts that makes it definite is
    added to the diagonal, starting from the rounding of its mean.

    Arguments:
        solves: whether equations are solved with it. A pivot that is rounding then counts as
            indefinite too: divided by it, the rounding of the right side would be the solution.
    """
    mean = jnp.mean(jnp.diagonal(matrix))
    scale = jnp.where(mean > 0, mean, 1.0)
    eps = jnp.finfo(matrix.dtype).eps
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    least = jnp.sqrt(eps * scale) if solves else 0.0

    def broken(state: tuple[Array, Array]) -> Array:
        # Where there is no factor, it is NaN, which is not above anything. Of squares XLA would
        # take for granted that they are above zero.
        return ~(jnp.diagonal(state[0]) >= least).all() & (state[1] < 1)

    def attempt(state: tuple[Array, Array]) -> tuple[Array, Array]:
        shifted = matrix + (state[1] * scale) * identity
        factor = jax.lax.linalg.cholesky(shifted, symmetrize_input=False)
        return factor, jnp.maximum(eps, 10 * state[1])

    # In the loop from the first attempt on, that it is compiled once.
    nothing = jnp.full_like(matrix, jnp.nan), jnp.zeros((), matrix.dtype)
    return jax.lax.while_loop(broken, attempt, nothing)[0]


def solve_with(
    factor: Float[Array, "n n"],
    right: Float[Array, "n k"],
    matrix: Float[Array, "n n"] | None = None,
) -> Float[Array, "n k"]:
    """Solve S z = right by S's Cholesky factor; given S, refine once, against a shift in it."""
    solution = jax.scipy.linalg.cho_solve((factor, True), right)
    if matrix is None:
        return solution
    residual = right - jnp.matmul(matrix, solution, precision=HIGHEST)
    return solution + jax.scipy.linalg.cho_solve((factor, True), residual)


def dot(x: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, ""]:
    """Sum of the products of two arrays of one shape."""
    return jnp.sum(x * y)


def root_ratio(squared: Float[Array, ""], whole: Float[Array, ""]) -> Float[Array, ""]:
    """Relative error from squared norms; see `error_ratio` for zeros."""
    return jnp.sqrt(error_ratio(jnp.maximum(0.0, squared), whole))
