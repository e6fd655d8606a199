"""What is to be chosen for a network, whatever the budget: its layers, their choices, the errors.

What rules decide is decided first, and what the other layers may become is known from shapes; what
that loses is measured when it is first asked for, once for all budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from tdjax.allocation import measures
from tdjax.allocation.auto import best_format
from tdjax.allocation.choices import (
    AT_SHARES,
    GROUPED,
    PARAMS,
    TIME,
    ChoiceOptions,
    Choices,
    RankBounds,
    check_known,
    choices_of,
)
from tdjax.allocation.clock import NO_FASTER, NOT_TIMED, PARTS
from tdjax.allocation.rounding import in_dtypes
from tdjax.decompose.dealing import dealt, on_one_device, shared_devices
from tdjax.decompose.inputs import as_numpy, is_finite
from tdjax.moments.collect import LayerMoments
from tdjax.plan.decide import decide, first_matches
from tdjax.plan.dtypes import FLOAT32
from tdjax.plan.form import Form
from tdjax.plan.layers import Inventory, Layer, in_whole_numbers
from tdjax.plan.listing import ranks_text
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.rules import Rule
from tdjax.plan.wishes import BudgetRule
from tdjax.progress import Done, Progress, Steps

Rules = Sequence[Rule | BudgetRule]
# What does not depend on factors.
KEPT = ("layers", "_counted", "free", "fixed", "whole", "kept", "predicted")
# What is told of layers that rules decide; of more than this many, their number.
NAMED = 8


class FreeLayer(NamedTuple):
    """A layer of which there is something to choose.

    Arguments:
        choices: by format.
        dense: the layer as it is; None where a rule asks for less.
        costs: (n, k), of all choices, then of the dense layer.
    """

    choices: tuple[Choices, ...]
    dense: PlannedLayer | None
    layer: Layer
    costs: Int[np.ndarray, "n k"]

    def entry(self, number: int) -> PlannedLayer:
        """What a plan says of the layer for one of the choices."""
        for own in self.choices:
            if number < len(own.costs):
                return own.entry(self.layer, number)
            number -= len(own.costs)
        assert self.dense is not None
        return self.dense


class Given(NamedTuple):
    """What is to be chosen for a layer, where that is known beforehand.

    Arguments:
        form: without its ranks, of which one more costs as much as the one before.
        ranks: (n, 1).
        lost: what each of them loses; made when it is first asked for.
    """

    form: Form
    ranks: Int[np.ndarray, "n 1"]
    lost: Callable[[], Float[np.ndarray, " n"]]

    def choices(self, layer: Layer, options: ChoiceOptions) -> Choices:
        """The ranks with what they cost."""
        one = options.costs_of(PlannedLayer(layer, replace(self.form, ranks=(1,))))
        return Choices(self.form, self.ranks, self.ranks * one)


class PlanOfWholes(Plan):
    """A plan in which one layer may stand for several, whose parts are not seen."""

    def __post_init__(self) -> None:
        """The layers that it stands for are checked when they are apart."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be chosen, and all that is known of it.

    Arguments:
        model: the network.
        strategy: see `tdjax.allocate`.
        options: of the choices; rules may give a layer others.
        rules: by path, the one that is for a layer.
        moments: for strategy "loss".
        factors: by path of a free layer, how much of what its choices lose counts; 1 where there
            is none.
        given: by path, layers of which it is known beforehand what is to be chosen.
        progress: what is told of the layers where measuring takes long.
    """

    model: Inventory
    strategy: str
    options: ChoiceOptions
    rules: Mapping[str, Rule | BudgetRule]
    moments: Mapping[str, LayerMoments] | None
    factors: Mapping[str, float] = field(default_factory=dict)
    given: Mapping[str, Given] = field(default_factory=dict)
    progress: Progress = False

    @cached_property
    def layers(self) -> Mapping[str, FreeLayer | PlannedLayer]:
        """By path, each layer that can be factorised: free, or decided already."""
        every = self._counted.layers
        return {layer.path: self._layer(layer) for layer in every if layer.obstacle is None}

    @cached_property
    def _counted(self) -> Inventory:
        """The network's work for so many examples that all counts are ints; all layers run."""
        return in_whole_numbers(self.model)

    @cached_property
    def free(self) -> Mapping[str, FreeLayer]:
        """Those that are free."""
        return {path: own for path, own in self.layers.items() if isinstance(own, FreeLayer)}

    @cached_property
    def fixed(self) -> Int[np.ndarray, " k"]:
        """Costs of all that is not free."""
        entries = self._plan({}, self._counted)
        counted = entries.size, entries.macs, entries.bytes
        spent = np.array([*counted, *self._time_of(entries.layers)])
        costs_of = self.options.costs_of
        return spent - sum((costs_of(entries[path]) for path in self.free), np.zeros_like(spent))

    @cached_property
    def whole(self) -> Int[np.ndarray, " k"]:
        """Costs of the dense network as it is."""
        return self._dense([PARTS])

    @cached_property
    def kept(self) -> Int[np.ndarray, " k"]:
        """Costs of the network with a plan that keeps all layers dense."""
        return self._dense(self._time_of(list(map(PlannedLayer, self._counted.layers))))

    def _dense(self, time: Sequence[int]) -> Int[np.ndarray, " k"]:
        plan = self._plan({}, self._counted)
        known = [] if self.options.clock is None else time
        return np.array([plan.size_before, plan.macs_before, plan.bytes_before, *known])

    def _time_of(self, entries: Sequence[PlannedLayer]) -> list[int]:
        """Of a network of such layers, where it is known."""
        clock = self.options.clock
        return [] if clock is None else [clock.rest + sum(map(clock.spent, entries))]

    @cached_property
    def predicted(self) -> Mapping[str, Float[np.ndarray, " _"]]:
        """By path of a free layer, what each of its choices loses."""

        def by_numpy(own: _Known) -> bool:
            methods = {choices.method for choices in own.free.choices}
            programs = self.strategy != "energy" and not AT_SHARES.isdisjoint(methods)
            return self.strategy != "uniform" and not programs

        asked = [path for path in self.free if path not in self.given]
        known = [self._known(self.free[path]) for path in asked]
        _check_gradients([own.moments.outputs for own in known if own.moments is not None])
        devices, steps = shared_devices(known), Steps("allocate", self.progress)
        with steps.lasting("what formats lose", "layer", len(known)) as tick:
            done = Done(tick)

            def lost(own: _Known) -> Float[np.ndarray, " _"]:
                found = self._errors(own)
                done()
                return found

            found = dealt(lost, known, devices, by_numpy, lambda own: own.free.layer.size)
        errors = dict(zip(asked, found, strict=True))
        for path in self.free.keys() & self.given.keys():
            dense = np.zeros(int(self.free[path].dense is not None))
            errors[path] = np.concatenate([self.given[path].lost(), dense])
        return errors

    @cached_property
    def errors(self) -> Mapping[str, Float[np.ndarray, " _"]]:
        """By path of a free layer, how much what each of its choices loses counts."""
        return {path: self.factors.get(path, 1.0) * own for path, own in self.predicted.items()}

    @cached_property
    def decided_rise(self) -> float:
        """The predicted rise of the loss by what rules decide."""
        decided = (own for own in self.layers.values() if isinstance(own, PlannedLayer))
        return sum((self._rise(entry) for entry in decided if entry.form is not None), 0.0)

    @cached_property
    def fine(self) -> Problem:
        """The same with more choices in formats that are tried at some shares of the weights."""
        return replace(self, options=self.options._replace(fine=True))

    def weighed(self, factors: Mapping[str, float]) -> Problem:
        """The same with other factors; what is known of it already is not measured again."""
        found = replace(self, factors=factors)
        known = {name: own for name, own in vars(self).items() if name in KEPT}
        vars(found).update(known)
        return found

    def plan(self, numbers: Mapping[str, int]) -> Plan:
        """The plan with some choices of free layers, by path; those without are left dense."""
        return self._plan(numbers, self.model)

    def _plan(self, numbers: Mapping[str, int], model: Inventory) -> Plan:
        found = {path: own for path, own in self.layers.items() if isinstance(own, PlannedLayer)}
        found |= {path: self.free[path].entry(number) for path, number in numbers.items()}
        entries = tuple(
            replace(found[layer.path], layer=layer)
            if layer.path in found
            else PlannedLayer(layer, reason=layer.obstacle)
            for layer in model.layers
        )
        kind = PlanOfWholes if self.given else Plan
        plan = kind(entries, model.other, other_macs=model.other_macs, work=model.work)
        clock = self.options.clock
        if clock is None:
            return plan
        entries = tuple(map(clock.fastest, entries))
        return replace(plan, layers=entries, predicted=clock.predicted(entries))

    def told(self) -> str:
        """What rules decide, as the end of a message, and how many layers get no faster."""
        paths = [path for path in self.layers if path in self.rules]
        texts = [_told(path, self.layers[path]) for path in paths]
        if len(texts) > NAMED:
            texts = [*texts[:NAMED], f"and {len(texts) - NAMED} more"]
        decided = [own.reason for own in self.layers.values() if isinstance(own, PlannedLayer)]
        slow = decided.count(NO_FASTER)
        told = f"; {slow} of {len(self.layers)} layers get no faster" if slow else ""
        return told + (f"; rules: {', '.join(texts)}" if texts else "")

    def _layer(self, layer: Layer) -> FreeLayer | PlannedLayer:
        given = self.given.get(layer.path)
        if given is not None:
            return self._free(layer, [given.choices(layer, self.options)], bounded=False)
        rule = self.rules.get(layer.path)
        if isinstance(rule, Rule):
            decided = decide(layer, rule, best_format(self.model.array_of))
            if self.options.clock is not None:
                self.options.clock.check(decided, rule)
            return decided
        if rule is not None and rule.dense:
            return PlannedLayer(layer, reason="a rule keeps it dense")
        every = [] if self._without_gradient(layer) else self._smaller(layer, self.options)
        if not every:
            return PlannedLayer(layer, reason=self._reason(layer))
        if rule is None:
            return self._free(layer, every, bounded=False)
        inside = _inside(every, layer, rule)
        if not inside:
            inside = _inside(self._smaller(layer, self.options._replace(fine=True)), layer, rule)
        if inside:
            return self._free(layer, inside, bounded=rule.max_share is not None)
        if rule.max_share is None:
            return PlannedLayer(layer, reason="its rule allows nothing smaller")
        shares = np.sort(np.concatenate([own.costs[:, 0] for own in every])) / layer.size
        raise ValueError(
            f"allocate: {rule}: layer {layer.path!r}: no ranks keep {rule.min_share or 0:g} to "
            f"{rule.max_share:g} of its weights; "
            + _nearest(shares, rule.min_share or 0.0, rule.max_share)
        )

    def _free(
        self, layer: Layer, choices: Sequence[Choices], *, bounded: bool
    ) -> FreeLayer | PlannedLayer:
        """A layer with its choices; decided where there is but one."""
        dense = None
        costs = [own.costs for own in choices]
        if not bounded and FLOAT32 in self.options.dtypes:
            dense = PlannedLayer(layer, reason="the rest is better spared elsewhere")
            costs.append(self.options.costs_of(dense)[None])
        found = FreeLayer(tuple(choices), dense, layer, np.concatenate(costs))
        return found if len(found.costs) > 1 else found.entry(0)

    def _smaller(self, layer: Layer, options: ChoiceOptions) -> list[Choices]:
        """The choices of a layer, its shares not yet bounded, that spare some of what is limited.

        "uniform" and shares of the weights that are sampled depend on the first cost alone.
        """
        rule, limited = self.rules.get(layer.path), options.costs
        if isinstance(rule, BudgetRule):
            least, multiple = options.bounds
            options = options._replace(
                methods=tuple(rule.methods or options.methods),
                bounds=RankBounds(rule.min_rank or least, rule.multiple_of or multiple),
            )
            # A bound of the weights holds whatever the budget asks for.
            limited = limited if rule.max_share is None else (*limited, PARAMS)
        every = choices_of(layer, self.strategy, options)
        if options.dtypes != (FLOAT32,):
            every = in_dtypes(layer, every, options.dtypes)
        smaller = (own.where(options.spared(layer, own, limited)) for own in every)
        return [own for own in smaller if len(own.costs)]

    def _reason(self, layer: Layer) -> str:
        """Why a layer without choices is kept dense."""
        clock = self.options.clock
        if clock is None or self._without_gradient(layer):
            return "nothing smaller is known for it"
        if not clock.is_timed(layer.path):
            return NOT_TIMED
        if self.options.costs == (TIME,):
            return NO_FASTER
        return "nothing smaller is known for it"

    def _without_gradient(self, layer: Layer) -> bool:
        """Whether no example's loss depends on what a layer puts out, as nothing tells ranks then.

        So it is with an embedding at positions that no example decides on.
        """
        return self.strategy == "loss" and self._moments_of(layer).outputs is None

    def _moments_of(self, layer: Layer) -> LayerMoments:
        moments = self.moments
        if moments is None or all(found.outputs is None for found in moments.values()):
            raise ValueError(
                "allocate: strategy 'loss' needs moments of the gradient; collect_moments gives "
                "them with a loss_fn"
            )
        if layer.path not in moments:
            raise ValueError(f"allocate: strategy 'loss' needs the moments of layer {layer.path!r}")
        return moments[layer.path]

    def _finite_moments(self, layer: Layer) -> LayerMoments:
        found = self._moments_of(layer)
        if not all(is_finite(leaf) for leaf in jax.tree.leaves(found)):
            raise ValueError(f"allocate: the moments of layer {layer.path!r} hold NaN or Inf")
        return found

    def _known(self, free: FreeLayer) -> _Known:
        if self.strategy == "uniform":
            return _Known(free, None, None, None)
        array, key = self.weights_of(free.layer), self.options.key
        of_data = self.strategy not in GROUPED and self.strategy != "energy"
        return _Known(free, array, self._finite_moments(free.layer) if of_data else None, key)

    def _errors(self, known: _Known) -> Float[np.ndarray, " _"]:
        (layer, choices), array = (known.free.layer, known.free.choices), known.array
        options = self.options._replace(key=known.key)
        if self.strategy == "uniform":
            found = [measures.uniform(layer, own, options) for own in choices]
        elif self.strategy in GROUPED:
            found = measures.alds(layer, array, choices, options.objective)
        elif self.strategy == "energy":
            found = measures.energy(layer, array, choices, options)
        else:
            assert known.moments is not None
            found = measures.loss(layer, array, choices, options, known.moments)
        return np.concatenate([*found, np.zeros(int(known.free.dense is not None))])

    def _rise(self, entry: PlannedLayer) -> float:
        if self._without_gradient(entry.layer):
            return 0.0
        known = self.weights_of(entry.layer), self._finite_moments(entry.layer), self.options.key
        array, moments, key = on_one_device(known)
        return measures.loss_rise(array, entry, key, moments)

    def weights_of(self, layer: Layer) -> Any:
        """The array that holds a layer's kernel. Raises ValueError for a shape, and NaN or Inf."""
        array = self.model.array_of(layer)
        if isinstance(array, jax.ShapeDtypeStruct):
            raise ValueError(
                f"allocate: layer {layer.path!r}: strategy {self.strategy!r} needs its weights"
            )
        if not is_finite(array):
            raise ValueError(f"allocate: layer {layer.path!r}: its weights hold NaN or Inf")
        return array


class _Known(NamedTuple):
    """A free layer, and what its choices are measured by, as far as the strategy asks for it."""

    free: FreeLayer
    array: Any
    moments: LayerMoments | None
    key: Array | None


def pose(
    model: Inventory,
    strategy: str,
    options: ChoiceOptions,
    rules: Rules,
    moments: Mapping[str, LayerMoments] | None,
    progress: Progress = False,
) -> Problem:
    """A problem, everything about it checked that shapes tell.

    Raises ValueError for a rule that matches no layer, or asks for what its layers cannot have.
    """
    for rule in rules:
        if isinstance(rule, BudgetRule) and rule.methods is not None:
            check_known(f"{rule}: methods", strategy, rule.methods)
    found = first_matches(model.layers, rules)
    problem = Problem(model, strategy, options, found, moments, progress=progress)
    assert problem.layers is not None
    return problem


def _check_gradients(moments: Sequence[Array | None]) -> None:
    """Refuse, with a ValueError, gradients that tell no layer from another."""
    outputs = [moment for moment in moments if moment is not None]
    # Mostly the first says enough.
    if outputs and not any(as_numpy(moment).any() for moment in outputs):
        raise ValueError(
            "allocate: strategy 'loss': the gradient of the loss is zero at the outputs of all "
            "layers: a loss has to be differentiable, which accuracy, argmax and rounding are not"
        )


def _inside(choices: Sequence[Choices], layer: Layer, rule: BudgetRule) -> list[Choices]:
    """The choices within the shares of a rule."""
    least, most = rule.min_share or 0.0, rule.max_share or 1.0
    # In floating point 0.29 of 100 is less than 29.
    slack = 1e-12
    found = []
    for own in choices:
        share = own.costs[:, 0] / layer.size
        found.append(own.where((share >= least - slack) & (share <= most + slack)))
    return [own for own in found if len(own.costs)]


def _nearest(shares: Float[np.ndarray, " n"], least: float, most: float) -> str:
    """The shares next to an interval that has none, in words."""
    ends = [*shares[shares < least][-1:], *shares[shares > most][:1]]
    return f"the nearest keep {' and '.join(f'{share:.4g}' for share in ends)}"


def _told(path: str, own: FreeLayer | PlannedLayer) -> str:
    name = path or "(model)"
    if isinstance(own, FreeLayer):
        shares = own.costs[:, 0] / own.layer.size
        return f"{name} keeps {shares.min():.3g} to {shares.max():.3g}"
    if own.form is None:
        return f"{name} stays dense"
    return f"{name} is {own.format} at rank {ranks_text(own.ranks)}"
