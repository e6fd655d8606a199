"""Tensor train by alternating least squares, in the Frobenius norm or that of a layer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import Info, Swept, iterate
from tdjax.decompose.formats import TT
from tdjax.decompose.moment import (
    Image,
    ModeMoment,
    compress,
    filled,
    fit_rest,
    image_of,
    improve_factor,
    lay_out,
    leading_factor,
    orthonormal,
    project,
)
from tdjax.decompose.padding import Kept
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.second_moment import in_full
from tdjax.decompose.svd import leading_subspace
from tdjax.decompose.weighted import (
    WeightedTarget,
    dot,
    robust_cholesky,
    solve_with,
    weighted_target,
)

# Conjugate gradient steps on a core in each sweep.
STEPS = 2
# Of the rounding of the mean diagonal of a core's normal equations, added to their diagonal.
RIDGE = 10


TTCores = tuple[Float[Array, "_ _ _"], ...]


class TTProblem(NamedTuple):
    """What stays through all sweeps.

    Arguments:
        target: x and S.
        first: S seen from the first mode; None without it or with two modes only.
        sizes: of the modes but the last.
        ranks: interior ranks.
        kept: of each of them how many count.
        steps: conjugate gradient steps for a core.
    """

    target: WeightedTarget
    first: ModeMoment | None
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]
    kept: tuple[Kept, ...]
    steps: int


class TTState(NamedTuple):
    """The cores but the last, the last one transposed, and S applied to the first.

    All but the last of `cores` have orthonormal columns, as `output` has. There is no `image`
    without a moment or with two modes only.
    """

    cores: TTCores
    output: Float[Array, "t m"]
    image: Image | None

    def to_tt(self) -> TT:
        """The cores as a format."""
        return TT((*self.cores, self.output.T[:, :, None]))


class TTPart(NamedTuple):
    """S and S x, compressed by the cores to the left: what a core has to choose from.

    Arguments:
        matrix: S; None for the identity.
        moment: it seen from this core.
        product: S x, (rows of this core, the modes behind it but the last, T).
    """

    matrix: Float[Array, "n n"] | None
    moment: ModeMoment | None
    product: Float[Array, "c k t"]


Choose = Callable[[int, TTPart, TTCores], tuple[Array, TTCores]]


@partial(jax.jit, static_argnames=("ranks", "max_iters", "steps"))
def weighted_tt(
    x: Float[Array, "*n"],
    weight: Float[Array, "d d"] | Float[Array, " d"] | None,
    start: TT | None,
    tol: float | Float[Array, ""],
    *,
    ranks: tuple[int, ...],
    max_iters: int,
    kept: tuple[Kept, ...] | None = None,
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
        kept: traced; of each rank how many count, the rest of the cores is zeros.
        steps: conjugate gradient steps for a core, static.

    Returns: TT whose cores are orthonormal but for the last but one, and `Info`, whose errors are
    in the norm of S.
    """
    *sizes, _ = x.shape
    dense = None if weight is None else in_full(weight)
    first = None if dense is None or len(sizes) < 2 else _laid_out(dense, sizes[0])
    counted = (None,) * len(ranks) if kept is None else kept
    problem = TTProblem(weighted_target(x, dense), first, tuple(sizes), ranks, counted, steps)
    if start is None:
        state, error = _walked(problem, partial(_leading, problem), (), accurate=True)
    else:
        cores = tuple(core.astype(x.dtype) for core in start.cores[:-1])
        state, error = _walked(problem, partial(_orthonormalised, problem), cores, accurate=True)
    state, progress = iterate(
        partial(_sweep, problem), state, error, max_iters=max_iters, tol=tol, stop_when_worse=True
    )
    tt = state.to_tt()
    error = problem.target.error_of(tt)
    return tt, Info(error, progress.iterations, progress.errors, progress.converged)


def _sweep(problem: TTProblem, state: TTState) -> Swept:
    return Swept(*_walked(problem, partial(_improved, problem, state), state.cores))


def _walked(
    problem: TTProblem, choose: Choose, present: TTCores, *, accurate: bool = False
) -> tuple[TTState, Float[Array, ""]]:
    """Cores from left to right, each chosen given S and S x compressed by those before it.

    Arguments:
        choose: (k, what core k has to choose from, the present cores from k on) -> core k as an
            orthonormal matrix (r_{k-1} n_k, r_k), and the present cores behind it.
        present: the cores but the last, or none.
        accurate: see `leading_subspace`. Sweeps that it would have kept from rounding are dropped.
    """
    matrix, product = problem.target.weight, problem.target.product
    cores: list[Array] = []
    first_image = None
    for k, (size, rank) in enumerate(zip(problem.sizes[:-1], problem.ranks, strict=False)):
        part = _part_of(problem, matrix, product, size * (problem.ranks[k - 1] if k else 1), k)
        factor, present = choose(k, part, present)
        matrix, product, image = _compressed(part, factor)
        first_image = image if k == 0 else first_image
        cores.append(factor.reshape(-1, size, rank))
    return _with_last_two(problem, matrix, product, tuple(cores), first_image, accurate)


def _part_of(
    problem: TTProblem,
    matrix: Float[Array, "n n"] | None,
    product: Float[Array, "n t"],
    rows: int,
    k: int,
) -> TTPart:
    """What core k, of so many rows, has to choose from."""
    moment = problem.first
    if matrix is not None and k > 0:
        moment = _laid_out(matrix, rows)
    return TTPart(matrix, moment, product.reshape(rows, -1, product.shape[1]))


def _compressed(
    part: TTPart, factor: Float[Array, "c r"]
) -> tuple[Float[Array, "n n"] | None, Float[Array, "n t"], Image | None]:
    """S and S x compressed by one core more, and S applied to it."""
    product = project(factor, part.product).reshape(-1, part.product.shape[2])
    if part.moment is None:
        return None, product, None
    image = image_of(part.moment, factor)
    matrix = compress(factor, image).transpose(0, 1, 3, 2)
    return matrix.reshape(len(product), len(product)), product, image


def _with_last_two(
    problem: TTProblem,
    matrix: Float[Array, "n n"] | None,
    product: Float[Array, "n t"],
    cores: TTCores,
    image: Image | None,
    accurate: bool,
) -> tuple[TTState, Float[Array, ""]]:
    """The state with the last two cores, which are best together, and its error."""
    size, rank, target = problem.sizes[-1], problem.ranks[-1], problem.target
    kept = problem.kept[-1]
    if matrix is None:
        output = leading_subspace(product.T, rank, accurate=accurate, kept=kept)
        core = jnp.matmul(product, output, precision=HIGHEST)
        own = dot(core, core)
    else:
        core, best = fit_rest(matrix, product, rank, kept)
        assert best is not None
        output = best
        own = dot(core, jnp.matmul(matrix, core, precision=HIGHEST))
    crossed = dot(core, jnp.matmul(product, output, precision=HIGHEST))
    state = TTState((*cores, core.reshape(-1, size, rank)), output, image)
    return state, target.error_by(target.squared - 2 * crossed + own, state.to_tt())


def _leading(
    problem: TTProblem, k: int, part: TTPart, present: TTCores
) -> tuple[Float[Array, "c r"], TTCores]:
    """The best core for the Kronecker approximation of what is compressed so far."""
    rank, kept, shape = problem.ranks[k], problem.kept[k], part.product.shape
    if part.moment is None:
        rows = part.product.reshape(len(part.product), -1)
        return leading_subspace(rows, rank, kept=kept), present
    left = problem.target.matrix
    if k > 0 and part.matrix is not None:
        factor = robust_cholesky(filled(part.matrix), solves=True)
        left = solve_with(factor, part.product.reshape(-1, shape[2]))
    return leading_factor(part.moment, left.reshape(shape), rank, kept), present


def _orthonormalised(
    problem: TTProblem, k: int, part: TTPart, present: TTCores
) -> tuple[Float[Array, "c r"], TTCores]:
    """The present core, made orthonormal."""
    return _passed_on(present[0].reshape(-1, present[0].shape[2]), present, problem.kept[k])


def _improved(
    problem: TTProblem, state: TTState, k: int, part: TTPart, present: TTCores
) -> tuple[Float[Array, "c r"], TTCores]:
    """The present core after a few conjugate gradient steps; without a moment, solved for."""
    core, rest = present[0].reshape(-1, problem.ranks[k]), _multiplied(present[1:])
    wanted = jnp.matmul(part.product, state.output, precision=HIGHEST)
    if part.moment is None:
        return _passed_on(_solved(wanted, rest), present, problem.kept[k])
    image = state.image if k == 0 else image_of(part.moment, core)
    assert image is not None
    flat = rest.transpose(1, 0, 2).reshape(-1, rest.shape[2])
    weighed = jnp.matmul(image.reshape(-1, len(flat)), flat, precision=HIGHEST)
    residual = wanted - weighed.reshape(wanted.shape)
    better = improve_factor(part.moment, core, rest, residual, problem.steps)
    return _passed_on(better, present, problem.kept[k])


def _passed_on(
    core: Float[Array, "c r"], present: TTCores, kept: Kept
) -> tuple[Float[Array, "c r"], TTCores]:
    """The core made orthonormal; what leaves it goes into the next, which starts from it."""
    factor, triangle = orthonormal(core, kept)
    _, following, *others = present
    following = jnp.einsum("ab,bnr->anr", triangle, following, precision=HIGHEST)
    return factor, (following, *others)


def _laid_out(matrix: Float[Array, "n n"], rows: int) -> ModeMoment:
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
