"""Layers decomposed one after the other, each making up for what the ones before it lost.

Where the compressed network so far hands a layer x^ in place of x, the kernel W~ that changes the
layer's outputs least minimises E norm(W^T x - W~^T x^)^2: in the norm of S = E[x^ x^^T] it is the
approximation of the kernel S^-1 E[x^ x^T] W.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tdjax.decompose.products import HIGHEST
from tdjax.moments.collect import Question, collect, kind_of_batch, no_rows_left
from tdjax.moments.feeding import Fed
from tdjax.moments.finite import Watch
from tdjax.moments.patches import Patches
from tdjax.moments.rows import Vectors, number_of_rows
from tdjax.moments.sums import SummedCall, summed_calls
from tdjax.moments.weighing import laid_out
from tdjax.params.arrays import decompose_array, reconstruct_array
from tdjax.params.bias import can_correct, covariance, mean_output
from tdjax.params.factorize import DenseLayer, FactorisedLayer, Params, check_kernels
from tdjax.params.kernels import Weights
from tdjax.params.options import Options
from tdjax.params.partitioning import unboxed
from tdjax.params.tree import layer_params
from tdjax.params.weighing import output_weights
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.trace.call import Reading, call_arguments, split_arrays
from tdjax.trace.marks import INPUT, Mark
from tdjax.trace.trace import Trace
from tdjax.trace.visit import run

# Added to S, relative to its mean diagonal; directions that no input has keep the kernel's own.
RIDGE = 1e-6
# Layers that share a compiled program, which runs the model as far as the last of them.
TOGETHER = 8


class InputMeans(NamedTuple):
    """Means over the rows that go into a layer: x in the network as it was, x^ as it is by now.

    Arguments:
        now: (groups, D, D), of x^ x^^T, or its diagonal (groups, D).
        cross: (groups, D, D), of x^ x^T; None where x^ is x.
        mean_now, mean: (groups, D), of x^ and of x.
        outputs: where it has to be known along with them, see `tdjax.params.kernels.Weights`.
    """

    now: Any
    cross: Any
    mean_now: Any
    mean: Any
    outputs: Any = None


@dataclass(frozen=True)
class TracedModel:
    """What the decomposition asks of a model, in whatever module system.

    Arguments:
        trace_of: traces the model on an input.
        leaves_of: the leaves that the traced program takes in front of the arrays of the input,
            with some layers, by path, as they became.
        params: the parameters of the plan's layers, in nested mappings.
    """

    trace_of: Callable[[Any], Trace]
    leaves_of: Callable[[Mapping[str, DenseLayer]], Sequence[Any]]
    params: Params


def sequential(
    model: TracedModel, plan: Plan, batches: Iterable[Fed], options: Options
) -> dict[str, FactorisedLayer]:
    """The factors of all layers of a plan, decomposed in the order in which they are called.

    Arguments:
        batches: read once for each layer.
        options: of the moments those of the gradients at the outputs.
    """
    check_kernels(model.params, plan, options.key)
    outputs = output_weights(plan, options.moments)
    order = _order(model, plan, batches)
    entries = sorted(plan.factorised, key=lambda entry: order.index(entry.layer.path))
    dense: dict[str, DenseLayer] = {}
    found: dict[str, FactorisedLayer] = {}
    programs: dict[Any, _Program] = {}
    for number, entry in enumerate(entries):
        path = entry.layer.path
        own = layer_params(model.params, path)
        if number % TOGETHER == 0:
            group = [near.layer.path for near in entries[number : number + TOGETHER]]
            programs = {}
        means = _collected(model, model.leaves_of(dense), batches, path, group, programs)
        corrected = options.correct_bias and can_correct(entry, own)
        if corrected:
            means = around_means(means)
        array = jnp.asarray(unboxed(own[entry.layer.storage.name]))
        found[path] = _factorised(
            array, entry, means, outputs[path], corrected, options.of_part(number)
        )
        now = reconstruct_array(found[path].factors, entry).astype(array.dtype)
        dense[path] = DenseLayer(now, found[path].shift)
    return found


def _order(model: TracedModel, plan: Plan, batches: Iterable[Fed]) -> list[str]:
    """The paths of the layers as the model calls them. Raises ValueError for a wrong call."""
    for entry in plan.factorised:
        if entry.nonzeros:
            raise ValueError(
                f"factorize_sequentially: layer {entry.layer.path!r} has a sparse correction, "
                "which only factorize_params makes; give it a rule without sparse"
            )
    if iter(batches) is batches:
        raise ValueError("factorize_sequentially: batches are read many times, give a list")
    first = next(iter(batches), None)
    if first is None:
        raise ValueError("factorize_sequentially: no batches")
    return list(model.trace_of(first.inputs).layers)


def _factorised(
    array: Array,
    entry: PlannedLayer,
    means: InputMeans,
    outputs: Any,
    corrected: bool,
    options: Options,
) -> FactorisedLayer:
    stored, layer = entry.layer.storage, entry.layer

    def target(array: Array, means: InputMeans) -> Array:
        kernel = stored.to_kernel(array, layer.kernel_shape).astype(jnp.float32)
        return stored.from_kernel(_target(kernel, means, layer.groups))

    wanted = array if means.cross is None else target(array, means)
    weights = Weights(means.now, outputs if means.outputs is None else means.outputs)
    factors = decompose_array(wanted, entry, options, weights=weights)
    factors = {name: factor.astype(array.dtype) for name, factor in factors.items()}
    if not corrected:
        return FactorisedLayer(factors, None)
    after = reconstruct_array(factors, entry)
    shift = mean_output(array, entry, means.mean) - mean_output(after, entry, means.mean_now)
    return FactorisedLayer(factors, shift)


def _target(kernel: Float[Array, "*_"], means: InputMeans, groups: int) -> Float[Array, "*_"]:
    """The kernel that makes most of x^, group by group."""
    rows = means.now.shape[-1]
    columns = kernel.reshape(rows, groups, -1)

    def solve(
        now: Float[Array, "d d"], cross: Float[Array, "d d"], own: Float[Array, "d t"]
    ) -> Float[Array, "d t"]:
        # Below the second, single precision would solve for its own rounding.
        ridge = jnp.maximum(RIDGE / rows, 8 * jnp.finfo(now.dtype).eps) * jnp.trace(now)
        eye = ridge * jnp.eye(rows, dtype=now.dtype)
        right = jnp.matmul(cross + eye, own, precision=HIGHEST)
        solved = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(now + eye), True), right)
        # A factorisation that breaks down says nothing, and the kernel stays.
        return jnp.where(jnp.isfinite(solved).all(), solved, own)

    solved = jax.vmap(solve, in_axes=(0, 0, 1), out_axes=1)(means.now, means.cross, columns)
    return solved.reshape(kernel.shape)


def around_means(means: InputMeans) -> InputMeans:
    """Covariances in place of second moments."""
    if means.now is None or means.now.ndim == means.mean_now.ndim:
        return means
    return means._replace(
        now=covariance(means.now, means.mean_now, means.mean_now),
        cross=None if means.cross is None else covariance(means.cross, means.mean_now, means.mean),
    )


class _Program(NamedTuple):
    """The sums over what goes into some layers on one batch.

    Arguments:
        places: of the layers, by path; those of which there are no sums are left out.
        sums: (leaves as they were, as they are, arrays of a batch, weights of its rows, place of a
            layer) -> by groups and size of a row the sums and the number of rows of that layer,
            zeros for others.
        kinds: by path, what the layer's sums are found by.
    """

    places: Mapping[str, int]
    sums: Callable[..., Mapping[str, tuple[InputMeans, Array]]]
    kinds: Mapping[str, str]


def _collected(
    model: TracedModel,
    present: Sequence[Any],
    batches: Iterable[Fed],
    path: str,
    group: Sequence[str],
    programs: dict[Any, _Program],
) -> InputMeans:
    """The means for one layer, over all batches and calls.

    Arguments:
        group: paths of the layers that share the programs, by the kind of batch; more are added.
    """
    original, watch = model.leaves_of({}), Watch("factorize_sequentially")
    total: Any = None
    for batch in batches:
        arrays, frame = split_arrays(batch.inputs)
        key = kind_of_batch(*batch)
        if key not in programs:
            programs[key] = _program(model.trace_of(batch.inputs), group, frame)
        program = programs[key]
        if path not in program.places:
            return _alone(model, present, batches, path, weighed=batch.weights is not None)
        place, kind = program.places[path], program.kinds[path]
        made = program.sums(original, present, arrays, batch.weights, place)[kind]
        watch.add({path: made}, lambda path: f"layer {path!r}")
        total = made if total is None else jax.tree.map(jnp.add, total, made)
    watch.close()
    sums, rows = total
    if not rows:
        raise ValueError(no_rows_left("factorize_sequentially", path))
    return jax.tree.map(lambda part: part / rows, sums)


def _side_by_side(trace: Trace, asked: Mapping[int, SummedCall]) -> bool:
    """Whether what goes into a layer can be had from two networks at once.

    Two runs of a loop cannot be laid side by side, and lookups do not differ between them.
    """
    return all(
        trace.calls[number].layer.storage.stack is None
        and number not in trace.survey.looped
        and isinstance(call.rows, Patches | Vectors)
        and not call.queries
        for number, call in asked.items()
    )


def _alone(
    model: TracedModel, present: Sequence[Any], batches: Iterable[Fed], path: str, *, weighed: bool
) -> InputMeans:
    """The means of the network as it is by now, whose kernel stays the one to approximate."""
    row_weights = attrgetter("weights") if weighed else None
    ask = Question(
        "factorize_sequentially", model.trace_of, Reading(first=True), row_weights=row_weights
    )
    found = collect(ask, present, batches, paths=re.escape(path), memory=2**40)[path]
    return InputMeans(found.inputs, None, found.mean, found.mean, found.outputs)


def _program(trace: Trace, group: Sequence[str], frame: Any) -> _Program:
    by_path = {path: summed_calls(trace, {path}) for path in group}
    paired = {path: calls for path, calls in by_path.items() if _side_by_side(trace, calls)}
    asked = {number: call for calls in paired.values() for number, call in calls.items()}
    places = {path: place for place, path in enumerate(paired)}

    def passing(leaves: Any, arrays: Any) -> dict[int, Any]:
        def visit(mark: Mark, x: Any, _: Any) -> tuple[Any, Any]:
            return x, x if mark.number in asked and mark.end == INPUT else None

        own, _ = split_arrays(call_arguments(frame.join(arrays)))
        return run(trace.jaxpr, trace.survey, visit, [*leaves, *own], {})[1]

    @jax.jit
    def sums(
        original: Any, present: Any, arrays: Any, weights: Any, place: Array
    ) -> dict[str, tuple[InputMeans, Array]]:
        now, was = passing(present, arrays), passing(original, arrays)
        total: dict[str, Any] = {}
        for number, call in asked.items():
            made = _sums_where(place == places[call.path], call, weights, now[number], was[number])
            kind = _kind(call)
            # All but the layer's own are zeros.
            total[kind] = jax.tree.map(jnp.add, total[kind], made) if kind in total else made
        return total

    return _Program(places, sums, {call.path: _kind(call) for call in asked.values()})


def _kind(call: SummedCall) -> str:
    assert isinstance(call.rows, Patches | Vectors)
    return f"{call.rows.groups} of {call.rows.size}"


def _sums_where(
    asked: Bool[Array, ""], call: SummedCall, weights: Array | None, now: Array, was: Array
) -> tuple[InputMeans, Array]:
    """The sums of one call and its number of rows; zeros where they are not asked for."""

    def made(now: Array, was: Array) -> tuple[InputMeans, Array]:
        assert isinstance(call.rows, Patches | Vectors)
        rows, own = call.rows, weights
        if own is not None:
            own = laid_out(own, rows.front(now.shape), constant=call.constant)
        return InputMeans(*rows.pair_sums(now, was, own)), number_of_rows(rows, now.shape, own)

    shapes = jax.eval_shape(made, now, was)

    def nothing(now: Array, was: Array) -> tuple[InputMeans, Array]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(asked, made, nothing, now, was)
