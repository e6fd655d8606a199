"""CP by NumPy: the sweeps of `tdjax.decompose.cp` in the Frobenius norm, without a program.

A program for each shape and rank takes seconds to compile, and most kernels less than one to
decompose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import mul
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.decompose.als import CANCELS_BELOW, ROUNDED, UNSOLVED
from tdjax.decompose.normal_equations import CG_STEPS, exact_up_to
from tdjax.decompose.on_host import sum_of_products
from tdjax.decompose.products import khatri_rao, split_point

Array = np.ndarray
Factor = Float[Array, "n r"]
Gram = Float[Array, "r r"]


class Terms(NamedTuple):
    """The terms of a CP: columns of norm 1, and what each term is multiplied by."""

    factors: list[Factor]
    scale: Float[Array, " r"]

    def spread(self) -> list[Factor]:
        """Factors whose columns have the same norms."""
        share = self.scale ** (1 / len(self.factors))
        return [factor * share for factor in self.factors]


class _Renewed(NamedTuple):
    """A factor that solves its normal equations.

    Arguments:
        factor: its columns of norm 1.
        scale: what those are multiplied by.
        fall: by how much the squared error fell.
        left: by how much at least the exact solution would lower it further.
        crossed, own: <x, t> and <t, t> for the sum t of the terms.
        magnitude: <t, t> if its terms did not cancel each other.
    """

    factor: Factor
    scale: Float[Array, " r"]
    fall: float
    left: float
    crossed: float
    own: float
    magnitude: float


class _Swept(NamedTuple):
    terms: Terms
    error: float
    fall: float
    left: float


def sweep_to_rest(
    x: Float[Array, "*n"], start: Sequence[Factor], tol: float, max_iters: int, *, drawn: bool
) -> tuple[list[Factor], float, list[float], bool]:
    """The factors of the best sweep, their error, the errors on the way, and whether it is at rest.

    Arguments:
        x: entries around 1.
        drawn: whether the start is random, its terms of one size.
    """
    squared = sum_of_products(x, x)
    terms = best = _started(x, start, squared, drawn=drawn)
    errors: list[float] = []
    last = least = math.inf
    converged = ended = False
    while len(errors) < max_iters and not ended:
        swept = _sweep(x, terms, squared)
        terms = swept.terms
        if swept.error < least:
            best, least = terms, swept.error
        converged, ended = _at_rest(swept, last, tol, float(np.finfo(x.dtype).eps))
        last = swept.error
        errors.append(last)
    # Near singular equations a sweep may end above where an earlier one did.
    eps = float(np.finfo(x.dtype).eps)
    chosen = terms if last <= least + _resolution(least, eps) else best
    return chosen.spread(), _measured(x, chosen, squared), errors, converged


def _started(
    x: Float[Array, "*n"], start: Sequence[Factor], squared: float, *, drawn: bool
) -> Terms:
    """The terms of a start, brought to the norm of x; see `tdjax.decompose.cp`."""
    pairs = [_normalised(np.asarray(factor, x.dtype)) for factor in start]
    factors, norms = [unit for unit, _ in pairs], reduce(mul, [norm for _, norm in pairs])
    scale = np.ones_like(norms) if drawn else norms
    energy = float(scale @ reduce(mul, map(_gram, factors)) @ scale)
    return Terms(factors, scale * x.dtype.type(math.sqrt(squared / energy) if energy > 0 else 0.0))


def _sweep(x: Float[Array, "*n"], terms: Terms, squared: float) -> _Swept:
    """Every factor renewed once, by two large products."""
    factors, scale = list(terms.factors), terms.scale
    grams = [_gram(factor) for factor in factors]
    fall = left = 0.0
    exact = len(scale) <= exact_up_to(len(scale), x.shape)
    found: _Renewed | None = None

    def renew(mode: int, product: Factor) -> None:
        nonlocal scale, fall, left, found
        normal = reduce(mul, [gram for m, gram in enumerate(grams) if m != mode])
        found = _renewed(normal, product, factors[mode] * scale, exact=exact)
        factors[mode], scale, grams[mode] = found.factor, found.scale, _gram(found.factor)
        fall, left = fall + found.fall, left + found.left

    middle = split_point(x.shape)
    matrix = x.reshape(math.prod(x.shape[:middle]), -1)
    modes = tuple(range(x.ndim))
    for rows, group, others in (
        (matrix, modes[:middle], modes[middle:]),
        (matrix.T, modes[middle:], modes[:middle]),
    ):
        contracted = rows @ khatri_rao([factors[mode] for mode in others])
        shape = (*(x.shape[mode] for mode in group), -1)
        _visit(contracted.reshape(shape), group, factors, renew)
    assert found is not None
    terms, whole = Terms(factors, scale), squared or 1.0
    loss = squared - 2 * found.crossed + found.own
    cancels = loss < CANCELS_BELOW**2 * max(squared, found.magnitude)
    error = _measured(x, terms, squared) if cancels else math.sqrt(max(0.0, loss / whole))
    return _Swept(terms, error, fall / whole, left / whole)


def _visit(
    contracted: Float[Array, "... r"],
    modes: tuple[int, ...],
    factors: Sequence[Factor],
    renew: Callable[[int, Factor], None],
) -> None:
    """Renew the factors of `modes`, given x contracted with all other factors."""
    if len(modes) == 1:
        return renew(modes[0], contracted)
    k = split_point(contracted.shape[:-1])
    right = khatri_rao([factors[mode] for mode in modes[k:]])
    folded = contracted.reshape(*contracted.shape[:k], *right.shape)
    _visit((folded * right).sum(axis=k), modes[:k], factors, renew)
    left = khatri_rao([factors[mode] for mode in modes[:k]])
    folded = contracted.reshape(len(left), *contracted.shape[k:])
    left = left.reshape(len(left), *(1,) * (contracted.ndim - k - 1), -1)
    return _visit((folded * left).sum(axis=0), modes[k:], factors, renew)


def _renewed(normal: Gram, product: Factor, present: Factor, *, exact: bool) -> _Renewed:
    """A factor renewed, given its normal equations; see `tdjax.decompose.normal_equations`."""
    solved, left = _solved(normal, product, present, exact=exact)
    factor, scale = _normalised(solved)
    products = normal * _gram(factor) * np.outer(scale, scale)
    # Of a quadratic function, what its slopes at both ends say.
    fall = sum_of_products(solved - present, 2 * product - (solved + present) @ normal)
    return _Renewed(
        factor,
        scale,
        fall,
        left,
        crossed=sum_of_products(product, solved),
        own=float(products.sum(dtype=float)),
        magnitude=float(np.abs(products).sum(dtype=float)),
    )


def _solved(normal: Gram, product: Factor, present: Factor, *, exact: bool) -> tuple[Factor, float]:
    """A with A normal = product, and what is left; see `tdjax.decompose.normal_equations`."""
    rank, dtype = len(normal), normal.dtype
    if not exact:
        return _conjugate_gradients(normal, product, present), 0.0
    ridge = 4 * float(np.finfo(dtype).eps) * rank
    definite = normal.astype(float) + ridge * np.eye(rank)
    try:
        inverse = np.linalg.inv(np.linalg.cholesky(definite))
    except np.linalg.LinAlgError:
        return _conjugate_gradients(normal, product, present), math.inf
    solution = product @ inverse.T @ inverse
    residual = product - solution @ normal
    step = residual @ inverse.T @ inverse
    squares, slopes = np.sum(step * step, axis=1), np.sum(step * residual, axis=1)
    left = ridge**2 * float(_ratio(squares**2, slopes).sum())
    return (solution + step).astype(dtype), left


def _conjugate_gradients(normal: Gram, product: Factor, start: Factor) -> Factor:
    """A few steps, for all rows side by side, each with step sizes of its own."""
    solution, residual = start, product - start @ normal
    direction, energy = residual, np.einsum("nr,nr->n", residual, residual)[:, None]
    for _ in range(CG_STEPS):
        image = direction @ normal
        curvature = np.einsum("nr,nr->n", direction, image)[:, None]
        # Rounding can turn the curvature of a negligible direction negative.
        length = np.where(curvature > 0, _ratio(energy, curvature), 0)
        solution = solution + length * direction
        residual = residual - length * image
        following = np.einsum("nr,nr->n", residual, residual)[:, None]
        direction = residual + _ratio(following, energy) * direction
        energy = following
    return solution


def _at_rest(swept: _Swept, last: float, tol: float, eps: float) -> tuple[bool, bool]:
    """Whether sweeps are known to have come to rest, and whether nothing is left to do."""
    rests = abs(last - swept.error) < tol and _resolution(last, eps) <= tol
    whole = last + swept.error
    rests = rests or (math.isfinite(last) and (abs(swept.fall) / whole if whole else 0.0) < tol)
    return rests and swept.left <= UNSOLVED * swept.error**2 + (ROUNDED * eps) ** 2, rests


def _resolution(error: float, eps: float) -> float:
    """See `tdjax.decompose.als.resolution`."""
    return eps * (error if error < CANCELS_BELOW else 1 / error)


def _measured(x: Float[Array, "*n"], terms: Terms, squared: float) -> float:
    """The relative error, from the difference itself."""
    middle = split_point(x.shape)
    left, right = khatri_rao(terms.factors[:middle]), khatri_rao(terms.factors[middle:])
    rest = x.reshape(len(left), -1) - (left * terms.scale) @ right.T
    return math.sqrt(sum_of_products(rest, rest) / (squared or 1.0))


def _normalised(factor: Factor) -> tuple[Factor, Float[Array, " r"]]:
    norms = np.sqrt(np.einsum("nr,nr->r", factor, factor))
    return _ratio(factor, norms), norms


def _gram(factor: Factor) -> Gram:
    return factor.T @ factor


def _ratio(above: Float[Array, "*_"], below: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """above / below, and 0 where `below` is 0."""
    return np.where(below == 0, 0, above / np.where(below == 0, 1, below)).astype(above.dtype)
