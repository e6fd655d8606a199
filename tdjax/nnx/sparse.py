"""NNX layers whose kernel is sparse: its nonzeros are parameters, their places are not.

Flax's own layers do the arithmetic, on the kernel with the nonzeros in it.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Int

from tdjax.decompose.sparse import scattered
from tdjax.nnx.graph import become


class Indices(nnx.Variable):
    """Where the nonzeros lie: no `nnx.Param`, so neither gradients nor optimisers meet it."""


class Sparse(nnx.Module):
    """What all of them share: `values` and `indices` in place of `kernel`, and its shape."""

    values: Any
    indices: Any
    whole_shape: tuple[int, ...]

    @property
    def kernel(self) -> nnx.Param:
        """The kernel, made anew."""
        return nnx.Param(scattered(self.values[...], self.indices[...], self.whole_shape))


class SparseArray(Sparse):
    """A sparse array by itself, its `kernel`."""


def _sparse(cls: type) -> Any:
    """A subclass of one of Flax's layers that differs in its kernel alone."""
    about = {"__module__": __name__, "__doc__": f"`nnx.{cls.__name__}` with a sparse kernel."}
    return type(f"Sparse{cls.__name__}", (Sparse, cls), about)


# Under their names here, by which pickle finds them.
SparseConv, SparseLinear = _sparse(nnx.Conv), _sparse(nnx.Linear)
SparseLinearGeneral, SparseEinsum = _sparse(nnx.LinearGeneral), _sparse(nnx.Einsum)
SPARSE: dict[type, Any] = {
    nnx.Conv: SparseConv,
    nnx.Linear: SparseLinear,
    nnx.LinearGeneral: SparseLinearGeneral,
    nnx.Einsum: SparseEinsum,
}


def make_sparse(
    thin: Any, values: nnx.Variable, indices: Int[Array, "*_"], shape: tuple[int, ...]
) -> None:
    """Turn a layer into one with a sparse kernel, in place.

    Arguments:
        thin: of a class of `SPARSE`, or any module for an array by itself.
        values, indices: the nonzeros, see `tdjax.decompose.sparse.scattered`.
        shape: of the kernel.
    """
    if hasattr(thin, "kernel"):
        del thin.kernel
    become(thin, SPARSE.get(type(thin), SparseArray))
    thin.values, thin.indices, thin.whole_shape = values, Indices(indices), shape
