"""One convolution, channels last, by several exact programs: equal results up to rounding."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tdjax.plan.ways import PRODUCT, SHIFTED, SPLIT

Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Convolution:
    """What `jax.lax.conv_general_dilated` is asked for, beside the arrays.

    Arguments:
        strides, padding, input_dilation, kernel_dilation, groups: as it takes them.
        settings: `precision` and `preferred_element_type`.
    """

    strides: Sequence[int]
    padding: str | Pairs
    input_dilation: Sequence[int]
    kernel_dilation: Sequence[int]
    groups: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def reach(self, window: Sequence[int]) -> list[int]:
        """From the first to the last tap of a window, along each axis."""
        return [(n - 1) * wide for n, wide in zip(window, self.kernel_dilation, strict=True)]

    def pads(self, sizes: Sequence[int], window: Sequence[int]) -> Pairs:
        """The padding of the dilated input, which is negative where it is cut."""
        if not isinstance(self.padding, str):
            return self.padding
        spans = [reach + 1 for reach in self.reach(window)]
        pairs = lax.padtype_to_pads(sizes, spans, self.strides, self.padding)
        return [(int(low), int(high)) for low, high in pairs]

    def out_sizes(self, sizes: Sequence[int], window: Sequence[int]) -> list[int]:
        """Spatial sizes of the result; 0 or less where there is none."""
        return [
            ((size - 1) * apart + 1 + low + high - reach - 1) // stride + 1
            for size, apart, (low, high), reach, stride in zip(
                sizes, self.input_dilation, self.pads(sizes, window), self.reach(window),
                self.strides, strict=True,
            )
        ]  # fmt: skip


def by_xla(
    x: Float[Array, "b *map c"], kernel: Float[Array, "*_"], asked: Convolution
) -> Float[Array, "b *out t"]:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        asked.strides,
        asked.padding,
        lhs_dilation=asked.input_dilation,
        rhs_dilation=asked.kernel_dilation,
        dimension_numbers=channels_last(x.ndim),
        feature_group_count=asked.groups,
        **asked.settings,
    )


def shifted(
    x: Float[Array, "b *map c"], kernel: Float[Array, "*window 1 c"], asked: Convolution
) -> Float[Array, "b *out c"]:
    """A depthwise convolution as one multiply-add of the shifted map for each tap.

    Numbers of half precision are added up in float32, as XLA's convolutions do.
    """
    result = asked.settings.get("preferred_element_type") or x.dtype
    wide = functools.reduce(jnp.promote_types, (x.dtype, result, jnp.float32))
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(wide)
    taps = taps_of(x, kernel.shape[:-2], asked)
    parts = (tap.astype(wide) * weight for tap, weight in zip(taps, weights, strict=True))
    return functools.reduce(operator.add, parts).astype(result)


def split(
    x: Float[Array, "b *map c"], kernel: Float[Array, "*_"], asked: Convolution
) -> Float[Array, "b *out t"]:
    """A convolution for each feature group."""
    own = Convolution(
        asked.strides, asked.padding, asked.input_dilation, asked.kernel_dilation, 1, asked.settings
    )
    maps, kernels = (jnp.split(part, asked.groups, axis=-1) for part in (x, kernel))
    parts = [by_xla(part, weights, own) for part, weights in zip(maps, kernels, strict=True)]
    return jnp.concatenate(parts, axis=-1)


def product(
    x: Float[Array, "b *map c"], kernel: Float[Array, "*_"], asked: Convolution
) -> Float[Array, "b *out t"]:
    """The product of all patches with the kernel: a batched one, over feature groups."""
    *window, inputs, features = kernel.shape
    taps, groups = math.prod(window), asked.groups
    parts = [
        tap.reshape(*tap.shape[:-1], groups, inputs) for tap in taps_of(x, tuple(window), asked)
    ]
    patches = parts[0] if taps == 1 else jnp.concatenate(parts, axis=-1)  # (b, *out, g, taps c)
    matrices = kernel.reshape(taps * inputs, groups, features // groups)
    axes = (((patches.ndim - 1,), (0,)), ((patches.ndim - 2,), (1,)))
    products = lax.dot_general(patches, matrices, axes, **asked.settings)  # (g, b, *out, t / g)
    products = jnp.moveaxis(products, 0, -2)
    return products.reshape(*products.shape[:-2], features)


def taps_of(
    x: Float[Array, "b *map c"], window: Sequence[int], asked: Convolution
) -> Iterator[Float[Array, "b *out c"]]:
    """For each tap of a window, what it multiplies at each place of the result."""
    sizes = x.shape[1:-1]
    edges = [
        (low, high, apart - 1)
        for (low, high), apart in zip(asked.pads(sizes, window), asked.input_dilation, strict=True)
    ]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    numbers = asked.out_sizes(sizes, window)
    for tap in itertools.product(*map(range, window)):
        part = padded
        for axis, place in enumerate(tap):
            start, step = place * asked.kernel_dilation[axis], asked.strides[axis]
            end = start + (numbers[axis] - 1) * step + 1
            part = lax.slice_in_dim(part, start, end, step, axis=axis + 1)
        yield part


def channels_last(rank: int) -> lax.ConvDimensionNumbers:
    """How arrays of so many axes lie, as Flax has them."""
    axes = tuple(range(rank))
    image = (0, rank - 1, *axes[1:-1])
    return lax.ConvDimensionNumbers(image, (rank - 1, rank - 2, *axes[:-2]), image)


PROGRAMS: Mapping[str, Callable[[Any, Any, Convolution], jax.Array]] = {
    SHIFTED: shifted,
    SPLIT: split,
    PRODUCT: product,
}
