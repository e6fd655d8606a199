"""Second moments, in full or by their diagonals: checks, ridge, products, roots."""

from __future__ import annotations

import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.products import HIGHEST
from tdjax.decompose.scale import Exponent, shifted, unit
from tdjax.decompose.weighted import robust_cholesky

SecondMoment = Float[Array, "d d"] | Float[Array, " d"]

# How far, relative to its diagonal, a second moment may be from symmetric and semi-definite:
# more than rounding in half precision does over a sum of many samples.
SLACK = 1e-3

# Arrays that are known to be second moments, by their ids, while they live: their values cannot
# change, and checking one costs as much as a factorisation.
_known: dict[int, weakref.ref[Array]] = {}


@partial(jax.jit, static_argnames=("ridge",))
def regularised(moment: SecondMoment, ridge: float) -> SecondMoment:
    """The moment plus `ridge` times its mean diagonal; the identity in place of zeros."""
    return shifted(*regularised_unit(moment, ridge))


@partial(jax.jit, static_argnames=("ridge",))
def regularised_unit(moment: SecondMoment, ridge: float) -> tuple[SecondMoment, Exponent]:
    """`regularised` divided by 2^e so that its entries are around 1, and e."""
    moment, exponent = unit(moment)
    mean = jnp.mean(diagonal_of(moment))
    identity = (
        jnp.ones_like(moment) if moment.ndim == 1 else jnp.eye(len(moment), dtype=moment.dtype)
    )
    symmetric = moment if moment.ndim == 1 else (moment + moment.T) / 2
    return jnp.where(mean > 0, symmetric + ridge * mean * identity, identity), exponent


def times(moment: SecondMoment, matrix: Float[Array, "d t"]) -> Float[Array, "d t"]:
    """S @ matrix, S given in full or by its diagonal."""
    if moment.ndim == 1:
        return moment[:, None] * matrix
    return jnp.matmul(moment, matrix, precision=HIGHEST)


def diagonal_of(moment: SecondMoment) -> Float[Array, " d"]:
    """The diagonal of S, given in full or by it."""
    return moment if moment.ndim == 1 else jnp.diagonal(moment)


def in_full(moment: SecondMoment) -> Float[Array, "d d"]:
    """S as a matrix, given in full or by its diagonal."""
    return jnp.diag(moment) if moment.ndim == 1 else moment


@jax.jit
def roots(moment: SecondMoment) -> tuple[Float[Array, "t t"], Float[Array, "t t"]]:
    """A root R of a moment, G = R^T R, and its inverse, both (T, T) and upper triangular.

    Where rounding leaves the moment singular, it is that of one with the least more on its diagonal
    that makes both finite.
    """
    if moment.ndim == 1:
        root = jnp.sqrt(jnp.maximum(moment, jnp.finfo(moment.dtype).eps * jnp.max(moment)))
        return jnp.diag(root), jnp.diag(1 / root)
    factor = robust_cholesky(moment, solves=True)
    identity = jnp.eye(len(moment), dtype=moment.dtype)
    return factor.T, jax.scipy.linalg.solve_triangular(factor, identity, lower=True).T


def trust(moment: Array | np.ndarray) -> None:
    """Let an array of JAX count as a second moment without a check, as long as it lives."""
    if isinstance(moment, jax.Array) and not isinstance(moment, jax.core.Tracer):
        key = id(moment)
        _known[key] = weakref.ref(moment, lambda _: _known.pop(key, None))


def is_trusted(moment: Array | np.ndarray) -> bool:
    """Whether an array has been checked, or was made as a second moment."""
    found = _known.get(id(moment))
    return found is not None and found() is moment


def check_moment(moment: Array | np.ndarray, name: str) -> None:
    """Refuse, with a ValueError, what cannot be a second moment, as far as it can be seen.

    An array of JAX is looked at once.
    """
    if moment.ndim not in (1, 2) or moment.size == 0 or len(set(moment.shape)) > 1:
        raise ValueError(
            f"{name}: a square matrix or the vector of its diagonal is needed, "
            f"got shape {moment.shape}"
        )
    if isinstance(moment, jax.core.Tracer) or is_trusted(moment):
        return
    _check_values(moment, name)
    trust(moment)


def _check_values(moment: Array | np.ndarray, name: str) -> None:
    values = np.asarray(moment)
    values = values.astype(np.promote_types(values.dtype, np.float32))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} of shape {values.shape} holds NaN or Inf")
    slack = SLACK * abs(values).max()
    if slack == 0:
        return
    if values.ndim == 2:
        distance = abs(values - values.T).max()
        if distance > slack:
            raise ValueError(
                f"{name} is not symmetric: it differs from its transpose by {distance:.3g}"
            )
    if not _is_semidefinite(values, slack):
        raise ValueError(f"{name} is not positive semi-definite, as a second moment is")


def check_size(
    moment: Array | np.ndarray, size: int, name: str, modes: str, shape: tuple[int, ...]
) -> None:
    """Refuse, with a ValueError, a moment that does not fit these modes of an array."""
    if set(moment.shape) != {size}:
        raise ValueError(
            f"{name} of shape {moment.shape} does not fit {modes} of an array of shape {shape}: "
            f"{size} rows are needed"
        )


def _is_semidefinite(values: np.ndarray, slack: np.floating) -> bool:
    """Whether no eigenvalue is below -slack."""
    diagonal = values if values.ndim == 1 else np.diagonal(values)
    if diagonal.min() < -slack:
        return False
    if values.ndim == 1:
        return True
    shifted = values / slack
    shifted[np.diag_indices(len(values))] += 1
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True
