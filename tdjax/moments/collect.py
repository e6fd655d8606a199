"""Second moments of what goes into each layer, and of the loss gradient at what comes out.

They are all that a decomposition in the norm of the data needs (Kalle et al., NeurIPS 2025;
Martens & Grosse 2015 for the output side). Summed batch by batch in float32 at the highest matmul
precision, from the model as it runs; no patches are held.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.pytree import register
from tdjax.hints import did_you_mean
from tdjax.moments.rows import Rows
from tdjax.moments.sums import LossFn, SummedCall, Sums, batch_sums, model_inputs, summed_calls
from tdjax.plan.patterns import matches
from tdjax.trace.call import batch_size, split_arrays
from tdjax.trace.trace import Trace

# Rows for each entry of a row from which a second moment is well known.
ENOUGH = 10


@register
@dataclass(frozen=True)
class LayerMoments:
    """What is known of one layer's data.

    A stack of layers has an axis of them in front of all arrays but the counts.

    Arguments:
        inputs: (groups, D, D), mean of x x^T over all rows x that go in, D in the order
            (*window, channels); (groups, D), its diagonal, where rows are looked up; None for a
            kernel that nothing goes into, as of an embedding that is only attended to.
        mean: (groups, D), mean of x; None where `inputs` is.
        outputs: (groups, T, T), mean of g g^T over all rows g of the gradient of one example's
            loss at what comes out; of an embedding that is attended to the mean of q q^T over
            its queries; None where it was not asked for.
        rows: number of rows that went in (of queries, where nothing did), all examples together.
        examples: number of examples.
    """

    inputs: Float[Array, "*_"] | None
    mean: Float[Array, "*_"] | None
    outputs: Float[Array, "*_"] | None
    rows: Float[Array, ""]
    examples: Float[Array, ""]


def collect(
    trace_of: Callable[[Any], Trace],
    leaves: Sequence[Any],
    batches: Iterable[Any],
    *,
    loss_fn: LossFn | None,
    paths: str | Sequence[str],
    memory: int,
) -> dict[str, LayerMoments]:
    """The moments of a model's layers; see `tdjax.collect_moments`.

    Arguments:
        trace_of: traces the model on an input.
        leaves: what the traced program takes in front of the arrays of the input.
    """
    first, batches = _first(batches)
    trace = trace_of(model_inputs(first))
    layers = [
        path
        for path, layer in trace.layers.items()
        if layer.obstacle is None and matches(path, paths)
    ]
    if not layers:
        raise ValueError(
            f"collect_moments: no layer that can be factorised matches {paths!r}"
            f"{did_you_mean(paths, trace.layers)}"
        )
    passes = _passes(trace, layers, memory)
    if len(passes) > 1 and iter(batches) is batches:
        raise ValueError(
            f"collect_moments: the moments need {len(passes)} passes over the batches to stay "
            f"within {memory:,} bytes; give a list of batches, or raise memory="
        )
    found: dict[str, LayerMoments] = {}
    for own in passes:
        found |= _one_pass(trace_of, leaves, batches, loss_fn, own)
    _warn_of_few(found)
    return {path: found[path] for path in layers}


@dataclass
class _SumsOfShape:
    """The sums over all batches of one shape: other shapes have other parts, and another program.

    Arguments:
        trace: of the model on such a batch.
        calls: that are summed, by number.
        program: (leaves, arrays of a batch) -> sums by number at either end of the calls.
        inputs, gradients: those of all batches so far.
    """

    trace: Trace
    calls: Mapping[int, SummedCall]
    program: Callable[[Any, Any], Any]
    inputs: dict[int, Sums]
    gradients: dict[int, list[Array]]

    def add(self, leaves: Any, arrays: Any) -> None:
        """Add a batch."""
        made = self.program(leaves, arrays)
        so_far = (self.inputs, self.gradients)
        self.inputs, self.gradients = _added(so_far, made) if self.inputs else made

    def input_moment(self, number: int) -> Array:
        """The sum of x x^T over what went into a call."""
        return self._assembled(number, self.calls[number].rows, self.inputs[number].parts)

    def gradient_moment(self, number: int) -> Array:
        """The sum of g g^T over the gradients of what came out of a call."""
        outputs = self.calls[number].outputs
        assert outputs is not None
        return self._assembled(number, outputs, self.gradients[number])

    def _assembled(self, number: int, rows: Rows, parts: list[Array]) -> Array:
        stacked = self.trace.calls[number].layer.storage.stack is not None
        return jax.vmap(rows.assembled)(parts) if stacked else rows.assembled(parts)


def _one_pass(
    trace_of: Callable[[Any], Trace],
    leaves: Sequence[Any],
    batches: Iterable[Any],
    loss_fn: LossFn | None,
    paths: set[str],
) -> dict[str, LayerMoments]:
    by_shape: dict[Any, _SumsOfShape] = {}
    examples = 0
    for batch in batches:
        arrays, static = split_arrays(batch)
        key = (static, tuple((array.shape, str(array.dtype)) for array in arrays))
        if key not in by_shape:
            trace = trace_of(model_inputs(batch))
            calls = summed_calls(trace, paths)
            program = batch_sums(trace, calls, static, loss_fn)
            by_shape[key] = _SumsOfShape(trace, calls, program, {}, {})
        by_shape[key].add(leaves, arrays)
        examples += batch_size(arrays)
    if not by_shape:
        raise ValueError("collect_moments: no batches")
    sums = list(by_shape.values())
    return {path: _layer(path, sums, examples) for path in paths}


@partial(jax.jit, donate_argnums=0)
def _added(sums: Any, more: Any) -> Any:
    return jax.tree.map(jnp.add, sums, more)


def _layer(path: str, collected: Sequence[_SumsOfShape], examples: int) -> LayerMoments:
    """The moments of one layer, from all batches and calls."""
    calls = [
        (sums, number)
        for sums in collected
        for number in sums.inputs
        if sums.calls[number].path == path
    ]
    # Queries to an embedding meet the columns of its table: they are moments of the other end.
    queries = [(sums, n) for sums, n in calls if sums.calls[n].queries]
    taken = [(sums, n) for sums, n in calls if not sums.calls[n].queries]
    number_taken, number_of_queries = _number(taken), _number(queries)
    outputs = [sums.gradient_moment(n) for sums, n in taken if n in sums.gradients]
    if queries:
        outputs = [sums.input_moment(n) for sums, n in queries]
    return LayerMoments(
        _mean([sums.input_moment(n) for sums, n in taken], number_taken),
        _mean([sums.inputs[n].total for sums, n in taken], number_taken),
        _mean(outputs, number_of_queries if queries else number_taken),
        number_taken if taken else number_of_queries,
        jnp.asarray(float(examples)),
    )


def _number(calls: Sequence[tuple[_SumsOfShape, int]]) -> Float[Array, ""]:
    """Number of rows that went into some calls."""
    return sum((sums.inputs[n].rows.reshape(-1)[0] for sums, n in calls), jnp.zeros(()))


def _mean(sums: Sequence[Array], number: Float[Array, ""]) -> Array | None:
    return sum(sums[1:], sums[0]) / number if sums else None


def _passes(trace: Trace, layers: Sequence[str], memory: int) -> list[set[str]]:
    """Layers whose sums are held at once, so that they stay within `memory` bytes."""
    bytes_of = dict.fromkeys(layers, 0)
    for number, call in summed_calls(trace, set(layers)).items():
        made = trace.calls[number]
        assert made.call is not None
        sums = jax.eval_shape(call.rows.sums, made.call.inputs)
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(sums))
        bytes_of[call.path] += size * made.layer.copies
    passes: list[set[str]] = []
    left = 0
    for path, size in bytes_of.items():
        # Twice: those of a batch, and those so far.
        if not passes or left < 2 * size:
            passes.append(set())
            left = memory
        passes[-1].add(path)
        left -= 2 * size
    return passes


def _warn_of_few(moments: Mapping[str, LayerMoments]) -> None:
    few = [
        f"{path} ({int(found.rows):,} rows of {found.inputs.shape[-1]:,})"
        for path, found in moments.items()
        if found.inputs is not None
        and found.inputs.shape[-2:-1] == found.inputs.shape[-1:]
        and found.rows < ENOUGH * found.inputs.shape[-1]
    ]
    if few:
        warnings.warn(
            f"too few rows for second moments, less than {ENOUGH} for each entry: "
            f"{', '.join(few)}; give more batches",
            stacklevel=3,
        )


def _first(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, and all of them."""
    turns = iter(batches)
    try:
        first = next(turns)
    except StopIteration:
        raise ValueError("collect_moments: no batches") from None
    return first, itertools.chain([first], turns) if turns is batches else batches
