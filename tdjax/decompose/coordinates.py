"""Norms by the coordinates in which they are simple: the base class of all norms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.als import Info
from tdjax.decompose.formats import Format
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.products import HIGHEST, Matrices, mode_products
from tdjax.decompose.scale import (
    Exponent,
    at_least_single,
    at_unit_scale,
    error_ratio,
    shifted,
    unit,
    unit_difference,
)
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

    >>> import jax.numpy as jnp, tdjax
    >>> own = tdjax.Coordinates(roots=(2.0 * jnp.eye(3), None))
    >>> own.of_array(jnp.ones((3, 2)))[0].tolist()
    [2.0, 2.0]

    Arguments:
        roots: for each mode an invertible (n_k, n_k) matrix, or None for the identity; None for
            identities throughout.
        row_weight: S, (D, D), symmetric positive semi-definite, or its diagonal, (D,); None for
            the identity.
        inverses: those of `roots` where they are known; None to have them computed.
        balanced: whether a format that is taken back is balanced, see `Format.balanced`, as roots
            far from orthogonal ask for.
        exponent: None where `roots` and `row_weight` may be of any scale; else they have entries
            around 1, and norm(x)^2 = 2^exponent tr(Y^T S Y), for a whole and even exponent.
    """

    roots: Matrices | None = None
    row_weight: SecondMoment | None = None
    inverses: Matrices | None = None
    balanced: bool = False
    exponent: Exponent | None = None

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

    def at_unit_scale(self, dtype: jnp.dtype) -> Coordinates:
        """The same with roots and weight of entries around 1, their scale in `exponent`."""
        if self.exponent is not None:
            return self
        exponent: Exponent = 0
        roots, inverses, weight = self.roots, self.inverses, self.row_weight
        if roots is not None:
            pairs = [None if r is None else unit(jnp.asarray(r, dtype)) for r in roots]
            exponent = sum((2 * pair[1] for pair in pairs if pair is not None), exponent)
            roots = [None if pair is None else pair[0] for pair in pairs]
            if inverses is not None:
                inverses = [
                    None if inverse is None or pair is None else shifted(inverse, pair[1])
                    for inverse, pair in zip(inverses, pairs, strict=True)
                ]
        if weight is not None:
            weight, own = unit(jnp.asarray(weight, dtype))
            exponent = exponent + own
        return replace(self, roots=roots, inverses=inverses, row_weight=weight, exponent=exponent)


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

    @on_any_mesh
    def weigh(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """H x, for which the squared norm of x is <x, H x>."""
        return shifted(*self._weighed(at_least_single(x)))

    def _weighed(self, x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Exponent]:
        """H x / 2^e, and an even e by which H has entries around 1."""
        found = coordinates_of(self, x)
        y = found.of_array(x)
        if found.row_weight is not None:
            y = times(found.row_weight, y.reshape(-1, x.shape[-1])).reshape(x.shape)
        if found.roots is not None:
            y = mode_products(y, [None if root is None else root.T for root in found.roots])
        assert found.exponent is not None
        return y, found.exponent

    def _unit_weighed(self, x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Exponent]:
        """H x / 2^e with entries around 1, and e, whatever the scale of H."""
        # One's own way to weigh is taken as it is.
        own = type(self).weigh is not Norm.weigh
        y, exponent = (self.weigh(x), 0) if own else self._weighed(x)
        weighed, more = unit(y)
        return weighed, exponent + more

    @on_any_mesh
    def diagonal(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The diagonal of H: for each entry of x what it weighs by itself."""
        x = at_least_single(x)
        found = coordinates_of(self, x)
        *front, last = found.roots or (None,) * x.ndim
        size = math.prod(x.shape[:-1])
        # What each row of x becomes, in the columns of a matrix.
        basis = jnp.eye(size, dtype=x.dtype).reshape(*x.shape[:-1], size)
        basis = mode_products(basis, [*front, None]).reshape(size, size)
        weighed = basis if found.row_weight is None else times(found.row_weight, basis)
        rows = jnp.sum(basis * weighed, axis=0).reshape(*x.shape[:-1], 1)
        assert found.exponent is not None
        rows = shifted(rows, found.exponent)
        return jnp.broadcast_to(rows if last is None else rows * jnp.sum(last**2, axis=0), x.shape)

    @on_any_mesh
    def inner(self, x: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, ""]:
        """<x, H y>."""
        one, its = unit(at_least_single(x))
        other, own = unit(at_least_single(y))
        weighed, exponent = self._unit_weighed(other)
        return shifted(jnp.vdot(one, weighed, precision=HIGHEST), its + own + exponent)

    @on_any_mesh
    def relative_error(
        self, x: Float[Array, "*n"], approximation: Float[Array, "*n"]
    ) -> Float[Array, ""]:
        """Norm of x - approximation over that of x; where that is 0, 0 if both vanish, else inf."""
        x, approximation = at_least_single(x), at_least_single(approximation)
        difference, lost = unit_difference(x, approximation)
        whole, own = unit(x)
        (above, high), (below, low) = self._squared(difference), self._squared(whole)
        # Both exponents of squares are even, as those of moments are.
        exponent = lost - own + (high - low) // 2
        return shifted(jnp.sqrt(error_ratio(jnp.maximum(0.0, above), below)), exponent)

    def is_rounded(self, dtype: jnp.dtype) -> bool:
        """Whether `coordinates` are those of a norm larger by rounding, as solvers may need it."""
        return False

    def _squared(self, x: Float[Array, "*n"]) -> tuple[Float[Array, ""], Exponent]:
        """<x, H x> / 2^e for x of entries around 1, and e."""
        weighed, exponent = self._unit_weighed(x)
        return jnp.vdot(x, weighed, precision=HIGHEST), exponent


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
    """The coordinates in which a norm of arrays like x is simple, at unit scale, in x's dtype.

    Raises TypeError for what is no norm, ValueError for a row weight of another size.
    """
    check_known(norm)
    found = Coordinates() if norm is None else norm.coordinates(x)
    if found.row_weight is not None:
        name = f"row_weight of {type(norm).__name__}"
        size = math.prod(x.shape[:-1])
        check_size(found.row_weight, size, name, "all modes but the last", x.shape)
    return found.at_unit_scale(x.dtype)


def measured(norm: Norm | None, x: Float[Array, "*n"], found: Format, info: Info) -> Info:
    """What is known of a format found for x, with the error in the norm itself."""
    if norm is None or not norm.is_rounded(x.dtype):
        return info
    return info._replace(error=norm.relative_error(x, found.to_tensor().reshape(x.shape)))


class Posed(NamedTuple):
    """A problem of approximation, whatever the scale and the norm, as one of entries around 1.

    Arguments:
        array: y, what is to be approximated in the norm tr(E^T S E).
        weight: S; None for the Frobenius norm.
        space: the coordinates of y.
        exponent: e, by which an approximation of y is multiplied, 2^e.
    """

    array: Float[Array, "*n"]
    weight: SecondMoment | None
    space: Coordinates
    exponent: Exponent

    def start(self, found: F) -> F:
        """A format to start from, up to its scale."""
        return self.space.of_format(at_unit_scale(found))

    def back(self, found: F) -> F:
        """A format that approximates y as one that approximates what was posed."""
        return self.space.back(found).scaled(self.exponent)


def posed(x: Float[Array, "*n"], space: Coordinates) -> Posed:
    """The problem of approximating x, in coordinates at unit scale."""
    x, exponent = unit(x)
    # Roots of unlike entries may have moved it again.
    y, moved = unit(space.of_array(x)) if space.roots is not None else (x, 0)
    return Posed(y, space.row_weight, space, exponent + moved)
