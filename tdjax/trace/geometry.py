"""What a call says of a layer, and how its chain lies on its axes: the same in every module system.

The positions and lookups of an entry made here are those of one call, for all examples in it.

Modules are asked for nothing but the settings that `flax.linen` and `flax.nnx` name alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.plan.layers import Layer, Storage
from tdjax.plan.stage import Stage
from tdjax.trace.einsum import Labels, labels_of


class Call(NamedTuple):
    """A call as the shape-only pass sees it.

    Arguments:
        module: the layer.
        method: name of its method that was called.
        inputs, output: its first argument and its result, as shapes.
        equation: the second argument, for einsum layers.
    """

    module: Any
    method: str
    inputs: Any
    output: Any
    equation: str | None


def convolution(call: Call, features: int) -> Layer:
    """The entry of a convolution with so many output features."""
    module = call.module
    groups = module.feature_group_count
    shape = (*window_of(module), call.inputs.shape[-1] // groups, features)
    return _convolution(call, "conv", shape, shape, groups=groups)


def transposed_convolution(call: Call, features: int) -> Layer:
    """The entry of a transposed convolution with so many output features."""
    module, window = call.module, window_of(call.module)
    channels = (call.inputs.shape[-1], features)
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


def conv_settings(module: Any, stage: Stage) -> dict[str, Any]:
    """Settings of one stage's convolution, from those of the convolution that it is part of."""
    axes = len(window_of(module))

    def on_axes(value: Any) -> tuple[int, ...]:
        sizes = _on_window(value, axes)
        return tuple(size if axis in stage.axes else 1 for axis, size in enumerate(sizes))

    return {
        "kernel_size": stage.kernel_shape[:-2],
        "strides": on_axes(module.strides),
        "padding": _stage_padding(module.padding, stage, axes),
        "input_dilation": on_axes(module.input_dilation),
        "kernel_dilation": on_axes(module.kernel_dilation),
        "feature_group_count": stage.groups,
    }


def transposed_settings(module: Any, stage: Stage) -> dict[str, Any]:
    """Settings of one stage's convolution of the dilated input, from a transposed convolution."""
    window = window_of(module)
    strides = _on_window(module.strides, len(window))
    dilation = _on_window(module.kernel_dilation, len(window))
    pads = [
        _transposed_padding(module.padding, axis, *sizes)
        for axis, sizes in enumerate(zip(window, strides, dilation, strict=True))
    ]
    spans = [axis in stage.axes for axis in range(len(window))]
    return {
        "kernel_size": stage.kernel_shape[:-2],
        "padding": [pair if own else (0, 0) for pair, own in zip(pads, spans, strict=True)],
        "input_dilation": tuple(s if own else 1 for s, own in zip(strides, spans, strict=True)),
        "kernel_dilation": tuple(d if own else 1 for d, own in zip(dilation, spans, strict=True)),
        "feature_group_count": stage.groups,
    }


def window_settings(module: Any, layer: Layer) -> list[dict[str, Any]]:
    """How the window lies along each axis of a convolution, as `moments.patches.taps_of` asks."""
    window = window_of(module)
    axes = len(window)
    dilation = _on_window(module.kernel_dilation, axes)
    strides = _on_window(module.strides, axes)
    if layer.kind == "conv_transpose":
        return [
            {
                "low": _transposed_padding(module.padding, axis, width, stride, wide)[0],
                "dilation": wide,
                "input_dilation": stride,
            }
            for axis, (width, stride, wide) in enumerate(
                zip(window, strides, dilation, strict=True)
            )
        ]
    dilated = _on_window(module.input_dilation, axes)
    return [
        {
            "stride": strides[axis],
            "low": _padding_in_front(
                module.padding,
                axis,
                (window[axis] - 1) * dilation[axis],
                layer.in_spatial[axis],
                strides[axis],
            ),
            "dilation": dilation[axis],
            "input_dilation": dilated[axis],
            "border": {"CIRCULAR": "circular", "REFLECT": "reflect"}.get(
                str(module.padding), "zeros"
            ),
        }
        for axis in range(axes)
    ]


def _padding_in_front(padding: Any, axis: int, reach: int, size: int, stride: int) -> int:
    """Padding before the first pixel.

    Arguments:
        reach: from the first to the last tap of the window.
        size: of the input.
    """
    if isinstance(padding, int):
        return padding
    if not isinstance(padding, str):
        pair = padding[axis]
        return pair if isinstance(pair, int) else pair[0]
    if padding in ("CIRCULAR", "REFLECT"):
        return reach // 2
    # `jax.lax` asks for an output of size / stride, whatever the dilation of the input.
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    return {"VALID": 0, "CAUSAL": reach, "SAME": total // 2, "SAME_LOWER": total - total // 2}[
        padding
    ]


def window_of(module: Any) -> tuple[int, ...]:
    """The spatial sizes of a convolution's kernel."""
    size = module.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


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
        positions=math.prod(call.output.shape[: -spatial - 1]),
        obstacle="its kernel is masked" if module.mask is not None else None,
        stored=Storage("kernel", stored, order, flipped),
        **settings,
    )


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


def dense(call: Call, features: int) -> Layer:
    """The entry of a dense layer with so many output features."""
    shape = (call.inputs.shape[-1], features)
    return _matrix(call, "dense", shape, shape, (0, 1))


def dense_general(call: Call, features: Sequence[int], batched: bool) -> Layer:
    """The entry of a dense layer on several axes.

    Arguments:
        features: sizes of the axes that come out.
        batched: whether it has a kernel for each place along some axes.
    """
    axes = input_axes(call.module, call.inputs.ndim)
    if batched:
        shape = tuple(call.inputs.shape)
        return Layer("", "dense_general", shape, obstacle="it has batch dimensions")
    inputs = tuple(call.inputs.shape[axis] for axis in axes)
    stored = (*inputs, *features)
    kernel = (math.prod(inputs), math.prod(features))
    return _matrix(call, "dense_general", kernel, stored, tuple(range(len(stored))))


def input_axes(module: Any, ndim: int) -> tuple[int, ...]:
    """The axes of its input that a general dense layer contracts."""
    # Flax contracts them in the order of the input.
    return tuple(sorted(axis % ndim for axis in as_tuple(module.axis)))


def merge_axes(inputs: Float[Array, "*_"], axes: Sequence[int]) -> Float[Array, "*_"]:
    """The input with some axes as one, the last."""
    kept = inputs.ndim - len(axes)
    x = jnp.moveaxis(inputs, axes, range(kept, inputs.ndim))
    return x.reshape(*x.shape[:kept], -1)


def einsum(call: Call, shape: Sequence[int]) -> Layer:
    """The entry of an einsum layer whose kernel has this shape."""
    shape = tuple(shape)
    labels = einsum_labels(call.module, call.equation, call.inputs.ndim, len(shape))
    if isinstance(labels, str):
        return Layer("", "einsum", shape, obstacle=labels)
    order = tuple(labels.kernel.index(label) for label in labels.contracted + labels.made)
    sizes = [shape[axis] for axis in order]
    inputs = len(labels.contracted)
    kernel = (math.prod(sizes[:inputs]), math.prod(sizes[inputs:]))
    return _matrix(call, "einsum", kernel, shape, order)


def einsum_labels(module: Any, equation: str | None, ndim: int, kernel_ndim: int) -> Labels | str:
    """The equation of an einsum layer, given to it or to its call; see `labels_of`."""
    return labels_of(str(equation or module.einsum_str), ndim, kernel_ndim)


def einsum_rows(inputs: Float[Array, "*_"], labels: Labels) -> Float[Array, "*_"]:
    """The input with its contracted axes as one, the last."""
    kept = _kept(labels)
    x = jnp.einsum(f"{labels.inputs}->{kept}{labels.contracted}", inputs)
    return x.reshape(*x.shape[: len(kept)], -1)


def einsum_columns(y: Float[Array, "*_"], labels: Labels) -> Float[Array, "*_"]:
    """The output with the axes that the kernel brings in as one, the last."""
    kept = _kept(labels)
    y = jnp.einsum(f"{labels.output}->{kept}{labels.made}", y)
    return y.reshape(*y.shape[: len(kept)], -1)


def einsum_output(
    y: Float[Array, "*_"], labels: Labels, kernel_shape: Sequence[int]
) -> Float[Array, "*_"]:
    """The output, of rows whose last axis merges those that the kernel brings in."""
    sizes = dict(zip(labels.kernel, kernel_shape, strict=True))
    y = y.reshape(*y.shape[:-1], *(sizes[label] for label in labels.made))
    return jnp.einsum(f"{_kept(labels)}{labels.made}->{labels.output}", y)


def einsum_bias(labels: Labels, kernel_shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Shape of an einsum layer's bias, and the shape that spreads it over the output."""
    sizes = dict(zip(labels.kernel, kernel_shape, strict=True))
    own = [sizes[label] for label in labels.output if label in sizes]
    return own, [sizes.get(label, 1) for label in labels.output]


def embedding(call: Call) -> Layer:
    """The entry of an embedding: rows are taken, or all of them multiplied by a query."""
    module = call.module
    shape = (module.num_embeddings, module.features)
    attends = call.method == "attend"
    rows = call.inputs.shape[:-1] if attends else call.inputs.shape
    number = math.prod(rows)
    return Layer(
        "",
        "embed",
        shape,
        positions=number if attends else 0,
        lookups=0 if attends else number,
        stored=Storage("embedding", shape, (0, 1)),
    )


def as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    """Sizes or axes given as one or as several."""
    return (value,) if isinstance(value, int) else tuple(value)


def _kept(labels: Labels) -> str:
    return "".join(label for label in labels.inputs if label not in labels.contracted)


def _matrix(
    call: Call,
    kind: str,
    kernel: tuple[int, int],
    stored: tuple[int, ...],
    order: tuple[int, ...],
) -> Layer:
    positions = math.prod(call.inputs.shape) // max(kernel[0], 1)
    return Layer("", kind, kernel, positions=positions, stored=Storage("kernel", stored, order))
