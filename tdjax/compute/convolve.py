"""What the adapters ask: how a layer's convolutions are computed, in what is being traced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tdjax.compute import rule
from tdjax.compute.programs import PROGRAMS, Convolution, channels_last
from tdjax.compute.rule import CPU, is_reconstructed, way_of
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.ways import RECONSTRUCT, XLA, can_take_shape, ways_from

_forced: ContextVar[bool] = ContextVar("forced", default=False)
# Tools that quantise put code of their own in place of this function's.
_CODE = getattr(lax.conv_general_dilated, "__code__", None)
# What says of a function that it computes what `jax.lax.conv_general_dilated` does.
SAME = "same_as_lax"


@contextmanager
def xla_ways() -> Iterator[None]:
    """Compute factorised layers by XLA's own convolutions, in all that is traced inside.

    It outweighs the ways of a plan, and is what a program needs that is exported for a platform
    other than the one that traces it. A function that was compiled before stays as it is, as one
    that is compiled inside does afterwards: where that matters, use `plan.with_ways("xla")`.

        >>> import flax.linen as nn, jax, jax.numpy as jnp, tdjax
        >>> model, x = nn.Conv(8, (3, 3)), jnp.ones((1, 6, 6, 4))
        >>> variables = model.init(jax.random.key(0), x)
        >>> plan = tdjax.make_plan(model, variables, [tdjax.Rule(path="", method="cp", rank=3)], x)
        >>> small = tdjax.factorize(model, plan)
        >>> with tdjax.xla_ways():
        ...     program = jax.make_jaxpr(small.apply)(small.init(jax.random.key(0), x), x)
        >>> str(program).count("conv_general_dilated[")
        4
    """
    before = _forced.set(True)
    try:
        yield
    finally:
        _forced.reset(before)


def is_forced() -> bool:
    """Whether XLA's own convolutions are asked for."""
    return _forced.get()


def reconstructs(entry: PlannedLayer, shape: Sequence[Any], given: Any = None) -> bool:
    """Whether a layer's convolution multiplies its dense kernel out in each call.

    Arguments:
        shape: of the input, (*batch, *spatial, C).
        given: the layer's own function in place of `jax.lax.conv_general_dilated`, if any.
    """
    return _is_free() and is_same(given) and is_reconstructed(entry, shape, _backend())


def dense_kernel(
    entry: PlannedLayer, kernels: Mapping[str, Float[Array, "*_"]]
) -> Float[Array, "*_"]:
    """The kernel that the kernels of a chain's stages stand for, of their dtype.

    Of half precision, it is rounded once.
    """
    dtype = next(iter(kernels.values())).dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    whole = entry.chain.reconstruct({name: own.astype(wide) for name, own in kernels.items()})
    return whole.astype(dtype)


def ways_by(entry: PlannedLayer, way: str) -> tuple[str, ...]:
    """The ways of a layer's stages of which all that can be are computed in one way.

    Of the others, those that span no window are as the rule has them.
    """
    found = ways_from(entry.stages, way)
    if found == (RECONSTRUCT,):
        return found
    return tuple(
        own if stage.axes or own != XLA else way_of(stage.kernel_shape, stage.groups, _backend())
        for stage, own in zip(entry.stages, found, strict=True)
    )


def widened(entry: PlannedLayer, given: Any = None) -> PlannedLayer:
    """The entry by whose chain a factorised convolution is computed; see `tdjax.compute.rule`.

    Arguments:
        given: the layer's own function in place of `jax.lax.conv_general_dilated`, if any.
    """
    return rule.widened(entry, _backend()) if _is_free() and is_same(given) else entry


def with_zeros(kernel: Float[Array, "*_"], shape: Sequence[int]) -> Float[Array, "*_"]:
    """A kernel with zeros behind its own numbers, as a wider stage has it."""
    behind = [(0, wide - own) for wide, own in zip(shape, kernel.shape, strict=True)]
    return jnp.pad(kernel, behind) if any(more for _, more in behind) else kernel


def apart(x: Any) -> Any:
    """What a layer puts out, such that no compiler computes the layer with what comes behind it.

    XLA on a CPU (jaxlib 0.10) takes a sum over a map, as of a mean behind the last convolution,
    and all in front of it that adds, multiplies or convolves, for one program, in which
    convolutions take five times as long. A selection between numbers ends such a program; this one
    takes no entry, so that values and derivatives are those of x. Elsewhere x itself.
    """
    known = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
    if not known or not _is_free() or _backend() != CPU:
        return x
    infinite = lax.full_like(x, jnp.inf)
    return lax.select(lax.gt(x, infinite), infinite, x)


def stage_convolution(entry: PlannedLayer, number: int, given: Any = None) -> Any:
    """What convolves in a stage: a function of the arguments of `jax.lax.conv_general_dilated`.

    Arguments:
        number: of the stage.
        given: the layer's own function in its place, if any. It stays, or is XLA's own way where
            it says by an attribute `same_as_lax` that it computes the same.
    """
    if not is_same(given):
        return given
    named = len(entry.ways) == len(entry.stages)
    return StageConvolution(entry.ways[number] if named else None, given)


@dataclass(frozen=True)
class StageConvolution:
    """`jax.lax.conv_general_dilated` by one of several exact programs.

    Arguments:
        way: see `tdjax.plan.ways`; None for the rule.
        given: what is called in place of `jax.lax.conv_general_dilated`, if not that itself.
    """

    way: str | None = None
    given: Any = None

    def __call__(
        self,
        # Tools that quantise pass what is no array.
        inputs: Any,
        kernel: Any,
        window_strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        lhs_dilation: Sequence[int] | None = None,
        rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: Any = None,
        feature_group_count: int = 1,
        **settings: Any,
    ) -> Any:
        """As `jax.lax.conv_general_dilated`; by that what no program here can compute."""
        ones = (1,) * len(window_strides)
        asked = Convolution(
            tuple(window_strides),
            padding,
            tuple(lhs_dilation or ones),
            tuple(rhs_dilation or ones),
            feature_group_count,
            {name: value for name, value in settings.items() if value is not None},
        )
        if dimension_numbers == channels_last(len(window_strides) + 2) and _is_free():
            places = _places(inputs, kernel, asked)
            way = self.way or way_of(kernel.shape, feature_group_count, _backend(), places)
            if way != XLA and _can_compute(way, inputs, kernel, asked):
                return PROGRAMS[way](inputs, kernel, asked)
        own = self.given or lax.conv_general_dilated
        return own(
            inputs,
            kernel,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            **settings,
        )


def _places(x: Any, kernel: Any, asked: Convolution) -> int | None:
    """Places of the results of all maps; None where sizes are not known, or are none."""
    if not all(isinstance(size, int) for size in x.shape):
        return None
    if isinstance(asked.padding, str) and any(n > 1 for n in asked.input_dilation):
        return None
    return x.shape[0] * math.prod(asked.out_sizes(x.shape[1:-1], kernel.shape[:-2]))


def _can_compute(way: str, x: Any, kernel: Any, asked: Convolution) -> bool:
    """Whether the programs compute such a convolution; what is wrong is for XLA's own to say."""
    known = {"precision", "preferred_element_type"}
    sizes = x.shape[1:-1]
    return (
        asked.settings.keys() <= known
        and x.dtype == kernel.dtype
        and jnp.issubdtype(x.dtype, jnp.floating)
        and x.shape[-1] == kernel.shape[-2] * asked.groups
        and can_take_shape(kernel.shape, asked.groups, way)
        and not (isinstance(asked.padding, str) and any(n > 1 for n in asked.input_dilation))
        # Sizes that are not known can be no end of a slice.
        and all(isinstance(size, int) and size > 0 for size in sizes)
        and min(asked.out_sizes(sizes, kernel.shape[:-2]), default=1) > 0
    )


@dataclass(frozen=True)
class Apart:
    """A function of products or convolutions, what it gives being computed apart; see `apart`."""

    given: Any

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """As the function."""
        return apart(self.given(*args, **settings))

    @property
    def same_as_lax(self) -> bool:
        """See `SAME`."""
        return is_same(self.given)


def is_same(given: Any) -> bool:
    """Whether a layer's function computes what `jax.lax.conv_general_dilated` does."""
    return given in (None, lax.conv_general_dilated) or getattr(given, SAME, False) is True


def _is_free() -> bool:
    """Whether anything but XLA's own convolution may be computed."""
    own = getattr(lax.conv_general_dilated, "__code__", None) is _CODE
    # On a mesh it is for XLA to say how results lie.
    return own and not is_forced() and jax.sharding.get_abstract_mesh().empty


def _backend() -> str:
    """The platform for which a program is traced, as far as that is known."""
    config: Any = jax.config
    device = config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
