"""Where CP starts: factors drawn at random, or leading singular vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.formats import CP
from tdjax.decompose.inputs import placed_like
from tdjax.decompose.normal_equations import Factor
from tdjax.decompose.svd import leading_subspace
from tdjax.hints import known_are

INITS = ("random", "normal", "hosvd")
# Random numbers are drawn so many at once at least.
LEAST_DRAWN = 4096


def check_init(init: str | CP, key: Array | None, shape: tuple[int, ...], rank: int) -> None:
    """Refuse, with a ValueError, a start that is none of an array of such a shape and rank."""
    if isinstance(init, CP):
        if init.shape != shape or init.ranks != (rank,):
            raise ValueError(
                f"cp_als: init has shape {init.shape} and rank {init.ranks[0]}, "
                f"expected {shape} and {rank}"
            )
    elif init not in INITS:
        raise ValueError(f"cp_als: init {init!r}: {known_are(init, INITS)}, or give a CP")
    elif key is None and (init != "hosvd" or rank > min(shape)):
        raise ValueError(f"cp_als: init {init!r} draws random numbers, pass key=")


def drawn_start(x: Float[Array, "*_"], key: Array, rank: int, init: str, *, on_host: bool) -> CP:
    """The start that a key gives, by few programs for all ranks where NumPy does the rest."""
    partitionable = getattr(jax.config, "jax_threefry_partitionable", False)
    counted = partitionable and str(jax.random.key_impl(key)) == "threefry2x32"
    if not on_host or init == "hosvd" or not counted:
        return _drawn(x, key, rank=rank, init=init)
    factors = []
    for own, size in zip(_split(key, number=x.ndim), x.shape, strict=True):
        # Each number depends on its place alone: of longer vectors those in front are the same.
        length = max(LEAST_DRAWN, 4 ** -(-(size * rank - 1).bit_length() // 2))
        numbers = np.asarray(_numbers(own, length=length, init=init, dtype=x.dtype))
        factors.append(placed_like(x, numbers[: size * rank].reshape(size, rank)))
    return CP(tuple(factors))


@partial(jax.jit, static_argnames=("number",))
def _split(key: Array, *, number: int) -> list[Array]:
    return list(jax.random.split(key, number))


@partial(jax.jit, static_argnames=("length", "init", "dtype"))
def _numbers(key: Array, *, length: int, init: str, dtype: Any) -> Float[Array, " n"]:
    draw = jax.random.uniform if init == "random" else jax.random.normal
    return draw(key, (length,), dtype)


@partial(jax.jit, static_argnames=("rank", "init"))
def _drawn(x: Float[Array, "*_"], key: Array, *, rank: int, init: str) -> CP:
    return CP(tuple(initial_factors(x, rank, key, init)))


def initial_factors(x: Float[Array, "*_"], rank: int, key: Array, init: str) -> list[Factor]:
    """Starting factors (n_k, rank) of one of the kinds that `cp_als` describes."""
    keys = jax.random.split(key, x.ndim)
    draw = jax.random.uniform if init == "random" else jax.random.normal
    factors = [draw(k, (n, rank), x.dtype) for k, n in zip(keys, x.shape, strict=True)]
    if init != "hosvd":
        return factors
    for mode, size in enumerate(x.shape):
        known = min(rank, size, x.size // size)
        basis = leading_subspace(jnp.moveaxis(x, mode, 0).reshape(size, -1), known)
        factors[mode] = factors[mode].at[:, :known].set(basis)
    return factors
