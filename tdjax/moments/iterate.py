"""Moments of which inputs and outputs are the nearest Kronecker product of the Fisher information.

See `tdjax.moments.nearest`; each iteration is a pass over the batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jaxtyping import Array

from tdjax.decompose.dealing import in_this_process
from tdjax.decompose.meshes import without_explicit_axes
from tdjax.decompose.second_moment import trust
from tdjax.moments.collect import NEAREST, LayerMoments, Question
from tdjax.moments.finite import Watch
from tdjax.moments.nearest import Half, Product, half_sums, halves_of
from tdjax.moments.sizes import Size, passes_within
from tdjax.moments.sums import summed_calls
from tdjax.moments.totals import added, kind_of_batch
from tdjax.processes import are_apart, summed, together
from tdjax.trace.call import peeked, split_arrays


def nearest_products(
    ask: Question,
    leaves: Sequence[Any],
    batches: Iterable[Any],
    moments: Mapping[str, LayerMoments],
    *,
    iterations: int,
    memory: int,
) -> dict[str, LayerMoments]:
    """The moments with the nearest products in place of those of independent inputs and gradients.

    The first iteration betters the inputs, the next the outputs, and so on; after each the product
    is the nearest for the end that the iteration before found, at its right scale. Layers without
    a gradient at the outputs, as embeddings, keep what they have.

    Arguments:
        leaves, memory: see `tdjax.moments.collect.collect`.
        batches: a list or the like, of which `moments` are.
        iterations: passes over them, or more where sums do not fit the memory.
    """
    found = dict(moments)
    apart = are_apart(ask.function, together(ask.function, lambda: peeked(batches)[0]))
    if apart:
        ask, leaves = ask.of_this_process(), list(map(in_this_process, leaves))
    for turn in range(iterations):
        of_inputs = turn % 2 == 0
        paths = {
            path: own.inputs if of_inputs else own.outputs
            for path, own in found.items()
            if own.inputs is not None and own.outputs is not None
        }
        sizes = {path: Size(own.nbytes, own.nbytes) for path, own in paths.items()}
        for some in passes_within(sizes, memory):
            known = {path: _product(found[path]) for path in some}
            run = partial(_one_pass, ask, leaves, batches, known, of_inputs=of_inputs)
            sums = together(ask.function, run)
            if apart:
                sums = _of_all_processes(sums)
            for path, own in sums.items():
                rows = found[path].rows
                bettered = known[path].bettered(own, rows, of_inputs=of_inputs)
                found[path] = _with(found[path], bettered)
    return found


def _of_all_processes(sums: Mapping[str, list[Array]]) -> dict[str, list[Array]]:
    named = {json.dumps([path, k]): x for path in sums for k, x in enumerate(sums[path])}
    found: dict[str, dict[int, Array]] = {}
    for name, array in summed(named).items():
        path, k = json.loads(name)
        found.setdefault(path, {})[k] = array
    return {path: [own[k] for k in sorted(own)] for path, own in found.items()}


def _product(own: LayerMoments) -> Product:
    assert own.inputs is not None
    assert own.mean is not None
    assert own.outputs is not None
    return Product(own.inputs, own.mean, own.outputs)


def _with(own: LayerMoments, product: Product) -> LayerMoments:
    for array in product:
        # They are moments as they are sums of squares.
        trust(array)
    return replace(own, **product._asdict(), kronecker=NEAREST)


@dataclass(frozen=True)
class _Program:
    """What runs for batches of one shape.

    Arguments:
        paths: of the layers, by number of the call.
        halves: what is summed, likewise.
        program: from `tdjax.moments.nearest.half_sums`.
    """

    paths: Mapping[int, str]
    halves: Mapping[int, Half]
    program: Any

    def named(self, number: int) -> str:
        """The sums of a call in words."""
        return f"the weighed moments of layer {self.paths[number]!r}"


def _one_pass(
    ask: Question,
    leaves: Sequence[Any],
    batches: Iterable[Any],
    known: Mapping[str, Product],
    *,
    of_inputs: bool,
) -> dict[str, list[Array]]:
    """The sums of some layers over all batches and calls, by path."""
    given = {path: own.given(of_inputs=of_inputs) for path, own in known.items()}
    programs: dict[Any, _Program] = {}
    found: dict[str, list[Array]] = {}
    watch = Watch(ask.function)
    for number, batch in enumerate(map(without_explicit_axes, batches)):
        turn = ask.turn(batch, number)
        key = kind_of_batch(batch, turn.weights)
        if key not in programs:
            programs[key] = _program(ask, batch, set(known), of_inputs=of_inputs)
        own = programs[key]
        if not own.halves:
            continue
        ends = {call: given[own.paths[call]] for call in own.halves}
        made = own.program(leaves, split_arrays(batch)[0], turn, ends)
        watch.add(made, own.named)
        for call, sums in made.items():
            path = own.paths[call]
            found[path] = added(found[path], sums) if path in found else sums
    watch.close()
    return found


def _program(ask: Question, batch: Any, paths: set[str], *, of_inputs: bool) -> _Program:
    assert ask.loss_fn is not None
    trace = ask.trace_of(ask.reading.inputs(batch))
    calls = summed_calls(trace, paths)
    halves = halves_of(calls, of_inputs=of_inputs)
    static = split_arrays(batch)[1]
    program = half_sums(trace, halves, static, ask.loss_fn, ask.reading)
    return _Program({number: own.path for number, own in calls.items()}, halves, program)
