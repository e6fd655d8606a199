"""NaN and Inf among sums over batches, found without waiting for every batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool

from tdjax.decompose.inputs import all_finite


class Watch:
    """Looks at each batch's sums when the next one is under way."""

    def __init__(self, function: str) -> None:
        """Nothing has been seen yet.

        Arguments:
            function: for messages.
        """
        self._function, self._number = function, 0
        self._last: dict[Any, list[Bool[Array, ""]]] = {}
        self._what: Callable[[Any], str] = str

    def add(self, sums: Mapping[Any, Any], what: Callable[[Any], str]) -> None:
        """Add a batch.

        Arguments:
            sums: pytrees of arrays, in the order in which they are to be named.
            what: from a key of these to the sums in words.

        Raises ValueError as `close`, of the batch before.
        """
        self.close()
        # A program for each shape of array, small and shared by layers: inside the programs of
        # whole networks such checks took a third of the time to compile them.
        self._last = {key: list(map(all_finite, jax.tree.leaves(own))) for key, own in sums.items()}
        self._what, self._number = what, self._number + 1

    def close(self) -> None:
        """Look at the last batch. Raises ValueError that names it and what was not finite."""
        for key, finite in jax.device_get(self._last).items():
            if not all(finite):
                raise ValueError(
                    f"{self._function}: batch {self._number} (the first is 1) brings NaN or Inf "
                    f"into {self._what(key)}: look for them in the batch and in the model's weights"
                )
        self._last = {}
