"""What compressing groups of layers does to the loss, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

import tdjax.nnx
from tdjax.allocation.allocate import posed
from tdjax.allocation.choices import PREFERRED
from tdjax.allocation.corrected import AUTO, Level, groups_of, levels_of
from tdjax.allocation.limits import Budget, shares_of
from tdjax.allocation.measured import GroupRises, MeasuredRises
from tdjax.allocation.problem import Rules
from tdjax.arguments.batches import read_batches
from tdjax.arguments.called import Method, example_losses
from tdjax.arguments.checks import check_moments_fit
from tdjax.decompose.meshes import on_any_mesh, without_explicit_axes
from tdjax.dispatch.factors import factorize
from tdjax.dispatch.models import caller_of, kind_of, on_models, room_of, with_arrays
from tdjax.evaluate.rises import Losses, mean_and_error
from tdjax.moments.collect import LayerMoments
from tdjax.moments.sums import LossFn
from tdjax.params.factorize import factorize_params, reconstruct_params
from tdjax.params.tree import join_path
from tdjax.plan.plan import Plan
from tdjax.progress import Progress, Steps, Tick
from tdjax.trace.call import Reading

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
    asked = [shares_of(budget, cost) for budget in budgets]
    if not asked or len({tuple(shares.of) for shares in asked}) > 1:
        raise ValueError("measure_rises: budgets: give some, all of which count the same")
    measured: MeasuredRises = _run(
        model, variables, list(batches), loss_fn, moments, budgets, cost, groups, batch_stats,
        {"methods": methods, "rules": rules, "multiple_of": multiple_of},
        jax.random.key(seed), Steps("measure_rises", progress), method,
    )  # fmt: skip
    return measured


class _Dense(NamedTuple):
    """A dense network and what it is decomposed with.

    Arguments:
        moments: of its layers.
        inputs: of its batches, by which batch statistics are renewed; None to leave them.
    """

    model: Any
    variables: Any
    method: Method
    moments: Mapping[str, LayerMoments]
    key: Array
    inputs: Sequence[Any] | None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arguments in front of an adapter's functions."""
        return with_arrays(self.model, self.variables)

    def leaves(self, arrays: tuple[Any, ...] | None = None) -> list[Any]:
        """The arrays, of the model or of another like it, in the order of its network."""
        _, variables = room_of(self.model).network_of(*(arrays or self.arrays), method=self.method)
        return jax.tree.leaves(variables)

    def decomposed(self, plan: Plan) -> list[Any]:
        """The arrays with the layers of a plan decomposed and multiplied out again."""
        options: dict[str, Any] = {"key": self.key, "moments": self.moments, "correct_bias": True}
        kind = kind_of(self.model)
        if kind.held is None:
            small = factorize(self.model, plan, **options)
            return self.leaves((tdjax.nnx.reconstruct(small, plan),))
        whole = self.variables if kind.held == "params" else self.variables["params"]
        dense = reconstruct_params(factorize_params(whole, plan, **options), plan)
        if kind.held != "params":
            dense = {**self.variables, "params": dense}
        return self.leaves((self.model, dense))

    def renewed(self, leaves: Sequence[Any]) -> list[Any]:
        """Arrays with batch statistics as they are then, where these are to be renewed."""
        if self.inputs is None:
            return list(leaves)
        room = room_of(self.model)
        if self.variables is None:
            own = tdjax.nnx.with_leaves(self.model, leaves)
            return self.leaves((room.reestimate_batch_stats(own, self.inputs, method=self.method),))
        variables = jax.tree.unflatten(jax.tree.structure(self.variables), leaves)
        again = room.reestimate_batch_stats(self.model, variables, self.inputs, method=self.method)
        return self.leaves((self.model, again))


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
    inputs = [reading.inputs(batch) for batch in batches]
    inventory = room.inventory(*arrays, inputs[0], method=method)
    check_moments_fit(inventory.layers, moments)
    costs = tuple(shares_of(budgets[0], cost).of)
    problem = posed(inventory, costs, "loss", moments=moments, key=key, **options)
    groups = groups_of(list(problem.free), wanted)
    with steps.step("formats and ranks"):
        levels = levels_of(problem, budgets, cost)
    renews = batch_stats == "renewed" and room.keeps_batch_stats(*arrays)
    dense = _Dense(model, variables, method, moments, key, inputs if renews else None)
    every = tuple(path for group in groups for path in group)
    total = len(levels) * (len(groups) + 1)
    with steps.step("rises", "measurement", total) as tick:
        losses = _losses(dense, loss_fn, reading, batches)
        found = _measured(dense, losses, levels, [*groups, every], tick)
    return _fitted(groups, levels, found)


def _losses(dense: _Dense, loss_fn: LossFn, reading: Reading, batches: Sequence[Any]) -> Losses:
    network, variables = room_of(dense.model).network_of(*dense.arrays, method=dense.method)
    structure = jax.tree.structure(variables)
    return Losses(network, structure, example_losses(loss_fn), reading, batches)


def _measured(
    dense: _Dense,
    losses: Losses,
    levels: Sequence[Level],
    groups: Sequence[tuple[str, ...]],
    tick: Tick,
) -> list[list[tuple[float, float]]]:
    """For each level and group the rise of the mean loss, and its standard error."""
    own = dense.leaves()
    names = room_of(dense.model).parameter_names(*dense.arrays)
    before, found = losses(own), []
    counts = losses.counts(len(before))
    for level in levels:
        other, rises = dense.decomposed(level.plan), []
        for group in groups:
            swapped = [
                new if name is not None and _inside(name, group) else old
                for name, old, new in zip(names, own, other, strict=True)
            ]
            after = losses(dense.renewed(swapped))
            if not (np.isfinite(after).all() and np.isfinite(before).all()):
                raise ValueError(
                    f"measure_rises: the loss is NaN or Inf, of the dense network or with "
                    f"{', '.join(group)} compressed: look for them in the batches and the loss"
                )
            rises.append(mean_and_error(after - before, counts))
            tick(len(found) * len(groups) + len(rises))
        found.append(rises)
    return found


def _inside(name: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether an array belongs to one of some layers."""
    path = join_path(*name)
    return any(not own or path == own or path.startswith(f"{own}/") for own in paths)


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
