"""Tensor train by alternating least squares, in the Frobenius norm or that of a layer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import CANCELS_BELOW, Info, iterate
from tdjax.decompose.formats import HIGHEST, TT
from tdjax.decompose.moment import (
    Moment,
    compress,
    fit_rest,
    image_of,
    improve_factor,
    lay_out,
    leading_factor,
    project,
)
from tdjax.decompose.svd import leading_subspace
from tdjax.decompose.weighted import dot, robust_cholesky, root_ratio, solve_with

# Conjugate gradient steps on a core in each sweep.
STEPS = 2
# Of the rounding of the mean diagonal of a core's normal equations, added to their diagonal.
RIDGE = 10


class State(NamedTuple):
    """The cores but the last, the last one transposed, and S applied to the first.

    All but the last of `cores` have orthonormal columns, as `output` has. There is no `image`
    without a moment or with two modes only.
    """

    cores: tuple[Float[Array, "_ _ _"], ...]
    output: Float[Array, "t m"]
    image: Float[Array, "c k k r"] | None


class Part(NamedTuple):
    """S and S x, compressed by the cores to the left: what a core has to choose from."""

    matrix: Float[Array, "n n"] | None
    moment: Moment | None
    target: Float[Array, "c k t"]


@partial(jax.jit, static_argnames=("ranks", "max_iters", "steps"))
def weighted_tt(
    x: Float[Array, "*n"],
    weight: Float[Array, "d d"] | Float[Array, " d"] | None,
    start: TT | None,
    tol: float | Float[Array, ""],
    *,
    ranks: tuple[int, ...],
    max_iters: int,
    steps: int = STEPS,
) -> tuple[TT, Info]:
    """Tensor train that lowers tr(E^T S E), E the difference as a (D, T) matrix.

    The cores to the left compress S and x as they are passed, so that only the first core meets
    all of S. Core k, as a matrix U of (r_{k-1} n_k, r_k), is improved as a Tucker factor is.

    Arguments:
        x: (n_1, ..., n_N), float.
        weight: S, (D, D) or its diagonal, with D = n_1 * ... * n_{N-1}; None for the identity.
        start: a TT to start from; None for the one whose cores are each the best, from left to
            right, when S compressed so far is taken for its Kronecker approximation.
        tol: stop once a sweep changes the relative error by less.
        ranks: interior ranks, static; none above what its unfolding has.
        max_iters: sweeps at most, static.
        steps: conjugate gradient steps for a core, static.

    Returns: TT whose cores are orthonormal but for the last but one, and `Info`, whose errors are
    in the norm of S.
    """
    *sizes, outputs = x.shape
    dense = jnp.diag(weight) if weight is not None and weight.ndim == 1 else weight
    matrix = x.reshape(-1, outputs)
    product = matrix if dense is None else jnp.matmul(dense, matrix, precision=HIGHEST)
    squared = dot(matrix, product)

    first = None
    if dense is not None and len(sizes) > 1:
        first = _laid_out(dense, sizes[0])

    def walk(choose: Callable[[int, Part], Array]) -> tuple[State, Float[Array, ""]]:
        """Cores from left to right, each chosen given S and S x compressed by those before it."""
        small: Array | None = dense
        target = product
        cores: list[Array] = []
        image: Array | None = None
        previous = 1
        for k, (size, rank) in enumerate(zip(sizes[:-1], ranks, strict=False)):
            rows = previous * size
            moment = small if small is None else first if k == 0 else _laid_out(small, rows)
            shaped = target.reshape(rows, -1, outputs)
            factor = choose(k, Part(small, moment, shaped))
            target = project(factor, shaped).reshape(-1, outputs)
            if moment is not None:
                passed = image_of(moment, factor)
                small = compress(factor, passed).transpose(0, 1, 3, 2)
                small = small.reshape(len(target), len(target))
                image = passed if k == 0 else image
            cores.append(factor.reshape(previous, size, rank))
            previous = rank
        if small is None:
            basis = leading_subspace(target.T, ranks[-1], accurate=False)
            core = jnp.matmul(target, basis, precision=HIGHEST)
            own = dot(core, core)
        else:
            core, output = fit_rest(small, target, ranks[-1])
            assert output is not None
            basis = output
            own = dot(core, jnp.matmul(small, core, precision=HIGHEST))
        crossed = dot(core, jnp.matmul(target, basis, precision=HIGHEST))
        cores.append(core.reshape(previous, sizes[-1], ranks[-1]))
        state = State(tuple(cores), basis, image)
        found = root_ratio(squared - 2 * crossed + own, squared)
        return state, jax.lax.cond(
            found < CANCELS_BELOW, lambda: measured(tt_of(state)), lambda: found
        )

    def measured(tt: TT) -> Float[Array, ""]:
        difference = matrix - tt.to_tensor().reshape(-1, outputs)
        weighed = difference if dense is None else jnp.matmul(dense, difference, precision=HIGHEST)
        return root_ratio(dot(difference, weighed), squared)

    def tt_of(state: State) -> TT:
        return TT((*state.cores, state.output.T[:, :, None]))

    def leading(k: int, part: Part) -> Float[Array, "c r"]:
        """The best core for the Kronecker approximation of what is compressed so far."""
        if part.moment is None:
            return leading_subspace(part.target.reshape(len(part.target), -1), ranks[k])
        left = matrix
        if k > 0 and part.matrix is not None:
            factor = robust_cholesky(part.matrix)
            left = solve_with(factor, part.target.reshape(-1, outputs))
        return leading_factor(part.moment, left.reshape(part.target.shape), ranks[k])

    def given(k: int, _: Part) -> Float[Array, "c r"]:
        """The cores of `start`, made orthonormal."""
        assert start is not None
        core = start.cores[k].astype(x.dtype)
        if k > 0:
            core = jnp.einsum("ab,bnr->anr", triangles[k - 1], core, precision=HIGHEST)
        factor, triangle = jnp.linalg.qr(core.reshape(-1, core.shape[2]))
        triangles.append(triangle)
        return factor

    triangles: list[Array] = []

    def sweep(state: State) -> tuple[State, Float[Array, ""]]:
        cores = list(state.cores)

        def improved(k: int, part: Part) -> Float[Array, "c r"]:
            present = cores[k].reshape(-1, ranks[k])
            rest = _multiplied(cores[k + 1 :])
            target = jnp.matmul(part.target, state.output, precision=HIGHEST)
            if part.moment is None:
                better = _solved(target, rest)
            else:
                known = state.image if k == 0 else None
                image = image_of(part.moment, present) if known is None else known
                flat = rest.transpose(1, 0, 2).reshape(-1, rest.shape[2])
                weighed = jnp.matmul(image.reshape(-1, len(flat)), flat, precision=HIGHEST)
                residual = target - weighed.reshape(target.shape)
                better = improve_factor(part.moment, present, rest, residual, steps)
            factor, triangle = jnp.linalg.qr(better)
            # What leaves this core goes into the next, which starts from it.
            cores[k + 1] = jnp.einsum("ab,bnr->anr", triangle, cores[k + 1], precision=HIGHEST)
            return factor

        return walk(improved)

    first_state, first_error = walk(leading if start is None else given)
    state, progress = iterate(
        sweep, first_state, first_error, max_iters=max_iters, tol=tol, stop_when_worse=True
    )
    tt = tt_of(state)
    return tt, Info(measured(tt), progress.iterations, progress.errors, progress.converged)


def _laid_out(matrix: Float[Array, "n n"], rows: int) -> Moment:
    """The moment of (rows, window) seen from its first mode."""
    window = len(matrix) // rows
    return lay_out(matrix.reshape(rows, window, rows, window).transpose(0, 1, 3, 2))


def _multiplied(cores: Sequence[Float[Array, "_ _ _"]]) -> Float[Array, "r k m"]:
    """Neighbouring cores contracted: (first rank, all their modes, last rank)."""
    product = cores[0]
    for core in cores[1:]:
        left, size = product.shape[0], product.shape[1] * core.shape[1]
        product = jnp.tensordot(product, core, 1, precision=HIGHEST).reshape(left, size, -1)
    return product


def _solved(target: Float[Array, "c k m"], rest: Float[Array, "r k m"]) -> Float[Array, "c r"]:
    """U for which U G is nearest to the target."""
    flat = rest.reshape(len(rest), -1)
    gram = jnp.matmul(flat, flat.T, precision=HIGHEST)
    ridge = RIDGE * jnp.finfo(gram.dtype).eps * jnp.mean(jnp.diagonal(gram))
    factor = robust_cholesky(gram + ridge * jnp.eye(len(gram), dtype=gram.dtype))
    right = jnp.matmul(flat, target.reshape(len(target), -1).T, precision=HIGHEST)
    return solve_with(factor, right, gram).T
