"""Kernels, moments and biases as float64 of NumPy: one for a layer, or for each of a stack."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from tdjax.decompose.inputs import as_numpy
from tdjax.plan.layers import Layer

Matrix = Float[np.ndarray, "_ _"]
# Added to a second moment, relative to its mean diagonal: of what never passes nothing is known.
RIDGE = 1e-6


def kernels_of(array: Any, layer: Layer) -> list[Matrix]:
    """The kernels (in, out) of a layer, from the array that holds them."""
    own, storage = as_numpy(array).astype(np.float64), layer.storage
    every = [own] if storage.stack is None else list(np.moveaxis(own, storage.stack, 0))
    return [np.transpose(one, storage.order).reshape(layer.kernel_shape) for one in every]


def moments_of(moment: Any, layer: Layer) -> list[Matrix | None]:
    """The moments (n, n) at one end of a layer without groups; None where there is none.

    Raises ValueError for NaN or Inf, naming the layer.
    """
    if moment is None:
        return [None] * layer.copies
    own = as_numpy(moment)
    if not np.isfinite(own).all():
        raise ValueError(f"layer {layer.path!r}: its moments hold NaN or Inf")
    every = own if layer.storage.stack is not None else own[None]
    return [_full(one[0]) for one in every]


def _full(moment: Any) -> Matrix:
    own = np.asarray(moment, np.float64)
    return np.diag(own) if own.ndim == 1 else own


def rows_of(vectors: Any, layer: Layer) -> list[Float[np.ndarray, " n"]]:
    """Biases or means of a layer."""
    own = np.asarray(as_numpy(vectors), np.float64)
    return list(own.reshape(layer.copies, -1))


def ridged(moment: Matrix) -> Matrix:
    """A second moment that is positive definite, more so than rounding could take from it."""
    eye = np.eye(len(moment))
    ridge = RIDGE * (np.trace(moment) / len(moment) or 1.0)
    while True:
        found = moment + ridge * eye
        # Of what had no negative eigenvalues, no pivot is less than the ridge.
        if _least_pivot(found) >= ridge / 2:
            return found
        ridge *= 4


def _least_pivot(moment: Matrix) -> float:
    try:
        return float(np.min(np.diag(np.linalg.cholesky(moment)) ** 2))
    except np.linalg.LinAlgError:
        return 0.0


def root_of(moment: Matrix) -> Matrix:
    """R with R R^T the moment."""
    values, vectors = np.linalg.eigh(moment)
    return vectors * np.sqrt(np.maximum(values, 0))
