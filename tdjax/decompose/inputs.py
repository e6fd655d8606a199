"""What every decomposition asks of its input, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def as_float(x: Any, *, ndim: int | None = None) -> Float[Array, "*_"]:
    """The array in at least float32, known to be finite where its values can be seen.

    Half-precision input is raised to float32; float64 stays. Inside `jit` and `vmap` the values
    are not visible and only shape and dtype are checked.

    Raises ValueError for NaN or Inf, an empty array or a wrong number of modes, TypeError for
    complex numbers.
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"complex arrays are not supported, got {x.dtype}")
    if ndim is not None and x.ndim != ndim:
        raise ValueError(f"expected an array of {ndim} modes, got shape {x.shape}")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"expected a non-empty array of two modes or more, got shape {x.shape}")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if not isinstance(x, jax.core.Tracer) and not bool(jnp.isfinite(x).all()):
        raise ValueError(f"the array of shape {x.shape} holds NaN or Inf")
    return x


def check_ranks(ranks: Sequence[int], highest: Sequence[int], what: str) -> tuple[int, ...]:
    """The ranks as a tuple of int.

    Raises ValueError where one is below 1 or above the highest that the array admits.
    """
    if len(ranks) != len(highest):
        raise ValueError(f"{what}: {len(highest)} ranks are needed, got {tuple(ranks)}")
    for rank, most in zip(ranks, highest, strict=True):
        if not 1 <= rank <= most:
            raise ValueError(
                f"{what}: rank {rank} of {tuple(ranks)} is not between 1 and {most}; "
                f"full ranks are {tuple(highest)}"
            )
    return tuple(int(rank) for rank in ranks)
