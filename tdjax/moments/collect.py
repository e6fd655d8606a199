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

from tdjax.decompose.formats import register
from tdjax.hints import did_you_mean
from tdjax.moments.rows import Rows
from tdjax.moments.sums import Asked, LossFn, asked_of, model_inputs, step_of
from tdjax.plan.layers import Layer
from tdjax.plan.rules import matches
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
    layers = {
        path: layer
        for path, layer in trace.layers.items()
        if layer.obstacle is None and matches(path, paths)
    }
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


def _one_pass(
    trace_of: Callable[[Any], Trace],
    leaves: Sequence[Any],
    batches: Iterable[Any],
    loss_fn: LossFn | None,
    paths: set[str],
) -> dict[str, LayerMoments]:
    # Batches of other shapes have other pieces, and sums of their own.
    sums: dict[Any, Any] = {}
    steps: dict[Any, tuple[Trace, dict[int, Asked], Callable[..., Any]]] = {}
    examples = 0
    for batch in batches:
        arrays, frame = split_arrays(batch)
        key = (frame, tuple((array.shape, str(array.dtype)) for array in arrays))
        if key not in steps:
            trace = trace_of(model_inputs(batch))
            asked = asked_of(trace, paths)
            steps[key] = (trace, asked, step_of(trace, asked, frame, loss_fn))
        _, _, step = steps[key]
        made = step(leaves, arrays)
        sums[key] = made if key not in sums else _added(sums[key], made)
        examples += batch_size(arrays)
    if not sums:
        raise ValueError("collect_moments: no batches")
    collected = [(*steps[key][:2], *made) for key, made in sums.items()]
    return {path: _layer(path, collected, examples) for path in paths}


@partial(jax.jit, donate_argnums=0)
def _added(sums: Any, more: Any) -> Any:
    return jax.tree.map(jnp.add, sums, more)


def _layer(path: str, collected: Sequence[tuple[Any, ...]], examples: int) -> LayerMoments:
    """The moments of one layer, from all batches and calls."""
    inputs: list[Any] = []
    means: list[Any] = []
    outputs: list[Any] = []
    counts: dict[bool, list[Any]] = {False: [], True: []}
    for trace, asked, ends, gradients in collected:
        for number, sums in ends.items():
            call = asked[number]
            if call.path != path:
                continue
            stack = trace.calls[number].layer.storage.stack is not None

            def whole(rows: Rows, parts: list[Array], stack: bool = stack) -> Array:
                return jax.vmap(rows.assembled)(parts) if stack else rows.assembled(parts)

            counts[call.queries].append(sums.rows.reshape(-1)[0])
            if call.queries:
                outputs.append(whole(call.rows, sums.parts))
                continue
            inputs.append(whole(call.rows, sums.parts))
            means.append(sums.total)
            if number in gradients and call.outputs is not None:
                outputs.append(whole(call.outputs, gradients[number]))
    went_in, asked_for = (sum(counts[kind], jnp.zeros(())) for kind in (False, True))
    rows = went_in if inputs else asked_for

    def mean(parts: list[Any], number: Any) -> Any:
        return sum(parts[1:], parts[0]) / number if parts else None

    return LayerMoments(
        mean(inputs, went_in),
        mean(means, went_in),
        mean(outputs, asked_for if counts[True] else went_in),
        rows,
        jnp.asarray(float(examples)),
    )


def _passes(trace: Trace, layers: Mapping[str, Layer], memory: int) -> list[set[str]]:
    """Layers whose sums are held at once, so that they stay within `memory` bytes."""
    bytes_of = dict.fromkeys(layers, 0)
    for number, call in asked_of(trace, set(layers)).items():
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
