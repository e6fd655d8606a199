"""NaN and Inf among sums over batches, found without waiting for every batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no array of a pytree holds NaN or Inf."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


class Watch:
    """Looks at each batch's sums when the next one is under way."""

    def __init__(self, function: str) -> None:
        """Nothing has been seen yet.

        Arguments:
            function: for messages.
        """
        self._function, self._number = function, 0
        self._last: Mapping[Any, Bool[Array, ""]] = {}
        self._what: Callable[[Any], str] = str

    def add(self, flags: Mapping[Any, Bool[Array, ""]], what: Callable[[Any], str]) -> None:
        """Add a batch.

        Arguments:
            flags: whether sums are finite, in the order in which they are to be named.
            what: from a key of these to the sums in words.

        Raises ValueError as `close`, of the batch before.
        """
        self.close()
        self._last, self._what, self._number = flags, what, self._number + 1

    def close(self) -> None:
        """Look at the last batch. Raises ValueError that names it and what was not finite."""
        for key, finite in self._last.items():
            if not finite:
                raise ValueError(
                    f"{self._function}: batch {self._number} (the first is 1) brings NaN or Inf "
                    f"into {self._what(key)}: look for them in the batch and in the model's weights"
                )
        self._last = {}
