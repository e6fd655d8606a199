"""Norms in which a decomposition is best: Frobenius, or weighted along each mode.

A norm hands a decomposition the array in coordinates where the norm is the Frobenius norm, and
takes the result back. `None` in place of a norm means Frobenius everywhere in this library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.formats import Format, mode_products, register

F = TypeVar("F", bound=Format)


@runtime_checkable
class Norm(Protocol):
    """What a decomposition asks of a norm."""

    def to_frobenius(self, x: Float[Array, "*_"]) -> Float[Array, "*_"]:
        """Coordinates of `x` in which this norm is the Frobenius norm."""
        ...

    def from_frobenius(self, result: F) -> F:
        """Take a format found in those coordinates back to the original ones."""
        ...


@register
@dataclass(frozen=True)
class ModeWeighted:
    """norm(x) = Frobenius norm of x multiplied by a square matrix along each mode.

    All formats are closed under invertible products along a mode, so the best approximation in
    this norm is the best Frobenius approximation of the transformed array, transformed back.

    Arguments:
        roots: for each mode an invertible (n_k, n_k) matrix L, or None for the identity. For a
            weight S = L^T L, such as a second moment, any such root will do.
    """

    roots: tuple[Float[Array, "_ _"] | None, ...]

    def to_frobenius(self, x: Float[Array, "*_"]) -> Float[Array, "*_"]:
        """See `Norm.to_frobenius`."""
        return mode_products(x, self.roots)

    def from_frobenius(self, result: F) -> F:
        """See `Norm.from_frobenius`."""
        return result.mode_products(
            [None if root is None else jnp.linalg.inv(root) for root in self.roots]
        )


def in_norm(
    norm: Norm | None, decompose: Callable[[Array], tuple[F, Any]], x: Float[Array, "*_"]
) -> tuple[F, Any]:
    """Run a Frobenius decomposition `x -> (format, info)` in another norm."""
    if norm is None:
        return decompose(x)
    result, info = decompose(norm.to_frobenius(x))
    return norm.from_frobenius(result), info
