"""What the layers of a model take on this device, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, overload

import flax.linen as nn
from flax import nnx

from tdjax.allocation.choices import PREFERRED
from tdjax.arguments.called import Method
from tdjax.decompose.meshes import on_any_mesh
from tdjax.dispatch.alone import Alone, alone
from tdjax.dispatch.layer_timing import Wanted, layer_timings
from tdjax.dispatch.models import on_models, room_of, with_arrays
from tdjax.dispatch.whole import filled, network_call, of_batch, with_drawn_factors
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.progress import Progress, Steps
from tdjax.timings.calibrate import ODD, Fit, Whole, fit_of
from tdjax.timings.device import these_versions, this_device
from tdjax.timings.layer import FormTimings, LayerTimings
from tdjax.timings.timings import Timings
from tdjax.timings.turns import seconds_of
from tdjax.trace.call import batch_size, call_arguments, split_arrays

Variables = Mapping[str, Any]
# Groups of input channels that low rank is measured with.
SPLITS = (2, 4)
ROUNDS = 5
# Shares of the dense seconds of each layer at which whole networks are measured beside the dense.
COMPARED = (0.25, 0.45, 0.7)
# A layer that is not called takes next to nothing, which is more than none.
NOTHING = 1e-9


class Together(NamedTuple):
    """A network as a whole.

    Arguments:
        network: seconds of it as it is.
        apart: with a plan that keeps all layers dense, which computes each apart from what comes
            behind it.
        fit: seconds with any plan.
    """

    network: float
    apart: float
    fit: Fit


@overload
def time_layers(
    model: nn.Module,
    variables: Variables,
    sample: Any,
    *,
    batch: int | None = ...,
    methods: Sequence[str] = ...,
    splits: Sequence[int] | None = ...,
    ways: bool = ...,
    rounds: int = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Timings: ...


@overload
def time_layers(
    model: nnx.Module,
    sample: Any,
    *,
    batch: int | None = ...,
    methods: Sequence[str] = ...,
    splits: Sequence[int] | None = ...,
    ways: bool = ...,
    rounds: int = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Timings: ...


@overload
def time_layers(
    model: Callable[..., Any],
    params: Any,
    sample: Any,
    *,
    batch: int | None = ...,
    methods: Sequence[str] = ...,
    splits: Sequence[int] | None = ...,
    ways: bool = ...,
    rounds: int = ...,
    progress: Progress = ...,
) -> Timings: ...


@on_models
@on_any_mesh
def time_layers(
    model: Any,
    variables: Any,
    sample: Any,
    *,
    batch: int | None = None,
    methods: Sequence[str] = PREFERRED,
    splits: Sequence[int] | None = SPLITS,
    ways: bool = True,
    rounds: int = ROUNDS,
    progress: Progress = True,
    method: Method = None,
) -> Timings:
    """Seconds of a network's layers on the default device, dense and factorised at some ranks.

    `time_layers(model, variables, sample)` for Linen, `time_layers(model, sample)` for NNX,
    `time_layers(apply_fn, params, sample)` for a function. Each different layer is measured alone,
    as one compiled program that computes it many times over: dense, and in every format at a few
    ranks in the fastest of its ways (see `tdjax.Plan.with_ways`), all in turns. Layers of equal
    shapes and settings share one measurement. Then the whole network is measured, as it is, with a
    plan that keeps all layers dense, and three times with all layers compressed: to those with
    plans are fitted one factor, by which layers take longer or shorter inside the network than
    alone, and the rest. Nothing is decomposed: numbers do not change the time.

    Minutes for a network such as ResNet-18, most of which is compilation: keep the result,
    `timings.save("timings.json")`, and measure while nothing else runs.

        >>> import jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model, x = nnx.Linear(64, 64, rngs=nnx.Rngs(0)), jnp.ones((8, 64))
        >>> few = {"methods": ("svd",), "splits": None, "rounds": 1, "progress": False}
        >>> timings = tdjax.time_layers(model, x, **few)
        >>> timings.batch, [str(own.form) for own in timings.layers[""].forms]
        (8, ['svd'])

    Arguments:
        model, variables, params, sample, method: as for `tdjax.make_plan`; where they are shapes,
            numbers are put in their place.
        batch: examples in a call; None for as many as `sample` has.
        methods: formats that are measured.
        splits: groups of input channels that low rank is measured with too; None for none.
        ways: measure the ways of convolutions; else they are as the rule of `tdjax.compute` has
            them.
        rounds: of each measurement.
        progress: see `tdjax.compress`.

    Returns: seconds of all layers that can be factorised, by path, see `tdjax.Timings`.

    Raises ValueError and TypeError as `tdjax.make_plan`.
    """
    model, variables = filled(model, variables)
    inputs = of_batch(sample, batch)
    trace = room_of(model).trace(*with_arrays(model, variables), inputs, method=method)
    layers = {path: own for path, own in trace.layers.items() if own.obstacle is None}
    kinds = {path: alone(trace, own) for path, own in layers.items()}
    wanted = Wanted(tuple(methods), tuple(splits or ()), ways, rounds)
    steps = Steps("time_layers", progress)
    found = _apart(layers, kinds, wanted, steps)

    def call(plan: Plan | None) -> Callable[[], Any]:
        given = (model, variables) if plan is None else with_drawn_factors(model, variables, plan)
        return network_call(*given, inputs, method)

    whole = _together(layers, found, call, rounds, steps)
    network, fit = whole.network, whole.fit
    parts = fit.seconds(sum(own.dense for own in found.values()))
    if network > (1 + ODD) * parts:
        steps.tell(
            f"the dense network takes {1e3 * network:.3g} ms, its layers and the rest "
            f"{1e3 * parts:.3g} ms, {1e3 * whole.apart:.3g} ms as a plan computes them, dense: "
            "see docs/guides/speed.md"
        )
    scaled = {path: _scaled(own, fit.factor) for path, own in found.items()}
    size = batch_size(split_arrays(call_arguments(inputs))[0])
    return Timings(this_device(), these_versions(), size, network, scaled, fit.rest)


def _apart(
    layers: Mapping[str, Layer],
    kinds: Mapping[str, tuple[Alone, int] | None],
    wanted: Wanted,
    steps: Steps,
) -> dict[str, LayerTimings]:
    """Seconds of all layers, each alone, in one call of the network."""
    different = list(dict.fromkeys(own[0] for own in kinds.values() if own is not None))
    known: dict[Alone, LayerTimings] = {}
    with steps.step("layers", "different layer", len(different)) as tick:
        for number, layer in enumerate(different, 1):
            known[layer] = layer_timings(layer, wanted)
            tick(number)
    return {
        path: LayerTimings(NOTHING, (), layers[path].group_shape)
        if own is None
        else _scaled(known[own[0]], float(own[1]))
        for path, own in kinds.items()
    }


def _scaled(layer: LayerTimings, factor: float) -> LayerTimings:
    """A layer that takes so many times as long, in every form."""
    forms = (
        replace(own, seconds=tuple(factor * seconds for seconds in own.seconds))
        for own in layer.forms
    )
    return replace(layer, dense=factor * layer.dense, forms=tuple(forms))


def _together(
    layers: Mapping[str, Layer],
    found: Mapping[str, LayerTimings],
    call: Callable[[Plan | None], Callable[[], Any]],
    rounds: int,
    steps: Steps,
) -> Together:
    """Seconds of the dense network, and how those of layers alone add up to networks.

    Arguments:
        call: the network with a plan, or as it is.
    """
    plans = {share: _compressed(layers, found, share) for share in COMPARED}
    dense = Plan(tuple(map(PlannedLayer, layers.values())))
    plans[1.0] = (dense, sum(own.dense for own in found.values()))
    calls: dict[float | None, Callable[[], Any]] = {None: call(None)}
    with steps.step("whole network"):
        calls |= {share: call(plan) for share, (plan, _) in plans.items()}
        for own in calls.values():
            own()
        seconds = seconds_of(calls, 2 * rounds, reference=None, group_of=lambda share: share)
    apart, *others = (Whole(plans[share][1], seconds[share]) for share in (1.0, *COMPARED))
    return Together(seconds[None], apart.network, fit_of(apart, others))


def _compressed(
    layers: Mapping[str, Layer], found: Mapping[str, LayerTimings], share: float
) -> tuple[Plan, float]:
    """A plan with about a share of each layer's seconds, and those of all its layers."""
    entries, total = [], 0.0
    for path, layer in layers.items():
        own, entry, seconds = found[path], PlannedLayer(layer), found[path].dense
        away = math.inf
        for timed in own.forms:
            for number, taken in enumerate(timed.seconds):
                if abs(math.log(taken / own.dense / share)) < away:
                    away = abs(math.log(taken / own.dense / share))
                    entry, seconds = _entry(layer, timed, number), taken
        entries.append(entry)
        total += seconds
    return Plan(tuple(entries)), total


def _entry(layer: Layer, timed: FormTimings, number: int) -> PlannedLayer:
    form = replace(timed.form, ranks=timed.ranks[number])
    return PlannedLayer(layer, form, ways=timed.ways[number])
