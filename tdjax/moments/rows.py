"""What passes through a layer, as rows: patches or vectors that go in, outputs that come out.

A layer computes y = x W with rows x (D), the kernel W (D, T) and rows y (T). Modules are asked for
nothing but the settings that `flax.linen` and `flax.nnx` name alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.moments.pairs import forms, moment
from tdjax.moments.patches import Patches
from tdjax.moments.pieces import Taps, taps_of
from tdjax.moments.weighing import weighed, weights_of_rows
from tdjax.plan.layers import CONVOLUTIONS, Layer
from tdjax.trace import convolutions, matrices
from tdjax.trace.call import Call


@runtime_checkable
class Rows(Protocol):
    """Rows whose second moment can be summed over batches."""

    def sums(self, x: Array, weights: Array | None = None) -> tuple[list[Array], Array]:
        """Parts of the sum of x x^T, and the sum of x, (groups, D).

        Arguments:
            weights: of the rows, see `tdjax.moments.weighing`; None where all count as one.
        """
        ...

    def assembled(self, parts: Sequence[Array]) -> Array:
        """The sum of x x^T, (groups, D, D), or its diagonal (groups, D), from its parts."""
        ...

    def front(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the axes in front of the rows, for an array of this shape."""
        ...


@runtime_checkable
class FullRows(Rows, Protocol):
    """Rows that are not looked up: their moments are matrices."""

    def forms(self, x: Array, matrix: Array) -> Array:
        """x^T M x of each row and group, (rows, groups), M given for each group, (groups, D, D)."""
        ...

    def weighed_sums(self, x: Array, weights: Array) -> tuple[Array, Array]:
        """Sums of x x^T, (groups, D, D), and of x, with weights (rows, groups)."""
        ...


@dataclass(frozen=True)
class Vectors:
    """Rows that an array holds as they are.

    Arguments:
        size: of a row in one group.
        groups: feature groups.
        ndim: axes of the array; more in front are examples.
        to_rows: the array as (..., groups * size), where its axes must be merged or moved.
    """

    size: int
    groups: int = 1
    ndim: int = 0
    to_rows: Callable[[Array], Array] | None = None

    def sums(
        self, x: Array, weights: Array | None = None
    ) -> tuple[list[Array], Float[Array, "g d"]]:
        """See `Rows.sums`."""
        rows, own = self._rows(x), self._weights(x, weights)
        if own is None:
            return [moment(rows, rows)], rows.sum(axis=0)
        roots = weighed(rows, jnp.sqrt(own))
        return [moment(roots, roots)], weighed(rows, own).sum(axis=0)

    def forms(self, x: Array, matrix: Float[Array, "g d d"]) -> Float[Array, "n g"]:
        """See `FullRows.forms`."""
        return forms(self._rows(x), matrix)

    def weighed_sums(
        self, x: Array, weights: Float[Array, "n g"]
    ) -> tuple[Float[Array, "g d d"], Float[Array, "g d"]]:
        """See `FullRows.weighed_sums`."""
        rows = self._rows(x)
        roots = weighed(rows, jnp.sqrt(weights))
        return moment(roots, roots), weighed(rows, weights).sum(axis=0)

    def pair_sums(
        self, x: Array, y: Array, weights: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """Sums over the rows of two arrays: of x x^T and x y^T, (groups, D, D), of x and y."""
        first, second, own = self._rows(x), self._rows(y), self._weights(x, weights)
        total, other = first.sum(axis=0), second.sum(axis=0)
        if own is not None:
            total, other = (weighed(rows, own).sum(axis=0) for rows in (first, second))
            first, second = (weighed(rows, jnp.sqrt(own)) for rows in (first, second))
        return moment(first, first), moment(first, second), total, other

    def _rows(self, x: Array) -> Float[Array, "n g d"]:
        rows = self._laid_out(x).reshape(-1, self.groups, self.size)
        return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))

    def _laid_out(self, x: Array) -> Array:
        """The array with the axes of a row last."""
        to_rows = self.to_rows
        if to_rows is None:
            return x
        for _ in range(x.ndim - self.ndim):
            to_rows = jax.vmap(to_rows)
        return to_rows(x)

    def _weights(self, x: Array, weights: Array | None) -> Array | None:
        return None if weights is None else weights_of_rows(weights, self.front(x.shape))

    def assembled(self, parts: Sequence[Array]) -> Float[Array, "g d d"]:
        """See `Rows.assembled`."""
        return parts[0]

    def front(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Rows.front`."""
        shape = jax.eval_shape(self._laid_out, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
        ends = (k for k in range(len(shape), -1, -1) if math.prod(shape[k:]) >= self._width)
        return tuple(shape[: next(ends)])

    @property
    def _width(self) -> int:
        return self.groups * self.size


@dataclass(frozen=True)
class Lookups:
    """Rows with a single one, at the index that is looked up: their moment is diagonal."""

    size: int

    def sums(
        self, x: Array, weights: Array | None = None
    ) -> tuple[list[Array], Float[Array, "1 d"]]:
        """See `Rows.sums`."""
        own = 1.0 if weights is None else weights_of_rows(weights, x.shape)
        counts = jnp.zeros((1, self.size)).at[0, x.reshape(-1)].add(own)
        return [counts], counts

    def assembled(self, parts: Sequence[Array]) -> Float[Array, "1 d"]:
        """See `Rows.assembled`."""
        return parts[0]

    def front(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Rows.front`."""
        return tuple(shape)


def number_of_rows(rows: Rows, shape: Sequence[int], weights: Array | None) -> Float[Array, ""]:
    """Number of rows in an array of this shape; the sum of their weights where they have some."""
    front = rows.front(shape)
    if weights is None:
        return jnp.asarray(float(math.prod(front)))
    return weights_of_rows(weights, front).sum()


@dataclass(frozen=True)
class Flow:
    """Both ends of a call.

    Arguments:
        inputs: rows of what goes in; None where they are rows of the other end, as of an
            embedding that is attended to.
        outputs: rows of what comes out; None where its gradient tells nothing of the kernel.
        queries: rows of what goes in where the kernel's columns meet it.
    """

    inputs: Rows | None
    outputs: Rows | None
    queries: Rows | None = None


def flow_of(call: Call, layer: Layer) -> Flow:
    """What passes through a layer in a call that `layer` describes."""
    *_, fan_in, features = layer.kernel_shape
    outputs = Vectors(features // layer.groups, layer.groups)
    if layer.kind in CONVOLUTIONS:
        return Flow(Patches(_taps(call, layer), fan_in, layer.groups), outputs)
    if layer.kind == "embed":
        if call.method == "attend":
            return Flow(None, None, Vectors(features))
        return Flow(Lookups(fan_in), None)
    if layer.kind == "dense_general":
        axes = matrices.input_axes(call.module, call.inputs.ndim)
        if axes == (call.inputs.ndim - 1,):
            return Flow(Vectors(fan_in), outputs)
        inputs = Vectors(fan_in, 1, call.inputs.ndim, lambda x: matrices.merge_axes(x, axes))
        return Flow(inputs, outputs)
    if layer.kind == "einsum":
        labels = matrices.einsum_labels(
            call.module, call.equation, call.inputs.ndim, len(layer.storage.shape)
        )
        assert not isinstance(labels, str)
        return Flow(
            Vectors(fan_in, 1, call.inputs.ndim, lambda x: matrices.einsum_rows(x, labels)),
            Vectors(features, 1, call.output.ndim, lambda y: matrices.einsum_columns(y, labels)),
        )
    return Flow(Vectors(fan_in), outputs)


def _taps(call: Call, layer: Layer) -> tuple[Taps, ...]:
    window = layer.kernel_shape[:-2]
    settings = convolutions.window_settings(call.module, layer)
    return tuple(
        taps_of(size, out, width, **axis)
        for size, out, width, axis in zip(
            layer.in_spatial, layer.out_spatial, window, settings, strict=True
        )
    )
