"""A layer's calls as programs of their own, on numbers drawn at random, for its time alone.

A program makes its calls many times over, so that what it takes to start one does not count. Each
turn begins where the one before has ended, and depends on it as far as the compiler can tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from tdjax.compute.convolve import (
    StageConvolution,
    dense_kernel,
    is_same,
    stage_convolution,
    widened,
    with_zeros,
)
from tdjax.functions.chains import AnyChain, Whole, convolved, multiplied, rows_taken
from tdjax.plan.layers import CONVOLUTIONS, MATRICES, Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.ways import RECONSTRUCT, XLA
from tdjax.trace.convolutions import Window, plain_window
from tdjax.trace.trace import Trace, TracedCall


@dataclass(frozen=True)
class LayerCall:
    """What goes into a layer, and how the layer multiplies it.

    Arguments:
        shape, dtype: of the input: (maps, *spatial, C) or (rows, C), or (rows,) of numbers of rows
            that are taken.
        window: of a convolution; None for a matrix.
        attends: whether a table is multiplied by, not taken rows of.
        precision: of the products.
        given: the layer's own function in place of `jax.lax.conv_general_dilated`, if any.
    """

    shape: tuple[int, ...]
    dtype: Any
    window: Window | None = None
    attends: bool = False
    precision: Any = None
    given: Any = None


@dataclass(frozen=True)
class Alone:
    """A layer without its name: those that are equal take equal time.

    Arguments:
        layer: with nothing in it that its time does not depend on.
        calls: the different ones of a call of the network.
    """

    layer: Layer
    calls: tuple[LayerCall, ...]


def alone(trace: Trace, layer: Layer) -> tuple[Alone, int] | None:
    """A layer of a traced network, and how often the network does what that does.

    Calls on maps of one size are taken together, but for those of a loop that has all of them.
    None for a layer that is not called.
    """
    if layer.multiplies_as not in (*MATRICES, *CONVOLUTIONS):
        return None
    found = []
    for number, made in trace.calls.items():
        runs = trace.survey.runs[number]
        if made.layer.path == layer.path and made.call is not None and runs:
            # Of all layers that pass the marks of one that is taken by its number it is one.
            turns = max(1, runs // layer.copies if made.indexed else runs)
            looped = number in trace.survey.looped
            rows = int(made.layer.positions or made.layer.lookups) * turns
            found.append((_call_of(made), rows, turns if looped else layer.copies))
    if not found:
        return None
    loops = {times for _, _, times in found}
    times = loops.pop() if len(loops) == 1 else layer.copies
    merged: Counter[LayerCall] = Counter()
    for call, rows, _ in found:
        merged[call] += rows
    calls = (
        replace(own, shape=(max(1, rows // times), *own.shape)) for own, rows in merged.items()
    )
    return Alone(_nameless(layer), tuple(calls)), times


def _call_of(made: TracedCall) -> LayerCall:
    """A call without its number of rows or maps."""
    call, layer = made.call, made.layer
    assert call is not None
    dtype = jnp.dtype(call.output.dtype)
    precision = getattr(call.module, "precision", None)
    if layer.multiplies_as in CONVOLUTIONS:
        channels = layer.kernel_shape[-2] * layer.groups
        given = getattr(call.module, "conv_general_dilated", None)
        window = plain_window(call.module, layer)
        return LayerCall(
            (*layer.in_spatial, channels), dtype, window, precision=precision, given=given
        )
    attends = layer.kind == "embed" and call.method == "attend"
    if layer.kind == "embed" and not attends:
        return LayerCall((), jnp.dtype(jnp.int32))
    inputs, outputs = layer.kernel_shape
    return LayerCall((outputs if attends else inputs,), dtype, None, attends, precision)


def _nameless(layer: Layer) -> Layer:
    """A layer with nothing in it that its time does not depend on."""
    kind = "dense" if layer.is_matrix and layer.kind != "embed" else layer.multiplies_as
    return replace(
        layer, path="", kind=kind, positions=1, lookups=0, other=0, obstacle=None, stored=None
    )


def inputs_of(layer: Alone) -> list[Array]:
    """What goes into the calls of a layer: random numbers, or numbers of random rows."""
    return [_drawn(own, layer.layer.kernel_shape[0]) for own in layer.calls]


class Program:
    """A layer's calls, many times over, as they are computed densely or by a chain.

    Arguments:
        entry: the layer with a form and with ways; without a form it is dense.
        turns: how often all calls are made.
        inputs: see `inputs_of`.
    """

    def __init__(
        self, layer: Alone, entry: PlannedLayer, turns: int, inputs: Sequence[Array]
    ) -> None:
        """Compile it."""
        self.inputs = list(inputs)
        chain: AnyChain = Whole(entry.layer) if entry.form is None else entry.chain
        dtype = next((own.dtype for own in layer.calls if own.window or own.shape[1:]), None)
        self.kernels = [_normal(own.kernel_shape, dtype) for own in chain.stages]

        def once(inputs: Sequence[Array], kernels: Sequence[Array]) -> list[Array]:
            pairs = zip(layer.calls, inputs, strict=True)
            return [_answer(own, entry, chain, kernels, x) for own, x in pairs]

        compiled = jax.jit(_repeated(once, turns)).lower(self.inputs, self.kernels).compile()
        self._compiled = compiled

    def __call__(self) -> Any:
        """What the last turn gives."""
        return self._compiled(self.inputs, self.kernels)


def _answer(
    call: LayerCall, entry: PlannedLayer, chain: AnyChain, kernels: Sequence[Array], x: Array
) -> Array:
    """What one call gives."""
    layer = entry.layer
    settings = {"precision": call.precision, "preferred_element_type": None}
    if call.window is None and len(call.shape) == 1:
        return rows_taken(chain, kernels, x)
    if call.window is None:
        return multiplied(chain, kernels, x, settings, transposed=call.attends)
    if entry.ways == (RECONSTRUCT,):
        names = [stage.name for stage in entry.stages]
        kernels = [dense_kernel(entry, dict(zip(names, kernels, strict=True)))]
        chain = Whole(layer)
    elif entry.form is not None:
        chain = widened(entry, call.given).chain
        pairs = zip(kernels, chain.stages, strict=True)
        kernels = [with_zeros(kernel, stage.kernel_shape) for kernel, stage in pairs]
    own = [_convolution(call, entry, chain, number) for number in range(len(chain.stages))]
    return convolved(layer, call.window, chain, kernels, x, settings, own)


def _convolution(call: LayerCall, entry: PlannedLayer, chain: AnyChain, number: int) -> Any:
    """What convolves in a stage."""
    if isinstance(chain, Whole) or not is_same(call.given):
        return StageConvolution(XLA, call.given)
    return stage_convolution(entry, number, call.given)


def _repeated(once: Callable[..., Any], turns: int) -> Callable[..., Any]:
    """A function many times over, which no compiler can take out of the loop, or leave out."""

    def run(inputs: Any, kernels: Any) -> Any:
        shapes = jax.eval_shape(once, inputs, kernels)
        first = jax.tree.map(lambda own: jnp.zeros(own.shape, own.dtype), shapes)

        def turn(_: Any, state: Any) -> Any:
            inputs, kernels, _ = lax.optimization_barrier(state)
            return inputs, kernels, once(inputs, kernels)

        return lax.fori_loop(0, turns, turn, (inputs, kernels, first))[2]

    return run


def _drawn(call: LayerCall, rows: int) -> Array:
    if jnp.issubdtype(call.dtype, jnp.integer):
        return jnp.asarray(np.random.default_rng(0).integers(rows, size=call.shape), call.dtype)
    return _normal(call.shape, call.dtype)


def _normal(shape: Sequence[int], dtype: Any) -> Array:
    """Random numbers, such that sums of products with them are no larger."""
    drawn = np.random.default_rng(0).standard_normal(shape, np.float32)
    scale = math.sqrt(max(1, math.prod(shape[:-1])))
    return jnp.asarray(drawn / scale, dtype or jnp.float32)
