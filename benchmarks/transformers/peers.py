"""Low rank as others do it, in NumPy: kernels (in, out) of layers y = x K.

Frobenius  the nearest matrix of that rank (Eckart and Young 1936)
ASVD       rows of K scaled by mean |x_i| to the power 0.5 (Yuan et al. 2023, arXiv 2312.05821)
FWSVD      rows of K scaled by the root of their Fisher information (Hsu et al. 2022,
           arXiv 2207.00112)
SVD-LLM    inputs whitened by the Cholesky factor of their second moment, truncated; and with
           the second factor fitted again, block after block, to what the dense layer puts out
           (Wang et al. 2024, arXiv 2403.07378)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Kernel = Float[np.ndarray, "i o"]
Square = Float[np.ndarray, "i i"]
# Added to the diagonal of second moments, relative to its mean.
RIDGE = 1e-6


class Factors(NamedTuple):
    """Two matrices whose product stands for a kernel, the features between them by weight."""

    first: Float[np.ndarray, "i r"]
    second: Float[np.ndarray, "r o"]

    @property
    def kernel(self) -> Kernel:
        """The product."""
        return self.first @ self.second

    def cut(self, rank: int) -> Factors:
        """With the first features alone."""
        return Factors(self.first[:, :rank], self.second[:rank])


def rank_of(shape: tuple[int, ...], share: float) -> int:
    """The largest rank of two factors that have no more than a share of the parameters."""
    return max(1, int(share * shape[0] * shape[1] / sum(shape)))


def frobenius(kernel: Kernel) -> Factors:
    """Of all ranks the nearest matrices."""
    u, s, v = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
    return Factors(u * s, v)


def scaled(kernel: Kernel, scale: Float[np.ndarray, " i"]) -> Factors:
    """The nearest where each row of the difference counts by its scale; none counts nothing."""
    scale = np.maximum(scale.astype(np.float64), 1e-6 * scale.max())
    first, second = frobenius(scale[:, None] * kernel)
    return Factors(first / scale[:, None], second)


def asvd(kernel: Kernel, size: Float[np.ndarray, " i"], power: float = 0.5) -> Factors:
    """Scaled by a power of the mean size of each input."""
    return scaled(kernel, size**power)


def fwsvd(kernel: Kernel, fisher: Float[np.ndarray, " i"]) -> Factors:
    """Scaled by the root of each row's Fisher information, the mean squared gradient's sum."""
    return scaled(kernel, np.sqrt(fisher))


def whitened(kernel: Kernel, moment: Square) -> Factors:
    """The nearest in the outputs of inputs that have a second moment."""
    lower = np.linalg.cholesky(ridged(moment))
    first, second = frobenius(lower.T @ kernel)
    return Factors(np.linalg.solve(lower.T, first), second)


def fitted(kernel: Kernel, first: Float[np.ndarray, "i r"], moment: Square) -> Factors:
    """The second factor by least squares, for inputs that have a second moment."""
    through = first.T @ moment.astype(np.float64)
    return Factors(first, np.linalg.solve(ridged(through @ first), through @ kernel))


def ridged(moment: Square) -> Square:
    """In float64, with a little added to the diagonal."""
    moment = moment.astype(np.float64)
    return moment + RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
