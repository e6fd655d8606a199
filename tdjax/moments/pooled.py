"""Means and variances of batch normalisation, from those of single batches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tdjax.moments.finite import Watch, all_finite


class Pooled:
    """Mean and variance of all examples together, from those of batches.

    The variance is the mean of the batches' and the variance of their means.
    """

    def __init__(self, function: str) -> None:
        """Nothing is known yet.

        Arguments:
            function: for messages.
        """
        self.examples = 0
        self.sums: Any = None
        self._watch = Watch(function)

    def add(self, means: Any, variances: Any, examples: int) -> None:
        """Add a batch: two mappings by layer, in any order.

        Raises ValueError for NaN and Inf in the batch before, naming a layer.
        """
        finite = {path: all_finite((means[path], variances[path])) for path in means}
        self._watch.add(finite, lambda path: f"the statistics of layer {_name(path)!r}")
        made = jax.tree.map(
            lambda mean, variance: examples * jnp.stack([mean, variance + mean**2]),
            means,
            variances,
        )
        self.sums = made if self.sums is None else jax.tree.map(jnp.add, self.sums, made)
        self.examples += examples

    def mean_and_variance(self) -> tuple[Any, Any]:
        """The two mappings for all batches. Raises ValueError as `add`, of the last one."""
        self._watch.close()
        both = jax.tree.map(lambda sums: sums / self.examples, self.sums)

        means = jax.tree.map(lambda both: both[0], both)
        return means, jax.tree.map(lambda both: jnp.maximum(both[1] - both[0] ** 2, 0.0), both)


def _name(path: Any) -> str:
    return path if isinstance(path, str) else "/".join(path)
