"""Whether the fields of a layer's entry agree with each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tdjax.plan.layers import CONVOLUTIONS, LEAF, MATRICES, Layer, Storage

# What no array has, and what would take for ever to split into factors.
MOST_AXES, LONGEST_AXIS = 32, 2**31 - 1


def layer_problems(layer: Layer) -> Iterator[tuple[str, str]]:
    """Fields of a layer that cannot be so, and why."""
    shape, stored = layer.kernel_shape, layer.stored
    for name, sizes in (("kernel_shape", shape), ("stored.shape", stored.shape if stored else ())):
        if len(sizes) > MOST_AXES or max(sizes, default=0) > LONGEST_AXIS:
            yield name, f"an array has up to {MOST_AXES} axes of up to {LONGEST_AXIS} entries"
            return
    if not shape:
        yield "kernel_shape", "a weight array has an axis"
    if layer.groups < 1 or (shape and shape[-1] % layer.groups):
        yield "groups", f"{layer.groups} do not divide a kernel of shape {shape}"
    if stored is not None:
        yield from _storage_problems(stored)
    if layer.obstacle is None:
        yield from _kind_problems(layer)


def _kind_problems(layer: Layer) -> Iterator[tuple[str, str]]:
    """What cannot be so of a layer that a method can take."""
    kind, window = layer.kind, len(layer.kernel_shape) - 2
    if kind not in (*MATRICES, *CONVOLUTIONS):
        known = ", ".join((*MATRICES, *CONVOLUTIONS))
        yield "kind", f"{kind!r} needs an obstacle; known are {known}"
    if window < 0 or (kind in MATRICES and window):
        yield "kernel_shape", f"{layer.kernel_shape} is no kernel of kind {kind}"
        return
    for name, sizes in (("in_spatial", layer.in_spatial), ("out_spatial", layer.out_spatial)):
        if len(sizes) != window:
            yield name, f"{sizes} is not of the {window} axes of its window"
    if layer.groups > 1 and layer.multiplies_as != "conv":
        yield "groups", f"a layer of kind {kind} has one group"
    if layer.lookups and kind != "embed":
        yield "lookups", f"a layer of kind {kind} looks nothing up"
    if layer.dilated and kind != "conv":
        yield "dilated", f"a layer of kind {kind} has no input_dilation"
    yield from _order_problems(layer, layer.storage)


def _storage_problems(stored: Storage) -> Iterator[tuple[str, str]]:
    if sorted(stored.order) != list(range(len(stored.shape))):
        yield "stored.order", f"{stored.order} does not order {len(stored.shape)} axes"
    if (stored.stack or 0) > len(stored.shape):
        yield "stored.stack", f"{stored.stack} is no axis of a stack of {stored.shape}"
    if stored.copies < 1 or (stored.stack is None and stored.copies > 1):
        yield "stored.copies", f"{stored.copies} layers do not lie along axis {stored.stack}"


def _order_problems(layer: Layer, stored: Storage) -> Iterator[tuple[str, str]]:
    """What cannot be so of the axes that a kernel is made of."""
    if stored.name == LEAF or layer.is_own:
        yield from _leaf_problems(layer, stored)
        return
    kind, axes = layer.kind, tuple(range(len(stored.shape)))
    name = "embedding" if kind == "embed" else "kernel"
    if layer.stored is not None and stored.name != name:
        yield "stored.name", f"{stored.name!r} is not that of kind {kind}, {name!r}"
    if stored.flipped and kind != "conv_transpose":
        yield "stored.flipped", f"the window of a layer of kind {kind} runs forwards"
    # An einsum has its axes in any order, a transposed convolution the outputs first at times.
    expected = (*axes[:-2], *axes[:-3:-1]) if stored.flipped else axes
    if kind != "einsum" and stored.order != expected:
        yield "stored.order", f"{stored.order} is not that of kind {kind}, {expected}"
    *window, inputs, outputs = layer.kernel_shape
    ordered = [stored.shape[axis] for axis in stored.order]
    channels = ordered[len(window) :]
    merged = any(
        (math.prod(channels[:k]), math.prod(channels[k:])) == (inputs, outputs)
        for k in range(len(channels) + 1)
    )
    plain = kind in ("dense_general", "einsum") or len(channels) == 2
    if ordered[: len(window)] != window or not merged or not plain:
        yield "stored.shape", f"{stored.shape} does not hold a kernel of {layer.kernel_shape}"


def _leaf_problems(layer: Layer, stored: Storage) -> Iterator[tuple[str, str]]:
    """What cannot be so of an array that some program multiplies by, its axes in any order."""
    ordered = [size for axis in stored.order if (size := stored.shape[axis]) > 1]
    sizes = [size for size in layer.kernel_shape if size > 1]
    merged = math.prod(ordered) == math.prod(sizes)
    if not merged or (layer.kind in CONVOLUTIONS and ordered != sizes):
        yield "stored.shape", f"{stored.shape} does not hold a kernel of {layer.kernel_shape}"
    elif layer.is_matrix and not any(
        math.prod(ordered[:k]) == layer.kernel_shape[0] for k in range(len(ordered) + 1)
    ):
        yield "stored.order", f"{stored.order} is not that of a kernel of {layer.kernel_shape}"
