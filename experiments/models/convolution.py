"""Convolution of maps that are smaller than the window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def convolve(
    inputs: Float[Array, "b *map c"],
    kernel: Float[Array, "*_"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b *out d"]:
    """`jax.lax.conv_general_dilated` for `flax.linen.Conv`; fast on small maps too.

    XLA exchanges the operands where the window is larger than the map. On a CPU it then has no
    fast kernel: a 3x3 window on 2x2 maps takes 50 to 100 times longer than the matrix product of
    all patches with the kernel, which is used instead.

    Arguments:
        inputs, kernel: channels last, as Flax has them.
        options: the other arguments of `jax.lax.conv_general_dilated`.
    """
    dense = options.get("feature_group_count", 1) == 1 and all(
        size == 1 for name in ("lhs_dilation", "rhs_dilation") for size in options.get(name) or ()
    )
    window, sizes = kernel.shape[:-2], inputs.shape[1:-1]
    pairs = (
        lax.padtype_to_pads(sizes, window, strides, padding)
        if isinstance(padding, str)
        else padding
    )
    out = [
        (size + sum(pair) - width) // stride + 1
        for size, pair, width, stride in zip(sizes, pairs, window, strides, strict=True)
    ]
    if not dense or math.prod(out) >= math.prod(window) or jax.default_backend() != "cpu":
        return lax.conv_general_dilated(inputs, kernel, strides, padding, **options)
    padded = jnp.pad(inputs, ((0, 0), *pairs, (0, 0)))
    patches = [
        padded[
            :,
            *(
                slice(start, start + (number - 1) * stride + 1, stride)
                for start, number, stride in zip(offset, out, strides, strict=True)
            ),
        ]
        for offset in product(*map(range, window))
    ]
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return jnp.matmul(jnp.concatenate(patches, axis=-1), matrix, precision=options.get("precision"))


# Factorised layers may be computed by `tdjax`'s other exact programs in its place.
convolve.same_as_lax = True  # type: ignore[attr-defined]
