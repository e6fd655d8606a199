"""A decomposition and a few single entries together: x ~ L + S with S of k nonzeros.

Alternation of Zhou and Tao, "GoDec: randomized low-rank & sparse matrix decomposition in noisy
case", ICML 2011; for kernels Yu, Liu, Wang and Tao, "On compressing deep models by low rank and
sparse decomposition", CVPR 2017. There S is what is largest of x - L. In a norm whose operator H
couples entries, entries are weighed by its diagonal, as in pruning by second derivatives (LeCun,
Denker and Solla, "Optimal brain damage", NIPS 1989), after a step that takes the others into
account: normalised iterative hard thresholding (Blumensath and Davies, 2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tdjax.decompose.als import Swept, iterate, safe_ratio
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.scale import Exponent, at_least_single, shifted, unit
from tdjax.decompose.weighted import conjugate_gradients, dot, root_ratio

P = TypeVar("P")
Indices = Int[Array, " k"]
# L, the values of S and where they lie.
PartAndSparse = tuple[P, Float[Array, " k"], Int[Array, " k"]]

# Rounds at most; matrices of low rank with well separated outliers are exact before that.
ROUNDS = 20
# Conjugate gradient steps on the values in a round: further ones come with the rounds to follow.
STEPS = 5


class Operator(NamedTuple):
    """H of a squared norm <x, H x>, on arrays of one shape.

    Arguments:
        weigh: x -> H x.
        diagonal: of H, of x's shape, positive.
    """

    weigh: Callable[[Array], Array]
    diagonal: Float[Array, "*n"]


class Corrected(NamedTuple):
    """An array as L + S.

    Arguments:
        part: L, whatever the decomposition makes.
        values: (k,), the nonzeros of S.
        indices: (k,), int32, rising: where they lie in the flattened array.
        errors: (rounds,), the relative error of L + S after each round, in the norm; no round
            raises it, and those that were not needed are NaN.
    """

    part: Any
    values: Float[Array, " k"]
    indices: Int[Array, " k"]
    errors: Float[Array, " rounds"]


@on_any_mesh
def scattered(
    values: Float[Array, " k"], indices: Indices, shape: Sequence[int]
) -> Float[Array, "*_"]:
    """The array with these values at these places of its flattened self, and zeros elsewhere.

    Arguments:
        values: (k,).
        indices: (k,), rising, each below the size of the array.
        shape: of the array.
    """
    flat = jnp.zeros((math.prod(shape),), values.dtype)
    flat = flat.at[indices].set(values, indices_are_sorted=True, unique_indices=True)
    return flat.reshape(tuple(shape))


@on_any_mesh
def alternate(
    x: Float[Array, "*n"],
    nonzeros: int,
    decompose: Callable[[Array, P], P],
    dense: Callable[[P], Array],
    start: P,
    *,
    operator: Operator | None = None,
    rounds: int = ROUNDS,
    tol: float | Float[Array, ""] = 1e-8,
) -> Corrected:
    """Approximate an array by a decomposition plus a sparse array, both renewed in turn.

    It starts from the entries of x that weigh most, D x^2 with D the diagonal of H. Each round
    decomposes x - S, then chooses S anew: with E = x - L and the gradient g = H (E - S), the k
    entries with the largest D u^2 where u = S + t D^-1 g and t is the length of the steepest
    descent, and a few steps of conjugate gradients towards the values that are best at these
    places. In the Frobenius norm u is E, and no steps are needed; with a truncated SVD neither
    half raises the error. A round that does is dropped and ends the alternation.

    >>> import jax.numpy as jnp, tdjax
    >>> x = jnp.ones((6, 5)).at[2, 3].set(9.0)
    >>> def decompose(rest, before):
    ...     return tdjax.truncated_svd(rest, 1)
    >>> start = tdjax.LowRank(jnp.zeros((6, 1)), jnp.zeros((1, 5)))
    >>> found = alternate(x, 1, decompose, tdjax.LowRank.to_tensor, start)
    >>> found.indices.tolist(), [round(value, 3) for value in found.values.tolist()]
    ([13], [8.0])

    Arguments:
        x: (n_1, ..., n_N), float32 or float64.
        nonzeros: k, static, from 1 to the size of x.
        decompose: (array, the L of the round before) -> L.
        dense: L -> array of x's shape.
        start: in place of an L before the first round; its shapes are those of L.
        operator: None for the Frobenius norm.
        rounds: at most, static, at least 1.
        tol: stop once a round changes the relative error by less.

    Raises ValueError for a number of nonzeros or rounds out of range.
    """
    if not 1 <= nonzeros <= x.size:
        raise ValueError(f"{nonzeros} nonzeros are not between 1 and {x.size}, the size of x")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    x, exponent = unit(at_least_single(x))
    if operator is not None:
        operator = _at_unit_scale(operator)
    squared = _squared(x, operator)
    problem = SparseProblem(x, exponent, nonzeros, decompose, dense, operator, squared)
    first = (start, *_chosen(x, x, nonzeros, operator))
    unknown = jnp.asarray(jnp.inf, x.dtype)
    (part, values, indices), progress = iterate(
        partial(_round, problem), first, unknown, max_iters=rounds, tol=tol, stop_when_worse=True
    )
    return Corrected(part, shifted(values, exponent), indices, progress.errors)


def _at_unit_scale(operator: Operator) -> Operator:
    """The operator divided by a power of two that brings its diagonal near 1."""
    diagonal, exponent = unit(operator.diagonal)
    return Operator(lambda x: shifted(operator.weigh(x), -exponent), diagonal)


class SparseProblem(NamedTuple):
    """What stays through all rounds; see `alternate`.

    Arguments:
        x: divided by 2^exponent, as the sparse array is; the decomposition is not.
        squared: the squared norm of x.
    """

    x: Float[Array, "*n"]
    exponent: Exponent
    nonzeros: int
    decompose: Callable[[Array, Any], Any]
    dense: Callable[[Any], Array]
    operator: Operator | None
    squared: Float[Array, ""]


def _round(problem: SparseProblem, state: PartAndSparse[P]) -> Swept:
    """First the decomposition renewed, then the sparse array."""
    x, operator = problem.x, problem.operator
    part, values, indices = state
    sparse = scattered(values, indices, x.shape)
    part = problem.decompose(shifted(x - sparse, problem.exponent), part)
    rest = x - shifted(problem.dense(part), -problem.exponent)
    wanted = rest if operator is None else _descended(rest, sparse, operator)
    values, indices = _chosen(rest, wanted, problem.nonzeros, operator)
    left = _squared(rest - scattered(values, indices, x.shape), operator)
    return Swept((part, values, indices), root_ratio(left, problem.squared))


def _squared(x: Float[Array, "*n"], operator: Operator | None) -> Float[Array, ""]:
    """<x, H x>."""
    return dot(x, x if operator is None else operator.weigh(x))


def _descended(rest: Array, sparse: Array, operator: Operator) -> Array:
    """S after a step of steepest descent towards `rest`, in coordinates where H has diagonal 1."""
    gradient = operator.weigh(rest - sparse)
    direction = gradient / operator.diagonal
    length = safe_ratio(dot(gradient, direction), dot(direction, operator.weigh(direction)))
    return sparse + length * direction


def _chosen(
    rest: Array, wanted: Array, nonzeros: int, operator: Operator | None
) -> tuple[Array, Array]:
    """Indices of the entries of `wanted` that weigh most, and their values towards `rest`."""
    worth = jnp.abs(wanted) if operator is None else operator.diagonal * wanted**2
    _, indices = jax.lax.top_k(worth.reshape(-1), nonzeros)
    indices = jnp.sort(indices).astype(jnp.int32)
    values = wanted.reshape(-1)[indices]
    if operator is None:
        return values, indices
    weigh, scale = operator.weigh, operator.diagonal.reshape(-1)[indices]

    def at(array: Array) -> Array:
        return array.reshape(-1)[indices]

    def spread(values: Array) -> Array:
        return scattered(values, indices, rest.shape)

    change = conjugate_gradients(
        lambda v: at(weigh(spread(v))),
        at(weigh(rest - spread(values))),
        lambda v: v / scale,
        STEPS,
    )
    return values + change, indices
