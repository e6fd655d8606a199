"""Which layer gets which format at which rank: rules in, a plan out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tdjax.decompose.inputs import check_ranks
from tdjax.decompose.tt import clip_ranks
from tdjax.hints import did_you_mean
from tdjax.plan import ranks
from tdjax.plan.chain import chain_of
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.listing import paths_text, ranks_text
from tdjax.plan.patterns import matches
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.rules import AUTO, Rule
from tdjax.plan.wishes import BudgetRule
from tdjax.plan.work import Count, Work

R = TypeVar("R", Rule, Rule | BudgetRule)
Choose = Callable[[Layer, Rule], PlannedLayer]


def plan_layers(
    table: Sequence[Layer],
    rules: Sequence[Rule],
    other: int = 0,
    choose: Choose | None = None,
    other_macs: Count = 0,
    work: Work | None = None,
) -> Plan:
    """Apply the rules to a layer table; the first that matches a layer decides.

    A layer that the method cannot take, or that would not get smaller, is kept dense, with the
    reason; so is one that no rule matches.

    Arguments:
        table: the layers.
        rules: see `Rule`.
        other: parameters of the model that belong to no weight array.
        choose: plans a layer for a rule with method "auto".
        other_macs, work: see `tdjax.plan.plan.Plan`.

    Raises ValueError for a rule that matches no layer, for a pattern that would be tried for ever
    and for ranks out of range; the message names the rule, the layer and the remedy.
    """
    found = first_matches(table, rules)
    entries = tuple(decide(layer, found.get(layer.path), choose) for layer in table)
    return Plan(entries, other, other_macs=other_macs, work=work)


def _further(pattern: str, table: Sequence[Layer]) -> str:
    """How a pattern for a part of paths is one for whole paths, as the end of a message."""
    own = f"({pattern})" if "|" in pattern else pattern
    for wider in (f"{own}.*", f".*{own}", f".*{own}.*"):
        if any(matches(layer.path, wider) for layer in table):
            return f"; a pattern is for whole paths: {wider!r} matches some"
    return ""


def first_matches(table: Sequence[Layer], rules: Sequence[R]) -> dict[str, R]:
    """By path of a layer, the first rule that matches it; rules of any kind that have a path.

    Raises ValueError for a rule that matches no layer, and for a pattern that would be tried for
    ever.
    """
    for rule in rules:
        if not any(matches(layer.path, rule.path) for layer in table):
            near = _further(rule.path, table) or did_you_mean(
                rule.path, [own.path for own in table]
            )
            raise ValueError(f"{rule}: matches no layer; layers are: {paths_text(table)}{near}")
    return {
        layer.path: rule
        for layer in table
        for rule in reversed(rules)
        if matches(layer.path, rule.path)
    }


def plan_layer(layer: Layer, rule: Rule) -> PlannedLayer:
    """A layer at exactly the ranks that a rule asks for, even where that saves nothing.

    Raises ValueError for a layer that cannot be factorised, or not with the splits or the fold of
    the rule, and for ranks out of range.
    """
    if layer.obstacle is not None:
        raise ValueError(f"{rule}: layer {layer.path!r}: {layer.obstacle}")
    form = _plain_form(layer, rule)
    try:
        shape = chain_of(layer, form).rank_shape
    except ValueError as error:
        raise ValueError(f"{rule}: {error}") from None
    decomposed = 1 - (rule.sparse or 0.0)
    if rule.compression is not None:
        # What a rank keeps of one split it keeps of all.
        keep = decomposed * (1 - rule.compression)
        found = ranks.ranks_for(form.method, shape, keep)
    else:
        found = _given_ranks(shape, form.method, rule, layer.path)
    entry = PlannedLayer(layer, replace(form, ranks=found))
    if rule.sparse is None:
        return entry
    weights = layer.size // layer.copies
    kept = (
        entry.size / layer.copies / decomposed
        if rule.compression is None
        else (1 - rule.compression) * weights
    )
    nonzeros = min(weights, max(1, round(rule.sparse * kept)))
    return replace(entry, form=replace(form, ranks=found, nonzeros=nonzeros))


def _plain_form(layer: Layer, rule: Rule) -> Form:
    """The form that a rule gives a layer, before ranks and nonzeros."""
    if not layer.is_matrix:
        return Form(rule.method, spatial=rule.spatial, splits=rule.splits, fold=rule.fold)
    # Between two modes every format but a TT-matrix is a product of two matrices.
    if rule.method == "tt" and len(ranks.tt_order(layer.kernel_shape)) > 1:
        return Form("tt")
    return Form("svd", splits=rule.splits)


def _given_ranks(shape: Sequence[int], method: str, rule: Rule, path: str) -> tuple[int, ...]:
    """The ranks of a rule that states them, for what has such a shape."""
    where = f"{rule}: layer {path!r}"
    full = ranks.full_ranks(method, shape)
    assert rule.rank is not None
    if isinstance(rule.rank, tuple):
        found = check_ranks(rule.rank, full, where)
    elif method == "tt":
        found = check_ranks((rule.rank,), (max(full),), where) * len(full)
    else:
        found = check_ranks((rule.rank,) * len(full), full, where)
    # TT-SVD reaches no more than the rank before times the mode between.
    return clip_ranks(ranks.tt_order(shape), found) if method == "tt" else found


def decide(layer: Layer, rule: Rule | None, choose: Choose | None = None) -> PlannedLayer:
    """What becomes of a layer by the rule that matches it; see `plan_layers`."""
    if layer.obstacle is not None:
        return PlannedLayer(layer, reason=layer.obstacle)
    if rule is None:
        return PlannedLayer(layer, reason="no rule matches it")
    if rule.sparse is not None and layer.is_own:
        return PlannedLayer(layer, reason="layers of one's own take no sparse correction")
    if rule.method == AUTO:
        if choose is None:
            raise ValueError(f"{rule}: needs the kernels, not their shapes alone")
        planned = choose(layer, rule)
    else:
        planned = plan_layer(layer, rule)
    if planned.size >= layer.size:
        return PlannedLayer(
            layer,
            reason=f"{planned.format} at rank {ranks_text(planned.ranks)} would hold "
            f"{planned.size:,} parameters, no fewer than its {layer.size:,}",
        )
    return planned
