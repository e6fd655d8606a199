"""Means and variances of batch normalisation, from those of single batches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


class Pooled:
    """Mean and variance of all examples together, from those of batches.

    The variance is the mean of the batches' and the variance of their means.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.examples = 0
        self.sums: Any = None

    def add(self, means: Any, variances: Any, examples: int) -> None:
        """Add a batch: two pytrees of one structure."""
        made = jax.tree.map(
            lambda mean, variance: examples * jnp.stack([mean, variance + mean**2]),
            means,
            variances,
        )
        self.sums = made if self.sums is None else jax.tree.map(jnp.add, self.sums, made)
        self.examples += examples

    def mean_and_variance(self) -> tuple[Any, Any]:
        """The two pytrees for all batches."""
        both = jax.tree.map(lambda sums: sums / self.examples, self.sums)

        means = jax.tree.map(lambda both: both[0], both)
        return means, jax.tree.map(lambda both: jnp.maximum(both[1] - both[0] ** 2, 0.0), both)
