"""The mean loss of a network with other arrays, and how much it differs from that of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tdjax.arguments.called import number_of
from tdjax.evaluate.candidates import Network
from tdjax.trace.call import Reading, split_arrays
from tdjax.trace.kept import kept


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of batches as a function of a network's arrays, one program for all of them.

    Arguments:
        network: a model as a static argument.
        structure: of its variables.
        loss_fn: (outputs, batch) -> losses of the examples, or their mean.
        reading: what of a batch the network gets.
        batches: any number of times over.
    """

    network: Network
    structure: Any
    loss_fn: Callable[[Any, Any], Any]
    reading: Reading
    batches: Sequence[Any]
    programs: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, leaves: Sequence[Any]) -> Float[np.ndarray, " n"]:
        """The losses of all examples, or of batches where that is what the loss gives."""
        found = []
        for batch in self.batches:
            arrays, static = split_arrays(batch)
            if static not in self.programs:
                self.programs[static] = self._program(static)
            found.append(self.programs[static](list(leaves), arrays))
        return np.concatenate([np.asarray(own, np.float64) for own in found])

    def counts(self, number: int) -> Float[np.ndarray, " n"]:
        """Examples of each of so many losses."""
        sizes = [number_of(batch) for batch in self.batches]
        return np.ones(number) if number == sum(sizes) else np.array(sizes, np.float64)

    def batch_of(self, place: int, number: int) -> int:
        """Of so many losses, the batch that the one at a place is of, the first being 1."""
        sizes = [number_of(batch) for batch in self.batches]
        ends = np.cumsum(sizes if number == sum(sizes) else np.ones(number))
        return int(np.searchsorted(ends, place, side="right")) + 1

    def _program(self, static: Any) -> Callable[..., Any]:
        def losses(leaves: list[Any], arrays: Any) -> Any:
            batch = static.join(arrays)
            variables = jax.tree.unflatten(self.structure, leaves)
            outputs = self.network.outputs(variables, self.reading.inputs(batch))
            return jnp.atleast_1d(self.loss_fn(outputs, batch))

        return kept(losses)


def mean_and_error(
    values: Float[np.ndarray, " n"], counts: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """The mean of values that stand for so many examples each, and its standard error.

    Of a single value, whose error is not known, its own size.
    """
    share = counts / counts.sum()
    mean = float(share @ values)
    if len(values) == 1:
        return mean, abs(mean)
    spread = float(np.square(share) @ np.square(values - mean))
    return mean, math.sqrt(spread * len(values) / (len(values) - 1))
