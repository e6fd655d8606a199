"""Sums over the rows at the layers' ends, for one batch: what moments are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tdjax.moments.rows import Flow, Rows, flow_of
from tdjax.trace.call import call_arguments, split_arrays
from tdjax.trace.marks import INPUT, Mark
from tdjax.trace.trace import Trace
from tdjax.trace.visit import run

LossFn = Callable[[Any, Any], Any]


class Asked(NamedTuple):
    """A call whose rows are summed.

    Arguments:
        path: of the layer.
        rows: of what goes in.
        outputs: of what comes out, or None.
        queries: whether what goes in are queries to an embedding.
    """

    path: str
    rows: Rows
    outputs: Rows | None
    queries: bool


class Sums(NamedTuple):
    """Sums over the rows of one call, in the parts that batches are added in.

    Arguments:
        parts, total: see `tdjax.moments.rows.Rows.sums`.
        rows: their number.
    """

    parts: list[Array]
    total: Array
    rows: Array


def asked_of(trace: Trace, paths: set[str]) -> dict[int, Asked]:
    """The calls of some layers that run, by number.

    Raises ValueError for one inside a while loop.
    """
    asked: dict[int, Asked] = {}
    for number, made in trace.calls.items():
        if made.layer.path not in paths or made.call is None or not trace.survey.runs[number]:
            continue
        if number in trace.survey.hidden:
            raise ValueError(
                f"collect_moments: layer {made.layer.path!r} is called inside a "
                f"{trace.survey.hidden[number]}, out of which nothing can be carried"
            )
        flow: Flow = flow_of(made.call, made.layer)
        rows = flow.inputs or flow.queries
        assert rows is not None
        asked[number] = Asked(made.layer.path, rows, flow.outputs, flow.inputs is None)
    return asked


def step_of(
    trace: Trace, asked: Mapping[int, Asked], frame: Any, loss_fn: LossFn | None
) -> Callable[..., Any]:
    """(leaves, arrays of a batch) -> sums by number at the one end, and at the other."""

    def passed(leaves: Any, arrays: Any, slots: Any) -> Any:
        def visit(mark: Mark, x: Any, slot: Any) -> tuple[Any, Any]:
            wanted = asked.get(mark.number)
            if wanted is None:
                return x, None
            if mark.end == INPUT:
                return x, _spread(partial(_sums, wanted.rows), mark.stacked, x)
            if slot is None:
                return x, None
            outputs = wanted.outputs
            return _spread(partial(_tapped, outputs), mark.stacked, x, slot, through=True), None

        inputs, _ = split_arrays(call_arguments(model_inputs(frame.join(arrays))))
        return run(trace.jaxpr, trace.survey, visit, [*leaves, *inputs], slots)

    @jax.jit
    def step(leaves: Any, arrays: Any) -> Any:
        if loss_fn is None:
            return passed(leaves, arrays, {})[1], {}

        def loss(slots: Any) -> tuple[Any, Any]:
            results, kept = passed(leaves, arrays, slots)
            outputs = jax.tree.unflatten(jax.tree.structure(trace.outputs), results)
            batch = frame.join(arrays)
            each = jnp.asarray(loss_fn(outputs, batch))
            # The gradient of one example's own loss: of a mean, too small by their number.
            return jnp.sum(each) if each.ndim else each * trace.batch, kept

        slots = {
            number: _zeros(trace, number, wanted)
            for number, wanted in asked.items()
            if wanted.outputs is not None
        }
        gradients, kept = jax.grad(loss, has_aux=True)(slots)
        return kept, gradients

    return step


def _sums(rows: Rows, x: Array) -> Sums:
    parts, total = rows.sums(x)
    return Sums(parts, total, jnp.asarray(float(rows.count(x.shape))))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tapped(rows: Rows, y: Array, slot: list[Array]) -> Array:
    """y itself; the "gradient" with respect to `slot` are the sums of the gradient's rows."""
    return y


def _tapped_forward(rows: Rows, y: Array, slot: list[Array]) -> tuple[Array, None]:
    return y, None


def _tapped_backward(rows: Rows, _: None, gradient: Array) -> tuple[Array, list[Array]]:
    return gradient, rows.sums(gradient)[0]


_tapped.defvjp(_tapped_forward, _tapped_backward)


def _spread(
    function: Callable[..., Any],
    stacked: tuple[bool, ...],
    x: Array,
    *slots: Any,
    through: bool = False,
) -> Any:
    """A function of what passes a mark, for each layer where `vmap` made a stack of them.

    Arguments:
        stacked: see `tdjax.trace.programs.Mark`; other axes in front are examples.
        slots: further arguments, with the layers' axis in front.
        through: whether the result is to have the axes of x.
    """
    if True not in stacked:
        return function(x, *slots)
    axis = stacked.index(True)
    return jax.vmap(function, in_axes=(axis, *(0 for _ in slots)), out_axes=axis if through else 0)(
        x, *slots
    )


def _zeros(trace: Trace, number: int, wanted: Asked) -> list[Array]:
    made = trace.calls[number]
    assert made.call is not None
    assert wanted.outputs is not None
    parts, _ = jax.eval_shape(wanted.outputs.sums, made.call.output)
    copies = made.layer.copies
    front = (copies,) if made.layer.storage.stack is not None else ()
    return [jnp.zeros((*front, *part.shape), part.dtype) for part in parts]


def model_inputs(batch: Any) -> Any:
    """The model's input: the batch, or the first entry of a tuple."""
    return batch[0] if isinstance(batch, tuple) else batch
