"""What a decomposed array is: low rank, low rank by groups of rows, CP, Tucker, tensor train.

Every format is a pytree of arrays, so it passes through `jax.jit`, `jax.vmap` and `jax.grad`;
its ranks are the shapes of its arrays. Formats know nothing of networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.products import (
    HIGHEST,
    Matrices,
    even_scales,
    khatri_rao,
    mode_products,
    one_per_mode,
)
from tdjax.decompose.pytree import register
from tdjax.decompose.scale import Exponent, is_zero, shifted

F = TypeVar("F", bound="Format")

# Up to 2^60 and from 2^-60 on, one array of a format takes all of a scale.
MOST = 60


class Format:
    """What all formats share: a dense shape, a number of parameters, and the way back.

    >>> import jax.numpy as jnp, tdjax
    >>> found = tdjax.truncated_svd(jnp.ones((6, 4)), 1)
    >>> isinstance(found, tdjax.Format), found.shape, found.size, found.to_tensor().shape
    (True, (6, 4), 10, (6, 4))
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that the format stands for."""
        raise TypeError(f"{type(self).__name__} is abstract")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that can be chosen, in the order in which the decompositions take them."""
        raise TypeError(f"{type(self).__name__} is abstract")

    @property
    def size(self) -> int:
        """Number of stored parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self))

    def to_tensor(self) -> Float[Array, "*_"]:
        """Multiply out to the dense array of shape `shape`."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def mode_products(self: F, matrices: Matrices) -> F:
        """Multiply mode n of the array by `matrices[n]` (rows: new size), without forming it.

        `None` leaves a mode as it is. Raises ValueError if there is not one entry for each mode.
        """
        raise TypeError(f"{type(self).__name__} is abstract")

    def scaled(self: F, exponent: Exponent) -> F:
        """The array times 2^exponent, shared by the factors so that none leaves its dtype's range.

        Orthonormal ones keep their norms as long as that does no harm.
        """
        raise TypeError(f"{type(self).__name__} is abstract")

    def balanced(self: F) -> F:
        """The same array in factors of the best condition.

        Factors from another coordinate system may be far from orthogonal and of unlike scales,
        and hard to train on.
        """
        raise TypeError(f"{type(self).__name__} is abstract")


@register
@dataclass(frozen=True)
class LowRank(Format):
    """A matrix `left @ right`.

    >>> import jax.numpy as jnp, tdjax
    >>> lowrank = tdjax.LowRank(jnp.ones((4, 1)), jnp.ones((1, 3)))
    >>> lowrank.shape, lowrank.ranks, lowrank.size
    ((4, 3), (1,), 7)

    Arguments:
        left: (rows, r).
        right: (r, columns).
    """

    left: Float[Array, "m r"]
    right: Float[Array, "r n"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return (self.left.shape[0], self.right.shape[1])

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r,)."""
        return (self.left.shape[1],)

    @on_any_mesh
    @jax.jit
    def to_tensor(self) -> Float[Array, "m n"]:
        """The matrix, (rows, columns)."""
        return jnp.matmul(self.left, self.right, precision=HIGHEST)

    @on_any_mesh
    def mode_products(self, matrices: Matrices) -> LowRank:
        """See `Format.mode_products`; two modes, rows and columns."""
        rows, columns = one_per_mode(matrices, 2)
        left = self.left if rows is None else jnp.matmul(rows, self.left, precision=HIGHEST)
        right = (
            self.right if columns is None else jnp.matmul(self.right, columns.T, precision=HIGHEST)
        )
        return LowRank(left, right)

    def scaled(self, exponent: Exponent) -> LowRank:
        """See `Format.scaled`: evenly."""
        return LowRank(*_evenly_scaled((self.left, self.right), exponent))

    def balanced(self) -> LowRank:
        """See `Format.balanced`: orthogonal factors, the singular values split evenly."""
        return LowRank(*_split_evenly(self.left, self.right))


@register
@dataclass(frozen=True)
class GroupedLowRank(Format):
    """A matrix whose blocks of consecutive rows are of low rank each: block i is `left @ right`.

    >>> import jax.numpy as jnp, tdjax
    >>> grouped = tdjax.GroupedLowRank(jnp.ones((2, 4, 1)), jnp.ones((2, 1, 3)))
    >>> grouped.shape, grouped.ranks, grouped.size
    ((8, 3), (1,), 14)

    Arguments:
        left: (k, rows / k, r).
        right: (k, r, columns).
    """

    left: Float[Array, "k m r"]
    right: Float[Array, "k r n"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return (self.left.shape[0] * self.left.shape[1], self.right.shape[2])

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r,), the rank of each block."""
        return (self.left.shape[2],)

    @on_any_mesh
    @jax.jit
    def to_tensor(self) -> Float[Array, "_ n"]:
        """The matrix, (rows, columns)."""
        return jnp.matmul(self.left, self.right, precision=HIGHEST).reshape(self.shape)

    @on_any_mesh
    def mode_products(self, matrices: Matrices) -> GroupedLowRank:
        """See `Format.mode_products`; raises ValueError for the rows, whose blocks it would mix."""
        rows, columns = one_per_mode(matrices, 2)
        if rows is not None:
            raise ValueError("a product along the rows mixes blocks, which are factorised alone")
        if columns is None:
            return self
        return GroupedLowRank(self.left, jnp.matmul(self.right, columns.T, precision=HIGHEST))

    def scaled(self, exponent: Exponent) -> GroupedLowRank:
        """See `Format.scaled`: evenly."""
        return GroupedLowRank(*_evenly_scaled((self.left, self.right), exponent))

    def balanced(self) -> GroupedLowRank:
        """See `Format.balanced`: each block as of `LowRank`."""
        return GroupedLowRank(*jax.vmap(_split_evenly)(self.left, self.right))


@register
@dataclass(frozen=True)
class CP(Format):
    """Canonical polyadic: a sum of R outer products, one column of each factor to a term.

    Column norms are spread evenly over the factors; there are no separate weights.

    >>> import jax.numpy as jnp, tdjax
    >>> cp = tdjax.CP((jnp.ones((3, 2)), jnp.ones((4, 2)), jnp.ones((5, 2))))
    >>> cp.shape, cp.ranks, cp.size, float(cp.to_tensor()[0, 0, 0])
    ((3, 4, 5), (2,), 24, 2.0)

    Arguments:
        factors: one (n_k, R) matrix for each mode.
    """

    factors: tuple[Float[Array, "_ _"], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_1, ..., n_N)."""
        return tuple(factor.shape[0] for factor in self.factors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """(R,)."""
        return (self.factors[0].shape[1],)

    @on_any_mesh
    @jax.jit
    def to_tensor(self) -> Float[Array, "*_"]:
        """The dense array, as one matrix product of two Khatri-Rao products."""
        # The smaller the larger of the two sides, the less is written for the same product.
        split = min(
            range(1, len(self.factors)),
            key=lambda k: math.prod(self.shape[:k]) + math.prod(self.shape[k:]),
            default=None,
        )
        if split is None:
            return self.factors[0].sum(axis=1)
        left, right = khatri_rao(self.factors[:split]), khatri_rao(self.factors[split:])
        return jnp.matmul(left, right.T, precision=HIGHEST).reshape(self.shape)

    @on_any_mesh
    def mode_products(self, matrices: Matrices) -> CP:
        """See `Format.mode_products`."""
        matrices = one_per_mode(matrices, len(self.factors))
        return CP(
            tuple(
                factor if matrix is None else jnp.matmul(matrix, factor, precision=HIGHEST)
                for factor, matrix in zip(self.factors, matrices, strict=True)
            )
        )

    def scaled(self, exponent: Exponent) -> CP:
        """See `Format.scaled`: evenly."""
        return CP(_evenly_scaled(self.factors, exponent))

    def balanced(self) -> CP:
        """See `Format.balanced`: the norms of a term's columns spread evenly over the factors."""
        scales = even_scales(self.factors)
        return CP(tuple(f * scale for f, scale in zip(self.factors, scales, strict=True)))


@register
@dataclass(frozen=True)
class Tucker(Format):
    """A core multiplied by one factor matrix along each compressed mode.

    >>> import jax.numpy as jnp, tdjax
    >>> tucker = tdjax.Tucker(jnp.ones((3, 2, 2)), (None, jnp.ones((4, 2)), jnp.ones((5, 2))))
    >>> tucker.shape, tucker.ranks, tucker.size
    ((3, 4, 5), (2, 2), 30)

    Arguments:
        core: (r_1, ..., r_N); r_k = n_k for a mode that is not compressed.
        factors: for each mode an (n_k, r_k) matrix, or None where the mode stays whole.
    """

    core: Float[Array, "*_"]
    factors: tuple[Float[Array, "_ _"] | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_1, ..., n_N)."""
        return tuple(
            size if factor is None else factor.shape[0]
            for size, factor in zip(self.core.shape, self.factors, strict=True)
        )

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the compressed modes, in the order of the modes."""
        return tuple(factor.shape[1] for factor in self.factors if factor is not None)

    @on_any_mesh
    @jax.jit
    def to_tensor(self) -> Float[Array, "*_"]:
        """The dense array."""
        return mode_products(self.core, self.factors)

    @on_any_mesh
    def mode_products(self, matrices: Matrices) -> Tucker:
        """See `Format.mode_products`; a whole mode's matrix goes into the core."""
        matrices = one_per_mode(matrices, len(self.factors))
        pairs = list(zip(self.factors, matrices, strict=True))
        core = mode_products(self.core, [m if f is None else None for f, m in pairs])
        factors = tuple(
            f if f is None or m is None else jnp.matmul(m, f, precision=HIGHEST) for f, m in pairs
        )
        return Tucker(core, factors)

    def scaled(self, exponent: Exponent) -> Tucker:
        """See `Format.scaled`: by the core, but for extremes."""
        own, rest = _mostly(exponent)
        factors = tuple(factor for factor in self.factors if factor is not None)
        others = iter(_evenly_scaled(factors, rest))
        moved = tuple(None if factor is None else next(others) for factor in self.factors)
        return Tucker(shifted(self.core, own if factors else exponent), moved)

    def balanced(self) -> Tucker:
        """See `Format.balanced`: orthonormal factors."""
        pairs = [(None, None) if f is None else jnp.linalg.qr(f) for f in self.factors]
        core = mode_products(self.core, [right for _, right in pairs])
        return Tucker(core, tuple(basis for basis, _ in pairs))


@register
@dataclass(frozen=True)
class TT(Format):
    """Tensor train: a chain of three-way cores, contracted over neighbouring ranks.

    >>> import jax.numpy as jnp, tdjax
    >>> tt = tdjax.TT((jnp.ones((1, 3, 2)), jnp.ones((2, 4, 2)), jnp.ones((2, 5, 1))))
    >>> tt.shape, tt.ranks, tt.size
    ((3, 4, 5), (2, 2), 32)

    Arguments:
        cores: (r_{k-1}, n_k, r_k) for each mode, with r_0 = r_N = 1.
    """

    cores: tuple[Float[Array, "_ _ _"], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_1, ..., n_N)."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The interior ranks (r_1, ..., r_{N-1})."""
        return tuple(core.shape[2] for core in self.cores[:-1])

    @on_any_mesh
    @jax.jit
    def to_tensor(self) -> Float[Array, "*_"]:
        """The dense array, multiplied out from the right, where the ranks end in 1."""
        tail = self.cores[-1].reshape(self.cores[-1].shape[0], -1)
        for core in reversed(self.cores[:-1]):
            r, n, s = core.shape
            tail = jnp.matmul(core.reshape(r * n, s), tail, precision=HIGHEST).reshape(r, -1)
        return tail.reshape(self.shape)

    @on_any_mesh
    def mode_products(self, matrices: Matrices) -> TT:
        """See `Format.mode_products`."""
        matrices = one_per_mode(matrices, len(self.cores))
        return TT(
            tuple(
                core
                if matrix is None
                else jnp.einsum("rns,mn->rms", core, matrix, precision=HIGHEST)
                for core, matrix in zip(self.cores, matrices, strict=True)
            )
        )

    def scaled(self, exponent: Exponent, core: int = -1) -> TT:
        """See `Format.scaled`: by the core of this number, but for extremes."""
        own, rest = _mostly(exponent)
        cores = list(_evenly_scaled(self.cores, rest))
        cores[core] = shifted(cores[core], own)
        return TT(tuple(cores))

    def balanced(self) -> TT:
        """See `Format.balanced`: the last core of orthonormal rows, its scale in the one before."""
        if len(self.cores) < 2:
            return self
        *cores, before, last = self.cores
        basis, right = jnp.linalg.qr(last[:, :, 0].T)
        before = jnp.matmul(before, right.T, precision=HIGHEST)
        return TT((*cores, before, basis.T[:, :, None]))


def _evenly_scaled(arrays: tuple[Array, ...], exponent: Exponent) -> tuple[Array, ...]:
    """Each of n arrays times 2^(exponent / n)."""
    if is_zero(exponent):
        return arrays
    number = max(1, len(arrays))
    part = jnp.asarray(exponent) // number
    more = (exponent - part * number) / number
    return tuple(shifted(array, part) * jnp.exp2(more).astype(array.dtype) for array in arrays)


def _mostly(exponent: Exponent) -> tuple[Exponent, Exponent]:
    """What one array can take of an exponent with room to spare, and the rest."""
    if is_zero(exponent):
        return 0, 0
    own = jnp.clip(jnp.asarray(exponent), -MOST, MOST)
    return own, exponent - own


@jax.jit
def _split_evenly(
    left: Float[Array, "m r"], right: Float[Array, "r n"]
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    rows, upper = jnp.linalg.qr(left)
    columns, lower = jnp.linalg.qr(right.T)
    small = jnp.matmul(upper, lower.T, precision=HIGHEST)
    u, values, vt = jnp.linalg.svd(small, full_matrices=False)
    root = jnp.sqrt(values)
    return (
        jnp.matmul(rows, u * root, precision=HIGHEST),
        jnp.matmul(root[:, None] * vt, columns.T, precision=HIGHEST),
    )
