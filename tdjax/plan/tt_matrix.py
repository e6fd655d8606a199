"""A matrix as a TT-matrix (Novikov et al. 2015): its cores as stages, and products with it.

Rows and columns are split into factors; core k stands for the pair of their k-th factors, and the
matrix is never made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tdjax.decompose.formats import TT, Format
from tdjax.plan.ranks import matrix_modes
from tdjax.plan.stage import Stage, TableChain
from tdjax.plan.work import Count, exact


class TTMatrixChain(TableChain):
    """The cores (r, i, o, s) of a matrix, first one first."""

    @property
    def modes(self) -> tuple[tuple[int, int], ...]:
        """For each core, its factors of the numbers of rows and columns."""
        return matrix_modes(*self.layer.kernel_shape)

    @property
    def mixes(self) -> bool:
        """Every mode stands for rows and columns."""
        return True

    @property
    def macs(self) -> Count:
        """Multiply-accumulates of `multiply` and `take_rows` for one example."""
        # Of an embedding it is the transposed matrix that multiplies.
        transposed = self.layer.kind == "embed"
        products = self.layer.positions * product_macs(self.stages, transposed)
        return exact(products + self.layer.lookups * row_macs(self.stages))

    def tensor_view(self, kernel: Any) -> Any:
        """The matrix with a mode for each pair of factors of its sizes."""
        rows, columns = zip(*self.modes, strict=True)
        number = len(rows)
        pairs = [axis for k in range(number) for axis in (k, number + k)]
        split = kernel.reshape(*rows, *columns).transpose(pairs)
        return split.reshape([i * o for i, o in self.modes])

    def kernel_view(self, tensor: Float[Array, "*_"]) -> Float[Array, "m n"]:
        """The inverse of `tensor_view`."""
        pairs = tensor.reshape([size for pair in self.modes for size in pair])
        axes = range(pairs.ndim)
        return pairs.transpose(*axes[::2], *axes[1::2]).reshape(self.layer.kernel_shape)

    def take_rows(
        self, kernels: Sequence[Float[Array, "_ _ _ _"]], index: Int[Array, "*b"]
    ) -> Float[Array, "*b n"]:
        """See `take_rows`."""
        return take_rows(kernels, index)

    def attend(
        self, kernels: Sequence[Float[Array, "_ _ _ _"]], query: Float[Array, "*b n"]
    ) -> Float[Array, "*b m"]:
        """Queries times the transposed matrix."""
        return multiply(query, [core.swapaxes(1, 2) for core in kernels])

    def _stages(self) -> tuple[Stage, ...]:
        links = (1, *self.form.ranks, 1)
        return tuple(
            Stage(f"core_{k}", (links[k], *pair, links[k + 1]), 1, ())
            for k, pair in enumerate(self.modes)
        )

    def _to_kernels(self, part: Format) -> list[Any]:
        assert isinstance(part, TT)
        return list(part.cores)

    def _from_kernels(self, kernels: Sequence[Float[Array, "_ _ _ _"]]) -> TT:
        return TT(tuple(core.reshape(core.shape[0], -1, core.shape[-1]) for core in kernels))


def multiply(
    x: Float[Array, "*b m"], cores: Sequence[Float[Array, "_ _ _ _"]], precision: Any = None
) -> Float[Array, "*b n"]:
    """x times the matrix of a TT-matrix, core by core, the matrix never made.

    Arguments:
        x: rows; m is the product of all i.
        cores: (r, i, o, s) each.
    """
    # (batch, outputs so far, link, inputs left)
    state = x.reshape(math.prod(x.shape[:-1]), 1, 1, x.shape[-1])
    for core in cores:
        split = state.reshape(*state.shape[:3], core.shape[1], -1)
        state = jnp.einsum("bpriq,rios->bposq", split, core, precision=precision)
        state = state.reshape(state.shape[0], -1, core.shape[3], split.shape[-1])
    return state.reshape(*x.shape[:-1], -1)


def take_rows(
    cores: Sequence[Float[Array, "_ _ _ _"]], index: Int[Array, "*b"], precision: Any = None
) -> Float[Array, "*b n"]:
    """Rows of the matrix of a TT-matrix, the matrix never made."""
    sizes = [core.shape[1] for core in cores]
    state = jnp.ones((*index.shape, 1, 1), cores[0].dtype)
    for k, core in enumerate(cores):
        digit = index // math.prod(sizes[k + 1 :]) % sizes[k]
        chosen = jnp.take(core, digit, axis=1)  # (r, *b, o, s)
        state = jnp.einsum("...pr,r...os->...pos", state, chosen, precision=precision)
        state = state.reshape(*index.shape, -1, core.shape[3])
    return state[..., 0]


def product_macs(cores: Sequence[Stage], transposed: bool) -> int:
    """Multiply-accumulates of `multiply` for one row; `transposed`: by the transposed matrix."""
    pairs = [stage.kernel_shape[1:3] for stage in cores]
    inputs, outputs = zip(*(pair[::-1] if transposed else pair for pair in pairs), strict=True)
    return sum(
        math.prod(outputs[:k]) * math.prod(inputs[k + 1 :]) * stage.size
        for k, stage in enumerate(cores)
    )


def row_macs(cores: Sequence[Stage]) -> int:
    """Multiply-accumulates of `take_rows` for one row."""
    outputs = [stage.kernel_shape[2] for stage in cores]
    return sum(
        math.prod(outputs[:k]) * stage.size // stage.kernel_shape[1]
        for k, stage in enumerate(cores)
    )
