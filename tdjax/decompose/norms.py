"""Norms in which a decomposition is best: Frobenius, or that of a layer's inputs.

Every norm here is the root of <x, H x> with H a symmetric positive semi-definite operator on
arrays of x's shape. `None` in place of a norm means Frobenius everywhere in this library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.formats import HIGHEST, Format, mode_products, register

F = TypeVar("F", bound=Format)
Moment = Float[Array, "d d"] | Float[Array, " d"]
# What a norm is made of, checked by `check_moment`; on use it becomes a Moment.
MomentLike = Float[Array | np.ndarray, "*_"]

# How far, relative to its diagonal, a second moment may be from symmetric and semi-definite:
# more than rounding in half precision does over a sum of many samples.
SLACK = 1e-3


class Norm:
    """What all norms share."""

    def weigh(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """H x, for which the squared norm of x is <x, H x>."""
        raise TypeError(f"{type(self).__name__} is abstract")

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


@register
@dataclass(frozen=True)
class Frobenius(Norm):
    """The root of the sum of squares; the same as `None` in place of a norm."""

    def weigh(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """See `Norm.weigh`."""
        return x


@register
@dataclass(frozen=True)
class ModeWeighted(Norm):
    """norm(x) = Frobenius norm of x multiplied by a square matrix along each mode.

    All formats are closed under invertible products along a mode, so the best approximation in
    this norm is the best Frobenius approximation of the transformed array, transformed back.

    Arguments:
        roots: for each mode an invertible (n_k, n_k) matrix L, or None for the identity. For a
            weight S = L^T L, such as a second moment, any such root will do.
    """

    roots: tuple[Float[Array, "_ _"] | None, ...]

    def weigh(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """See `Norm.weigh`."""
        return mode_products(
            self.to_frobenius(x), [None if root is None else root.T for root in self.roots]
        )

    def to_frobenius(self, x: Float[Array, "*_"]) -> Float[Array, "*_"]:
        """Coordinates of `x` in which this norm is the Frobenius norm."""
        return mode_products(x, self.roots)

    def from_frobenius(self, result: F) -> F:
        """Take a format found in those coordinates back to the original ones."""
        return result.mode_products(
            [None if root is None else jnp.linalg.inv(root) for root in self.roots]
        )


@register
@dataclass(frozen=True)
class Covariance(Norm):
    """What a change of a layer's kernel does to its outputs: E norm(x^T p)^2 over its inputs p.

    With S = E[p p^T] over the patches p that the layer sees, flattened as all modes of the kernel
    but the last, the squared norm of an array E, reshaped to (D, T), is tr(E^T S E) (Kalle et al.,
    "Distribution-aware tensor decomposition for compression of convolutional neural networks",
    NeurIPS 2025).

    `ridge` * tr(S) / D is added to the diagonal of S, which makes every approximation problem
    definite; the result is then part of the norm. A moment of zeros only, which says nothing,
    counts as the identity.

    Arguments:
        second_moment: S, (D, D), symmetric positive semi-definite, or its diagonal, (D,).
        ridge: static; at least 0.

    Raises ValueError for a moment that is neither square nor a vector or, where its values can be
    seen, holds NaN or Inf or is clearly not symmetric or not positive semi-definite; for a
    negative ridge; on use, for a moment whose D is not that of the array.
    """

    second_moment: MomentLike
    ridge: float = field(default=1e-6, metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuse what is no second moment."""
        _check_ridge(self.ridge)
        check_moment(self.second_moment, "second_moment")

    def input_weight(self, x: Float[Array, "*_"]) -> Moment:
        """S with its ridge, in the dtype of `x`, whose shape it must fit."""
        return _input_weight(self, x)

    def weigh(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """See `Norm.weigh`."""
        return times(self.input_weight(x), x.reshape(-1, x.shape[-1])).reshape(x.shape)


@register
@dataclass(frozen=True)
class Kronecker(Norm):
    """As `Covariance`, with the directions of the output weighed too: tr(G E^T S E).

    With G = E[g g^T] over the gradients g of the loss with respect to the layer's outputs this is
    the Kronecker-factored approximation of the Fisher information (Martens and Grosse 2015), and
    predicts, up to a constant, how much the loss rises. `ridge` acts on both moments.

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
        _check_ridge(self.ridge)
        check_moment(self.second_moment, "second_moment")
        check_moment(self.gradient_moment, "gradient_moment")

    def input_weight(self, x: Float[Array, "*_"]) -> Moment:
        """S with its ridge, in the dtype of `x`, whose shape it must fit."""
        return _input_weight(self, x)

    def output_weight(self, x: Float[Array, "*_"] | jax.ShapeDtypeStruct) -> Moment:
        """G with its ridge, in the dtype of `x`, whose shape it must fit."""
        _check_size(self.gradient_moment, x.shape[-1], "gradient_moment", "the last mode", x)
        return regularised(jnp.asarray(self.gradient_moment, x.dtype), self.ridge)

    def weigh(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """See `Norm.weigh`."""
        matrix = times(self.input_weight(x), x.reshape(-1, x.shape[-1]))
        return times(self.output_weight(x), matrix.T).T.reshape(x.shape)


def in_norm(
    norm: Norm | None,
    decompose: Callable[[Array], tuple[F, Any]],
    x: Float[Array, "*_"],
    weighted: Callable[[Array, Moment], tuple[F, Any]] | None = None,
) -> tuple[F, Any]:
    """Run a decomposition in another norm.

    Arguments:
        norm: see the classes above.
        decompose: x -> (format, info), in the Frobenius norm.
        x: (n_1, ..., n_N).
        weighted: (x, S) -> (format, info), in the norm tr(E^T S E), with S as
            `Covariance.input_weight` gives it.
    """
    check_known(norm)
    if norm is None or isinstance(norm, Frobenius):
        return decompose(x)
    if isinstance(norm, ModeWeighted):
        result, info = decompose(norm.to_frobenius(x))
        return norm.from_frobenius(result), info
    if weighted is None:
        raise TypeError(f"this decomposition knows no norm {type(norm).__name__}")
    assert isinstance(norm, Covariance | Kronecker)
    if isinstance(norm, Covariance):
        return weighted(x, norm.input_weight(x))
    # tr(G E^T S E) is the one-sided norm of E G^(1/2), so the output mode alone is transformed.
    root, inverse = roots(norm.output_weight(x))
    others: list[Array | None] = [None] * (x.ndim - 1)
    result, info = weighted(mode_products(x, [*others, root]), norm.input_weight(x))
    # In its own coordinates the output factor is as ill-conditioned as G^(-1/2).
    return result.mode_products([*others, inverse]).balanced(), info


def check_known(norm: Norm | None) -> None:
    """Refuse, with a TypeError, a norm that `in_norm` has no answer for."""
    if not isinstance(norm, Frobenius | ModeWeighted | Covariance | Kronecker | None):
        raise TypeError(f"this decomposition knows no norm {type(norm).__name__}")


def moved(norm: Norm | None, result: F) -> F:
    """A format in the coordinates in which `in_norm` poses the problem."""
    if isinstance(norm, ModeWeighted):
        return result.mode_products(norm.roots)
    if isinstance(norm, Kronecker):
        shape = jax.ShapeDtypeStruct(result.shape, jax.tree.leaves(result)[0].dtype)
        root, _ = roots(norm.output_weight(shape))
        return result.mode_products([*[None] * (len(result.shape) - 1), root])
    return result


@partial(jax.jit, static_argnames=("ridge",))
def regularised(moment: Moment, ridge: float) -> Moment:
    """The moment plus `ridge` times its mean diagonal; the identity in place of zeros."""
    diagonal = moment if moment.ndim == 1 else jnp.diagonal(moment)
    mean = jnp.mean(diagonal)
    identity = (
        jnp.ones_like(moment) if moment.ndim == 1 else jnp.eye(len(moment), dtype=moment.dtype)
    )
    symmetric = moment if moment.ndim == 1 else (moment + moment.T) / 2
    return jnp.where(mean > 0, symmetric + ridge * mean * identity, identity)


def times(moment: Moment, matrix: Float[Array, "d t"]) -> Float[Array, "d t"]:
    """S @ matrix, S given in full or by its diagonal."""
    if moment.ndim == 1:
        return moment[:, None] * matrix
    return jnp.matmul(moment, matrix, precision=HIGHEST)


@jax.jit
def roots(moment: Moment) -> tuple[Float[Array, "t t"], Float[Array, "t t"]]:
    """The symmetric root of a moment and its inverse, both (T, T).

    Eigenvalues below the rounding of the largest are raised to it, so that both are finite.
    """
    values, vectors = (
        (moment, jnp.eye(len(moment), dtype=moment.dtype))
        if moment.ndim == 1
        else jnp.linalg.eigh(moment)
    )
    root = jnp.sqrt(jnp.maximum(values, jnp.finfo(moment.dtype).eps * jnp.max(values)))
    return (
        jnp.matmul(vectors * root, vectors.T, precision=HIGHEST),
        jnp.matmul(vectors / root, vectors.T, precision=HIGHEST),
    )


def check_moment(moment: Array | np.ndarray, name: str) -> None:
    """Refuse, with a ValueError, what cannot be a second moment, as far as it can be seen."""
    if moment.ndim not in (1, 2) or moment.size == 0 or len(set(moment.shape)) > 1:
        raise ValueError(
            f"{name}: a square matrix or the vector of its diagonal is needed, "
            f"got shape {moment.shape}"
        )
    if isinstance(moment, jax.core.Tracer):
        return
    values = np.asarray(moment)
    values = values.astype(np.promote_types(values.dtype, np.float32))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} of shape {values.shape} holds NaN or Inf")
    diagonal = values if values.ndim == 1 else np.diagonal(values)
    slack = SLACK * max(abs(diagonal).max(), abs(values).max())
    if slack == 0:
        return
    if values.ndim == 2:
        distance = abs(values - values.T).max()
        if distance > slack:
            raise ValueError(
                f"{name} is not symmetric: it differs from its transpose by {distance:.3g}"
            )
    definite = diagonal.min() >= -slack
    if definite and values.ndim == 2:
        shifted = values / slack
        shifted[np.diag_indices(len(values))] += 1
        try:
            np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            definite = False
    if not definite:
        raise ValueError(f"{name} is not positive semi-definite, as a second moment is")


def _input_weight(norm: Covariance | Kronecker, x: Array) -> Moment:
    rows = math.prod(x.shape[:-1])
    _check_size(norm.second_moment, rows, "second_moment", "all modes but the last", x)
    return regularised(jnp.asarray(norm.second_moment, x.dtype), norm.ridge)


def _check_ridge(ridge: float) -> None:
    if not (isinstance(ridge, int | float) and 0 <= ridge < math.inf):
        raise ValueError(f"ridge must be a number of at least 0, got {ridge}")


def _check_size(
    moment: Array | np.ndarray, size: int, name: str, modes: str, x: Array | jax.ShapeDtypeStruct
) -> None:
    if len(moment) != size:
        raise ValueError(
            f"{name} of shape {moment.shape} does not fit {modes} of an array of shape {x.shape}: "
            f"{size} rows are needed"
        )
