"""What goes over the batches of a model, with weights of rows or without."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from tdjax.arguments.batches import read_batches
from tdjax.arguments.called import Method, checked_weights
from tdjax.dispatch.models import caller_of, room_of, with_arrays
from tdjax.moments.collect import RowWeights
from tdjax.moments.feeding import Fed, fed
from tdjax.processes import together


def fed_to(
    function: str,
    model: Any,
    variables: Any,
    batches: Iterable[Any],
    row_weights: RowWeights | None,
    method: Method,
) -> Iterable[Fed]:
    """Batches for a model: inputs alone, or with `row_weights` also (input, rest).

    Arguments:
        function: whose batches they are, for messages.
    """
    if row_weights is None:
        return fed(batches)
    trace_of = partial(room_of(model).trace, *with_arrays(model, variables), method=method)
    read = partial(read_batches, function, caller_of(model, variables, method), trace_of, batches)
    reading, batches = together(function, read)
    return fed(batches, reading, checked_weights(row_weights))
