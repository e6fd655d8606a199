"""What every decomposition asks of its input, checked before any work."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float

from tdjax.decompose.scale import largest_entry

Function = TypeVar("Function", bound=Callable[..., Any])


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
    if not isinstance(x, jax.core.Tracer) and not math.isfinite(largest_entry(x)):
        raise ValueError(f"the array of shape {x.shape} holds NaN or Inf")
    return x


@jax.jit
def all_finite(array: Array) -> Bool[Array, ""]:
    """Whether an array holds neither NaN nor Inf."""
    return jnp.isfinite(array).all()


def is_finite(array: Any) -> bool:
    """The same of an array whose values can be seen, without a program where it is on a CPU."""
    return math.isfinite(largest_entry(jnp.asarray(array)))


def as_numpy(array: Any) -> np.ndarray:
    """An array as one of NumPy, gathered where other processes hold parts of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def is_at_hand(array: Any) -> bool:
    """Whether an array lies in the memory of one CPU, where NumPy takes it without a copy."""
    return (
        isinstance(array, jax.Array)
        and not isinstance(array, jax.core.Tracer)
        and [device.platform for device in array.devices()] == ["cpu"]
    )


def at_hand(array: Array) -> Array:
    """The same in the memory of a CPU; where it is if arrays belong to a mesh that is set."""
    if is_at_hand(array) or not jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.device_put(as_numpy(array), jax.devices("cpu")[0])


def placed_like(array: Array, values: np.ndarray) -> Array:
    """Values of NumPy as an array of JAX, where another lies; no program is compiled for it."""
    own = np.asarray(values, order="C")
    return jax.device_put(own, array.sharding if array.committed else None)


def whole_ranks(function: Function) -> Function:
    """A decomposition whose `rank` or `ranks` are whole numbers: what cannot be one is refused.

    Raises TypeError that says what to pass.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        ranks = given.get("ranks")
        if isinstance(ranks, numbers.Number):
            raise TypeError(
                f"{function.__name__}: ranks is one number, {ranks!r}: pass one for each mode, as "
                f"({ranks!r}, {ranks!r})"
            )
        for rank in (*(() if ranks is None else ranks), given.get("rank")):
            if rank is not None:
                check_whole(rank, f"{function.__name__}: rank")
        return function(*args, **kwargs)

    return answer  # type: ignore[return-value]


def check_whole(value: Any, what: str) -> None:
    """Refuse what is no whole number with a TypeError that says what to pass."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        exact = isinstance(value, float) and value.is_integer()
        remedy = f"pass {int(value)}" if exact else "pass a whole number"
        raise TypeError(f"{what} {value!r} is no whole number; {remedy}")


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
