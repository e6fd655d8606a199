"""Products of arrays with matrices along their modes, and of the factors of a CP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Matrix = TypeVar("Matrix", Array, np.ndarray)
Matrices = Sequence[Float[Array, "_ _"] | None]

HIGHEST = jax.lax.Precision.HIGHEST


def khatri_rao(factors: Sequence[Matrix]) -> Matrix:
    """Column-wise Kronecker product; rows run over the first factor slowest.

    Arguments:
        factors: matrices (n_k, R), at least one; of JAX or of NumPy.

    Returns: (n_1 * ... * n_N, R).
    """
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None, :] * factor[None, :, :]).reshape(-1, factor.shape[1])
    return product


def split_point(shape: Sequence[int]) -> int:
    """Where to cut the modes in two so that the two products of sizes have the least sum.

    The Khatri-Rao product of one side and the array contracted with it hold that many rows.
    """
    cuts = range(1, len(shape))
    return min(cuts, key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))


def even_scales(factors: Sequence[Float[Array, "_ r"]]) -> list[Float[Array, " r"]]:
    """For each factor of a CP what multiplies its columns so that all have the same norms."""
    norms = [jnp.linalg.norm(factor, axis=0) for factor in factors]
    # By logarithms, since the product of many norms may leave the range of the dtype.
    dead = sum(jnp.where(norm > 0, 0, 1) for norm in norms) > 0
    logs = [jnp.log(jnp.where(norm > 0, norm, 1.0)) for norm in norms]
    mean = sum(logs) / len(logs)
    return [jnp.where(dead, 0.0, jnp.exp(mean - log)) for log in logs]


def mode_products(x: Float[Array, "*_"], matrices: Matrices) -> Float[Array, "*_"]:
    """Multiply mode n of a dense array by `matrices[n]` of shape (new, old); None: leave it."""
    for mode, matrix in enumerate(one_per_mode(matrices, x.ndim)):
        if matrix is not None:
            product = jnp.tensordot(matrix, x, axes=(1, mode), precision=HIGHEST)
            x = jnp.moveaxis(product, 0, mode)
    return x


def one_per_mode(matrices: Matrices, modes: int) -> Matrices:
    """The matrices. Raises ValueError if there is not one entry for each mode."""
    if len(matrices) != modes:
        raise ValueError(f"{len(matrices)} matrices for an array of {modes} modes")
    return matrices
