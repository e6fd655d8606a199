"""Sums over all batches: of batches of each shape, and of these together for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.moments.finite import Watch
from tdjax.moments.losses import Turn
from tdjax.moments.rows import Rows
from tdjax.moments.sums import BatchSums, SummedCall, Sums
from tdjax.trace.call import split_arrays
from tdjax.trace.trace import Trace

# What sums of a layer are named that are of what goes in.
ENDS = INPUTS, MEAN, ROWS = "inputs", "mean", "rows"


@dataclass
class SumsOfShape:
    """The sums over all batches of one shape: other shapes have other parts, and another program.

    Arguments:
        trace: of the model on such a batch.
        calls: that are summed, by number.
        once: by number, the call whose sums at the inputs are its own, see
            `tdjax.moments.sums.summed_as`.
        program: from `tdjax.moments.sums.batch_sums`.
        inputs, gradients: those of all batches so far.
    """

    trace: Trace
    calls: Mapping[int, SummedCall]
    once: Mapping[int, int]
    program: Callable[[Any, Any, Turn], BatchSums]
    inputs: dict[int, Sums]
    gradients: dict[int, list[Array]]

    def add(self, leaves: Any, arrays: Any, turn: Turn, watch: Watch) -> None:
        """Add a batch."""
        made = self.program(leaves, arrays, turn)
        ends: dict[str, dict[int, Any]] = {
            "": made.inputs,
            "the gradient of the loss at ": made.gradients,
        }
        named = {(end, number): own[number] for end, own in ends.items() for number in sorted(own)}
        watch.add(named, lambda key: f"{key[0]}layer {self.calls[key[1]].path!r}")
        so_far = BatchSums(self.inputs, self.gradients)
        self.inputs, self.gradients = added(so_far, made) if self.inputs else made

    def input_moment(self, number: int) -> Array:
        """The sum of x x^T over what went into a call."""
        return self._assembled(number, self.calls[number].rows, self.input_sums(number).parts)

    def input_sums(self, number: int) -> Sums:
        """The sums over what went into a call, in parts."""
        return self.inputs[self.once[number]]

    def gradient_moment(self, number: int) -> Array:
        """The sum of g g^T over the gradients of what came out of a call."""
        outputs = self.calls[number].outputs
        assert outputs is not None
        return self._assembled(number, outputs, self.gradients[number])

    def _assembled(self, number: int, rows: Rows, parts: list[Array]) -> Array:
        stacked = self.trace.calls[number].layer.storage.stack is not None
        return jax.vmap(rows.assembled)(parts) if stacked else rows.assembled(parts)


def alike_paths(paths: Sequence[str], collected: Sequence[SumsOfShape]) -> dict[str, str]:
    """By path of a layer, one in front of it that the same values go into, if there is one."""
    first: dict[Any, str] = {}
    found = {}
    for path in paths:
        calls = tuple(
            (shape, sums.once[number])
            for shape, sums in enumerate(collected)
            for number, call in sums.calls.items()
            if call.path == path and not call.queries
        )
        if calls and first.setdefault(calls, path) != path:
            found[path] = first[calls]
    return found


def kind_of_batch(batch: Any, weights: Any) -> Any:
    """What batches have in common that one program serves."""
    arrays, static = split_arrays(batch)
    shaped = [*arrays, *jax.tree.leaves(weights)]
    return static, tuple((array.shape, str(array.dtype)) for array in shaped)


@partial(jax.jit, donate_argnums=0)
def added(sums: Any, more: Any) -> Any:
    """Sums with those of a batch; the memory of the former is given back."""
    return jax.tree.map(jnp.add, sums, more)


def layer_sums(path: str, collected: Sequence[SumsOfShape], *, inputs: bool) -> dict[str, Array]:
    """The sums of one layer over all batches and calls, by name; see `tdjax.moments.collect`.

    Arguments:
        inputs: whether those at its inputs are asked for.
    """
    calls = [
        (sums, number)
        for sums in collected
        for number, call in sums.calls.items()
        if call.path == path and sums.once[number] in sums.inputs
    ]
    # Queries to an embedding meet the columns of its table: they are moments of the other end.
    queries = [(sums, n) for sums, n in calls if sums.calls[n].queries]
    taken = [(sums, n) for sums, n in calls if not sums.calls[n].queries]
    ends = taken if inputs else []
    every = {
        INPUTS: [sums.input_moment(n) for sums, n in ends],
        MEAN: [sums.input_sums(n).total for sums, n in ends],
        "outputs": [sums.gradient_moment(n) for sums, n in taken if n in sums.gradients],
        "queries": [sums.input_moment(n) for sums, n in queries],
        ROWS: [_number(ends)] if ends else [],
        "query_rows": [_number(queries)] if queries else [],
    }
    return {of: sum(own[1:], own[0]) for of, own in every.items() if own}


def _number(calls: Sequence[tuple[SumsOfShape, int]]) -> Float[Array, ""]:
    """Number of rows that went into one layer in some calls.

    Those of a stack that are taken by their numbers are taken to be called equally often.
    """

    def number(sums: SumsOfShape, n: int) -> Float[Array, ""]:
        made = sums.trace.calls[n]
        return sums.input_sums(n).rows.reshape(-1)[0] / (made.layer.copies if made.indexed else 1)

    return sum((number(sums, n) for sums, n in calls), jnp.zeros(()))
