"""The kinds of Linen layers that can be factorised: what a call says of one, and who answers it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.meta import AxisMetadata
from jaxtyping import Array

from tdjax import chain
from tdjax.boxes import box_factor, unboxed
from tdjax.chain import Stage
from tdjax.einsum import Labels, labels_of
from tdjax.layers import Layer, Storage
from tdjax.plan import PlannedLayer


class Call(NamedTuple):
    """A call as the shape-only pass sees it.

    Arguments:
        module: the layer.
        method: name of its method that was called.
        inputs, output: its first argument and its result, as shapes.
        equation: the second argument, for einsum layers.
        batch: number of examples.
    """

    module: Any
    method: str
    inputs: Any
    output: Any
    equation: str | None
    batch: int

    def per_example(self, number: int) -> int:
        """A number for the whole batch as one for each example."""
        return max(number // max(self.batch, 1), 1)


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


class Factor(nn.Module):
    """One array of a chain that is no thin layer."""

    shape: tuple[int, ...]
    kernel_init: Callable[..., Any]
    param_dtype: Any

    @nn.compact
    def __call__(self) -> Array:
        """The array."""
        return jnp.asarray(self.param("kernel", self.kernel_init, self.shape, self.param_dtype))


# ---------------------------------------------------------------- convolutions


def describe_conv(call: Call) -> Layer:
    """Of `nn.Conv`."""
    module, window = call.module, _window(call.module)
    groups = module.feature_group_count
    shape = (*window, call.inputs.shape[-1] // groups, module.features)
    return _convolution(call, "conv", shape, shape, groups=groups)


def run_conv(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """The chain of convolutions in place of `nn.Conv`."""
    window = _window(module)
    x = inputs
    for stage in entry.stages:

        def on_axes(value: Any, stage: Stage = stage) -> tuple[int, ...]:
            sizes = _on_window(value, len(window))
            return tuple(size if axis in stage.axes else 1 for axis, size in enumerate(sizes))

        x = nn.Conv(
            **_shared(module, entry, stage),
            kernel_size=stage.kernel_shape[:-2],
            strides=on_axes(module.strides),
            padding=_stage_padding(module.padding, stage, len(window)),
            input_dilation=on_axes(module.input_dilation),
            kernel_dilation=on_axes(module.kernel_dilation),
            feature_group_count=stage.groups,
            conv_general_dilated=module.conv_general_dilated,
            conv_general_dilated_cls=module.conv_general_dilated_cls,
        )(x)
    return _with_bias(module, x)


def describe_conv_transpose(call: Call) -> Layer:
    """Of `nn.ConvTranspose`."""
    module, window = call.module, _window(call.module)
    channels = (call.inputs.shape[-1], module.features)
    stored = channels[::-1] if module.transpose_kernel else channels
    found = _convolution(
        call,
        "conv_transpose",
        (*window, *channels),
        (*window, *stored),
        flipped=module.transpose_kernel,
    )
    if module.padding == "CIRCULAR":
        return dataclasses.replace(found, obstacle="it wraps its output around")
    return found


def run_conv_transpose(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """The chain in place of `nn.ConvTranspose`: convolutions of the dilated input."""
    window = _window(module)
    strides = _on_window(module.strides, len(window))
    dilation = _on_window(module.kernel_dilation, len(window))
    pads = [
        _transposed_padding(module.padding, axis, *sizes)
        for axis, sizes in enumerate(zip(window, strides, dilation, strict=True))
    ]
    x = inputs
    for stage in entry.stages:
        spans = [axis in stage.axes for axis in range(len(window))]
        x = nn.Conv(
            **_shared(module, entry, stage),
            kernel_size=stage.kernel_shape[:-2],
            padding=[pair if own else (0, 0) for pair, own in zip(pads, spans, strict=True)],
            input_dilation=[s if own else 1 for s, own in zip(strides, spans, strict=True)],
            kernel_dilation=[d if own else 1 for d, own in zip(dilation, spans, strict=True)],
            feature_group_count=stage.groups,
        )(x)
    return _with_bias(module, x)


def _transposed_padding(
    padding: Any, axis: int, window: int, stride: int, dilation: int
) -> tuple[int, int]:
    """Padding of the dilated input, as `jax.lax.conv_transpose` documents it."""
    if isinstance(padding, int):
        return padding, padding
    if not isinstance(padding, str):
        pair = padding[axis]
        return (pair, pair) if isinstance(pair, int) else tuple(pair)
    reach = (window - 1) * dilation
    if padding == "SAME":
        total = reach + stride - 1
        return (reach, total - reach) if stride > reach else (-(-total // 2), total // 2)
    return reach, reach + max(stride - reach - 1, 0)


def _convolution(
    call: Call, kind: str, kernel: tuple[int, ...], stored: tuple[int, ...], **settings: Any
) -> Layer:
    module, spatial = call.module, len(kernel) - 2
    flipped = settings.pop("flipped", False)
    axes = tuple(range(len(kernel)))
    order = (*axes[:-2], axes[-1], axes[-2]) if flipped else axes
    return Layer(
        "",
        kind,
        kernel,
        in_spatial=tuple(call.inputs.shape[-spatial - 1 : -1]),
        out_spatial=tuple(call.output.shape[-spatial - 1 : -1]),
        positions=call.per_example(math.prod(call.output.shape[: -spatial - 1])),
        obstacle="its kernel is masked" if module.mask is not None else None,
        stored=Storage("kernel", stored, order, flipped),
        **settings,
    )


def _window(module: Any) -> tuple[int, ...]:
    size = module.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def _on_window(value: int | Sequence[int] | None, axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value or 1,) * axes


def _stage_padding(padding: Any, stage: Stage, axes: int) -> Any:
    # A named padding adds nothing along an axis of window 1 and stride 1.
    if isinstance(padding, str):
        return padding
    pairs = [padding] * axes if isinstance(padding, int) else list(padding)
    return [
        ((pair, pair) if isinstance(pair, int) else tuple(pair)) if axis in stage.axes else (0, 0)
        for axis, pair in enumerate(pairs)
    ]


# ---------------------------------------------------------------- matrices


def describe_dense(call: Call) -> Layer:
    """Of `nn.Dense`."""
    shape = (call.inputs.shape[-1], call.module.features)
    return _matrix(call, "dense", shape, shape, (0, 1))


def run_dense(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """The chain in place of `nn.Dense`."""
    return _with_bias(module, _product(module, entry, inputs))


def describe_dense_general(call: Call) -> Layer:
    """Of `nn.DenseGeneral`."""
    module = call.module
    axes, features = _input_axes(module, call.inputs.ndim), _many(module.features)
    if _many(module.batch_dims):
        shape = tuple(call.inputs.shape)
        return Layer("", "dense_general", shape, obstacle="it has batch dimensions")
    inputs = tuple(call.inputs.shape[axis] for axis in axes)
    stored = (*inputs, *features)
    kernel = (math.prod(inputs), math.prod(features))
    return _matrix(call, "dense_general", kernel, stored, tuple(range(len(stored))))


def run_dense_general(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """The chain in place of `nn.DenseGeneral`, on merged axes."""
    axes = _input_axes(module, inputs.ndim)
    x = jnp.moveaxis(inputs, axes, range(inputs.ndim - len(axes), inputs.ndim))
    x = x.reshape(*x.shape[: inputs.ndim - len(axes)], -1)
    y = _product(module, entry, x)
    y = y.reshape(*y.shape[:-1], *_many(module.features))
    if not module.use_bias:
        return y
    return _add_bias(module, y, _many(module.features), _many(module.features))


def describe_einsum(call: Call) -> Layer:
    """Of `nn.Einsum`."""
    module = call.module
    shape = tuple(module.shape)
    labels = _labels(module, call.equation, call.inputs.ndim)
    if isinstance(labels, str):
        return Layer("", "einsum", shape, obstacle=labels)
    order = tuple(labels.kernel.index(label) for label in labels.contracted + labels.made)
    sizes = [shape[axis] for axis in order]
    inputs = len(labels.contracted)
    kernel = (math.prod(sizes[:inputs]), math.prod(sizes[inputs:]))
    return _matrix(call, "einsum", kernel, shape, order)


def run_einsum(
    module: Any, entry: PlannedLayer, inputs: Array, einsum_str: str | None = None
) -> Array:
    """The chain in place of `nn.Einsum`, on merged axes."""
    labels = _labels(module, einsum_str, inputs.ndim)
    if isinstance(labels, str):
        raise ValueError(f"layer {entry.layer.path!r}: {labels}")
    kept = [label for label in labels.inputs if label not in labels.contracted]
    x = jnp.einsum(f"{labels.inputs}->{''.join(kept)}{labels.contracted}", inputs)
    x = x.reshape(*x.shape[: len(kept)], -1)
    sizes = dict(zip(labels.kernel, entry.layer.storage.shape, strict=True))
    y = _product(module, entry, x)
    y = y.reshape(*y.shape[:-1], *(sizes[label] for label in labels.made))
    y = jnp.einsum(f"{''.join(kept)}{labels.made}->{labels.output}", y)
    if not module.use_bias:
        return y
    own = [sizes[label] for label in labels.output if label in sizes]
    spread = [sizes.get(label, 1) for label in labels.output]
    return _add_bias(module, y, own, spread)


def _labels(module: Any, equation: str | None, ndim: int) -> Labels | str:
    return labels_of(str(equation or module.einsum_str), ndim, len(module.shape))


def describe_embed(call: Call) -> Layer:
    """Of `nn.Embed`: rows are taken, or all of them multiplied by a query."""
    module = call.module
    shape = (module.num_embeddings, module.features)
    attends = call.method == "attend"
    rows = call.inputs.shape[:-1] if attends else call.inputs.shape
    number = call.per_example(math.prod(rows))
    return Layer(
        "",
        "embed",
        shape,
        positions=number if attends else 0,
        lookups=0 if attends else number,
        stored=Storage("embedding", shape, (0, 1)),
    )


def set_up_embed(module: Any, entry: PlannedLayer) -> None:
    """The factors in place of the table."""
    for stage in entry.stages:
        setattr(module, stage.name, _factor(module, module.embedding_init, entry, stage, None))


def run_embed(module: Any, entry: PlannedLayer, inputs: Array) -> Array:
    """Rows of the table."""
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
        raise ValueError("Input type must be an integer or unsigned integer.")
    factors = [getattr(module, stage.name)() for stage in entry.stages]
    factors = module.promote_dtype(*factors, dtype=module.dtype, inexact=False)
    if chain.is_matrix_train(entry.stages):
        return chain.take_rows(factors, inputs)
    rows, columns = factors
    return jnp.dot(jnp.take(rows, inputs, axis=0), columns)


def run_attend(module: Any, entry: PlannedLayer, query: Array) -> Array:
    """Inner products of a query with all rows of the table."""
    factors = [getattr(module, stage.name)() for stage in entry.stages]
    query, *factors = module.promote_dtype(query, *factors, dtype=module.dtype)
    if chain.is_matrix_train(entry.stages):
        return chain.multiply(query, [core.swapaxes(1, 2) for core in factors])
    rows, columns = factors
    return jnp.dot(jnp.dot(query, columns.T), rows.T)


def _matrix(
    call: Call,
    kind: str,
    kernel: tuple[int, int],
    stored: tuple[int, ...],
    order: tuple[int, ...],
) -> Layer:
    positions = call.per_example(math.prod(call.inputs.shape) // max(kernel[0], 1))
    return Layer("", kind, kernel, positions=positions, stored=Storage("kernel", stored, order))


def _product(module: Any, entry: PlannedLayer, x: Array) -> Array:
    """Rows times the matrix that a chain stands for."""
    if chain.is_matrix_train(entry.stages):
        cores = [
            _factor(module, module.kernel_init, entry, stage, stage.name)()
            for stage in entry.stages
        ]
        x, *cores = module.promote_dtype(x, *cores, dtype=module.dtype)
        return chain.multiply(x, cores, module.precision)
    own = {
        name: getattr(module, name)
        for name in ("dot_general", "dot_general_cls")
        if hasattr(module, name)
    }
    for stage in entry.stages:
        x = nn.Dense(**_shared(module, entry, stage), **own)(x)
    return x


def _many(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _input_axes(module: Any, ndim: int) -> tuple[int, ...]:
    # Flax contracts them in the order of the input.
    return tuple(sorted(axis % ndim for axis in _many(module.axis)))


# ---------------------------------------------------------------- both


def _shared(module: Any, entry: PlannedLayer, stage: Stage) -> dict[str, Any]:
    """Settings that a thin layer takes over from the layer."""
    return {
        "features": stage.kernel_shape[-1],
        "use_bias": False,
        "dtype": module.dtype,
        "param_dtype": module.param_dtype,
        "precision": module.precision,
        "kernel_init": _initial(module.kernel_init, entry, stage),
        "promote_dtype": module.promote_dtype,
        "name": stage.name,
    }


def _factor(module: Any, init: Any, entry: PlannedLayer, stage: Stage, name: str | None) -> Factor:
    initial = _initial(init, entry, stage)
    return Factor(stage.kernel_shape, initial, module.param_dtype, name=name)


def _initial(init: Callable[..., Any], entry: PlannedLayer, stage: Stage) -> Callable[..., Any]:
    """The layer's initialiser, any partitioning metadata fitted to a factor."""

    def initial(key: Array, shape: Sequence[int], dtype: Any) -> Any:
        value = init(key, shape, dtype)
        if not isinstance(value, AxisMetadata):
            return value
        return box_factor(value, unboxed(value), entry, stage, stacked=False)

    return initial


def _with_bias(module: Any, x: Array) -> Array:
    if not module.use_bias:
        return x
    return _add_bias(module, x, (module.features,), (module.features,))


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
        describe_embed,
        {"setup": set_up_embed, "__call__": run_embed, "attend": run_attend},
    ),
}
