"""Norms in which a decomposition is best: Frobenius, or that of a layer's inputs.

Every norm here is the root of <x, H x> with H a symmetric positive semi-definite operator on
arrays of x's shape. `None` in place of a norm means Frobenius everywhere in this library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tdjax.decompose.coordinates import Coordinates, Norm, Shaped
from tdjax.decompose.inputs import is_at_hand
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.on_host import Weight, root_of, sum_of_products, unit, weight_of
from tdjax.decompose.pytree import register
from tdjax.decompose.scale import Exponent, at_least_single, shifted
from tdjax.decompose.second_moment import (
    SecondMoment,
    check_moment,
    check_size,
    diagonal_of,
    regularised_unit,
    roots,
    times,
)

# Of the mean diagonal of a moment, in units of its dtype's rounding, what equations ask for.
ROUNDING = 8

# What a norm is made of, checked by `check_moment`; on use it becomes a SecondMoment.
MomentLike = Float[Array | np.ndarray, "*_"]


@register
@dataclass(frozen=True)
class Frobenius(Norm):
    """The root of the sum of squares; the same as `None` in place of a norm.

    >>> import jax.numpy as jnp, tdjax
    >>> float(tdjax.Frobenius().relative_error(jnp.array([3.0, 4.0]), jnp.array([3.0, 3.0])))
    0.2...
    """

    def coordinates(self, x: Shaped) -> Coordinates:
        """See `Norm.coordinates`."""
        return Coordinates()


@register
@dataclass(frozen=True)
class ModeWeighted(Norm):
    """norm(x) = Frobenius norm of x multiplied by a square matrix along each mode.

    >>> import jax.numpy as jnp, tdjax
    >>> norm = tdjax.ModeWeighted((jnp.diag(jnp.array([1.0, 2.0])), None))
    >>> float(norm.inner(jnp.ones((2, 3)), jnp.ones((2, 3))))
    15.0

    Arguments:
        roots: for each mode an invertible (n_k, n_k) matrix L, or None for the identity. For a
            weight S = L^T L, such as a second moment, any such root will do.
    """

    roots: tuple[Float[Array, "_ _"] | None, ...]

    def coordinates(self, x: Shaped) -> Coordinates:
        """See `Norm.coordinates`."""
        return Coordinates(self.roots)


class _OfInputs(Norm):
    """What norms with a second moment of a layer's inputs share."""

    second_moment: MomentLike
    ridge: float

    def __post_init__(self) -> None:
        """Refuse what is no second moment."""
        if not (isinstance(self.ridge, int | float) and 0 <= self.ridge < math.inf):
            raise ValueError(f"ridge must be a number of at least 0, got {self.ridge}")
        check_moment(self.second_moment, "second_moment")

    def input_weight(self, x: Shaped, least: float = 0.0) -> tuple[SecondMoment, Int[Array, ""]]:
        """S / 2^e with its ridge, in the dtype of `x`, whose shape it must fit, and e.

        Arguments:
            least: the ridge where its own is less.
        """
        rows = math.prod(x.shape[:-1])
        check_size(self.second_moment, rows, "second_moment", "all modes but the last", x.shape)
        ridge = max(self.ridge, least)
        return regularised_unit(jnp.asarray(self.second_moment, x.dtype), ridge)

    def is_rounded(self, dtype: jnp.dtype) -> bool:
        """See `Norm.is_rounded`."""
        return self.ridge < least_ridge(dtype)


def least_ridge(dtype: jnp.dtype) -> float:
    """The ridge below which rounding decides whether equations are singular."""
    return ROUNDING * float(jnp.finfo(dtype).eps)


@register
@dataclass(frozen=True)
class Covariance(_OfInputs):
    """What a change of a layer's kernel does to its outputs: E norm(x^T p)^2 over its inputs p.

    With S = E[p p^T] over the patches p that the layer sees, flattened as all modes of the kernel
    but the last, the squared norm of an array E, reshaped to (D, T), is tr(E^T S E) (Kalle et al.,
    "Distribution-aware tensor decomposition for compression of convolutional neural networks",
    NeurIPS 2025).

    `ridge` * tr(S) / D is added to the diagonal of S, which makes every approximation problem
    definite; the result is then part of the norm. Where it is less than the rounding of the dtype,
    solvers add that much, or they would follow the rounding; errors are in the norm itself. A
    moment of zeros only, which says nothing, counts as the identity.

    >>> import jax, jax.numpy as jnp, tdjax
    >>> inputs = jax.random.normal(jax.random.key(0), (100, 6)) * jnp.arange(1.0, 7.0)
    >>> norm = tdjax.Covariance(inputs.T @ inputs / 100)
    >>> kernel = jax.random.normal(jax.random.key(1), (6, 4))
    >>> found = tdjax.truncated_svd(kernel, 2, norm=norm).to_tensor()
    >>> changed = jnp.linalg.norm(inputs @ (kernel - found)) / jnp.linalg.norm(inputs @ kernel)
    >>> bool(jnp.allclose(changed, norm.relative_error(kernel, found), rtol=1e-3))
    True

    Arguments:
        second_moment: S, (D, D), symmetric positive semi-definite, or its diagonal, (D,).
        ridge: static; at least 0.

    Raises ValueError for a moment that is neither square nor a vector or, where its values can be
    seen, holds NaN or Inf or is clearly not symmetric or not positive semi-definite; for a
    negative ridge; on use, for a moment whose D is not that of the array.
    """

    second_moment: MomentLike
    ridge: float = field(default=1e-6, metadata={"static": True})

    def coordinates(self, x: Shaped) -> Coordinates:
        """See `Norm.coordinates`."""
        weight, exponent = self.input_weight(x, least_ridge(x.dtype))
        return Coordinates(row_weight=weight, exponent=exponent)

    def _weighed(self, x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Exponent]:
        weight, exponent = self.input_weight(x)
        return times(weight, x.reshape(-1, x.shape[-1])).reshape(x.shape), exponent

    @on_any_mesh
    def diagonal(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """See `Norm.diagonal`."""
        x = at_least_single(x)
        weight, exponent = self.input_weight(x)
        rows = shifted(diagonal_of(weight), exponent).reshape(*x.shape[:-1], 1)
        return jnp.broadcast_to(rows, x.shape)


@register
@dataclass(frozen=True)
class Kronecker(_OfInputs):
    """As `Covariance`, with the directions of the output weighed too: tr(G E^T S E).

    With G = E[g g^T] over the gradients g of the loss with respect to the layer's outputs this is
    the Kronecker-factored approximation of the Fisher information (Martens and Grosse 2015), and
    predicts, up to a constant, how much the loss rises. `ridge` acts on both moments.

    >>> import jax.numpy as jnp, tdjax
    >>> norm = tdjax.Kronecker(jnp.array([1.0, 2.0]), jnp.array([1.0, 10.0]), ridge=0.0)
    >>> float(norm.inner(jnp.ones((2, 2)), jnp.ones((2, 2))))
    33.0

    Arguments:
        second_moment: S, (D, D) or its diagonal, (D,).
        gradient_moment: G, (T, T) or its diagonal, (T,).
        ridge: static; at least 0.

    Raises ValueError as `Covariance` does, for either moment.
    """

    second_moment: MomentLike
    gradient_moment: MomentLike
    ridge: float = field(default=1e-6, metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuse what is no second moment."""
        super().__post_init__()
        check_moment(self.gradient_moment, "gradient_moment")

    def output_weight(self, x: Shaped) -> tuple[SecondMoment, Int[Array, ""]]:
        """G / 2^e with its ridge, in the dtype of `x`, whose shape it must fit, and e."""
        check_size(self.gradient_moment, x.shape[-1], "gradient_moment", "the last mode", x.shape)
        return regularised_unit(jnp.asarray(self.gradient_moment, x.dtype), self.ridge)

    def coordinates(self, x: Shaped) -> Coordinates:
        """See `Norm.coordinates`: the one-sided norm of E R^T, where G = R^T R."""
        weight, exponent = self.input_weight(x, least_ridge(x.dtype))
        outputs, own = self.output_weight(x)
        root, inverse = roots(outputs)
        others = (None,) * (len(x.shape) - 1)
        # In its own coordinates the output factor is as ill-conditioned as R^-1.
        return Coordinates(
            (*others, root), weight, (*others, inverse), balanced=True, exponent=exponent + own
        )

    def _weighed(self, x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Exponent]:
        (inputs, own), (outputs, other) = self.input_weight(x), self.output_weight(x)
        matrix = times(inputs, x.reshape(-1, x.shape[-1]))
        return times(outputs, matrix.T).T.reshape(x.shape), own + other

    @on_any_mesh
    def diagonal(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """See `Norm.diagonal`."""
        x = at_least_single(x)
        (inputs, own), (outputs, other) = self.input_weight(x), self.output_weight(x)
        rows = diagonal_of(inputs).reshape(*x.shape[:-1], 1)
        return shifted(rows * diagonal_of(outputs), own + other)


def is_on_host(norm: Norm | None) -> bool:
    """Whether `weights_on_host` knows a norm: Frobenius, or one whose moments a CPU's memory holds.

    Not one of a class of one's own, which may be another norm.
    """
    known = norm is None or type(norm) in (Frobenius, Covariance, Kronecker)
    return known and all(
        isinstance(leaf, np.ndarray) or is_at_hand(leaf) for leaf in jax.tree.leaves(norm)
    )


def weights_on_host(norm: Norm | None, x: Shaped) -> tuple[Weight | None, Weight | None]:
    """S and G of a norm tr(G E^T S E) of arrays like x, with their ridges, one of each.

    None for identities. Raises ValueError for moments of other sizes.
    """
    inputs = outputs = None
    if isinstance(norm, _OfInputs):
        rows = math.prod(x.shape[:-1])
        check_size(norm.second_moment, rows, "second_moment", "all modes but the last", x.shape)
        inputs = _on_host(norm.second_moment, max(norm.ridge, least_ridge(x.dtype)), x)
    if isinstance(norm, Kronecker):
        check_size(norm.gradient_moment, x.shape[-1], "gradient_moment", "the last mode", x.shape)
        outputs = _on_host(norm.gradient_moment, norm.ridge, x)
    return inputs, outputs


def _on_host(moment: MomentLike, ridge: float, x: Shaped) -> Weight:
    return weight_of(np.asarray(moment, x.dtype)[None], ridge)


class PosedOnHost(NamedTuple):
    """x R / scale with entries around 1, to be approximated in the norm tr(E^T S E).

    Arguments:
        array: that, in x's shape.
        scale: a power of two.
        inputs: S; None for the identity.
        root: R, with G = R R^T, or its diagonal; None for the identity.
    """

    array: Float[np.ndarray, "*n"]
    scale: float
    inputs: Weight | None
    root: Float[np.ndarray, "*_"] | None

    @property
    def weight(self) -> Float[np.ndarray, "d d"]:
        """S in full."""
        assert self.inputs is not None
        (weight,) = self.inputs.in_full()
        return weight if weight.ndim == 2 else np.diag(weight)

    def error_of(self, approximation: Float[np.ndarray, "*n"]) -> float:
        """The relative error of an approximation of x, from the difference itself."""
        found = approximation.astype(float) / self.scale
        if self.root is not None:
            found = found * self.root if self.root.ndim == 1 else found @ self.root
        whole, rest = self.array.astype(float), self.array - found
        squares = []
        for own in (rest, whole):
            matrix = own.reshape(1, -1, own.shape[-1])
            weighed = matrix if self.inputs is None else self.inputs.times(matrix)
            squares.append(max(0.0, sum_of_products(matrix, weighed)))
        return math.sqrt(squares[0] / (squares[1] or 1.0))

    def back(self, columns: Float[np.ndarray, "t m"]) -> Float[np.ndarray, "t m"]:
        """What multiplies the columns of x's approximation, for those of x R: R^-T A."""
        if self.root is None:
            return columns
        if self.root.ndim == 1:
            return columns / self.root[:, None]
        return np.linalg.solve(self.root.T, columns)


def posed_on_host(x: Float[Array, "*n"], norm: Norm | None) -> PosedOnHost:
    """What NumPy is to approximate of x in a norm that `is_on_host`.

    Raises ValueError for moments of other sizes.
    """
    inputs, outputs = weights_on_host(norm, x)
    (array,), (scale,) = unit(np.asarray(x)[None])
    if outputs is None:
        return PosedOnHost(array, scale, inputs, None)
    (root,) = root_of(outputs.in_full(), solves=True)
    (array,), (more,) = unit((array * root if root.ndim == 1 else array @ root)[None])
    return PosedOnHost(array, scale * more, inputs, root)
