"""What chains of thin layers compute, from their kernels alone: rows in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tdjax.compute.programs import channels_last
from tdjax.plan import tt_matrix
from tdjax.plan.layers import Layer
from tdjax.plan.low_rank import BlockProduct, split_inputs
from tdjax.plan.stage import Chain, Stage, table_chain, whole
from tdjax.plan.tt_matrix import TTMatrixChain
from tdjax.trace.convolutions import Window, conv_settings, transposed_settings

Kernels = Sequence[Float[Array, "*_"]]


@dataclass(frozen=True)
class Whole:
    """A layer as it is, as a chain of one."""

    layer: Layer

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The layer alone."""
        return (whole(self.layer, "kernel"),)

    def take_rows(self, kernels: Kernels, index: Int[Array, "*b"]) -> Float[Array, "*b n"]:
        """Rows of the kernel."""
        return jnp.take(kernels[0], index, axis=0)


AnyChain = Chain | Whole


def rows_taken(chain: AnyChain, kernels: Kernels, index: Int[Array, "*b"]) -> Float[Array, "*b n"]:
    """Rows of the matrix that a chain stands for."""
    table = chain if isinstance(chain, Whole) else table_chain(chain)
    return table.take_rows(kernels, index)


def multiplied(
    chain: AnyChain,
    kernels: Kernels,
    rows: Float[Array, "*b m"],
    settings: Mapping[str, Any],
    *,
    transposed: bool = False,
) -> Float[Array, "*b n"]:
    """Rows times the matrix that a chain stands for.

    Arguments:
        kernels: of its stages.
        settings: of `jax.lax.dot_general`.
        transposed: whether by the transposed matrix.
    """
    stages = chain.stages
    if isinstance(chain, TTMatrixChain):
        cores = [core.swapaxes(1, 2) for core in kernels] if transposed else kernels
        return tt_matrix.multiply(rows, cores, settings["precision"])
    if transposed:
        stages, kernels = stages[::-1], [kernel.T for kernel in kernels[::-1]]
    y = rows
    for stage, kernel in zip(stages, kernels, strict=True):
        # What comes between two stages is of the kind that goes into the first, as its numbers.
        own = rows.dtype if y is rows else jnp.promote_types(rows.dtype, kernel.dtype)
        x: Any = split_inputs(y.astype(own), stage.groups)
        product: Any = jax.lax.dot_general
        if stage.groups > 1:
            product = BlockProduct(product)
        y = product(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **settings)
    return y


def convolved(
    layer: Layer,
    window: Window,
    chain: AnyChain,
    kernels: Kernels,
    x: Float[Array, "*_"],
    settings: Mapping[str, Any],
    convolutions: Sequence[Any] = (),
) -> Float[Array, "*_"]:
    """A chain of convolutions, channels last.

    Arguments:
        layer, window: which the chain takes the place of.
        kernels: of its stages.
        settings: of `jax.lax.conv_general_dilated`.
        convolutions: for each stage what is called in its place, if not that itself.
    """
    settings_of: Any = transposed_settings if layer.kind == "conv_transpose" else conv_settings
    called = convolutions or [jax.lax.conv_general_dilated] * len(chain.stages)
    y = x
    for stage, kernel, convolution in zip(chain.stages, kernels, called, strict=True):
        own = settings_of(window, stage)
        y = convolution(
            y.astype(x.dtype),
            kernel,
            own.get("strides", (1,) * len(layer.in_spatial)),
            own["padding"],
            own["input_dilation"],
            own["kernel_dilation"],
            channels_last(x.ndim),
            own["feature_group_count"],
            **settings,
        )
    return y
