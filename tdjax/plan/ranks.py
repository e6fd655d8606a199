"""Share kept <-> rank.

A kernel has shape (*spatial, C, T): spatial modes, input channels (of one group), output
channels; a dense kernel has no spatial modes. `keep` is the share of the kernel's parameters that
the factors may have. The rules for CP and Tucker reproduce Tables 2 and 3 of Schuurmans et al.,
"How informative is the approximation error from tensor decomposition for neural network
compression?", ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

from tdjax.plan.form import PAIRED

Shape = Sequence[int]


def cp_rank(shape: Shape, keep: float) -> int:
    """Rank R of a CP decomposition whose R * sum(shape) parameters are nearest to the share."""
    return max(1, round(_budget(shape, keep) / sum(shape)))


def svd_rank(shape: Shape, keep: float) -> int:
    """Rank r of the (spatial * C, T) matrix with r * (rows + columns) nearest to the share."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    return max(1, round(_budget(shape, keep) / (rows + columns)))


def tucker_ranks(shape: Shape, keep: float) -> tuple[int, int]:
    """Ranks (r_C, r_T) of a Tucker decomposition of the two channel modes.

    Both are the same fraction a of their mode, with
    n a^2 + (C^2 + T^2) a + sum(spatial^2) = keep * n for a kernel of n parameters; the sum counts
    the spatial factors of a full Tucker decomposition, which are merged into the core.
    """
    *spatial, c, t = shape
    n = math.prod(shape)
    left = _budget(shape, keep) - sum(size * size for size in spatial)
    if left <= 0:
        return 1, 1
    linear = c * c + t * t
    a = (-linear + math.sqrt(linear * linear + 4 * n * left)) / (2 * n)
    return max(1, round(a * c)), max(1, round(a * t))


def tt_ranks(shape: Shape, keep: float) -> tuple[int, ...]:
    """Interior ranks of a tensor train over (C, *spatial, T).

    Ranks are proportional to the mean of the neighbouring dimensions, scaled by one s, rounded and
    clipped to what is feasible; s makes the clipped parameter count nearest to the share.
    """
    dims = tt_order(shape)
    if len(dims) < 2:
        return ()
    target = _budget(shape, keep)
    means = [(a + b) / 2 for a, b in pairwise(dims)]

    def ranks(s: float) -> tuple[int, ...]:
        # Halves go up for all alike: to even numbers, s where two meet would be a case of its own.
        return feasible_tt_ranks(dims, [max(1, math.floor(s * mean + 0.5)) for mean in means])

    # The count is a non-decreasing step function of s; bisect to the step that crosses the target.
    low, high = 0.0, math.prod(dims) / min(means)
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if tt_size(dims, ranks(middle)) < target else (low, middle)
    return min((ranks(low), ranks(high)), key=lambda r: abs(tt_size(dims, r) - target))


def tt_order(shape: Shape) -> tuple[int, ...]:
    """The modes of a kernel in the order of its tensor train.

    (C, *spatial, T) for a convolution. A matrix becomes a TT-matrix (Novikov et al. 2015): in and
    out are split into factors, and mode k is the pair of their k-th factors.
    """
    *spatial, c, t = shape
    if not spatial:
        return tuple(i * o for i, o in matrix_modes(c, t))
    return (c, *spatial, t)


@lru_cache
def matrix_modes(rows: int, columns: int) -> tuple[tuple[int, int], ...]:
    """Pairs of factors of both sizes of a matrix, as many as both have, at most three.

    Factors of one size are as equal as they can be; the larger of one size meet the smaller of
    the other.
    """
    for number in (3, 2):
        first, second = balanced_factors(rows, number), balanced_factors(columns, number)
        if min(first) > 1 and min(second) > 1:
            return tuple(zip(first, reversed(second), strict=True))
    return ((rows, columns),)


@lru_cache
def balanced_factors(size: int, number: int) -> tuple[int, ...]:
    """`number` factors of a size, in rising order, whose largest is as small as possible."""
    if number == 1:
        return (size,)
    divisors = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    found = (
        tuple(sorted((d, *balanced_factors(size // d, number - 1))))
        for d in {*divisors, *(size // d for d in divisors)}
    )
    return min(found, key=lambda factors: (factors[-1], [-f for f in factors]))


def tt_size(dims: Shape, ranks: Sequence[int]) -> int:
    """Number of parameters of a tensor train over `dims` with interior `ranks`."""
    padded = (1, *ranks, 1)
    return sum(a * n * b for a, n, b in zip(padded[:-1], dims, padded[1:], strict=True))


def feasible_tt_ranks(dims: Shape, ranks: Sequence[int]) -> tuple[int, ...]:
    """Clip interior ranks so that r_k <= r_{k-1} n_k and, from the right, r_k <= n_{k+1} r_{k+1}.

    Beyond these a tensor train holds parameters that cannot change the array.
    """
    clipped = list(ranks)
    for k, n in enumerate(dims[:-1]):
        clipped[k] = min(clipped[k], n * (clipped[k - 1] if k else 1))
    for k in reversed(range(len(clipped))):
        following = clipped[k + 1] if k + 1 < len(clipped) else 1
        clipped[k] = min(clipped[k], dims[k + 1] * following)
    return tuple(clipped)


def full_ranks(method: str, shape: Shape) -> tuple[int, ...]:
    """The highest ranks that `method` can use on a kernel of `shape`; the kernel is then exact.

    For CP it is an upper bound of the rank of any array of that shape.
    """
    if method in PAIRED:
        return (shape[0],)
    dims = tt_order(shape)
    if method == "cp":
        return (math.prod(shape) // max(shape),)
    if method == "tucker":
        n = math.prod(shape)
        return tuple(min(size, n // size) for size in shape[-2:])
    if method == "svd":
        return (min(math.prod(shape[:-1]), shape[-1]),)
    if method == "tt":
        return tuple(min(math.prod(dims[:k]), math.prod(dims[k:])) for k in range(1, len(dims)))
    raise ValueError(f"method {method!r}: known are {', '.join(RANK_RULES)}")


def ranks_for(method: str, shape: Shape, keep: float) -> tuple[int, ...]:
    """Ranks of `method` on a kernel of `shape` that keep a share of its parameters.

    Raises ValueError for an unknown method or a share that is not above 0.
    """
    if method not in RANK_RULES:
        raise ValueError(f"method {method!r}: known are {', '.join(RANK_RULES)}")
    # Near the full size a rule may exceed what the array can hold.
    rule = RANK_RULES[method](shape, keep)
    return tuple(min(r, f) for r, f in zip(rule, full_ranks(method, shape), strict=True))


def _budget(shape: Shape, keep: float) -> float:
    if not keep > 0:
        raise ValueError(f"keep must be above 0, got {keep}")
    return keep * math.prod(shape)


RANK_RULES: dict[str, Callable[[Shape, float], tuple[int, ...]]] = {
    "cp": lambda shape, keep: (cp_rank(shape, keep),),
    "tucker": tucker_ranks,
    "tt": tt_ranks,
    "svd": lambda shape, keep: (svd_rank(shape, keep),),
}
