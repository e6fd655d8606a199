"""Means and variances of batch normalisation, from those of single batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tdjax.moments.finite import Watch

# Of what a layer knew, the share that is left after a call in training mode.
LEFT = 1 - 2**-4


def batch_statistics(
    after: Callable[[dict[Any, Any]], Mapping[Any, Any]], known: Mapping[Any, Any]
) -> dict[Any, Any]:
    """Running statistics as one batch would have them alone; known ones where it does not come.

    How often a layer is called is not told: transformations run calls in loops, and trace one call
    twice. So the model runs from two starts. What is left of their difference tells the share of
    the calls in the statistics, and with it their mean; all else in the two runs is the same.

    Arguments:
        after: statistics before a batch -> those after it, each call leaving the share `LEFT`.
        known: the statistics that there are, by any keys.
    """
    low = after({key: jnp.zeros_like(x) for key, x in known.items()})
    # As large as the statistics, for the difference to be exact.
    far = {key: 1 + jnp.abs(x).max() for key, x in low.items()}
    high = after({key: jnp.full_like(x, far[key]) for key, x in known.items()})
    found = {}
    for key, x in known.items():
        left = (high[key] - low[key]) / far[key]
        # Of whole calls, of which the difference tells the number and rounds the share.
        calls = jnp.round(jnp.log(jnp.maximum(left, 1e-30)) / math.log(LEFT))
        left = jnp.where(calls == 1, LEFT, LEFT**calls)
        # Where NaN is, too, which is seen later.
        reached = ~(left > (1 + LEFT) / 2)
        found[key] = jnp.where(reached, low[key] / jnp.where(reached, 1 - left, 1), x)
    return found


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
        own = {path: (means[path], variances[path]) for path in means}
        self._watch.add(own, lambda path: f"the statistics of layer {_name(path)!r}")
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
