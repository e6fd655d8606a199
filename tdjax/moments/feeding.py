"""Batches as what goes over them takes them: the model's input, and the weights of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array

from tdjax.moments.collect import RowWeights
from tdjax.trace.call import WHOLE, Reading


class Fed(NamedTuple):
    """One batch.

    Arguments:
        inputs: of the model, as `tdjax.trace.call.call_arguments` takes it.
        weights: of rows, (batch, ...), see `tdjax.moments.weighing`; None where all count as one.
    """

    inputs: Any
    weights: Array | None


def fed(
    batches: Iterable[Any], reading: Reading = WHOLE, row_weights: RowWeights | None = None
) -> Iterable[Fed]:
    """All batches; to be gone over as often as what they are made of.

    Arguments:
        reading: what of a batch the model gets.
        row_weights: see `tdjax.collect_moments`.
    """
    made = _Batches(batches, reading, row_weights)
    return iter(made) if iter(batches) is batches else made


@dataclass(frozen=True, eq=False)
class _Batches:
    batches: Iterable[Any]
    reading: Reading
    row_weights: RowWeights | None

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Fed]:
        for batch in self.batches:
            weights = None if self.row_weights is None else self.row_weights(batch)
            yield Fed(self.reading.inputs(batch), weights)
