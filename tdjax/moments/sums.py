"""Sums over the rows at the layers' ends, for one batch: what moments are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tdjax.moments.losses import Turn, TurnLoss
from tdjax.moments.rows import Flow, Rows, flow_of, number_of_rows
from tdjax.moments.weighing import by_row, laid_out
from tdjax.trace.call import Reading, StaticPart, call_arguments, split_arrays
from tdjax.trace.inputs import inputs_of_calls, shapes_at_inputs
from tdjax.trace.kept import kept as kept_program
from tdjax.trace.marks import INPUT, Mark
from tdjax.trace.trace import Trace, TracedCall
from tdjax.trace.visit import run


class SummedCall(NamedTuple):
    """A call whose rows are summed.

    Arguments:
        path: of the layer.
        rows: of what goes in.
        outputs: of what comes out, or None.
        queries: whether what goes in are queries to an embedding.
        constant: whether what goes in does not depend on the batch, as positions do not.
    """

    path: str
    rows: Rows
    outputs: Rows | None
    queries: bool
    constant: bool = False


class Sums(NamedTuple):
    """Sums over the rows of one call, in the parts that batches are added in.

    Arguments:
        parts, total: see `tdjax.moments.rows.Rows.sums`.
        rows: their number.
    """

    parts: list[Array]
    total: Array
    rows: Array


def summed_calls(trace: Trace, paths: set[str]) -> dict[int, SummedCall]:
    """The calls of some layers that run, by number.

    Raises ValueError for one inside a while loop, or another function that nothing comes out of.
    """
    summed: dict[int, SummedCall] = {}
    for number, made in trace.calls.items():
        if made.layer.path not in paths or made.call is None or not trace.survey.runs[number]:
            continue
        if number in trace.survey.hidden:
            raise ValueError(
                f"collect_moments: layer {made.layer.path!r} is called inside "
                f"`{trace.survey.hidden[number]}`, from which no sums can be returned; choose "
                "other layers with paths="
            )
        flow: Flow = flow_of(made.call, made.layer)
        rows = flow.inputs or flow.queries
        assert rows is not None
        summed[number] = SummedCall(
            made.layer.path, rows, flow.outputs, flow.inputs is None,
            number not in trace.survey.called_with_data,
        )  # fmt: skip
    return summed


def fit_no_rows(trace: Trace, weights: Array) -> bool:
    """Whether weights have the axes of no layer's rows, of those that depend on the batch."""
    shapes = shapes_at_inputs(trace)
    fits = []
    for number in sorted(trace.survey.called_with_data):
        made = trace.calls[number]
        if made.call is not None:
            flow: Flow = flow_of(made.call, made.layer)
            rows = flow.inputs or flow.queries
            assert rows is not None
            fits.append(by_row(weights, rows.front(shapes[number])) is not None)
    return bool(fits) and not any(fits)


def summed_as(trace: Trace, calls: Mapping[int, SummedCall]) -> dict[int, int]:
    """By number of a call, the first whose inputs have the same sums; most often it is that.

    Such are query, key and value of an attention: one value goes into all of them.
    """
    values, first = inputs_of_calls(trace), dict[Any, int]()
    found = {}
    for number, call in calls.items():
        made = trace.calls[number]
        stored = made.layer.storage
        key: Any = number
        if number in values:
            stack = stored.stack is None, stored.copies, made.indexed
            key = values[number], call.rows, call.queries, call.constant, stack
        found[number] = first.setdefault(key, number)
    return found


class BatchSums(NamedTuple):
    """What one batch adds.

    Arguments:
        inputs: sums at the one end of the calls, by number, see `summed_as`.
        gradients: sums at the other end.
    """

    inputs: dict[int, Sums]
    gradients: dict[int, list[Array]]


def batch_sums(
    trace: Trace,
    calls: Mapping[int, SummedCall],
    static: StaticPart,
    loss_fn: TurnLoss | None,
    reading: Reading,
) -> Callable[[Any, Any, Turn], BatchSums]:
    """(leaves, arrays of a batch, its turn) -> the sums of the calls' rows.

    Arguments:
        calls: from `summed_calls`.
        static: the static part of the batch.
        loss_fn: see `tdjax.moments.losses`; without it there are no sums at the other end.
        reading: what of the batch the model gets.
    """

    once = summed_as(trace, calls)

    def sums(leaves: Any, arrays: Any, turn: Turn) -> BatchSums:
        batch = static.join(arrays)
        inputs, _ = split_arrays(call_arguments(reading.inputs(batch)))
        weights = turn.weights, None if loss_fn is None else loss_fn.weights(turn)
        passed = partial(_passed, trace, calls, once, [*leaves, *inputs], weights)
        if loss_fn is None:
            _, kept = passed({})
            return BatchSums(kept, {})

        def loss(slots: Any) -> tuple[Any, Any]:
            results, kept = passed(slots)
            return summed_loss(trace, loss_fn, results, batch, turn), kept

        gradients, kept = jax.grad(loss, has_aux=True)(_slots(trace, calls))
        return BatchSums(kept, gradients)

    return kept_program(sums)


def summed_loss(
    trace: Trace, loss_fn: TurnLoss, results: Sequence[Any], batch: Any, turn: Turn
) -> Array:
    """The losses of all examples of a batch together, from the results of the program."""
    # Behind the outputs come values that the model keeps.
    returned = results[: len(results) - len(trace.kept)]
    outputs = jax.tree.unflatten(jax.tree.structure(trace.outputs), returned)
    each = jnp.asarray(loss_fn(outputs, batch, turn))
    # The gradient of one example's own loss: of a mean, too small by their number.
    return jnp.sum(each) if each.ndim else each * trace.batch


def _passed(
    trace: Trace,
    calls: Mapping[int, SummedCall],
    once: Mapping[int, int],
    arguments: Any,
    weights: tuple[Array | None, Array | None],
    slots: Any,
) -> tuple[list[Any], dict[int, Sums]]:
    """Results of the model, and the sums of what goes into its layers.

    Arguments:
        once: from `summed_as`.
        arguments: of the traced program.
        weights: of the rows that go in and of their gradients, see `tdjax.moments.weighing`; None
            where all count as one.
        slots: by number; the "gradient" with respect to them are the sums at the other end.
    """

    def visit(mark: Mark, x: Any, slot: Any) -> tuple[Any, Any]:
        call = calls.get(mark.number)
        if call is None:
            return x, None
        if mark.end == INPUT:
            if once[mark.number] != mark.number:
                return x, None
            # No gradient goes through the sums, and none is to be traced.
            seen = jax.lax.stop_gradient(x)
            own = partial(_sums, call.rows, call.constant, weights[0])
            return x, spread(own, mark.stacked, seen)
        if slot is None:
            return x, None
        tapped = partial(_tapped, call.outputs, call.constant, weights[1])
        return spread(tapped, mark.stacked, x, slot, through=True), None

    return run(trace.jaxpr, trace.survey, visit, arguments, slots)


def _slots(trace: Trace, calls: Mapping[int, SummedCall]) -> dict[int, list[Array]]:
    """Zeros of the shapes of the sums at the other end."""
    return {
        number: _zeros(trace.calls[number], call.outputs)
        for number, call in calls.items()
        if call.outputs is not None
    }


def _zeros(made: TracedCall, outputs: Rows) -> list[Array]:
    assert made.call is not None
    parts, _ = jax.eval_shape(outputs.sums, made.call.output)
    return zeros_of(made, parts)


def zeros_of(made: TracedCall, shapes: Sequence[Any]) -> list[Array]:
    """Zeros of these shapes, for each layer where a call is one of a stack."""
    front = () if made.layer.storage.stack is None else (made.layer.copies,)
    return [jnp.zeros((*front, *own.shape), own.dtype) for own in shapes]


@partial(jax.jit, static_argnums=(0, 1))
def _sums(rows: Rows, constant: bool, weights: Array | None, x: Array) -> Sums:
    # Compiled within another program, but traced and lowered once for all layers of a shape.
    if weights is not None:
        weights = laid_out(weights, rows.front(x.shape), constant=constant)
    parts, total = rows.sums(x, weights)
    return Sums(parts, total, number_of_rows(rows, x.shape, weights))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tapped(
    rows: Rows, constant: bool, weights: Array | None, y: Array, slot: list[Array]
) -> Array:
    """y itself; the "gradient" with respect to `slot` are the sums of the gradient's rows."""
    return y


def _tapped_forward(
    rows: Rows, constant: bool, weights: Array | None, y: Array, slot: list[Array]
) -> tuple[Array, Array | None]:
    return y, weights


def _tapped_backward(
    rows: Rows, constant: bool, weights: Array | None, gradient: Array
) -> tuple[None, Array, list[Array]]:
    own = weights
    if own is not None:
        own = laid_out(own, rows.front(gradient.shape), constant=constant, summed=True)
    return None, gradient, rows.sums(gradient, own)[0]


_tapped.defvjp(_tapped_forward, _tapped_backward)


def spread(
    function: Callable[..., Any],
    stacked: tuple[bool, ...],
    x: Array,
    *slots: Any,
    through: bool = False,
) -> Any:
    """A function of what passes a mark, for each layer where `vmap` made a stack of them.

    Arguments:
        stacked: see `tdjax.trace.marks.Mark`; other axes in front are examples.
        slots: further arguments, with the layers' axis in front.
        through: whether the result is to have the axes of x.
    """
    if True not in stacked:
        return function(x, *slots)
    axis = stacked.index(True)
    return jax.vmap(function, in_axes=(axis, *(0 for _ in slots)), out_axes=axis if through else 0)(
        x, *slots
    )
