"""The layer table: which modules of a model hold weights, and what a plan needs to know of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from tdjax.plan.work import Count, Use, Work, exact

# Kinds of layers of classes that no module system has, by the kind that multiplies alike.
OWN = {"dense": "product", "conv": "convolution", "conv_transpose": "transposed_convolution"}
# Kinds whose kernel is a matrix, whatever the shape of the array that holds it.
MATRICES = ("dense", "dense_general", "einsum", "embed", OWN["dense"])
CONVOLUTIONS = ("conv", "conv_transpose", OWN["conv"], OWN["conv_transpose"])
# Parameters of one axis, though a stack gives them another.
VECTORS = ("bias", "scale")
# The name of an array that is a layer by itself: its path is that of the array.
LEAF = "array"
# Bits of the shortest numbers that factors are rounded to; others stand for quantised arrays.
SMALLEST_FLOAT = 16


@dataclass(frozen=True)
class Storage:
    """The parameter that holds a layer's kernel.

    Arguments:
        name: among the layer's parameters; `LEAF` where the path leads to the array itself.
        shape: of the array; of one slice where the layers of a stack share it.
        order: the axes of the array in the order of the kernel: window, inputs, outputs. Those
            of several inputs or outputs are merged.
        flipped: the window axes run backwards.
        stack: axis of the whole array along which the layers of a stack lie, or None.
        copies: number of layers in the stack.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    flipped: bool = False
    stack: int | None = None
    copies: int = 1

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the array with its stack."""
        if self.stack is None:
            return self.shape
        return (*self.shape[: self.stack], self.copies, *self.shape[self.stack :])

    def to_kernel(
        self, array: Shaped[Array, "*_"], kernel_shape: tuple[int, ...]
    ) -> Shaped[Array, "*_"]:
        """The kernel of one layer from its array."""
        kernel = jnp.transpose(array, self.order).reshape(kernel_shape)
        return self._flip(kernel)

    def from_kernel(self, kernel: Shaped[Array, "*_"]) -> Shaped[Array, "*_"]:
        """The inverse of `to_kernel`."""
        ordered = tuple(self.shape[axis] for axis in self.order)
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return jnp.transpose(self._flip(kernel).reshape(ordered), back)

    def _flip(self, kernel: Shaped[Array, "*_"]) -> Shaped[Array, "*_"]:
        return jnp.flip(kernel, range(kernel.ndim - 2)) if self.flipped else kernel


@dataclass(frozen=True)
class Layer:
    """One module that holds a weight array, as a shape-only pass sees it.

    >>> import tdjax
    >>> layer = tdjax.Layer("conv", "conv", (3, 3, 16, 32), in_spatial=(8, 8), out_spatial=(8, 8))
    >>> layer.size, layer.macs
    (4608, 294912)

    Arguments:
        path: '/'-joined module path, empty where the model itself is the layer; behind it the name
            of the array where a module has several.
        kind: one of `MATRICES` or `CONVOLUTIONS`, or the class name of a module that cannot be
            factorised.
        kernel_shape: (*spatial, C / groups, T) of a convolution, (in, out) of a matrix, where
            several axes count as one; the shape of the largest weight array for other kinds.
        groups: feature groups of a convolution, else 1.
        in_spatial: spatial sizes of its input; () for a matrix.
        out_spatial: spatial sizes of its output; () for a matrix.
        positions: how often one example applies it to such a window (calls, sequence positions);
            a fraction where the examples of a batch share that. Of the branches of a condition,
            that with most counts.
        lookups: how often one example takes a row of it, counted alike.
        other: parameters beside the weight array, such as a bias.
        obstacle: why no method can take it; None where one may.
        stored: where the kernel lies; None for an array "kernel" of just its shape.
        dilated: whether its convolution puts zeros between its inputs (`input_dilation`).
    """

    path: str
    kind: str
    kernel_shape: tuple[int, ...]
    groups: int = 1
    in_spatial: tuple[int, ...] = ()
    out_spatial: tuple[int, ...] = ()
    positions: Count = 1
    lookups: Count = 0
    other: int = 0
    obstacle: str | None = None
    stored: Storage | None = None
    dilated: bool = False

    @property
    def storage(self) -> Storage:
        """The parameter that holds the kernel."""
        axes = tuple(range(len(self.kernel_shape)))
        return self.stored or Storage("kernel", self.kernel_shape, axes)

    @property
    def is_matrix(self) -> bool:
        """Whether the kernel is a matrix, without a window."""
        return self.kind in MATRICES

    @property
    def is_own(self) -> bool:
        """Whether it is of a class that no module system has."""
        return self.kind in OWN.values()

    @property
    def is_member(self) -> bool:
        """Whether it is one of the arrays of such a class, under a path of its own."""
        return self.is_own and self.storage.name == LEAF

    @property
    def multiplies_as(self) -> str:
        """The kind of a layer that multiplies alike, among those of module systems."""
        return next((kind for kind, own in OWN.items() if own == self.kind), self.kind)

    @property
    def copies(self) -> int:
        """Number of layers that share the array, each with a kernel of its own."""
        return self.storage.copies

    @property
    def size(self) -> int:
        """Number of weight parameters, without the bias."""
        return self.copies * math.prod(self.kernel_shape)

    @property
    def macs(self) -> Count:
        """Multiply-accumulates of the dense layer for one example, see `windows`."""
        if self.kind not in (*MATRICES, *CONVOLUTIONS):
            return 0
        return exact(self.positions * self.windows(self.in_spatial, self.out_spatial) * self.size)

    def windows(self, before: Sequence[int], after: Sequence[int]) -> int:
        """How many windows are multiplied between inputs and outputs of these spatial sizes.

        One for each output; where zeros lie between the inputs, in transposed convolutions and
        those with `input_dilation`, one for each input along an axis that has fewer of them: every
        input is spread over a window, and nothing is multiplied by the zeros.
        """
        spread = self.dilated or self.multiplies_as == "conv_transpose"
        return math.prod(map(min, before, after)) if spread else math.prod(after)

    @property
    def group_shape(self) -> tuple[int, ...]:
        """Kernel shape of one feature group, (*spatial, C / groups, T / groups)."""
        *front, t = self.kernel_shape
        return (*front, t // self.groups)


class Inventory(NamedTuple):
    """All that rules and budgets ask of a model.

    Arguments:
        layers: the layer table.
        other: parameters that belong to no weight array: biases, normalisation.
        array_of: the array that holds a layer's kernel, or its shape alone.
        other_macs: multiply-accumulates for one example that belong to no layer.
        work: see `tdjax.plan.plan.Plan`.
        same_inputs: paths of layers that read the same values, see `Plan.with_shared`.
        pairs: finds the pairs of layers, of `tdjax.plan.pair.Pair`.
        bias_of: a layer's bias, or its shape alone; None where it has none.
    """

    layers: tuple[Layer, ...]
    other: int
    array_of: Callable[[Layer], Any]
    other_macs: Count = 0
    work: Work | None = None
    same_inputs: tuple[tuple[str, ...], ...] = ()
    pairs: Callable[[], tuple[Any, ...]] = tuple
    bias_of: Callable[[Layer], Any] = lambda layer: None


def in_whole_numbers(model: Inventory) -> Inventory:
    """The work of a model for so many examples that all its counts are ints; all layers run."""
    counts = [n for layer in model.layers for n in (layer.positions, layer.lookups)]
    examples = math.lcm(*(n.denominator for n in (model.other_macs, *counts)))
    layers = (
        replace(
            layer,
            positions=exact(layer.positions * examples),
            lookups=exact(layer.lookups * examples),
        )
        for layer in model.layers
    )
    other = exact(model.other_macs * examples)
    return model._replace(layers=tuple(layers), other_macs=other, work=None)


def is_weight(name: str, shape: Sequence[int]) -> bool:
    """Whether one of a module's parameters is a weight, which the layer table lists and counts.

    Every array of two axes or more is, but no bias or scale, which a stack gives another axis. Of
    those that are layers by themselves, whose names say nothing, axes of length 1 do not count.
    """
    axes = [size for size in shape if size > 1 or name != LEAF]
    return name not in VECTORS and len(axes) >= 2


def in_stack(layer: Layer, weight: str, shape: tuple[int, ...]) -> Layer:
    """A layer whose array was found to have `shape`: of one layer, or of a stack of them."""
    if layer.obstacle is not None:
        return replace(layer, kernel_shape=shape, stored=None)
    stored = layer.storage
    if shape == stored.shape:
        return layer
    for axis, copies in enumerate(shape):
        if shape[:axis] + shape[axis + 1 :] == stored.shape:
            stored = replace(stored, stack=axis, copies=copies)
            return replace(layer, stored=stored)
    obstacle = f"its {weight} has shape {shape}, not {stored.shape} or a stack of them"
    return replace(layer, kernel_shape=shape, stored=None, obstacle=obstacle)


def stacked_along(layer: Layer, axes: Collection[int]) -> Layer:
    """A layer with its stack along the axis that was seen to be sliced: shapes alone may fit two.

    Arguments:
        axes: of the whole array.
    """
    stored = layer.storage
    if stored.stack is None or len(axes) != 1 or stored.stack in axes:
        return layer
    (axis,), whole = axes, stored.whole_shape
    if whole[:axis] + whole[axis + 1 :] != stored.shape:
        return layer
    return replace(layer, stored=replace(stored, stack=axis, copies=whole[axis]))


def tied_obstacle(name: str) -> str:
    """Why no method can take a layer whose array is that of another module.

    Arguments:
        name: of the array in the module.
    """
    return f"its {name} is another module's"


def is_tied(layer: Layer) -> bool:
    """Whether a layer's array is that of another module, under whose path it may be kept alone."""
    return layer.obstacle == tied_obstacle(layer.storage.name)


def numbers_obstacle(name: str, dtype: Any) -> str | None:
    """Why an array, called `name`, of such numbers cannot be decomposed; None where it can."""
    real = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= SMALLEST_FLOAT
    return None if real else f"its {name} holds {jnp.dtype(dtype).name} numbers"


def of_all_calls(calls: Sequence[Layer], use: Use | None) -> Layer:
    """The entry of a layer from its calls in one pass.

    Arguments:
        calls: what each says of the layer.
        use: how often one example passes it; None where that is not known.
    """
    layer, *others = calls
    obstacle = next((call.obstacle for call in calls if call.obstacle), None)
    if obstacle is None and any(_of_array(call) != _of_array(layer) for call in others):
        obstacle = f"its calls multiply by its {layer.storage.name} in more than one way"
    if use is not None:
        layer = replace(layer, positions=use.positions, lookups=use.lookups)
    return replace(layer, obstacle=obstacle)


def _of_array(layer: Layer) -> tuple[Any, ...]:
    """What a call says of the layer's array, which others have to say too."""
    return layer.kind, layer.kernel_shape, layer.groups, layer.storage
