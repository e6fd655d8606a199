"""The kinds of Linen layers that can be factorised: what a call says of one, and who answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tdjax.compute.convolve import (
    dense_kernel,
    reconstructs,
    stage_convolution,
    widened,
    with_zeros,
)
from tdjax.linen.given import FactorArray, GivenConv, GivenDense
from tdjax.linen.initial import stage_initializer
from tdjax.linen.sparse import SparseConv, SparseDense, SparseTable
from tdjax.params.partitioning import unboxed
from tdjax.params.storing import full_array
from tdjax.plan import low_rank, tt_matrix
from tdjax.plan.layers import Layer
from tdjax.plan.low_rank import BlockProduct
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.shared import steps
from tdjax.plan.stage import CORRECTION, INPUT, Stage, table_chain, whole
from tdjax.plan.tt_matrix import TTMatrixChain
from tdjax.trace import convolutions, matrices
from tdjax.trace.call import Call
from tdjax.trace.matrices import as_tuple


class Kind(NamedTuple):
    """How one class of layers is described and answered.

    Arguments:
        weight: name of the parameter that is decomposed.
        describe: a layer table's entry from a call; its path is filled in by the table.
        methods: by name, what answers in place of the layer: (module, entry, *arguments).
    """

    weight: str
    describe: Callable[[Call], Layer]
    methods: Mapping[str, Callable[..., Any]]


def describe_conv(call: Call) -> Layer:
    """Of `nn.Conv`."""
    return convolutions.convolution(call, call.module.features)


def run_conv(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """The chain of convolutions in place of `nn.Conv`."""

    def settings(stage: Stage) -> dict[str, Any]:
        own = convolutions.conv_settings(module, stage)
        made = module.conv_general_dilated_cls
        return {**_shared(module, entry, stage), **own, "conv_general_dilated_cls": made}

    given = module.conv_general_dilated_cls or module.conv_general_dilated
    return _convolved(module, entry, inputs, settings, given)


def describe_conv_transpose(call: Call) -> Layer:
    """Of `nn.ConvTranspose`."""
    return convolutions.transposed_convolution(call, call.module.features)


def run_conv_transpose(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """The chain in place of `nn.ConvTranspose`: convolutions of the dilated input."""

    def settings(stage: Stage) -> dict[str, Any]:
        own = convolutions.transposed_settings(module, stage)
        return {**_shared(module, entry, stage), **own}

    return _convolved(module, entry, inputs, settings, None)


def _convolved(
    module: Any,
    entry: PlannedLayer,
    inputs: Array,
    settings: Callable[[Stage], dict[str, Any]],
    given: Any,
) -> Array:
    """What a layer's convolution returns, of its factors.

    Arguments:
        settings: of the `nn.Conv` that a stage is.
        given: the layer's own function of convolution, or what makes it, if any.
    """
    if reconstructs(entry, inputs.shape, given):
        dense = GivenConv(
            **{**settings(whole(entry.layer, "dense")), "kernel": _dense_kernel(module, entry)},
            conv_general_dilated=given,
        )
        return _with_bias(module, entry, dense(inputs))
    x, wide = inputs, widened(entry, given)
    for number, (stage, wider) in enumerate(zip(entry.stages, wide.stages, strict=True)):
        own = stage_convolution(entry, number, given)
        if stage.kernel_shape == wider.kernel_shape:
            x = nn.Conv(**settings(stage), conv_general_dilated=own)(x)
            continue
        kernel = _factor(module, module.kernel_init, entry, stage, stage.name)()
        asked = settings(replace(wider, name=f"{stage.name}_wide"))
        asked["kernel"] = with_zeros(kernel, wider.kernel_shape)
        x = GivenConv(**asked, conv_general_dilated=own)(x)
    if entry.correction is not None:
        own = settings(entry.correction)
        x += SparseConv(**own, conv_general_dilated=given, nonzeros=entry.nonzeros)(inputs)
    return _with_bias(module, entry, x)


def _dense_kernel(module: Any, entry: PlannedLayer) -> Array:
    """The kernel that the factors stand for, and the sparse correction if there is one."""
    kernels = {
        stage.name: _factor(module, module.kernel_init, entry, stage, stage.name)()
        for stage in entry.stages
    }
    kernel = dense_kernel(entry, kernels)
    if entry.correction is None:
        return kernel
    shape, dtype = entry.correction.kernel_shape, module.param_dtype
    return (
        kernel
        + SparseTable(nonzeros=entry.nonzeros, shape=shape, param_dtype=dtype, name=CORRECTION)()
    )


def describe_dense(call: Call) -> Layer:
    """Of `nn.Dense`."""
    return matrices.dense(call, call.module.features)


def run_dense(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """The chain in place of `nn.Dense`."""
    return _with_bias(module, entry, _product(module, entry, inputs))


def describe_dense_general(call: Call) -> Layer:
    """Of `nn.DenseGeneral`."""
    features, batched = as_tuple(call.module.features), bool(as_tuple(call.module.batch_dims))
    return matrices.dense_general(call, features, batched)


def run_dense_general(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """The chain in place of `nn.DenseGeneral`, on merged axes."""
    features = as_tuple(module.features)
    x = matrices.merge_axes(inputs, matrices.input_axes(module, inputs.ndim))
    y = _product(module, entry, x)
    y = y.reshape(*y.shape[:-1], *features)
    return _add_bias(module, y, features, features) if module.use_bias else y


def describe_einsum(call: Call) -> Layer:
    """Of `nn.Einsum`."""
    return matrices.einsum(call, call.module.shape)


def run_einsum(
    module: Any, entry: PlannedLayer, inputs: Array, einsum_str: str | None = None
) -> Array:
    """The chain in place of `nn.Einsum`, on merged axes."""
    shape = entry.layer.storage.shape
    labels = matrices.einsum_labels(module, einsum_str, inputs.ndim, len(shape))
    if isinstance(labels, str):
        raise ValueError(f"layer {entry.layer.path!r}: {labels}")
    y = _product(module, entry, matrices.einsum_rows(inputs, labels))
    y = matrices.einsum_output(y, labels, shape)
    return _add_bias(module, y, *matrices.einsum_bias(labels, shape)) if module.use_bias else y


def set_up_embed(module: Any, entry: PlannedLayer) -> None:
    """The factors in place of the table."""
    for stage in entry.stages:
        setattr(module, stage.name, _factor(module, module.embedding_init, entry, stage, None))
    if entry.correction is not None:
        shape, dtype = entry.correction.kernel_shape, module.param_dtype
        table = SparseTable(nonzeros=entry.nonzeros, shape=shape, param_dtype=dtype)
        setattr(module, CORRECTION, table)


def run_embed(module: Any, entry: PlannedLayer, inputs: Array | np.ndarray) -> Array:
    """Rows of the table."""
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
        raise ValueError("Input type must be an integer or unsigned integer.")
    factors = _tables(module, entry)
    factors = module.promote_dtype(*factors, dtype=module.dtype, inexact=False)
    taken = jnp.take(factors.pop(), inputs, axis=0) if entry.nonzeros else 0
    return table_chain(entry.chain).take_rows(factors, jnp.asarray(inputs)) + taken


def run_attend(module: Any, entry: PlannedLayer, query: Array) -> Array:
    """Inner products of a query with all rows of the table."""
    factors = _tables(module, entry)
    query, *factors = module.promote_dtype(query, *factors, dtype=module.dtype)
    products = jnp.dot(query, factors.pop().T) if entry.nonzeros else 0
    return table_chain(entry.chain).attend(factors, query) + products


def _tables(module: Any, entry: PlannedLayer) -> list[Array]:
    """The factors of a table, and behind them its sparse correction."""
    tables = [getattr(module, stage.name)() for stage in entry.stages]
    return [*tables, getattr(module, CORRECTION)()] if entry.nonzeros else tables


def _product(module: Any, entry: PlannedLayer, x: Array) -> Array:
    """Rows times the matrix that a chain and a sparse correction stand for."""
    y = _chain_product(module, entry, x)
    if entry.correction is None:
        return y
    settings = _shared(module, entry, entry.correction)
    own = _dot_general(module, entry.correction)
    return y + SparseDense(**settings, **own, nonzeros=entry.nonzeros)(x)


def _chain_product(module: Any, entry: PlannedLayer, x: Array) -> Array:
    if isinstance(entry.chain, TTMatrixChain):
        cores = [
            _factor(module, module.kernel_init, entry, stage, stage.name)()
            for stage in entry.stages
        ]
        x, *cores = module.promote_dtype(x, *cores, dtype=module.dtype)
        return tt_matrix.multiply(x, cores, module.precision)
    if entry.shares is not None:
        first = entry.chain.stages[0]
        settings = {**_shared(module, entry, first), **_dot_general(module, first)}
        x = GivenDense(**settings, kernel=_lent_factor(module, entry, entry.shares))(x)
    x = entry.chain.rows_in(x)
    for stage in entry.stages:
        own = _dot_general(module, stage)
        rows = low_rank.split_inputs(x, stage.groups)
        x = nn.Dense(**_shared(module, entry, stage), **own)(rows)
    return entry.chain.rows_out(x)


def _lent_factor(module: Any, entry: PlannedLayer, lender: str) -> Array:
    """The input factor that lies with another layer.

    Raises ValueError where there is none, or the lender cannot be reached from here.
    """
    way, scope = steps(entry.layer.path, lender), module.scope
    for _ in range(way.up):
        scope = scope.parent if scope is not None else None
    found = None if scope is None else scope.get_variable("params", way.down[0])
    for name in (*way.down[1:], INPUT, "kernel"):
        found = found.get(name) if isinstance(found, Mapping) else None
    if found is None:
        raise ValueError(
            f"layer {entry.layer.path!r} shares the input factor of {lender!r}, which is not to be "
            "had where it is called: the two must be called in one module, this one last, and no "
            "transformation as nn.remat may be around one of them alone"
        )
    return jnp.asarray(unboxed(full_array(found) if entry.dtype else found))


def _dot_general(module: Any, stage: Stage) -> dict[str, Any]:
    """The products of a thin dense layer, from the settings of the layer."""
    given, make = (getattr(module, name, None) for name in ("dot_general", "dot_general_cls"))
    if stage.groups == 1:
        return {"dot_general": given, "dot_general_cls": make}
    if make is not None:
        return {"dot_general_cls": lambda: BlockProduct(make())}
    return {"dot_general": BlockProduct(given or jax.lax.dot_general)}


def _shared(module: Any, entry: PlannedLayer, stage: Stage) -> dict[str, Any]:
    """Settings that a thin layer takes over from the layer."""
    return {
        "features": stage.kernel_shape[-1],
        "use_bias": False,
        "dtype": module.dtype,
        "param_dtype": module.param_dtype,
        "precision": module.precision,
        "kernel_init": _initializer(module, module.kernel_init, entry, stage),
        "promote_dtype": module.promote_dtype,
        "name": stage.name,
    }


def _factor(
    module: Any, init: Any, entry: PlannedLayer, stage: Stage, name: str | None
) -> FactorArray:
    initial = _initializer(module, init, entry, stage)
    return FactorArray(stage.kernel_shape, initial, module.param_dtype, name=name)


def _initializer(module: Any, init: Any, entry: PlannedLayer, stage: Stage) -> Callable[..., Any]:
    drawn = module.is_mutable_collection("params")
    return stage_initializer(init, entry, stage, drawn=drawn)


def _with_bias(module: Any, entry: PlannedLayer, x: Array) -> Array:
    if not module.use_bias:
        return x
    features = entry.layer.kernel_shape[-1:]
    return _add_bias(module, x, features, features)


def _add_bias(module: Any, x: Array, shape: Sequence[int], spread: Sequence[int]) -> Array:
    bias = module.param("bias", module.bias_init, tuple(shape), module.param_dtype)
    x, bias = module.promote_dtype(x, bias, dtype=module.dtype)
    return jax.numpy.add(x, bias.reshape(spread))


KINDS: dict[type, Kind] = {
    nn.Conv: Kind("kernel", describe_conv, {"__call__": run_conv}),
    nn.ConvTranspose: Kind("kernel", describe_conv_transpose, {"__call__": run_conv_transpose}),
    nn.Dense: Kind("kernel", describe_dense, {"__call__": run_dense}),
    nn.DenseGeneral: Kind("kernel", describe_dense_general, {"__call__": run_dense_general}),
    nn.Einsum: Kind("kernel", describe_einsum, {"__call__": run_einsum}),
    nn.Embed: Kind(
        "embedding",
        matrices.embedding,
        {"setup": set_up_embed, "__call__": run_embed, "attend": run_attend},
    ),
}
