"""Layers decomposed one after the other, each making up for what the ones before it lost.

Where the compressed network so far hands a layer x^ in place of x, the kernel W~ that changes the
layer's outputs least minimises E norm(W^T x - W~^T x^)^2: in the norm of S = E[x^ x^^T] it is the
approximation of the kernel S^-1 E[x^ x^T] W.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.formats import HIGHEST
from tdjax.moments.collect import collect
from tdjax.moments.patches import Patches
from tdjax.moments.rows import Vectors
from tdjax.moments.sums import SummedCall, model_inputs, summed_calls
from tdjax.params.bias import covariance, mean_output
from tdjax.params.factorize import Dense, Step
from tdjax.params.kernels import Weights, decompose_array, reconstruct_array
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.trace.call import call_arguments, split_arrays
from tdjax.trace.marks import INPUT, Mark
from tdjax.trace.trace import Trace
from tdjax.trace.visit import run

# Added to S, relative to its mean diagonal; directions that no input has keep the kernel's own.
RIDGE = 1e-6


class Both(NamedTuple):
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
class Model:
    """What the decomposition asks of a model, in whatever module system.

    Arguments:
        trace_of: traces the model on an input.
        leaves_of: the leaves that the traced program takes in front of the arrays of the input,
            with some layers, by path, as they became.
        arrays: that hold the kernels of the plan's layers, by path.
    """

    trace_of: Callable[[Any], Trace]
    leaves_of: Callable[[Mapping[str, Dense]], Sequence[Any]]
    arrays: Mapping[str, Array]


def sequential(
    model: Model,
    plan: Plan,
    batches: Iterable[Any],
    *,
    outputs: Mapping[str, Any],
    corrected: Mapping[str, bool],
    key: Array | None,
    options: Mapping[str, Any],
) -> dict[str, Step]:
    """The factors of all layers of a plan, decomposed in the order in which they are called.

    Arguments:
        batches: read once for each layer.
        outputs: by path the moments of the gradient at the layer's outputs, or None.
        corrected: by path whether the layer's bias takes on what its mean output loses.
        key, options: as for `tdjax.factorize_params`.
    """
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
    order = list(model.trace_of(model_inputs(first)).layers)
    entries = sorted(plan.factorised, key=lambda entry: order.index(entry.layer.path))
    dense: dict[str, Dense] = {}
    steps: dict[str, Step] = {}
    for number, entry in enumerate(entries):
        path = entry.layer.path
        both = _collected(model, model.leaves_of(dense), batches, path)
        own = None if key is None else jax.random.fold_in(key, number)
        step = _step(model.arrays[path], entry, both, outputs[path], corrected[path], own, options)
        steps[path] = step
        array = reconstruct_array(step.factors, entry).astype(model.arrays[path].dtype)
        dense[path] = Dense(array, step.shift)
    return steps


def _step(
    array: Array,
    entry: PlannedLayer,
    both: Both,
    outputs: Any,
    corrected: bool,
    key: Array | None,
    options: Mapping[str, Any],
) -> Step:
    stored, layer = entry.layer.storage, entry.layer
    if corrected:
        both = around_means(both)

    def target(array: Array, both: Both) -> Array:
        kernel = stored.to_kernel(array, layer.kernel_shape).astype(jnp.float32)
        return stored.from_kernel(_target(kernel, both, layer.groups))

    wanted = array
    if both.cross is not None:
        wanted = target(array, both)
    weights = Weights(both.now, outputs if both.outputs is None else both.outputs)
    factors = decompose_array(wanted, entry, key=key, weights=weights, **options)
    factors = {name: factor.astype(array.dtype) for name, factor in factors.items()}
    if not corrected:
        return Step(factors, None)
    after = reconstruct_array(factors, entry)
    shift = mean_output(array, entry, both.mean) - mean_output(after, entry, both.mean_now)
    return Step(factors, shift)


def _target(kernel: Float[Array, "*_"], both: Both, groups: int) -> Float[Array, "*_"]:
    """The kernel that makes most of x^, group by group."""
    rows = both.now.shape[-1]
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

    solved = jax.vmap(solve, in_axes=(0, 0, 1), out_axes=1)(both.now, both.cross, columns)
    return solved.reshape(kernel.shape)


def around_means(both: Both) -> Both:
    """Covariances in place of second moments."""
    if both.now is None or both.now.ndim == both.mean_now.ndim:
        return both

    return both._replace(
        now=covariance(both.now, both.mean_now, both.mean_now),
        cross=None if both.cross is None else covariance(both.cross, both.mean_now, both.mean),
    )


def _collected(model: Model, present: Sequence[Any], batches: Iterable[Any], path: str) -> Both:
    """The means for one layer, over all batches and calls."""
    programs: dict[Any, Callable[..., Any]] = {}
    original = model.leaves_of({})
    total: Any = None
    for batch in batches:
        arrays, frame = split_arrays(batch)
        key = (frame, tuple((array.shape, str(array.dtype)) for array in arrays))
        if key not in programs:
            trace = model.trace_of(model_inputs(batch))
            asked = summed_calls(trace, {path})
            if not _side_by_side(trace, asked):
                return _alone(model, present, batches, path)
            programs[key] = _program(trace, asked, frame)
        made = programs[key](original, present, arrays)
        total = made if total is None else jax.tree.map(jnp.add, total, made)
    sums, rows = total
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


def _alone(model: Model, present: Sequence[Any], batches: Iterable[Any], path: str) -> Both:
    """The means of the network as it is by now, whose kernel stays the one to approximate."""
    found = collect(
        model.trace_of, present, batches, loss_fn=None, paths=re.escape(path), memory=2**40
    )[path]
    return Both(found.inputs, None, found.mean, found.mean, found.outputs)


def _program(trace: Trace, asked: Mapping[int, SummedCall], frame: Any) -> Callable[..., Any]:
    """(leaves as they were, as they are, arrays of a batch) -> (sums, number of rows)."""

    def passing(leaves: Any, arrays: Any) -> dict[int, Any]:
        def visit(mark: Mark, x: Any, _: Any) -> tuple[Any, Any]:
            return x, x if mark.number in asked and mark.end == INPUT else None

        own, _ = split_arrays(call_arguments(model_inputs(frame.join(arrays))))
        return run(trace.jaxpr, trace.survey, visit, [*leaves, *own], {})[1]

    @jax.jit
    def sums(original: Any, present: Any, arrays: Any) -> tuple[Both, Array]:
        now, was = passing(present, arrays), passing(original, arrays)
        total: Any = None
        for number, call in asked.items():
            assert isinstance(call.rows, Patches | Vectors)
            made = Both(*call.rows.pair_sums(now[number], was[number]))
            rows = jnp.asarray(float(call.rows.count(now[number].shape)))
            total = (made, rows) if total is None else jax.tree.map(jnp.add, total, (made, rows))
        return total

    return sums
