"""What compressing groups of layers does to the loss, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from tdjax.allocation.choices import PREFERRED, TIME
from tdjax.allocation.corrected import AUTO, Level, groups_of, levels_of
from tdjax.allocation.limits import LATENCY, Budget, shares_of
from tdjax.allocation.measured import GroupRises, MeasuredRises
from tdjax.allocation.posing import posed
from tdjax.allocation.problem import Rules
from tdjax.arguments.batches import read_batches
from tdjax.arguments.called import Method, checked_weights
from tdjax.arguments.checks import check_moments_fit
from tdjax.decompose.meshes import on_any_mesh, without_explicit_axes
from tdjax.dispatch.models import caller_of, on_models, room_of, with_arrays
from tdjax.dispatch.swapped import Dense, losses_of, rises_of
from tdjax.moments.collect import LayerMoments, RowWeights
from tdjax.moments.feeding import fed
from tdjax.moments.losses import LossFn
from tdjax.plan.dtypes import FLOAT32
from tdjax.progress import Progress, Steps

Variables = Mapping[str, Any]
# Shares of the parameters at which rises are measured.
BUDGETS = (0.5, 0.3)


@overload
def measure_rises(
    model: nn.Module,
    variables: Variables,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    moments: Mapping[str, LayerMoments],
    budgets: Sequence[Budget] = ...,
    cost: str | None = ...,
    groups: str | Sequence[str] = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    seed: int = ...,
    batch_stats: str = ...,
    row_weights: RowWeights | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> MeasuredRises: ...


@overload
def measure_rises(
    model: nnx.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    moments: Mapping[str, LayerMoments],
    budgets: Sequence[Budget] = ...,
    cost: str | None = ...,
    groups: str | Sequence[str] = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    seed: int = ...,
    batch_stats: str = ...,
    row_weights: RowWeights | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> MeasuredRises: ...


@overload
def measure_rises(
    model: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    moments: Mapping[str, LayerMoments],
    budgets: Sequence[Budget] = ...,
    cost: str | None = ...,
    groups: str | Sequence[str] = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    seed: int = ...,
    progress: Progress = ...,
) -> MeasuredRises: ...


@on_models
def measure_rises(
    model: Any,
    variables: Any,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    moments: Mapping[str, LayerMoments],
    budgets: Sequence[Budget] = BUDGETS,
    cost: str | None = None,
    groups: str | Sequence[str] = AUTO,
    methods: Sequence[str] = PREFERRED,
    rules: Rules = (),
    multiple_of: int = 1,
    seed: int = 0,
    batch_stats: str = "frozen",
    row_weights: RowWeights | None = None,
    progress: Progress = True,
    method: Method = None,
) -> MeasuredRises:
    """How much the loss rises where groups of layers are compressed, each alone and all together.

    `measure_rises(model, variables, batches, loss_fn, moments=moments)` for Linen,
    `measure_rises(model, batches, loss_fn, moments=moments)` for NNX, as for Linen with a function
    and its parameters. For each budget the plan of `tdjax.allocate` with strategy "loss" is
    decomposed once, with corrected biases; the kernels of each group, multiplied out, then stand in
    the dense network in place of its own, and the loss of the batches is taken. That corrects what
    the moments predict, `tdjax.allocate(..., strategy="loss", moments=moments, measured=found)`:
    the prediction is of second order, layer by layer, and too high or too low where much goes away.

        >>> import jax, tdjax
        >>> from flax import nnx
        >>> model = nnx.Sequential(*(nnx.Linear(64, 64, rngs=nnx.Rngs(k)) for k in range(4)))
        >>> x = jax.random.normal(jax.random.key(0), (700, 64))
        >>> batches = [(x, model(x))]
        >>> def loss(y, batch):
        ...     return 0.5 * ((y - batch[1]) ** 2).sum(axis=1)
        >>> def draw(y, batch):
        ...     return (y * jax.random.rademacher(jax.random.key(1), y.shape, y.dtype)).sum(axis=1)
        >>> moments = tdjax.collect_moments(model, batches, loss_fn=draw)
        >>> found = tdjax.measure_rises(model, batches, loss, moments=moments, progress=False)
        >>> len(found.groups), found.together.measured.shape
        (4, (2,))
        >>> options = {"strategy": "loss", "moments": moments, "measured": found}
        >>> plan = tdjax.allocate(model, x, budget=0.4, **options)

    Arguments:
        model, variables, params, method: as for `tdjax.make_plan`.
        batches: a list or the like, each the model's input as in `tdjax.make_plan`, or a tuple
            (input, rest), whose rest `loss_fn` may use; some hundred examples do.
        loss_fn: (outputs, batch) -> losses of the examples, (batch,), or their mean: the loss
            whose gradient `moments` were collected with, with the same labels; or that whose
            curvature these stand for, as the divergence from the dense network's answers.
        moments: from `tdjax.collect_moments` with a `loss_fn`.
        budgets: shares of the network, each a limit as for `tdjax.allocate`.
        groups: "auto" for the largest modules that hold at most a quarter of the layers, or
            patterns for paths of layers, each for a group. Layers of no group are not corrected.
        cost, methods, rules, multiple_of, seed: as for `tdjax.allocate`.
        batch_stats: "frozen" as in the dense network, or "renewed" for each measurement as
            `tdjax.reestimate_batch_stats` does it, which takes several times as long. Not for
            functions.
        row_weights: of renewed batch statistics, see `tdjax.reestimate_batch_stats`; the loss
            leaves padded tokens out itself.
        progress: see `tdjax.compress`.

    Returns: `tdjax.allocation.measured.MeasuredRises`: `groups` and `together`, with rises
    `predicted`, `measured` and their standard `errors` for each budget. Those that are noise count
    for little, see `tdjax.allocation.measured.GroupRises`.

    Raises ValueError for a budget out of reach, a pattern that matches no layer, no batches, a
    loss that is NaN or Inf, and as `tdjax.allocate`; TypeError for batches that can be read but
    once.
    """
    if batch_stats not in ("renewed", "frozen"):
        raise ValueError(f"measure_rises: batch_stats {batch_stats!r}: 'renewed' or 'frozen'")
    if isinstance(batches, Iterator):
        raise TypeError("measure_rises: batches are read more than once: pass a list of them")
    if jax.process_count() > 1:
        raise ValueError(
            "measure_rises: this is one of several processes of jax.distributed: measure with a "
            "process alone, and give all of them what it returns"
        )
    asked = [shares_of(budget, cost) for budget in budgets]
    if not asked or len({tuple(shares.of) for shares in asked}) > 1:
        raise ValueError("measure_rises: budgets: give some, all of which count the same")
    if not {TIME, LATENCY}.isdisjoint(asked[0].of):
        raise ValueError(
            "measure_rises: budgets are shares of parameters or of multiply-accumulates; what is "
            "measured at them serves tdjax.allocate(..., cost='time', measured=...) too"
        )
    measured: MeasuredRises = _run(
        model, variables, list(batches), loss_fn, moments, budgets, cost, groups, batch_stats,
        row_weights,
        {"methods": methods, "rules": rules, "multiple_of": multiple_of},
        jax.random.key(seed), Steps("measure_rises", progress), method,
    )  # fmt: skip
    return measured


@partial(on_any_mesh, split=True)
def _run(
    model: Any,
    variables: Any,
    batches: Sequence[Any],
    loss_fn: LossFn,
    moments: Mapping[str, LayerMoments],
    budgets: Sequence[Budget],
    cost: str | None,
    wanted: str | Sequence[str],
    batch_stats: str,
    row_weights: RowWeights | None,
    options: Mapping[str, Any],
    key: Array,
    steps: Steps,
    method: Method,
) -> MeasuredRises:
    room, arrays = room_of(model), with_arrays(model, variables)
    if not batches:
        raise ValueError("measure_rises: no batches")
    batches = list(map(without_explicit_axes, batches))
    trace_of = partial(room.trace, *arrays, method=method)
    caller = caller_of(model, variables, method)
    reading, _ = read_batches("measure_rises", caller, trace_of, batches)
    inventory = room.inventory(*arrays, reading.inputs(batches[0]), method=method)
    check_moments_fit(inventory.layers, moments)
    costs = tuple(shares_of(budgets[0], cost).of)
    problem = posed(
        inventory, costs, "loss", moments=moments, dtypes=(FLOAT32,), key=key, **options
    )
    groups = groups_of(list(problem.free), wanted)
    with steps.step("formats and ranks"):
        levels = levels_of(problem, budgets, cost)
    renews = batch_stats == "renewed" and room.keeps_batch_stats(*arrays)
    rows = fed(batches, reading, None if row_weights is None else checked_weights(row_weights))
    dense = Dense(model, variables, method, moments, key, rows if renews else None)
    every = tuple(path for group in groups for path in group)
    total = len(levels) * (len(groups) + 1)
    with steps.step("rises", "measurement", total) as tick:
        losses = losses_of(dense, loss_fn, reading, batches)
        found = rises_of(dense, losses, levels, [*groups, every], tick)
    return _fitted(groups, levels, found)


def _fitted(
    groups: Sequence[tuple[str, ...]],
    levels: Sequence[Level],
    found: Sequence[Sequence[tuple[float, float]]],
) -> MeasuredRises:
    rises, errors = (np.array([[own[k] for own in row] for row in found]) for k in (0, 1))

    def of(number: int, paths: tuple[str, ...], predicted: list[float]) -> GroupRises:
        return GroupRises(paths, np.array(predicted), rises[:, number], errors[:, number])

    apart = tuple(
        of(number, paths, [sum(level.rises[path] for path in paths) for level in levels])
        for number, paths in enumerate(groups)
    )
    every = tuple(path for paths in groups for path in paths)
    sums = [
        sum(own.corrected(float(own.predicted[k])) for own in apart) for k in range(len(levels))
    ]
    return MeasuredRises(apart, of(len(groups), every, sums))
