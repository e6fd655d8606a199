"""Tucker decomposition in the norm of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import Info, Swept, iterate
from tdjax.decompose.formats import Tucker
from tdjax.decompose.moment import (
    Image,
    ModeMoment,
    compress,
    fit_rest,
    image_of,
    improve_factor,
    lay_out,
    leading_factor,
    orthonormal,
)
from tdjax.decompose.padding import Kept, first
from tdjax.decompose.products import HIGHEST, mode_products
from tdjax.decompose.second_moment import in_full
from tdjax.decompose.weighted import WeightedTarget, dot

Ranks = tuple[int | None, ...]
TuckerFactors = tuple[Float[Array, "_ _"], ...]

# Conjugate gradient steps on an input factor in each sweep. They start from the present factor,
# and the core is renewed after them, so that solving to the end would be wasted.
STEPS = 2


class TuckerProblem(NamedTuple):
    """What stays through all sweeps.

    Arguments:
        x: (n_1, ..., n_N).
        target: x and S.
        energy: x^T S x, (T, T).
        tensor: S, (n_1, ..., n_{N-1}, n_1, ..., n_{N-1}).
        only: S seen from the compressed input mode, where there is but one.
        ranks: for each mode its rank or None.
        modes: the compressed input modes.
        kept: for each mode how many columns of its factor count.
        steps: conjugate gradient steps for an input factor.
    """

    x: Float[Array, "*_"]
    target: WeightedTarget
    energy: Float[Array, "t t"]
    tensor: Float[Array, "*_"]
    only: ModeMoment | None
    ranks: Ranks
    modes: tuple[int, ...]
    kept: tuple[Kept, ...]
    steps: int


class TuckerState(NamedTuple):
    """What a sweep renews: the compressed input modes' factors, core, output factor, S x remainder.

    The remainder E = x A - Z A^T A, projected on the output factor A, enters as S E.
    """

    factors: TuckerFactors
    core: Float[Array, "*_"]
    output: Float[Array, "t m"] | None
    residual: Float[Array, "*_"]


@partial(jax.jit, static_argnames=("ranks", "max_iters", "steps"))
def weighted_tucker(
    x: Float[Array, "*n"],
    weight: Float[Array, "d d"] | Float[Array, " d"],
    tol: float | Float[Array, ""],
    *,
    ranks: Ranks,
    max_iters: int,
    steps: int = STEPS,
    kept: Sequence[Kept] | None = None,
) -> tuple[Tucker, Info]:
    """Tucker decomposition that lowers tr(E^T S E), E the difference as a (D, T) matrix.

    In each sweep every input factor is improved by a few preconditioned conjugate gradient steps;
    then core and output factor are renewed together, in closed form. Starts from the factors that
    are best for the Kronecker approximation of S. Where no input mode is compressed, the closed
    form alone is the answer, after no sweep.

    Arguments:
        x: (n_1, ..., n_N), float.
        weight: S, (D, D) or its diagonal, with D = n_1 * ... * n_{N-1}.
        tol: stop once a sweep changes the relative error by less.
        ranks: for each mode its rank or None; static.
        max_iters: sweeps at most, static.
        steps: conjugate gradient steps for an input factor, static.
        kept: for each mode how many columns of its factor count, see `padding`; the others are
            zero, and so is their part of the core.

    Returns: Tucker with orthonormal factors and `Info`, whose errors are in the norm of S.
    """
    problem = _posed(x, in_full(weight), ranks, steps, kept)
    if not problem.modes:
        return _output_alone(problem, max_iters)
    start = _started(problem)
    state, progress = iterate(
        partial(_sweep, problem),
        start,
        _error(problem, start),
        max_iters=max_iters,
        tol=tol,
        stop_when_worse=True,
    )
    tucker = _tucker_of(problem, state)
    error = problem.target.error_of(tucker)
    return tucker, Info(error, progress.iterations, progress.errors, progress.converged)


def _posed(
    x: Float[Array, "*n"],
    dense: Float[Array, "d d"],
    ranks: Ranks,
    steps: int,
    kept: Sequence[Kept] | None,
) -> TuckerProblem:
    *inputs, outputs = x.shape
    matrix = x.reshape(-1, outputs)
    product = jnp.matmul(dense, matrix, precision=HIGHEST)
    energy = jnp.matmul(matrix.T, product, precision=HIGHEST)
    modes = tuple(mode for mode, rank in enumerate(ranks[:-1]) if rank is not None)
    tensor = dense.reshape(*inputs, *inputs)
    return TuckerProblem(
        x,
        WeightedTarget(matrix, dense, product, jnp.trace(energy)),
        energy,
        tensor,
        _seen_from(tensor, modes[0]) if len(modes) == 1 else None,
        ranks,
        modes,
        tuple(kept or (None,) * x.ndim),
        steps,
    )


def _output_alone(problem: TuckerProblem, max_iters: int) -> tuple[Tucker, Info]:
    """Where no input mode is compressed: the closed form, after no sweep."""
    rank, kept = _rank(problem.ranks, -1), problem.kept[-1]
    _, vectors = jnp.linalg.eigh(problem.energy)
    output = vectors[:, ::-1][:, :rank]
    if kept is not None:
        output = jnp.where(first(kept, rank), output, 0.0)
    *inputs, _ = problem.x.shape
    core = jnp.matmul(problem.target.matrix, output, precision=HIGHEST)
    tucker = Tucker(core.reshape(*inputs, -1), (*(None for _ in inputs), output))
    error, nothing = problem.target.error_of(tucker), jnp.full((max_iters,), jnp.nan, core.dtype)
    return tucker, Info(error, jnp.asarray(0), nothing, jnp.asarray(True))


def _started(problem: TuckerProblem) -> TuckerState:
    """The factors that are best for the Kronecker approximation of S."""
    x, ranks, kept, modes = problem.x, problem.ranks, problem.kept, problem.modes
    factors = tuple(
        leading_factor(
            _seen_from(problem.tensor, mode), _first(x, mode), _rank(ranks, mode), kept[mode]
        )
        for mode in modes
    )
    return _fitted(problem, modes[-1], _moment_of(problem, modes[-1], factors), factors)


def _sweep(problem: TuckerProblem, state: TuckerState) -> Swept:
    """Improve each input factor, then renew core and output factor together."""
    factors, core, residual = state.factors, state.core, state.residual
    for i, mode in enumerate(problem.modes):
        moment = _moment_of(problem, mode, factors)
        if i > 0:
            residual = _residual(problem, factors, core, state.output)
        others = _transposed(_by_mode(problem, factors, skip=mode))
        seen = mode_products(residual, [*others, None])
        better = improve_factor(
            moment, factors[i], _first(core, mode), _first(seen, mode), problem.steps
        )
        factor, triangle = orthonormal(better, problem.kept[mode])
        factors = (*factors[:i], factor, *factors[i + 1 :])
        core = mode_products(core, [triangle if k == mode else None for k in range(core.ndim)])
    state = _fitted(problem, problem.modes[-1], moment, factors)
    return Swept(state, _error(problem, state))


def _residual(
    problem: TuckerProblem, factors: TuckerFactors, core: Float[Array, "*_"], output: Array | None
) -> Float[Array, "*_"]:
    """S E, from the remainder itself."""
    difference = _remainder(problem, factors, core, output)
    flat = difference.reshape(len(problem.target.matrix), -1)
    return problem.target.weighed(flat).reshape(difference.shape)


def _remainder(
    problem: TuckerProblem, factors: TuckerFactors, core: Float[Array, "*_"], output: Array | None
) -> Float[Array, "*_"]:
    """E: x projected on the output factor, less what the other factors make of the core."""
    approximation = mode_products(core, [*_by_mode(problem, factors), None])
    return _projected(problem.x, output) - approximation


def _fitted(
    problem: TuckerProblem, mode: int, moment: ModeMoment, factors: TuckerFactors
) -> TuckerState:
    """Core and output factor, given the moment seen from the factor renewed last."""
    product = problem.target.product.reshape(problem.x.shape)
    factor = factors[problem.modes.index(mode)]
    image = image_of(moment, factor)
    target = mode_products(product, [*_transposed(_by_mode(problem, factors)), None])
    right = _first(target, mode)
    n = right.shape[0] * right.shape[1]
    small = compress(factor, image).transpose(0, 1, 3, 2).reshape(n, n)
    flat, output = fit_rest(small, right.reshape(n, -1), problem.ranks[-1], problem.kept[-1])
    moved = jnp.moveaxis(target, mode, 0).shape[:-1]
    core = jnp.moveaxis(flat.reshape(*moved, -1), 0, mode)
    weighed = _weighed(problem, mode, image, factors, core)
    return TuckerState(factors, core, output, _projected(product, output) - weighed)


def _weighed(
    problem: TuckerProblem,
    mode: int,
    image: Image,
    factors: TuckerFactors,
    core: Float[Array, "*_"],
) -> Float[Array, "*_"]:
    """S applied to the approximation, but for its output factor."""
    *inputs, _ = problem.x.shape
    if problem.only is None:
        approximation = mode_products(core, [*_by_mode(problem, factors), None])
        left = problem.target.weighed(approximation.reshape(len(problem.target.matrix), -1))
        return left.reshape(*inputs, -1)
    rest = _first(core, mode).transpose(1, 0, 2)
    rest = rest.reshape(-1, rest.shape[2])
    left = jnp.matmul(image.reshape(-1, len(rest)), rest, precision=HIGHEST)
    return _unfirst(left, inputs, mode)


def _error(problem: TuckerProblem, state: TuckerState) -> Float[Array, ""]:
    """Of the part within the output factor, measured, and of that beyond it."""
    within = _remainder(problem, state.factors, state.core, state.output)
    beyond = jnp.zeros((), within.dtype)
    if state.output is not None:
        kept = dot(state.output, jnp.matmul(problem.energy, state.output, precision=HIGHEST))
        beyond = problem.target.squared - kept
    squared = dot(within, state.residual) + beyond
    return problem.target.error_by(squared, _tucker_of(problem, state))


def _tucker_of(problem: TuckerProblem, state: TuckerState) -> Tucker:
    return Tucker(state.core, (*_by_mode(problem, state.factors), state.output))


def _by_mode(
    problem: TuckerProblem, factors: TuckerFactors, skip: int | None = None
) -> list[Array | None]:
    """The factors by input mode, None where a mode is whole or skipped."""
    known = dict(zip(problem.modes, factors, strict=True))
    return [None if k == skip else known.get(k) for k in range(problem.x.ndim - 1)]


def _moment_of(problem: TuckerProblem, mode: int, factors: TuckerFactors) -> ModeMoment:
    """S seen from a mode, compressed along the other compressed modes."""
    if problem.only is not None:
        return problem.only
    others = _transposed(_by_mode(problem, factors, skip=mode))
    return _seen_from(mode_products(problem.tensor, [*others, *others]), mode)


def _projected(y: Float[Array, "*_"], output: Array | None) -> Float[Array, "*_"]:
    return y if output is None else jnp.matmul(y, output, precision=HIGHEST)


def _seen_from(tensor: Float[Array, "*_"], mode: int) -> ModeMoment:
    """The moment (n_1, ..., n_M, n_1, ..., n_M) laid out for one mode."""
    half = tensor.ndim // 2
    size = tensor.shape[mode]
    array = jnp.moveaxis(tensor, (mode, half + mode), (0, -1))
    positions = math.prod(tensor.shape[:half]) // size
    return lay_out(array.reshape(size, positions, positions, size))


def _first(x: Float[Array, "*_"], mode: int) -> Float[Array, "c k t"]:
    """The array (n_1, ..., n_M, T) as (n_mode, all other input modes, T)."""
    return jnp.moveaxis(x, mode, 0).reshape(x.shape[mode], -1, x.shape[-1])


def _unfirst(x: Float[Array, "_ m"], inputs: Sequence[int], mode: int) -> Float[Array, "*_"]:
    """Back from rows (n_mode, all other input modes)."""
    others = [n for k, n in enumerate(inputs) if k != mode]
    return jnp.moveaxis(x.reshape(inputs[mode], *others, -1), 0, mode)


def _transposed(factors: Sequence[Array | None]) -> list[Array | None]:
    return [None if factor is None else factor.T for factor in factors]


def _rank(ranks: Ranks, mode: int) -> int:
    rank = ranks[mode]
    assert rank is not None
    return rank
