"""What peers know of the inputs and gradients of matrices, apart from tdjax: sums in float64.

Rounded to float32, a moment of many small eigenvalues has some below zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Examples whose gradients are held at once.
EXAMPLES = 16


class Inputs(NamedTuple):
    """Means over the rows that go into a matrix.

    Arguments:
        size: of |x|.
        moment: of x x^T.
    """

    size: Float[np.ndarray, " i"]
    moment: Float[np.ndarray, "i i"]


class Sums:
    """Of the rows that go into matrices, by path."""

    def __init__(self) -> None:
        """Of no rows yet."""
        self._sums: dict[str, Inputs] = {}

    def add(self, path: str, rows: Float[Any, "n i"]) -> None:
        """Count more rows."""
        own = np.asarray(rows, np.float64)
        new = Inputs(np.abs(own).sum(axis=0), own.T @ own)
        known = self._sums.get(path)
        self._sums[path] = new if known is None else Inputs(*map(np.add, known, new))

    def means(self, number: float) -> dict[str, Inputs]:
        """The sums over so many rows."""
        return {
            path: Inputs(own.size / number, own.moment / number) for path, own in self._sums.items()
        }


def squared_gradients(
    loss: Callable[..., Array],
    kernels: Mapping[str, Float[Any, "i o"]],
    examples: Sequence[Float[Any, n * _]],
) -> dict[str, Float[np.ndarray, " i"]]:
    """Squared gradients of each row of a matrix, their sum over the row and mean over examples.

    Arguments:
        loss: of the matrices, by path, and one example.
        examples: arrays of all examples, as many as the loss takes.
    """

    @jax.jit
    def squares(kernels: Any, *examples: Array) -> Any:
        axes = (None, *(0 for _ in examples))
        found = jax.vmap(jax.grad(loss), axes)(kernels, *examples)
        return jax.tree.map(lambda gradient: jnp.sum(gradient**2, axis=(0, 2)), found)

    kernels = {path: jnp.asarray(kernel) for path, kernel in kernels.items()}
    total = {path: np.zeros(len(kernel)) for path, kernel in kernels.items()}
    number = len(examples[0])
    for at in range(0, number, EXAMPLES):
        part = [array[at : at + EXAMPLES] for array in examples]
        for path, own in squares(kernels, *part).items():
            total[path] += np.asarray(own, np.float64) / number
    return total
