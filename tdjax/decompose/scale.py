"""Arrays of any unit: brought to entries around 1, and what comes of them taken back.

Squares and higher powers of entries leave the range of a dtype long before the entries do: in
float32 above 1e19 and below 1e-19. So what is decomposed or measured is first divided by a power
of two near its largest entry, which rounds nothing. Powers are whole multiples of `STEP`, so that
their square, third and fourth roots are powers of two as well, and entries of an ordinary kernel
stay what they are. Subnormal numbers count as zeros, as XLA takes them on CPUs.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Exponent = Int[Array, "*_"] | int
T = TypeVar("T")

STEP = 24
# Arrays keep their unit while their largest entry is from 2^LEAST on and below 2^(LEAST + STEP).
LEAST = -14


def power_of_two(exponent: Exponent, dtype: jnp.dtype) -> Float[Array, "*_"]:
    """2^exponent, exact; beyond the normal numbers of the dtype its least or largest one."""
    info = jnp.finfo(dtype)
    bias = 1 - int(info.minexp)
    held = jnp.clip(jnp.asarray(exponent), 1 - bias, bias)
    bits = (held + bias).astype(f"int{info.bits}") << info.nmant
    return jax.lax.bitcast_convert_type(bits, dtype)


def exponent_of(x: Float[Array, "*_"], axis: int | None = None) -> Int[Array, "*_"]:
    """The multiple e of `STEP` that brings the largest entry of x / 2^e near 1; 0 for zeros.

    Arguments:
        axis: one for each slice along it, which keeps its axis; None for one of all entries.
    """
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=axis, keepdims=axis is not None)
    above = jnp.frexp(largest)[1] - 1
    most = -int(jnp.finfo(x.dtype).minexp) // STEP * STEP
    return jnp.clip((above - LEAST) // STEP * STEP, -most, most)


def shifted(x: Float[Array, "*n"], exponent: Exponent) -> Float[Array, "*n"]:
    """x * 2^exponent, exact as far as the dtype holds it."""
    return x if is_zero(exponent) else _shifted(x, exponent)


def is_zero(exponent: Exponent) -> bool:
    """Whether an exponent is known to be 0, as that of an array whose values are seen may be."""
    return isinstance(exponent, int) and exponent == 0


@partial(jax.jit, inline=True)
def _shifted(x: Float[Array, "*n"], exponent: Exponent) -> Float[Array, "*n"]:
    half = jnp.asarray(exponent) // 2
    return x * power_of_two(half, x.dtype) * power_of_two(exponent - half, x.dtype)


def unit(x: Float[Array, "*n"], axis: int | None = None) -> tuple[Float[Array, "*n"], Exponent]:
    """x / 2^e with entries around 1, and e; see `exponent_of`.

    Of an ordinary array whose values can be seen that is x itself and the number 0, and nothing is
    compiled to scale it.
    """
    if axis is None and not isinstance(x, jax.core.Tracer) and _is_ordinary(largest_entry(x)):
        return x, 0
    return _unit(x, axis)


def _is_ordinary(largest: float) -> bool:
    return 2.0**LEAST <= largest < 2.0 ** (LEAST + STEP)


def largest_entry(x: Float[Array, "*_"]) -> float:
    """The largest absolute value of an array that can be seen, NaN where it holds NaN."""
    if x.is_fully_addressable and {device.platform for device in x.devices()} == {"cpu"}:
        # No copy is made, and no program.
        values = np.asarray(x)
        return float(max(np.max(values, initial=0.0), -np.min(values, initial=0.0)))
    return float(_largest(x))


@jax.jit
def _largest(x: Float[Array, "*_"]) -> Float[Array, ""]:
    return jnp.max(jnp.abs(x))


@partial(jax.jit, static_argnames=("axis",), inline=True)
def _unit(
    x: Float[Array, "*n"], axis: int | None = None
) -> tuple[Float[Array, "*n"], Int[Array, "*_"]]:
    exponent = exponent_of(x, axis)
    return shifted(x, -exponent), exponent


def at_least_single(x: Any) -> Array:
    """The array in float32 at least: in half precision a norm would be off by a percent."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def at_unit_scale(tree: T) -> T:
    """Every array of a pytree divided by a power of two of its own."""
    return jax.tree.map(lambda x: unit(x)[0], tree)


@partial(jax.jit, inline=True)
def unit_difference(
    x: Float[Array, "*n"], y: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], Int[Array, ""]]:
    """(x - y) / 2^e with entries around 1, and e."""
    # Near either end of the range what they differ by may lie outside it.
    exponent = jnp.maximum(exponent_of(x), exponent_of(y))
    difference, more = unit(shifted(x, -exponent) - shifted(y, -exponent))
    return difference, exponent + more


def norm(x: Float[Array, "*_"], axis: int | None = None) -> Float[Array, "*_"]:
    """The root of the sum of squares of all entries, or along an axis, at any scale."""
    whole, exponent = unit(x if axis is not None else x.reshape(-1), axis)
    exponent = exponent if axis is None else jnp.squeeze(exponent, axis)
    return shifted(jnp.linalg.norm(whole, axis=axis), exponent)


def error_ratio(above: Float[Array, "*_"], below: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """above / below; where `below` vanishes, 0 if `above` does too, else inf, and NaN of NaN."""
    empty = below <= 0
    alone = jnp.where(above > 0, jnp.inf, jnp.maximum(above, 0.0)).astype(below.dtype)
    return jnp.where(empty, alone, above / jnp.where(empty, 1.0, below))


def relative_error(x: Float[Array, "*n"], approximation: Float[Array, "*n"]) -> Float[Array, ""]:
    """norm(x - approximation) / norm(x), at any scale; see `error_ratio` for zeros."""
    difference, lost = unit_difference(x, approximation)
    whole, own = unit(x)
    return shifted(error_ratio(jnp.linalg.norm(difference), jnp.linalg.norm(whole)), lost - own)
