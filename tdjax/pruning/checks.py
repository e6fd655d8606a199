"""What every index and rule asks of its arguments, checked before any work."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.inputs import as_float


def as_columns(w: Any, outputs: int | None) -> tuple[Float[Array, "d n"], tuple[int, ...]]:
    """Weights with one neuron in each column, and the shape that the neurons lie in.

    Arguments:
        w: weights, the axes of the neurons last.
        outputs: number of those axes; None for one, and for none of a vector.

    Raises ValueError for an empty array, NaN or Inf, or no axis left for the weights of a neuron.
    """
    w = jnp.asarray(w)
    outputs = min(1, w.ndim - 1) if outputs is None else outputs
    if not 0 <= outputs < w.ndim:
        raise ValueError(
            f"outputs is {outputs}: of the {w.ndim} axes of an array of shape {w.shape} at least "
            "one holds the weights of a neuron"
        )
    split = w.ndim - outputs
    shape = w.shape[split:]
    return as_float(w.reshape(math.prod(w.shape[:split]), math.prod(shape))), shape


def check_range(
    what: str, value: Any, low: int | float, high: int | float, *, low_too: bool = False
) -> Float[Array, "*_"]:
    """A number in the range (low, high), or [low, high), as an array.

    Inside `jit` its value is not visible, and not checked. Raises ValueError for any other number,
    TypeError for what is none.
    """
    if not isinstance(value, jax.core.Tracer):
        # In NumPy: inside `jit` the values of JAX are not visible.
        number = np.asarray(value)
        if not (
            np.issubdtype(number.dtype, np.number) or jnp.issubdtype(number.dtype, jnp.floating)
        ):
            raise TypeError(f"{what} must be a number, got {value!r}")
        number = number.astype(np.float64)
        above = number >= low if low_too else number > low
        if not (above & (number < high)).all():
            bracket = "[" if low_too else "("
            raise ValueError(f"{what} must lie in {bracket}{low}, {high}), got {value}")
    return jnp.asarray(value, jnp.result_type(float))


def check_order(p: Any, q: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Two exponents with 0 < p < q. Raises ValueError for others, where they are visible."""
    most = math.inf if isinstance(q, jax.core.Tracer) else float(q)
    return check_range("p", p, 0, most), check_range("q", q, 0, math.inf)
