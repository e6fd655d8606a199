"""What a call says of a convolution: its window, its strides and its padding, axis by axis.

The entries of the layer table made here are those of one call, for all examples in it. Modules
are asked for nothing but the settings that `flax.linen` and `flax.nnx` name alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tdjax.plan.layers import Layer, Storage
from tdjax.plan.stage import Stage
from tdjax.trace.call import Call

# What lies beyond the input's edge, by the name of a padding; zeros with all others.
BORDERS = {"CIRCULAR": "circular", "REFLECT": "reflect"}
# Of what `window_settings` gives, along each axis.
WINDOW_NAMES = ("stride", "dilation", "input_dilation")


@dataclasses.dataclass(frozen=True)
class Window:
    """The settings of a convolution that is no module's, under the names that modules have.

    Arguments:
        kernel_size: spatial sizes.
        strides: of the window; of a transposed convolution the dilation of its input.
        padding: in front and behind, of the dilated input.
        kernel_dilation: of the kernel.
        feature_group_count: groups of channels.
        input_dilation: of the input of a convolution that is not transposed.
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    kernel_dilation: tuple[int, ...]
    feature_group_count: int = 1
    input_dilation: int | tuple[int, ...] = 1


def convolution(call: Call, features: int) -> Layer:
    """The entry of a convolution with so many output features."""
    module = call.module
    groups = module.feature_group_count
    shape = (*window_of(module), call.inputs.shape[-1] // groups, features)
    dilated = any(step > 1 for step in _on_window(module.input_dilation, len(shape) - 2))
    return _convolution(call, "conv", shape, shape, groups=groups, dilated=dilated)


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
    """How the window lies along each axis of a convolution, as `moments.pieces.taps_of` asks."""
    window = window_of(module)
    strides = _on_window(module.strides, len(window))
    dilation = _on_window(module.kernel_dilation, len(window))
    if layer.multiplies_as == "conv_transpose":
        pads = [
            _transposed_padding(module.padding, axis, *sizes)
            for axis, sizes in enumerate(zip(window, strides, dilation, strict=True))
        ]
        return [
            {"low": low, "dilation": wide, "input_dilation": stride}
            for (low, _), wide, stride in zip(pads, dilation, strides, strict=True)
        ]
    dilated = _on_window(module.input_dilation, len(window))
    border = BORDERS.get(str(module.padding), "zeros")
    settings = []
    for axis, (width, size) in enumerate(zip(window, layer.in_spatial, strict=True)):
        reach, stride = (width - 1) * dilation[axis], strides[axis]
        settings.append({
            "stride": stride,
            "low": _padding_in_front(module.padding, axis, reach, size, stride),
            "dilation": dilation[axis],
            "input_dilation": dilated[axis],
            "border": border,
        })  # fmt: skip
    return settings


def plain_window(module: Any, layer: Layer) -> Window:
    """The window of a convolution with its padding in numbers, as on the layer's own maps.

    What lies beyond the input's edge is zero, whatever the module puts there.
    """
    settings, axes = window_settings(module, layer), range(len(layer.in_spatial))
    along = {name: tuple(own.get(name, 1) for own in settings) for name in WINDOW_NAMES}
    size, turned = window_of(module), layer.multiplies_as == "conv_transpose"
    pads = []
    for axis, own in zip(axes, settings, strict=True):
        reach = (size[axis] - 1) * own["dilation"]
        if turned:
            stride = own["input_dilation"]
            pair = _transposed_padding(module.padding, axis, size[axis], stride, own["dilation"])
        elif isinstance(module.padding, str):
            spread = (layer.in_spatial[axis] - 1) * own["input_dilation"] + 1
            whole = (layer.out_spatial[axis] - 1) * own["stride"] + reach + 1 - spread
            pair = own["low"], max(whole - own["low"], 0)
        else:
            pair = _pair_of(module.padding, axis)
        pads.append(pair)
    return Window(
        size,
        along["input_dilation" if turned else "stride"],
        tuple(pads),
        along["dilation"],
        layer.groups,
        1 if turned else along["input_dilation"],
    )


def _pair_of(padding: Any, axis: int) -> tuple[int, int]:
    """Padding in front and behind, given as numbers."""
    pair = padding if isinstance(padding, int) else padding[axis]
    return (pair, pair) if isinstance(pair, int) else tuple(pair)


def _padding_in_front(padding: Any, axis: int, reach: int, size: int, stride: int) -> int:
    """Padding before the first pixel.

    Arguments:
        reach: from the first to the last tap of the window.
        size: of the input.
    """
    if not isinstance(padding, str):
        return _pair_of(padding, axis)[0]
    if padding in BORDERS:
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
    return [_pair_of(padding, axis) if axis in stage.axes else (0, 0) for axis in range(axes)]


def _transposed_padding(
    padding: Any, axis: int, window: int, stride: int, dilation: int
) -> tuple[int, int]:
    """Padding of the dilated input, as `jax.lax.conv_transpose` documents it."""
    if not isinstance(padding, str):
        return _pair_of(padding, axis)
    reach = (window - 1) * dilation
    if padding == "SAME":
        total = reach + stride - 1
        return (reach, total - reach) if stride > reach else (-(-total // 2), total // 2)
    return reach, reach + max(stride - reach - 1, 0)
