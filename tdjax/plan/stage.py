"""Chains of thin layers, by which factorised layers compute: what all of them have in common.

A kernel (*window, C / groups, T) is split by feature group, each group is decomposed alone, and
the factors become the kernels of the chain. A chain says what its thin layers look like from
shapes alone, and carries arrays both ways. Stride, padding and dilation of a spatial axis belong
to the thin layer whose kernel spans that axis.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tdjax.decompose.formats import Format
from tdjax.decompose.inputs import is_at_hand, placed_like
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.work import Count, exact

Method = TypeVar("Method", bound=Callable[..., Any])

# The name of a layer's sparse correction, beside the stages of its chain.
CORRECTION = "sparse"
# The name of the stage that takes a layer's inputs, in chains that have one.
INPUT = "input"

Kernels = Mapping[str, Float[Array, "*_"]]


@dataclass(frozen=True)
class Stage:
    """One thin layer of a chain.

    Arguments:
        name: its name among the layer's parameters.
        kernel_shape: (*spatial, in / groups, out), with 1 for spatial axes it does not span;
            (r, in, out, s) for a core of a TT-matrix.
        groups: number of feature groups of its convolution.
        axes: the spatial axes it spans, whose stride, padding and dilation it takes on.
    """

    name: str
    kernel_shape: tuple[int, ...]
    groups: int
    axes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.kernel_shape)


def is_depthwise(kernel_shape: Sequence[int], groups: int) -> bool:
    """Whether each feature of a convolution comes of one channel, and each channel goes into one.

    Arguments:
        kernel_shape: (*window, channels / groups, features).
    """
    return groups > 1 and tuple(kernel_shape[-2:]) == (1, groups)


def whole(layer: Layer, name: str) -> Stage:
    """The convolution of a layer as it is, as a stage."""
    shape = layer.kernel_shape
    return Stage(name, shape, layer.groups, tuple(range(len(shape) - 2)))


def _at_once(method: Method) -> Method:
    """A method of a chain as one program, the same for alike layers anywhere in a model."""
    program = jax.jit(method, static_argnums=0)

    @functools.wraps(method)
    def answer(self: Chain, *args: Any) -> Any:
        return program(replace(self, layer=replace(self.layer, path="")), *args)

    return answer  # type: ignore[return-value]


@dataclass(frozen=True)
class Chain(ABC):
    """The thin layers that one layer becomes in one form; `tdjax.plan.chain.chain_of` makes it."""

    layer: Layer
    form: Form

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The thin layers, first one first."""
        return self._stages()

    @property
    def size(self) -> int:
        """Number of parameters of the thin layers."""
        return sum(stage.size for stage in self.stages)

    @property
    def maps(self) -> tuple[tuple[int, ...], ...]:
        """Spatial sizes between the thin layers, those of the layer's input and output included."""
        found = [tuple(self.layer.in_spatial)]
        for stage in self.stages:
            pairs = zip(found[-1], self.layer.out_spatial, strict=True)
            found.append(
                tuple(out if axis in stage.axes else size for axis, (size, out) in enumerate(pairs))
            )
        return tuple(found)

    @property
    def macs(self) -> Count:
        """Multiply-accumulates of the thin layers for one example, in one layer of a stack."""
        layer = self.layer
        total = sum(
            layer.windows(*sizes) * stage.size
            for sizes, stage in zip(pairwise(self.maps), self.stages, strict=True)
        )
        # The first factor of a taken row is taken, not computed.
        taken = sum(stage.size for stage in self.stages[1:])
        return exact(layer.positions * total + layer.lookups * taken)

    @property
    def rank_shape(self) -> tuple[int, ...]:
        """The shape of what its ranks are those of, from one feature group's kernel."""
        return self.layer.group_shape

    def rows_in(self, rows: Any) -> Any:
        """What of the rows (..., D) that a matrix is given goes into its first stage."""
        return rows

    def rows_out(self, rows: Any) -> Any:
        """The rows (..., T) that a matrix gives, from what comes out of its last stage."""
        return rows

    @abstractmethod
    def reconstruct(self, kernels: Kernels) -> Float[Array, "*_"]:
        """The dense kernel that the kernels of the stages stand for."""

    @abstractmethod
    def _stages(self) -> tuple[Stage, ...]: ...


class FormatChain(Chain):
    """A chain whose thin layers hold a decomposition, one for each feature group."""

    @property
    def channel_blocks(self) -> int:
        """Number of blocks of input channels that lie in front of the window in `tensor_view`."""
        return 1

    @property
    def mixes(self) -> bool:
        """Whether a mode of `tensor_view` mixes inputs and outputs of the kernel."""
        return False

    def split_groups(self, kernel: Float[Array, "*_"]) -> list[Float[Array, "*_"]]:
        """The kernels (*window, C / groups, T / groups) of each feature group, in order."""
        return jnp.split(kernel, self.layer.groups, axis=-1)

    def tensor_views(self, kernel: Float[Array, "*_"]) -> list[Float[Array, "*_"]]:
        """The arrays that are decomposed, one for each feature group."""
        plain = type(self).tensor_view is FormatChain.tensor_view
        if plain and self.layer.groups == 1:
            return [kernel]
        if not is_at_hand(kernel):
            return self._tensor_views(kernel)
        parts = np.split(np.asarray(kernel), self.layer.groups, axis=-1)
        return [placed_like(kernel, self.tensor_view(part)) for part in parts]

    @_at_once
    def _tensor_views(self, kernel: Float[Array, "*_"]) -> list[Float[Array, "*_"]]:
        return list(map(self.tensor_view, self.split_groups(kernel)))

    def tensor_view(self, kernel: Any) -> Any:
        """A kernel of one feature group as the array that is decomposed.

        By methods of arrays alone: it may be one of NumPy.
        """
        return kernel

    def kernel_view(self, tensor: Float[Array, "*_"]) -> Float[Array, "*_"]:
        """The inverse of `tensor_view`."""
        return tensor.reshape(self.layer.group_shape)

    def to_kernels(self, formats: Sequence[Format]) -> dict[str, Float[Array, "*_"]]:
        """Kernels of the stages, by name, from the decompositions of all feature groups."""
        names, leaves = [stage.name for stage in self.stages], jax.tree.leaves(formats)
        if all(map(is_at_hand, leaves)):
            # A program for each form would take longer.
            found = self._side_by_side(jax.tree.map(np.asarray, list(formats)), np.concatenate)
            kernels = [placed_like(leaves[0], kernel) for kernel in found]
        else:
            kernels = self._all_to_kernels(formats)
        return dict(zip(names, kernels, strict=True))

    @_at_once
    def _all_to_kernels(self, formats: Sequence[Format]) -> list[Float[Array, "*_"]]:
        return self._side_by_side(formats, jnp.concatenate)

    def _side_by_side(self, formats: Sequence[Format], concatenate: Callable[..., Any]) -> Any:
        """Kernels of the stages, by the library of arrays that the formats are of."""
        by_group = [self._to_kernels(part) for part in formats]
        return [
            concatenate(
                [_reshaped(kernels[k], stage, len(formats)) for kernels in by_group], axis=-1
            )
            for k, stage in enumerate(self.stages)
        ]

    @_at_once
    def from_kernels(self, kernels: Kernels) -> list[Format]:
        """The decompositions of all feature groups from the kernels of the stages."""
        split = [self.split_groups(kernels[stage.name]) for stage in self.stages]
        return [self._from_kernels(own) for own in zip(*split, strict=True)]

    @_at_once
    def dense(self, formats: Sequence[Format]) -> Float[Array, "*_"]:
        """The dense kernel that the decompositions of all feature groups stand for."""
        parts = [self.kernel_view(part.to_tensor()) for part in formats]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    @_at_once
    def reconstruct(self, kernels: Kernels) -> Float[Array, "*_"]:
        """The dense kernel that the kernels of the stages stand for."""
        return self.dense(self.from_kernels(kernels))

    @abstractmethod
    def _to_kernels(self, part: Format) -> list[Any]:
        """Kernels of the stages of one feature group, (*spanned, in, out) each.

        By methods of arrays alone: they may be those of NumPy.
        """

    @abstractmethod
    def _from_kernels(self, kernels: Sequence[Float[Array, "*_"]]) -> Format:
        """The inverse of `_to_kernels`, of kernels as the stages have them."""


class TableChain(FormatChain):
    """A chain that a matrix may become, and so an embedding: the matrix itself is never made."""

    @abstractmethod
    def take_rows(
        self, kernels: Sequence[Float[Array, "*_"]], index: Int[Array, "*b"]
    ) -> Float[Array, "*b n"]:
        """Rows of the matrix."""

    @abstractmethod
    def attend(
        self, kernels: Sequence[Float[Array, "*_"]], query: Float[Array, "*b n"]
    ) -> Float[Array, "*b m"]:
        """Inner products of queries with all rows of the matrix."""


def format_chain(chain: Chain) -> FormatChain:
    """The chain of a layer that is decomposed by itself."""
    assert isinstance(chain, FormatChain)
    return chain


def table_chain(chain: Chain) -> TableChain:
    """The chain of an embedding, which is always one of those of matrices."""
    assert isinstance(chain, TableChain)
    return chain


def spanned(window: Sequence[int], axes: Collection[int]) -> tuple[int, ...]:
    """The window of a stage that spans only these axes of a layer's window."""
    return tuple(size if axis in axes else 1 for axis, size in enumerate(window))


def _reshaped(kernel: Any, stage: Stage, groups: int) -> Any:
    *shape, out = stage.kernel_shape
    return kernel.reshape(*shape, out // groups)
