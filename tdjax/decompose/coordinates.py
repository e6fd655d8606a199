"""Norms by the coordinates in which they are simple: the base class of all norms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.formats import Format
from tdjax.decompose.products import HIGHEST, Matrices, mode_products
from tdjax.decompose.second_moment import SecondMoment, check_size, times

F = TypeVar("F", bound=Format)
# Of an array the shape and the dtype alone.
Shaped = Float[Array, "*_"] | jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Coordinates:
    """Coordinates in which a norm is simple: norm(x)^2 = tr(Y^T S Y).

    Y is x multiplied by a matrix along each mode, then reshaped to (D, T), D the product of all
    modes but the last. All formats are closed under invertible products along a mode, so the best
    approximation of x in the norm is the best one of Y in that of S alone, taken back.

    Arguments:
        roots: for each mode an invertible (n_k, n_k) matrix, or None for the identity; None for
            identities throughout.
        row_weight: S, (D, D), symmetric positive semi-definite, or its diagonal, (D,); None for
            the identity.
        inverses: those of `roots` where they are known; None to have them computed.
        balanced: whether a format that is taken back is balanced, see `Format.balanced`, as roots
            far from orthogonal ask for.
    """

    roots: Matrices | None = None
    row_weight: SecondMoment | None = None
    inverses: Matrices | None = None
    balanced: bool = False

    def of_array(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """An array in these coordinates."""
        return x if self.roots is None else mode_products(x, self.roots)

    def of_format(self, found: F) -> F:
        """A format in these coordinates."""
        return found if self.roots is None else found.mode_products(self.roots)

    def back(self, found: F) -> F:
        """A format found in these coordinates, in the original ones."""
        if self.roots is None:
            return found
        inverses = self.inverses or [
            None if root is None else jnp.linalg.inv(root) for root in self.roots
        ]
        found = found.mode_products(inverses)
        return found.balanced() if self.balanced else found


class Norm(ABC):
    """A norm of arrays; subclass it for your own, which every decomposition then takes.

    A subclass says by one method in which coordinates it is simple. It is a pytree, so that it
    passes through `jax.jit` and `jax.vmap`; a frozen dataclass of arrays becomes one by
    `jax.tree_util.register_dataclass`. For instance weights of the rows:

        >>> import dataclasses, jax, jax.numpy as jnp, tdjax
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class RowWeighted(tdjax.Norm):
        ...     weights: jax.Array
        ...
        ...     def coordinates(self, x):
        ...         return tdjax.Coordinates(row_weight=self.weights)
        >>> x = jax.random.normal(jax.random.key(0), (3, 3, 6, 8))
        >>> norm = RowWeighted(jnp.arange(1.0, 55.0))
        >>> tucker, info = tdjax.tucker_als(x, (None, None, 3, 4), norm=norm)
        >>> bool(jnp.allclose(norm.relative_error(x, tucker.to_tensor()), info.error, rtol=1e-3))
        True

    All else follows; `weigh` and `diagonal` may be overridden where there is a shorter way.
    """

    @abstractmethod
    def coordinates(self, x: Shaped) -> Coordinates:
        """Where the norm is simple, for arrays of x's shape and dtype, which alone count."""

    def weigh(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """H x, for which the squared norm of x is <x, H x>."""
        found = coordinates_of(self, x)
        y = found.of_array(x)
        if found.row_weight is not None:
            y = times(found.row_weight, y.reshape(-1, x.shape[-1])).reshape(x.shape)
        if found.roots is None:
            return y
        return mode_products(y, [None if root is None else root.T for root in found.roots])

    def diagonal(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The diagonal of H: for each entry of x what it weighs by itself."""
        found = coordinates_of(self, x)
        *front, last = found.roots or (None,) * x.ndim
        size = math.prod(x.shape[:-1])
        # What each row of x becomes, in the columns of a matrix.
        basis = jnp.eye(size, dtype=x.dtype).reshape(*x.shape[:-1], size)
        basis = mode_products(basis, [*front, None]).reshape(size, size)
        weighed = basis if found.row_weight is None else times(found.row_weight, basis)
        rows = jnp.sum(basis * weighed, axis=0).reshape(*x.shape[:-1], 1)
        return jnp.broadcast_to(rows if last is None else rows * jnp.sum(last**2, axis=0), x.shape)

    def inner(self, x: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, ""]:
        """<x, H y>."""
        return jnp.vdot(x, self.weigh(y), precision=HIGHEST)

    def relative_error(
        self, x: Float[Array, "*n"], approximation: Float[Array, "*n"]
    ) -> Float[Array, ""]:
        """Norm of x - approximation over that of x, and 0 where both vanish."""
        difference = x - approximation
        squared, whole = self.inner(difference, difference), self.inner(x, x)
        return jnp.sqrt(
            jnp.maximum(
                0.0, jnp.where(squared == 0, 0.0, squared / jnp.where(whole == 0, 1.0, whole))
            )
        )


def check_known(norm: Any) -> None:
    """Refuse, with a TypeError, what is no norm, or one that JAX cannot take apart."""
    if norm is not None and not isinstance(norm, Norm):
        raise TypeError(f"norm: None or a tdjax.Norm is needed, got {norm!r}")
    if norm is not None and jax.tree_util.all_leaves([norm]):
        raise TypeError(
            f"norm: {type(norm).__name__} is no pytree; decorate the class with "
            "jax.tree_util.register_dataclass"
        )


def coordinates_of(norm: Norm | None, x: Float[Array, "*_"]) -> Coordinates:
    """The coordinates in which a norm of arrays like x is simple, its row weight in x's dtype.

    Raises TypeError for what is no norm, ValueError for a row weight of another size.
    """
    check_known(norm)
    found = Coordinates() if norm is None else norm.coordinates(x)
    if found.row_weight is None:
        return found
    weight = jnp.asarray(found.row_weight, x.dtype)
    name = f"row_weight of {type(norm).__name__}"
    check_size(weight, math.prod(x.shape[:-1]), name, "all modes but the last", x.shape)
    return replace(found, row_weight=weight)
