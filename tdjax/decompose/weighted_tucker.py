"""Tucker decomposition in the norm of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import CANCELS_BELOW, Info, iterate
from tdjax.decompose.formats import HIGHEST, Tucker, mode_products
from tdjax.decompose.moment import (
    Moment,
    compress,
    fit_rest,
    image_of,
    improve_factor,
    lay_out,
    leading_factor,
    orthonormal,
)
from tdjax.decompose.padding import Kept, first
from tdjax.decompose.weighted import dot, root_ratio

Ranks = tuple[int | None, ...]

# Conjugate gradient steps on an input factor in each sweep. They start from the present factor,
# and the core is renewed after them, so that solving to the end would be wasted.
STEPS = 2


class State(NamedTuple):
    """What a sweep renews: the compressed input modes' factors, core, output factor, S x remainder.

    The remainder E = x A - Z A^T A, projected on the output factor A, enters as S E.
    """

    factors: tuple[Float[Array, "_ _"], ...]
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
    *inputs, outputs = x.shape
    kept = kept or (None,) * x.ndim
    dense = jnp.diag(weight) if weight.ndim == 1 else weight
    matrix = x.reshape(-1, outputs)
    product = jnp.matmul(dense, matrix, precision=HIGHEST)
    energy = jnp.matmul(matrix.T, product, precision=HIGHEST)
    squared = jnp.trace(energy)
    modes = [mode for mode, rank in enumerate(ranks[:-1]) if rank is not None]

    def measured(tucker: Tucker) -> Float[Array, ""]:
        difference = matrix - tucker.to_tensor().reshape(-1, outputs)
        return root_ratio(
            dot(difference, jnp.matmul(dense, difference, precision=HIGHEST)), squared
        )

    if not modes:
        rank = _rank(ranks, -1)
        _, vectors = jnp.linalg.eigh(energy)
        output = vectors[:, ::-1][:, :rank]
        if kept[-1] is not None:
            output = jnp.where(first(kept[-1], rank), output, 0.0)
        core = jnp.matmul(matrix, output, precision=HIGHEST).reshape(*inputs, -1)
        tucker = Tucker(core, (*(None for _ in inputs), output))
        nothing = jnp.full((max_iters,), jnp.nan, x.dtype)
        return tucker, Info(measured(tucker), jnp.asarray(0), nothing, jnp.asarray(True))

    tensor = dense.reshape(*inputs, *inputs)
    whole = product.reshape(x.shape)
    only = _seen_from(tensor, modes[0]) if len(modes) == 1 else None

    def spread(factors: Sequence[Array], skip: int | None = None) -> list[Array | None]:
        """The factors by input mode, None where a mode is whole or skipped."""
        by_mode = dict(zip(modes, factors, strict=True))
        return [None if k == skip else by_mode.get(k) for k in range(len(inputs))]

    def seen_from(mode: int, factors: Sequence[Array]) -> Moment:
        """S, compressed along the other compressed modes."""
        transposed = _transposed(spread(factors, mode))
        return only or _seen_from(mode_products(tensor, [*transposed, *transposed]), mode)

    def rotated(y: Float[Array, "*_"], output: Array | None) -> Float[Array, "*_"]:
        return y if output is None else jnp.matmul(y, output, precision=HIGHEST)

    def fit(mode: int, moment: Moment, factors: Sequence[Array]) -> State:
        """Core and output factor, given the moment seen from the factor renewed last."""
        factor = factors[modes.index(mode)]
        image = image_of(moment, factor)
        target = mode_products(whole, [*_transposed(spread(factors)), None])
        right = _first(target, mode)
        n = right.shape[0] * right.shape[1]
        small = compress(factor, image).transpose(0, 1, 3, 2).reshape(n, n)
        flat, output = fit_rest(small, right.reshape(n, outputs), ranks[-1], kept[-1])
        moved = jnp.moveaxis(target, mode, 0).shape[:-1]
        core = jnp.moveaxis(flat.reshape(*moved, -1), 0, mode)
        if only is None:
            approximation = mode_products(core, [*spread(factors), None])
            left = jnp.matmul(dense, approximation.reshape(len(dense), -1), precision=HIGHEST)
            weighted = left.reshape(*inputs, -1)
        else:
            rest = _first(core, mode).transpose(1, 0, 2).reshape(n, -1)
            left = jnp.matmul(image.reshape(-1, n), rest, precision=HIGHEST)
            weighted = _unfirst(left, inputs, mode)
        return State(tuple(factors), core, output, rotated(whole, output) - weighted)

    def error(state: State) -> Float[Array, ""]:
        """Of the part within the output factor, measured, and of that beyond it."""
        within = rotated(x, state.output) - mode_products(
            state.core, [*spread(state.factors), None]
        )
        beyond = jnp.zeros((), x.dtype)
        if state.output is not None:
            beyond = squared - dot(
                state.output, jnp.matmul(energy, state.output, precision=HIGHEST)
            )
        found = root_ratio(dot(within, state.residual) + beyond, squared)
        return jax.lax.cond(
            found < CANCELS_BELOW, lambda: measured(tucker_of(state)), lambda: found
        )

    def tucker_of(state: State) -> Tucker:
        return Tucker(state.core, (*spread(state.factors), state.output))

    def sweep(state: State) -> tuple[State, Float[Array, ""]]:
        factors, core, residual = list(state.factors), state.core, state.residual
        for i, mode in enumerate(modes):
            moment = seen_from(mode, factors)
            if i > 0:
                parts = [*spread(factors), None]
                difference = rotated(x, state.output) - mode_products(core, parts)
                flat = difference.reshape(len(dense), -1)
                residual = jnp.matmul(dense, flat, precision=HIGHEST).reshape(difference.shape)
            seen = mode_products(residual, [*_transposed(spread(factors, mode)), None])
            better = improve_factor(
                moment, factors[i], _first(core, mode), _first(seen, mode), steps
            )
            factors[i], triangle = orthonormal(better, kept[mode])
            core = mode_products(core, [triangle if k == mode else None for k in range(x.ndim)])
        state = fit(modes[-1], moment, factors)
        return state, error(state)

    factors = [
        leading_factor(_seen_from(tensor, mode), _first(x, mode), _rank(ranks, mode), kept[mode])
        for mode in modes
    ]
    start = fit(modes[-1], seen_from(modes[-1], factors), factors)
    state, progress = iterate(
        sweep, start, error(start), max_iters=max_iters, tol=tol, stop_when_worse=True
    )
    tucker = tucker_of(state)
    return tucker, Info(measured(tucker), progress.iterations, progress.errors, progress.converged)


def _seen_from(tensor: Float[Array, "*_"], mode: int) -> Moment:
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
