"""What is to be chosen for a network, whatever the budget: its layers, their choices, the errors.

What rules decide is decided first, and what the other layers may become is known from shapes; what
that loses is measured when it is first asked for, once for all budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from tdjax.allocation.auto import best_format
from tdjax.allocation.choices import (
    PARAMS,
    TIME,
    ChoiceOptions,
    Choices,
    RankBounds,
    check_known,
    choices_of,
)
from tdjax.allocation.clock import NO_FASTER, NOT_TIMED, PARTS
from tdjax.allocation.evidence import Evidence
from tdjax.allocation.free import FreeLayer, Given, in_words, nearest, within
from tdjax.allocation.rounding import in_dtypes
from tdjax.moments.collect import LayerMoments
from tdjax.plan.decide import decide, first_matches
from tdjax.plan.dtypes import FLOAT32
from tdjax.plan.layers import Inventory, Layer, in_whole_numbers
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.rules import Rule
from tdjax.plan.wishes import BudgetRule
from tdjax.progress import Progress

Rules = Sequence[Rule | BudgetRule]
# What does not depend on factors.
KEPT = ("layers", "counted", "free", "fixed", "whole", "kept", "predicted")
# What is told of layers that rules decide; of more than this many, their number.
NAMED = 8


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
        every = self.counted.layers
        return {layer.path: self._layer(layer) for layer in every if layer.obstacle is None}

    @cached_property
    def counted(self) -> Inventory:
        """The network's work for so many examples that all counts are ints; all layers run."""
        return in_whole_numbers(self.model)

    @cached_property
    def evidence(self) -> Evidence:
        """What its choices are measured by."""
        return Evidence(self.strategy, self.options, self.model.array_of, self.moments)

    @cached_property
    def free(self) -> Mapping[str, FreeLayer]:
        """Those that are free."""
        return {path: own for path, own in self.layers.items() if isinstance(own, FreeLayer)}

    @cached_property
    def fixed(self) -> Int[np.ndarray, " k"]:
        """Costs of all that is not free."""
        entries = self._plan({}, self.counted)
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
        return self._dense(self._time_of(list(map(PlannedLayer, self.counted.layers))))

    def _dense(self, time: Sequence[int]) -> Int[np.ndarray, " k"]:
        plan = self._plan({}, self.counted)
        known = [] if self.options.clock is None else time
        return np.array([plan.size_before, plan.macs_before, plan.bytes_before, *known])

    def _time_of(self, entries: Sequence[PlannedLayer]) -> list[int]:
        """Of a network of such layers, where it is known."""
        clock = self.options.clock
        return [] if clock is None else [clock.rest + sum(map(clock.spent, entries))]

    @cached_property
    def predicted(self) -> Mapping[str, Float[np.ndarray, " _"]]:
        """By path of a free layer, what each of its choices loses."""
        known = {path: own.lost for path, own in self.given.items() if own.lost is not None}
        asked = [path for path in self.free if path not in known]
        measured = self.evidence.lost([self.free[path] for path in asked], self.progress)
        errors = dict(zip(asked, measured, strict=True))
        for path in self.free.keys() & known.keys():
            free = self.free[path]
            dense = np.zeros(int(free.dense is not None))
            errors[path] = np.concatenate([*map(known[path], free.choices), dense])
        return errors

    @cached_property
    def errors(self) -> Mapping[str, Float[np.ndarray, " _"]]:
        """By path of a free layer, how much what each of its choices loses counts."""
        return {path: self.factors.get(path, 1.0) * own for path, own in self.predicted.items()}

    @cached_property
    def decided_rise(self) -> float:
        """The predicted rise of the loss by what rules decide."""
        decided = (own for own in self.layers.values() if isinstance(own, PlannedLayer))
        return sum((self.evidence.rise(own) for own in decided if own.form is not None), 0.0)

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
        texts = [in_words(path, self.layers[path]) for path in paths]
        if len(texts) > NAMED:
            texts = [*texts[:NAMED], f"and {len(texts) - NAMED} more"]
        decided = [own.reason for own in self.layers.values() if isinstance(own, PlannedLayer)]
        slow = decided.count(NO_FASTER)
        told = f"; {slow} of {len(self.layers)} layers get no faster" if slow else ""
        return told + (f"; rules: {', '.join(texts)}" if texts else "")

    def _layer(self, layer: Layer) -> FreeLayer | PlannedLayer:
        given = self.given.get(layer.path)
        if given is not None:
            every = given.choices(layer, self.options)
            if not every:
                return PlannedLayer(layer, reason=self._reason(layer))
            return self._free(layer, every)
        rule = self.rules.get(layer.path)
        if isinstance(rule, Rule):
            decided = decide(layer, rule, best_format(self.model.array_of))
            if self.options.clock is not None:
                self.options.clock.check(decided, rule)
            return decided
        if rule is not None and rule.dense:
            return PlannedLayer(layer, reason="a rule keeps it dense")
        every = [] if self.evidence.without_gradient(layer) else self._smaller(layer, self.options)
        if not every:
            return PlannedLayer(layer, reason=self._reason(layer))
        if rule is None:
            return _one_of(self._free(layer, every))
        inside = within(every, layer, rule)
        if not inside:
            inside = within(self._smaller(layer, self.options._replace(fine=True)), layer, rule)
        if inside:
            return _one_of(self._free(layer, inside, bounded=rule.max_share is not None))
        if rule.max_share is None:
            return PlannedLayer(layer, reason="its rule allows nothing smaller")
        shares = np.sort(np.concatenate([own.costs[:, 0] for own in every])) / layer.size
        raise ValueError(
            f"allocate: {rule}: layer {layer.path!r}: no ranks keep {rule.min_share or 0:g} to "
            f"{rule.max_share:g} of its weights; "
            + nearest(shares, rule.min_share or 0.0, rule.max_share)
        )

    def _free(self, layer: Layer, every: Sequence[Choices], *, bounded: bool = False) -> FreeLayer:
        """A layer with its choices.

        Arguments:
            bounded: whether it may not stay as it is.
        """
        dense = None
        costs = [own.costs for own in every]
        if not bounded and FLOAT32 in self.options.dtypes:
            dense = PlannedLayer(layer, reason="the rest is better spared elsewhere")
            costs.append(self.options.costs_of(dense)[None])
        return FreeLayer(tuple(every), dense, layer, np.concatenate(costs))

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
        if clock is None or self.evidence.without_gradient(layer):
            return "nothing smaller is known for it"
        if not clock.is_timed(layer.path):
            return NOT_TIMED
        if self.options.costs == (TIME,):
            return NO_FASTER
        return "nothing smaller is known for it"


def _one_of(free: FreeLayer) -> FreeLayer | PlannedLayer:
    """A layer that is free; decided where there is but one choice."""
    return free if len(free.costs) > 1 else free.entry(0)


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
