"""The kinds of NNX layers that can be factorised: what a call says of one, and who answers it.

A factorised layer is an instance of a subclass of its layer's class. It has all attributes of the
layer but the kernel; in its place are the stages of the chain, modules with a `kernel` each, and
`planned`, the plan's entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tdjax.compute.convolve import (
    Apart,
    apart,
    dense_kernel,
    reconstructs,
    stage_convolution,
    widened,
    with_zeros,
)
from tdjax.plan import low_rank, tt_matrix
from tdjax.plan.layers import Layer
from tdjax.plan.low_rank import BlockProduct
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import CORRECTION, Chain, Stage, table_chain, whole
from tdjax.plan.tt_matrix import TTMatrixChain
from tdjax.trace import convolutions, matrices
from tdjax.trace.call import Call


class Kind(NamedTuple):
    """How one class of layers is described and answered.

    Arguments:
        weight: name of the parameter that is decomposed.
        describe: a layer table's entry from a call; its path is filled in by the table.
        factorised: the class that answers in its place.
        thin: one stage of the chain, its kernel still to be set.
    """

    weight: str
    describe: Callable[[Call], Layer]
    factorised: type[nnx.Module]
    thin: Callable[[Any, Stage], nnx.Module]


class FactorArray(nnx.Module):
    """One array of a chain that is no thin layer, its `kernel`."""


class FactorisedConv(nnx.Conv):
    """An `nnx.Conv` whose kernel is a chain."""

    def __call__(self, inputs: Float[Array, "*_"], out_sharding: Any = None) -> Float[Array, "*_"]:
        """The chain of convolutions, see `nnx.Conv`."""
        y = _convolved(self, inputs, thin_conv, self.conv_general_dilated)
        return _placed(_with_bias(self, inputs, y), out_sharding)


class FactorisedConvTranspose(nnx.ConvTranspose):
    """An `nnx.ConvTranspose` whose kernel is a chain."""

    def __call__(self, inputs: Float[Array, "*_"]) -> Float[Array, "*_"]:
        """The chain of convolutions of the dilated input, see `nnx.ConvTranspose`."""
        return _with_bias(self, inputs, _convolved(self, inputs, thin_conv_transpose, None))


def thin_conv(module: Any, stage: Stage) -> nnx.Module:
    """One stage of an `nnx.Conv`."""
    settings = convolutions.conv_settings(module, stage)
    return _conv(module, stage, conv_general_dilated=module.conv_general_dilated, **settings)


def thin_conv_transpose(module: Any, stage: Stage) -> nnx.Module:
    """One stage of an `nnx.ConvTranspose`."""
    return _conv(module, stage, **convolutions.transposed_settings(module, stage))


def _conv(module: Any, stage: Stage, **settings: Any) -> nnx.Module:
    *_, fan_in, features = stage.kernel_shape
    return _thin(nnx.Conv, module, fan_in * stage.groups, features, **settings)


class FactorisedLinear(nnx.Linear):
    """An `nnx.Linear` whose kernel is a chain."""

    def __call__(self, inputs: Float[Array, "*_"], out_sharding: Any = None) -> Float[Array, "*_"]:
        """The product with the chain, see `nnx.Linear`."""
        return _placed(_with_bias(self, inputs, _product(self, inputs)), out_sharding)


class FactorisedLinearGeneral(nnx.LinearGeneral):
    """An `nnx.LinearGeneral` whose kernel is a chain."""

    def __call__(self, inputs: Float[Array, "*_"], out_sharding: Any = None) -> Float[Array, "*_"]:
        """The product with the chain on merged axes, see `nnx.LinearGeneral`."""
        x = matrices.merge_axes(inputs, matrices.input_axes(self, inputs.ndim))
        y = _product(self, x)
        y = y.reshape(*y.shape[:-1], *self.out_features)
        return _placed(_with_bias(self, inputs, y), out_sharding)


class FactorisedEinsum(nnx.Einsum):
    """An `nnx.Einsum` whose kernel is a chain."""

    def __call__(
        self, inputs: Float[Array, "*_"], einsum_str: str | None = None, out_sharding: Any = None
    ) -> Float[Array, "*_"]:
        """The product with the chain on merged axes, see `nnx.Einsum`.

        Raises ValueError for an equation that is no matrix product, or another one than the
        layer was factorised for.
        """
        planned, shape = _layer(self), _layer(self).storage.shape
        labels = matrices.einsum_labels(self, einsum_str, inputs.ndim, len(shape))
        if isinstance(labels, str):
            raise ValueError(f"layer {planned.path!r}: {labels}")
        found = matrices.einsum(Call(self, "__call__", inputs, inputs, einsum_str), shape)
        order = planned.storage.order
        if (found.kernel_shape, found.storage.order) != (planned.kernel_shape, order):
            equation = einsum_str or self.einsum_str
            raise ValueError(
                f"layer {planned.path!r}: its equation {equation!r} multiplies by its kernel in "
                "another way than the one that it was factorised for: make the plan with that call"
            )
        y = _product(self, matrices.einsum_rows(inputs, labels))
        y = matrices.einsum_output(y, labels, shape)
        _, spread = matrices.einsum_bias(labels, shape)
        return _placed(_with_bias(self, inputs, y, spread), out_sharding)


class FactorisedEmbed(nnx.Embed):
    """An `nnx.Embed` whose table is a chain."""

    def __call__(self, inputs: Array | np.ndarray, out_sharding: Any = None) -> Float[Array, "*_"]:
        """Rows of the table, see `nnx.Embed`."""
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError("Input type must be an integer or unsigned integer.")
        factors = [
            self.promote_dtype((factor,), dtype=self.dtype, inexact=False)[0]
            for factor in _kernels(self)
        ]
        taken = jnp.take(factors.pop(), inputs, axis=0) if _nonzeros(self) else 0
        rows = table_chain(_chain(self)).take_rows(factors, jnp.asarray(inputs))
        return _placed(rows + taken, out_sharding)

    def attend(self, query: Float[Array, "*_"], out_sharding: Any = None) -> Float[Array, "*_"]:
        """Inner products of a query with all rows of the table, see `nnx.Embed`."""
        factors = []
        for factor in _kernels(self):
            query, factor = self.promote_dtype((query, factor), dtype=self.dtype)
            factors.append(factor)
        products = jnp.dot(query, factors.pop().T) if _nonzeros(self) else 0
        return _placed(table_chain(_chain(self)).attend(factors, query) + products, out_sharding)


def describe_linear_general(call: Call) -> Layer:
    """Of `nnx.LinearGeneral`."""
    module = call.module
    return matrices.dense_general(call, module.out_features, bool(module.batch_axis))


def thin_linear(module: Any, stage: Stage) -> nnx.Module:
    """One stage of an `nnx.Linear`."""
    if stage.groups > 1:
        return _blocks(module, stage, module.dot_general)
    return _thin(nnx.Linear, module, *stage.kernel_shape, dot_general=module.dot_general)


def thin_linear_general(module: Any, stage: Stage) -> nnx.Module:
    """One stage of an `nnx.LinearGeneral`."""
    if stage.groups > 1:
        given = module.dot_general_cls() if module.dot_general_cls else module.dot_general
        return _blocks(module, stage, given)
    own = {name: getattr(module, name) for name in ("dot_general", "dot_general_cls")}
    return _thin(nnx.LinearGeneral, module, *stage.kernel_shape, **own)


def thin_einsum(module: Any, stage: Stage) -> nnx.Module:
    """One stage of an `nnx.Einsum`."""
    if stage.groups > 1:
        return _blocks(module, stage, None)
    return _thin(
        nnx.Einsum, module, "...i,io->...o", stage.kernel_shape, einsum_op=module.einsum_op
    )


def _blocks(module: Any, stage: Stage, dot_general: Any) -> nnx.Module:
    """A stage that multiplies by a block-diagonal matrix."""
    product = BlockProduct(dot_general or jax.lax.dot_general)
    return _thin(nnx.Linear, module, *stage.kernel_shape, dot_general=product)


def _product(module: Any, x: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """Rows times the matrix that a chain and a sparse correction stand for."""
    y = _chain_product(module, x)
    return apart(_corrected(module, x, y))


def _chain_product(module: Any, x: Float[Array, "*_"]) -> Float[Array, "*_"]:
    chain = _chain(module)
    if not isinstance(chain, TTMatrixChain):
        x = chain.rows_in(x)
        for stage in _stages(module):
            x = getattr(module, stage.name)(low_rank.split_inputs(x, stage.groups))
        return chain.rows_out(x)
    cores = []
    for stage in _stages(module):
        core = getattr(module, stage.name).kernel[...]
        x, core, _ = module.promote_dtype((x, core, None), dtype=module.dtype)
        cores.append(core)
    y = tt_matrix.multiply(x, cores, module.precision)
    wanted = getattr(module, "preferred_element_type", None)
    return y if wanted is None else y.astype(wanted)


def _layer(module: Any) -> Layer:
    return module.planned.layer


def _chain(module: Any) -> Chain:
    return module.planned.chain


def _stages(module: Any) -> tuple[Stage, ...]:
    return _chain(module).stages


def _nonzeros(module: Any) -> int:
    return module.planned.nonzeros


def stage_of(module: Any, stage: Stage, entry: PlannedLayer) -> nnx.Module:
    """One stage of a layer's chain, its kernel still to be set."""
    # A core of a TT-matrix is no thin layer of any kind.
    core = isinstance(entry.chain, TTMatrixChain)
    kind = KINDS.get(type(module))
    if core or kind is None:
        return FactorArray()
    thin: Any = kind.thin(module, stage)
    if isinstance(thin, nnx.Conv):
        number = entry.stages.index(stage)
        thin.conv_general_dilated = stage_convolution(entry, number, thin.conv_general_dilated)
    return thin


def keep(module: Any) -> None:
    """Let a layer that stays dense be computed apart, see `tdjax.compute.convolve.apart`."""
    name = MULTIPLIES.get(type(module))
    if name is not None and not isinstance(getattr(module, name), Apart):
        setattr(module, name, Apart(getattr(module, name)))


def release(module: Any) -> None:
    """Undo `keep`."""
    name = MULTIPLIES.get(type(module))
    if name is not None and isinstance(getattr(module, name), Apart):
        setattr(module, name, getattr(module, name).given)


def _convolved(
    module: Any, x: Float[Array, "*_"], thin: Callable[[Any, Stage], Any], given: Any
) -> Float[Array, "*_"]:
    """What a layer's convolution returns, of its factors.

    Arguments:
        thin: see `Kind`.
        given: the layer's own function of convolution, if any.
    """
    entry, y = module.planned, x
    if reconstructs(entry, x.shape, given):
        dense = thin(module, whole(entry.layer, "dense"))
        dense.kernel = nnx.Param(_dense_kernel(module))
        return apart(dense(x))
    for stage, wider in zip(entry.stages, widened(entry, given).stages, strict=True):
        own = getattr(module, stage.name)
        if stage.kernel_shape != wider.kernel_shape:
            made = thin(module, wider)
            made.kernel = nnx.Param(with_zeros(own.kernel[...], wider.kernel_shape))
            made.conv_general_dilated = own.conv_general_dilated
            own = made
        y = own(y)
    return apart(_corrected(module, x, y))


def _dense_kernel(module: Any) -> Float[Array, "*_"]:
    """The kernel that the factors stand for, and the sparse correction if there is one."""
    names = [stage.name for stage in _stages(module)]
    kernel = dense_kernel(
        module.planned, {name: getattr(module, name).kernel[...] for name in names}
    )
    return kernel + getattr(module, CORRECTION).kernel[...] if _nonzeros(module) else kernel


def _corrected(module: Any, x: Float[Array, "*_"], y: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """What a chain makes of `x`, with what its sparse correction does."""
    return y + getattr(module, CORRECTION)(x) if _nonzeros(module) else y


def _kernels(module: Any) -> list[Float[Array, "*_"]]:
    """Kernels of the stages, and behind them that of a sparse correction."""
    names = [stage.name for stage in _stages(module)]
    if _nonzeros(module):
        names.append(CORRECTION)
    return [getattr(module, name).kernel[...] for name in names]


def _with_bias(
    module: Any,
    inputs: Float[Array, "*_"],
    y: Float[Array, "*_"],
    spread: list[int] | None = None,
) -> Float[Array, "*_"]:
    if module.bias is None:
        return y
    bias = module.bias[...]
    # In the place of the kernel: a user's function may expect an array there.
    _, _, bias = module.promote_dtype((inputs, bias, bias), dtype=module.dtype)
    return y + (bias if spread is None else bias.reshape(spread))


def _placed(y: Float[Array, "*_"], out_sharding: Any) -> Float[Array, "*_"]:
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def _thin(cls: type, module: Any, *shape: Any, **settings: Any) -> nnx.Module:
    """A thin layer with the settings of the layer that it is part of."""
    shared = ("dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type")
    own = {name: getattr(module, name) for name in shared if hasattr(module, name)}
    if cls is not nnx.Einsum:
        own["use_bias"] = False
    thin: Any = cls(
        *shape,
        **own,
        **settings,
        # What it makes is replaced by a factor.
        kernel_init=nnx.initializers.zeros_init(),
        rngs=nnx.Rngs(0),
    )
    for name in ("kernel_init", "bias_init"):
        if hasattr(module, name):
            setattr(thin, name, getattr(module, name))
    return thin


# The attribute that is the function by which a layer multiplies.
MULTIPLIES: dict[Any, str] = {nnx.Conv: "conv_general_dilated", nnx.Linear: "dot_general"}
KINDS: dict[type, Kind] = {
    nnx.Conv: Kind(
        "kernel",
        lambda call: convolutions.convolution(call, call.module.out_features),
        FactorisedConv,
        thin_conv,
    ),
    nnx.ConvTranspose: Kind(
        "kernel",
        lambda call: convolutions.transposed_convolution(call, call.module.out_features),
        FactorisedConvTranspose,
        thin_conv_transpose,
    ),
    nnx.Linear: Kind(
        "kernel",
        lambda call: matrices.dense(call, call.module.out_features),
        FactorisedLinear,
        thin_linear,
    ),
    nnx.LinearGeneral: Kind(
        "kernel", describe_linear_general, FactorisedLinearGeneral, thin_linear_general
    ),
    nnx.Einsum: Kind(
        "kernel",
        lambda call: matrices.einsum(call, call.module.kernel_shape),
        FactorisedEinsum,
        thin_einsum,
    ),
    nnx.Embed: Kind(
        "embedding", matrices.embedding, FactorisedEmbed, lambda module, stage: FactorArray()
    ),
}
