"""What factorising a model by low rank takes, computed from the shapes of its matrices.

A matrix has D rows, T columns and is to have rank r; n is the smaller of D and T. A multiply and an
add are two operations. These are the formulas for arrays on an accelerator, where a program is
compiled for each shape; NumPy on a CPU does a little less. They are held to what
the compiled programs of the library count by `tests/benchmarks/test_scale_needs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

import tdjax

NORMS = ("frobenius", "covariance", "kronecker")
# An eigendecomposition of n x n, all eigenvectors: 4/3 n^3 to tridiagonal form, and back.
EIGEN = 9
# A singular value decomposition of r x r.
SVD = 22
FLOAT32, BFLOAT16 = 4, 2
# Layers of a block that read the same.
READ_ALIKE = {
    **dict.fromkeys(("query", "key", "value"), "attention"),
    **dict.fromkeys(("gate", "up"), "hidden"),
}


class Matrix(NamedTuple):
    """One layer's.

    Arguments:
        path: of the layer.
        rows, columns, rank: D, T, r.
    """

    path: str
    rows: int
    columns: int
    rank: int

    @property
    def size(self) -> int:
        """Entries."""
        return self.rows * self.columns

    @property
    def read(self) -> str:
        """A name of what it reads, which it shares with all that read the same."""
        block, _, name = self.path.rpartition("/")
        return f"{block}/{READ_ALIKE.get(name, name)}"


class Operations(NamedTuple):
    """Of floating point, by how fast they are.

    Arguments:
        products: of matrices.
        factorisations: Cholesky, QR, triangular systems.
        eigen: eigendecompositions and singular value decompositions.
    """

    products: float = 0.0
    factorisations: float = 0.0
    eigen: float = 0.0

    def plus(self, other: Operations) -> Operations:
        """Both."""
        return Operations(*(a + b for a, b in zip(self, other, strict=True)))


def matrices_of(plan: tdjax.Plan) -> list[Matrix]:
    """Those that a plan factorises by low rank.

    Raises ValueError for a plan with another format, or with stacks of layers.
    """
    found = []
    for entry in plan.factorised:
        *front, columns = entry.layer.kernel_shape
        if entry.method != "svd" or len(front) != 1 or entry.layer.copies != 1:
            raise ValueError(f"layer {entry.layer.path!r}: a matrix by low rank is needed")
        (rank,) = entry.ranks
        found.append(Matrix(entry.layer.path, front[0], columns, rank))
    return found


def input_moments(matrices: Sequence[Matrix]) -> int:
    """Bytes of E[x x^T], one for each layer, as the library keeps them."""
    return FLOAT32 * sum(one.rows**2 for one in matrices)


def distinct_moments(matrices: Sequence[Matrix]) -> int:
    """The same, one for all that read the same."""
    return FLOAT32 * sum(rows**2 for rows in {one.read: one.rows for one in matrices}.values())


def output_moments(matrices: Sequence[Matrix]) -> int:
    """Bytes of E[g g^T], of the loss gradient at what comes out."""
    return FLOAT32 * sum(one.columns**2 for one in matrices)


def summing(matrices: Sequence[Matrix], *, gradients: bool) -> float:
    """Operations for each row of data to sum the moments.

    Sums over what several layers read are computed once: XLA sees that they are the same.
    """
    own = sum(2 * rows**2 for rows in {one.read: one.rows for one in matrices}.values())
    return float(own + gradients * sum(2 * one.columns**2 for one in matrices))


def decomposing(one: Matrix, norm: str) -> Operations:
    """Operations of the best approximation of one matrix in a norm."""
    d, t, r = map(float, one[1:])
    n, m = sorted((d, t))
    # The Gram matrix of the shorter side, its eigenvectors, and the projection on them.
    found = Operations(2 * m * n * n + 2 * d * t * r, 0.0, EIGEN * n**3)
    if norm == "frobenius":
        return found
    # L of E[x x^T] = L L^T, and L^T W.
    found = found.plus(Operations(2 * d * d * t, d**3 / 3))
    if t > d:
        # From the eigenvectors of the shorter side to those of the longer.
        found = found.plus(Operations(2 * d * t * r, _orthonormal(t, r)))
    if norm == "kronecker":
        # R of E[g g^T] = R^T R, its inverse, W R^T, the factor taken back, both made orthogonal.
        found = found.plus(Operations(2 * d * t * t + 2 * r * t * t, t**3 / 3 + t**3))
        both = Operations(
            2 * r * r * (d + t) + 2 * r**3, _orthonormal(d, r) + _orthonormal(t, r), SVD * r**3
        )
        found = found.plus(both)
    return found


def _orthonormal(n: float, r: float) -> float:
    """Operations of a QR decomposition of (n, r), with Q."""
    return 4 * n * r * r - 4 * r**3 / 3


def total(matrices: Iterable[Matrix], norm: str) -> Operations:
    """Of all."""
    found = Operations()
    for one in matrices:
        found = found.plus(decomposing(one, norm))
    return found


def arguments(one: Matrix, norm: str) -> int:
    """Bytes of a matrix, and of what its norm is made of."""
    inputs = one.rows**2 if norm != "frobenius" else 0
    outputs = one.columns**2 if norm == "kronecker" else 0
    return FLOAT32 * (one.size + inputs + outputs)


def working_memory(one: Matrix, norm: str) -> int:
    """Bytes at once beside the arguments, as XLA plans them for this machine's device.

    A program is compiled, and nothing run: of a CPU the workspaces of LAPACK come on top.
    """
    compiled = compiled_decomposition(one, norm)
    found = compiled.memory_analysis()
    return int(found.temp_size_in_bytes + found.output_size_in_bytes)


def compiled_decomposition(one: Matrix, norm: str) -> Any:
    """The library's program for one matrix, from shapes."""

    def program(x: Array, inputs: Array, outputs: Array) -> tdjax.LowRank:
        own: tdjax.Norm | None = None
        if norm == "covariance":
            own = tdjax.Covariance(inputs)
        elif norm == "kronecker":
            own = tdjax.Kronecker(inputs, outputs)
        return tdjax.truncated_svd(x, one.rank, norm=own)

    d, t = one.rows, one.columns
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((d, t), (d, d), (t, t))]
    return jax.jit(program).lower(*shapes).compile()


def dealt(seconds: Iterable[float], devices: int) -> float:
    """The time of the device that is longest at work, the longest layers dealt out first."""
    work = [0.0] * devices
    for own in sorted(seconds, reverse=True):
        work[work.index(min(work))] += own
    return max(work)
