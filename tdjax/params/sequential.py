"""Layers decomposed one after the other, each making up for what the ones before it lost.

Or block after block: all layers of one see what the compressed blocks before it make of the inputs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from tdjax.decompose.dealing import in_this_process
from tdjax.moments.collect import Question, collect, no_rows
from tdjax.moments.feeding import Fed
from tdjax.moments.finite import Watch
from tdjax.moments.patches import Patches
from tdjax.moments.rows import Vectors, number_of_rows
from tdjax.moments.sums import SummedCall, summed_calls
from tdjax.moments.totals import added, kind_of_batch
from tdjax.moments.weighing import laid_out
from tdjax.params.blocks import Block, blocks_of
from tdjax.params.factorize import DenseLayer, FactorisedLayer, Params, check_kernels
from tdjax.params.input_means import InputMeans, decomposed, multiplied_out
from tdjax.params.options import Options
from tdjax.params.weighing import output_weights
from tdjax.plan.form import PAIRED
from tdjax.plan.plan import Plan
from tdjax.plan.sharing import units_of
from tdjax.processes import are_apart, gathered, summed, together
from tdjax.trace.call import Reading, call_arguments, split_arrays
from tdjax.trace.inputs import same_inputs
from tdjax.trace.marks import INPUT, Mark
from tdjax.trace.trace import Trace
from tdjax.trace.visit import run

FUNCTION = "factorize_sequentially"
# Layers that share a compiled program, which runs the model as far as the last of them; of one
# block more.
TOGETHER = 8


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
    model: TracedModel,
    plan: Plan,
    batches: Iterable[Fed],
    options: Options,
    wanted: str | Sequence[str] | None = None,
) -> dict[str, FactorisedLayer]:
    """The factors of all layers of a plan, decomposed in the order in which they are called.

    Arguments:
        batches: read once for each block.
        options: of the moments those of the gradients at the outputs.
        wanted: blocks, see `tdjax.params.blocks.blocks_of`.
    """
    check_kernels(model.params, plan, options.key)
    outputs = output_weights(plan, options.moments)
    order, first = together(FUNCTION, lambda: _order(model, plan, batches))
    apart, weighed = are_apart(FUNCTION, first), first.weights is not None
    if apart:
        model = _in_this_process(model)
    # Layers that share an input factor are decomposed together, where the first of them is called.
    units = {unit[0].layer.path: unit for unit in units_of(plan.factorised)}
    every = sorted((entry.layer.path for entry in plan.factorised), key=order.index)
    keys = {path: options.of_part(number) for number, path in enumerate(every)}
    blocks = [tuple(filter(units.__contains__, block)) for block in blocks_of(every, wanted)]
    dense: dict[str, DenseLayer] = {}
    found: dict[str, FactorisedLayer] = {}
    with options.steps.lasting("factors", "layer", len(every)) as tick:
        for group in _groups(list(filter(None, blocks))):
            programs: dict[Any, _Program] = {}
            for block in group:
                present = model.leaves_of(dense)
                collected = partial(_collected, model, present, batches, block, group, programs)
                sums = together(FUNCTION, collected)
                alone = sums.alone_somewhere() if apart else sums.alone
                for path in block:
                    if path in alone:
                        means = _alone(model, present, batches, path, weighed=weighed)
                    else:
                        # Given up one by one, with the memory that they take.
                        own = sums.paired.pop(path)
                        means = _means(path, *own, apart=apart, weighed=weighed)
                    unit = units[path]
                    made = decomposed(model.params, unit, means, outputs, keys[path])
                    found |= made
                    dense |= multiplied_out(model.params, unit, made)
                    tick(len(found))
    return found


def _groups(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that share a compiled program: together few layers, or one alone."""
    groups: list[list[Block]] = []
    for block in blocks:
        if groups and sum(map(len, [*groups[-1], block])) <= TOGETHER:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def _order(model: TracedModel, plan: Plan, batches: Iterable[Fed]) -> tuple[list[str], Fed]:
    """The paths of the layers as the model calls them, and the first batch.

    Raises ValueError for a wrong call.
    """
    for entry in plan.factorised:
        if entry.method in PAIRED:
            raise ValueError(
                f"factorize_sequentially: layer {entry.layer.path!r} is in a pair, which only "
                "factorize_params decomposes; leave out its pair"
            )
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
    trace = model.trace_of(first.inputs)
    _check_inputs(trace, plan)
    return list(trace.layers), first


def _check_inputs(trace: Trace, plan: Plan) -> None:
    """Refuse, with a ValueError, layers that share an input factor, but read no common value."""
    sharing = [entry for entry in plan.factorised if entry.shares is not None]
    groups = [set(group) for group in same_inputs(trace)] if sharing else []
    for entry in sharing:
        if not any({entry.layer.path, entry.shares} <= group for group in groups):
            raise ValueError(
                f"factorize_sequentially: layer {entry.layer.path!r} shares the input factor of "
                f"{entry.shares!r}, but the model does not call them on the same value: leave one "
                "of them out of the group"
            )


def _in_this_process(model: TracedModel) -> TracedModel:
    """A model whose arrays other processes may hold parts of, whole in this one's memory."""

    def leaves_of(dense: Mapping[str, DenseLayer]) -> list[Any]:
        return list(map(in_this_process, model.leaves_of(dense)))

    params = jax.tree.map(in_this_process, model.params)
    return replace(model, leaves_of=leaves_of, params=params)


class _Program(NamedTuple):
    """The sums over what goes into the layers of some blocks on one batch.

    Arguments:
        places: of the blocks, by path of their layers; layers of which there are no sums are left
            out.
        sums: (leaves as they were, as they are, arrays of a batch, weights of its rows, place of a
            block) -> by kind the sums and the number of rows of that block's layers, zeros for
            others.
        kinds: by path, what the layer's sums are found by.
    """

    places: Mapping[str, int]
    sums: Callable[..., Mapping[str, tuple[InputMeans, Array]]]
    kinds: Mapping[str, str]


class _Collected(NamedTuple):
    """What the batches of this process tell of the layers of a block.

    Arguments:
        paired: by path, the sums over both networks and the number of rows.
        alone: the layers of which there are no such sums, see `_side_by_side`.
    """

    paired: dict[str, tuple[InputMeans, Array]]
    alone: set[str]

    def alone_somewhere(self) -> set[str]:
        """The layers of which some process has no such sums."""
        return {path for own in gathered(sorted(self.alone)) for path in own}


def _collected(
    model: TracedModel,
    present: Sequence[Any],
    batches: Iterable[Fed],
    block: Block,
    group: Sequence[Block],
    programs: dict[Any, _Program],
) -> _Collected:
    """The sums for the layers of a block, over all batches and calls.

    Arguments:
        group: blocks that share the programs, by the kind of batch; more are added.
    """
    original, watch = model.leaves_of({}), Watch(FUNCTION)
    totals: dict[str, Any] = {}
    alone: set[str] = set()
    for batch in batches:
        arrays, frame = split_arrays(batch.inputs)
        key = kind_of_batch(*batch)
        if key not in programs:
            programs[key] = _program(model.trace_of(batch.inputs), group, frame)
        program = programs[key]
        alone |= {path for path in block if path not in program.places}
        paired = [path for path in block if path not in alone]
        if not paired:
            break
        place = program.places[paired[0]]
        sums = program.sums(original, present, arrays, batch.weights, place)
        made = {path: sums[program.kinds[path]] for path in paired}
        watch.add(made, lambda path: f"layer {path!r}")
        totals = {path: _sum(totals.get(path), own) for path, own in made.items()}
    watch.close()
    return _Collected(totals, alone)


def _sum(total: Any, more: Any) -> Any:
    return more if total is None else added(total, more)


def _means(path: str, sums: InputMeans, rows: Array, *, apart: bool, weighed: bool) -> InputMeans:
    """The means for a layer, over the rows of all processes where these are apart."""
    if apart:
        leaves, structure = jax.tree.flatten((sums, rows))
        every = summed({str(place): leaf for place, leaf in enumerate(leaves)})
        found = [every[str(place)] for place in range(len(leaves))]
        sums, rows = jax.tree.unflatten(structure, found)
    if not rows:
        raise ValueError(no_rows(FUNCTION, path, weighed=weighed))
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
    ask = Question(FUNCTION, model.trace_of, Reading(first=True), row_weights=row_weights)
    found = collect(ask, present, batches, paths=re.escape(path), memory=2**40)[path]
    return InputMeans(found.inputs, None, found.mean, found.mean, found.outputs)


def _program(trace: Trace, group: Sequence[Block], frame: Any) -> _Program:
    by_path = {path: summed_calls(trace, {path}) for block in group for path in block}
    # What the program never calls is said where it is asked for alone.
    paired = {p: calls for p, calls in by_path.items() if calls and _side_by_side(trace, calls)}
    asked = {number: call for calls in paired.values() for number, call in calls.items()}
    places = {path: place for place, block in enumerate(group) for path in block if path in paired}
    kinds: dict[str, str] = {}
    for block in group:
        seen: Counter[str] = Counter()
        for path in (path for path in block if path in paired):
            kind = _kind(next(iter(paired[path].values())))
            # The second layer of a kind in its block shares its sums with the second of others.
            seen[kind] += 1
            kinds[path] = f"{seen[kind]}: {kind}"

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
            kind = kinds[call.path]
            # All but those of the block that is asked for are zeros.
            total[kind] = jax.tree.map(jnp.add, total[kind], made) if kind in total else made
        return total

    return _Program(places, sums, kinds)


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
