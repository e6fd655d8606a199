"""What a call says of a layer whose kernel is a matrix between some axes of its array.

The entries of the layer table made here are those of one call, for all examples in it. Modules
are asked for nothing but the settings that `flax.linen` and `flax.nnx` name alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_letters
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.plan.layers import Layer, Storage
from tdjax.trace.call import Call


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
    return x.reshape(*x.shape[:kept], math.prod(x.shape[kept:]))


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
    """The equation of an einsum layer, given to it or to its call."""
    return _read_equation(str(equation or module.einsum_str), ndim, kernel_ndim)


def einsum_rows(inputs: Float[Array, "*_"], labels: Labels) -> Float[Array, "*_"]:
    """The input with its contracted axes as one, the last."""
    kept = _kept(labels)
    x = _ordered(inputs, labels.inputs, kept + labels.contracted)
    return x.reshape(*x.shape[: len(kept)], math.prod(x.shape[len(kept) :]))


def einsum_columns(y: Float[Array, "*_"], labels: Labels) -> Float[Array, "*_"]:
    """The output with the axes that the kernel brings in as one, the last."""
    kept = _kept(labels)
    y = _ordered(y, labels.output, kept + labels.made)
    return y.reshape(*y.shape[: len(kept)], math.prod(y.shape[len(kept) :]))


def einsum_output(
    y: Float[Array, "*_"], labels: Labels, kernel_shape: Sequence[int]
) -> Float[Array, "*_"]:
    """The output, of rows whose last axis merges those that the kernel brings in."""
    sizes = dict(zip(labels.kernel, kernel_shape, strict=True))
    y = y.reshape(*y.shape[:-1], *(sizes[label] for label in labels.made))
    return _ordered(y, _kept(labels) + labels.made, labels.output)


def _ordered(x: Float[Array, "*_"], labels: str, wanted: str) -> Float[Array, "*_"]:
    """The axes of an array in another order."""
    return jnp.transpose(x, [labels.index(label) for label in wanted])


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


class Labels(NamedTuple):
    """An equation 'inputs,kernel->output' whose kernel is a matrix between merged axes.

    Arguments:
        inputs, kernel, output: labels of the axes, ellipses written out.
        contracted: labels that inputs and kernel sum over.
        made: labels that the kernel alone brings into the output.
    """

    inputs: str
    kernel: str
    output: str
    contracted: str
    made: str


def _read_equation(equation: str, inputs_ndim: int, kernel_ndim: int) -> Labels | str:
    """Read an equation of two operands; where it is not a matrix product, why."""
    operands, _, output = equation.replace(" ", "").partition("->")
    inputs, _, kernel = operands.partition(",")
    if "..." in kernel or len(kernel) != kernel_ndim:
        return f"its equation {equation!r} has an ellipsis in the kernel"
    free = [letter for letter in ascii_letters if letter not in equation]
    more = "".join(free[: inputs_ndim - len(inputs.replace("...", ""))])
    inputs, output = inputs.replace("...", more), output.replace("...", more)
    repeated = any(len(set(labels)) < len(labels) for labels in (inputs, kernel, output))
    contracted = "".join(label for label in kernel if label in inputs and label not in output)
    made = "".join(label for label in kernel if label in output and label not in inputs)
    if repeated or len(contracted) + len(made) < len(kernel):
        return f"its equation {equation!r} is more than a matrix product"
    if any(label not in output for label in inputs if label not in contracted):
        return f"its equation {equation!r} sums its inputs"
    if not contracted or not made:
        return f"its equation {equation!r} has no axis to compress"
    return Labels(inputs, kernel, output, contracted, made)
