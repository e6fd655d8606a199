"""Second moments of what goes into each layer, and of the loss gradient at what comes out.

They are all that a decomposition in the norm of the data needs (Kalle et al., NeurIPS 2025;
Martens & Grosse 2015 for the output side). Summed batch by batch in float32 at the highest matmul
precision, from the model as it runs; no patches are held.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.dealing import in_this_process
from tdjax.decompose.inputs import is_at_hand, placed_like
from tdjax.decompose.meshes import without_explicit_axes
from tdjax.decompose.pytree import register
from tdjax.decompose.second_moment import trust
from tdjax.hints import did_you_mean
from tdjax.moments.finite import Watch
from tdjax.moments.losses import Turn, TurnLoss
from tdjax.moments.sizes import check_sizes, passes_within, sizes_of
from tdjax.moments.sums import batch_sums, fit_no_rows, summed_as, summed_calls
from tdjax.moments.totals import ENDS, SumsOfShape, alike_paths, kind_of_batch, layer_sums
from tdjax.plan.patterns import matches
from tdjax.processes import are_apart, gathered, summed, together
from tdjax.trace.call import WHOLE, Reading, batch_size, peeked, split_arrays
from tdjax.trace.trace import Trace

# From a batch to the weights of its rows, see `tdjax.moments.weighing`.
RowWeights = Callable[[Any], Any]

# How what goes into a layer and the gradient at what comes out are taken together.
INDEPENDENT, NEAREST = KRONECKER = ("independent", "nearest")
# Rows for each entry of a row from which a second moment is well known.
ENOUGH = 10


@register
@dataclass(frozen=True)
class LayerMoments:
    """What is known of one layer's data.

    >>> import jax, tdjax
    >>> from flax import nnx
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> found = tdjax.collect_moments(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), [x])[""]
    >>> found.inputs.shape, found.mean.shape, found.outputs, int(found.rows)
    ((1, 4, 4), (1, 4), None, 64)

    A stack of layers has an axis of them in front of all arrays but the counts. Layers that read
    the same values, as query, key and value do, have the same arrays of their inputs, not copies.

    Arguments:
        inputs: (groups, D, D), mean of x x^T over all rows x that go in, D in the order
            (*window, channels); (groups, D), its diagonal, where rows are looked up; None for a
            kernel that nothing goes into, as of an embedding that is only attended to.
        mean: (groups, D), mean of x; None where `inputs` is.
        outputs: (groups, T, T), mean of g g^T over all rows g of the gradient of one example's
            loss at what comes out; of an embedding that is attended to the mean of q q^T over
            its queries; None where it was not asked for.
        rows: number of rows that went in (of queries, where nothing did), all examples together;
            the sum of their weights where they were weighed.
        examples: number of examples.
        kronecker: "independent"; or "nearest", where `inputs` and `outputs` are the Kronecker
            product nearest to E[(x x^T) (x) (g g^T)], `inputs` and `mean` those of weighed rows.
    """

    inputs: Float[Array, "*_"] | None
    mean: Float[Array, "*_"] | None
    outputs: Float[Array, "*_"] | None
    rows: Float[Array, ""]
    examples: Float[Array, ""]
    kronecker: str = field(default=INDEPENDENT, metadata={"static": True})


def collect(
    ask: Question,
    leaves: Sequence[Any],
    batches: Iterable[Any],
    *,
    paths: str | Sequence[str],
    memory: int,
) -> dict[str, LayerMoments]:
    """The moments of a model's layers; see `tdjax.collect_moments`.

    Arguments:
        leaves: what the traced program takes in front of the arrays of the input.
    """
    function = ask.function
    first, batches = together(function, lambda: peeked(batches))
    apart = are_apart(function, first)
    if apart:
        ask, leaves = ask.of_this_process(), list(map(in_this_process, leaves))
    limits = _Limits(paths, memory)
    own = together(function, lambda: _collected(ask, leaves, first, batches, limits, apart))
    if apart:
        own = own.of_all_processes()
    if not own.layers:
        raise ValueError(f"{function}: no batches")
    # Given up one by one: sums and moments together would take twice the memory.
    found: dict[str, LayerMoments] = {}
    for path in own.layers:
        alike = found[own.alike[path]] if path in own.alike else None
        found[path] = _layer(path, own.sums.pop(path), own.examples, ask, alike)
    _warn_of_few(found)
    return found


class _Limits(NamedTuple):
    """Which layers, and how many bytes at a time; see `tdjax.collect_moments`."""

    paths: str | Sequence[str]
    memory: int


class _Collected(NamedTuple):
    """Sums over all batches.

    Arguments:
        layers: their paths.
        sums: by path and what they are of, as `layer_sums` names it.
        examples: number of examples.
        alike: by path of a layer, a layer in front of it whose sums at the inputs are its own too.
    """

    layers: list[str]
    sums: dict[str, dict[str, Array]]
    examples: int
    alike: Mapping[str, str]

    def of_all_processes(self) -> _Collected:
        """Those over the batches of all processes, of which some may have none."""
        told = gathered([self.layers, self.examples])
        layers = list(dict.fromkeys(path for some, _ in told for path in some))
        # What is alike in one process need not be in another.
        own = {
            path: {of: x for of, x in self.sums[like].items() if of in ENDS}
            for path, like in self.alike.items()
        }
        named = {
            json.dumps([path, of]): x
            for path, sums in self.sums.items()
            for of, x in {**sums, **own.get(path, {})}.items()
        }
        sums: dict[str, dict[str, Array]] = {path: {} for path in layers}
        for name, array in summed(named).items():
            path, of = json.loads(name)
            sums[path][of] = array
        return _Collected(layers, sums, sum(examples for _, examples in told), {})


def _collected(
    ask: Question,
    leaves: Sequence[Any],
    first: Any,
    batches: Iterable[Any],
    limits: _Limits,
    apart: bool,
) -> _Collected:
    """The sums over the batches of this process, or of all where they share them."""
    if first is None and apart:
        return _Collected([], {}, 0, {})
    function, (paths, memory) = ask.function, limits
    if first is None:
        raise ValueError(f"{function}: no batches")
    trace = ask.trace_of(ask.reading.inputs(without_explicit_axes(first)))
    layers = [
        path
        for path, layer in trace.layers.items()
        if layer.obstacle is None and matches(path, paths)
    ]
    if not layers:
        raise ValueError(
            f"{function}: no layer that can be factorised matches {paths!r}"
            f"{did_you_mean(paths, trace.layers)}"
        )
    sizes = sizes_of(trace, layers, gradients=ask.loss_fn is not None)
    check_sizes(function, sizes, memory)
    passes = passes_within(sizes, memory)
    if len(passes) > 1 and iter(batches) is batches:
        raise ValueError(
            f"{function}: the moments need {len(passes)} passes over the batches to stay "
            f"within {memory:,} bytes; give a list of batches, or raise memory="
        )
    sums: dict[str, dict[str, Array]] = {}
    alike: dict[str, str] = {}
    examples = 0
    for some in passes:
        own = _one_pass(ask, leaves, batches, [path for path in layers if path in some])
        examples = own.examples
        sums |= own.sums
        alike |= own.alike
    return _Collected(layers, sums, examples, alike)


class Question(NamedTuple):
    """What is asked of every batch.

    Arguments:
        function: whose batches they are, for messages.
        trace_of: traces the model on an input.
        reading: what of a batch the model gets.
        loss_fn: whose gradients are asked for, None for none.
        row_weights: see `tdjax.collect_moments`.
        process: whose batches they are, where each has its own.
    """

    function: str
    trace_of: Callable[[Any], Trace]
    reading: Reading = WHOLE
    loss_fn: TurnLoss | None = None
    row_weights: RowWeights | None = None
    process: int = 0

    def of_this_process(self) -> Question:
        """The same where other processes have other batches."""
        return self._replace(process=jax.process_index())

    def turn(self, batch: Any, number: int) -> Turn:
        """What a loss may ask of a batch of this number."""
        weights = None if self.row_weights is None else self.row_weights(batch)
        return Turn(weights, np.array([self.process, number], np.int32))


def _one_pass(
    ask: Question, leaves: Sequence[Any], batches: Iterable[Any], paths: Sequence[str]
) -> _Collected:
    """The sums of some layers over all batches."""
    by_shape: dict[Any, SumsOfShape] = {}
    examples, watch = 0, Watch(ask.function)
    for number, batch in enumerate(map(without_explicit_axes, batches)):
        arrays, static = split_arrays(batch)
        turn = ask.turn(batch, number)
        key = kind_of_batch(batch, turn.weights)
        if key not in by_shape:
            trace = ask.trace_of(ask.reading.inputs(batch))
            if not by_shape and turn.weights is not None:
                _check_axes(ask.function, trace, turn.weights)
            calls = summed_calls(trace, set(paths))
            program = batch_sums(trace, calls, static, ask.loss_fn, ask.reading)
            by_shape[key] = SumsOfShape(trace, calls, summed_as(trace, calls), program, {}, {})
        by_shape[key].add(leaves, arrays, turn, watch)
        examples += batch_size(arrays)
    watch.close()
    if not by_shape:
        raise ValueError(f"{ask.function}: no batches")
    sums = list(by_shape.values())
    alike = alike_paths(paths, sums)
    found = {path: layer_sums(path, sums, inputs=path not in alike) for path in paths}
    return _Collected(list(paths), found, examples, alike)


def _check_axes(function: str, trace: Trace, weights: Array) -> None:
    """Warn of weights that differ within an example, but have the axes of no layer's rows."""
    known = weights.reshape(len(weights), -1)
    if fit_no_rows(trace, weights) and bool((known != known[:, :1]).any()):
        warnings.warn(
            f"{function}: row_weights of shape {weights.shape} have the axes of no layer's rows: "
            "every example counts by its largest weight, its padding too; give weights (batch, "
            "tokens), of as many tokens as the layers read",
            stacklevel=2,
        )


def _layer(
    path: str,
    sums: Mapping[str, Array],
    examples: int,
    ask: Question,
    alike: LayerMoments | None,
) -> LayerMoments:
    """The moments of one layer, from its sums.

    Arguments:
        alike: those of another whose inputs are its own, which are kept once; None for none.
    """
    rows = sums.get("rows") if alike is None else alike.rows
    query_rows = sums.get("query_rows")
    number = rows if rows is not None else query_rows
    if number is None or not number:
        raise ValueError(no_rows(ask.function, path, weighed=ask.row_weights is not None))
    outputs = _mean(sums.get("outputs"), number)
    if query_rows is not None:
        outputs = _mean(sums["queries"], query_rows)
    found = LayerMoments(
        _mean(sums.get("inputs"), number) if alike is None else alike.inputs,
        _mean(sums.get("mean"), number) if alike is None else alike.mean,
        outputs,
        number,
        jnp.asarray(float(examples)),
    )
    for array in (found.inputs, found.mean, found.outputs):
        if array is not None:
            # They are moments as they are sums of squares.
            trust(array)
    return found


def no_rows(function: str, path: str, *, weighed: bool) -> str:
    """What to say of a layer that no row goes into, or none that counts."""
    if weighed:
        return f"{function}: row_weights leave layer {path!r} no row that counts"
    return (
        f"{function}: no row goes into layer {path!r}: the batches are empty, or the model takes "
        "another branch; choose other layers"
    )


def _mean(whole: Array | None, number: Float[Array, ""]) -> Array | None:
    if whole is None:
        return None
    if not is_at_hand(whole):
        return whole / number
    # A program for each shape would take longer.
    return placed_like(whole, np.asarray(whole) / np.asarray(number))


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
