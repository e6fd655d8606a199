"""Pairs of layers in a budget: one layer that has the weights of all, and fewer rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdjax.allocation.pair_losses import KnownPair, PairLosses
from tdjax.allocation.problem import Problem
from tdjax.allocation.together import Group, Whole, check_counted
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.pair import IN, Pair, check_pairs, method_of, pair_layer, pair_problem
from tdjax.plan.pairing import paired
from tdjax.plan.plan import PlannedLayer

# For messages.
WHAT, ARGUMENT = "pairs of layers", "pairs"


def pair_wholes(problem: Problem, pairs: Sequence[Pair]) -> list[Whole]:
    """The pairs of a problem's layers.

    Those with a layer that a rule is for, or of which no example's loss depends on what it puts
    out, are left alone.

    Raises KeyError for a path that is no layer's, TypeError for what is no pair, ValueError for
    layers that are none, as far as shapes tell, and where it is not known what pairs take.
    """
    check_counted(problem, WHAT, ARGUMENT)
    check_pairs(pairs)
    layers = {layer.path: layer for layer in problem.model.layers}
    found = []
    for pair in pairs:
        paths = pair.paths
        for path in paths:
            if path not in layers:
                raise KeyError(f"allocate: pairs: no layer {path!r}")
        if len(set(paths)) < len(paths):
            raise ValueError(f"allocate: pairs: a layer of pair {pair} is named twice")
        producers, consumer = [layers[path] for path in pair.producers], layers[pair.consumer]
        wrong = pair_problem(producers, consumer, pair)
        if wrong is not None:
            raise ValueError(f"allocate: pairs: {wrong}")
        ruled = any(path in problem.rules for path in paths)
        if not ruled and all(_is_seen(problem, layers[path]) for path in _weighing(pair)):
            found.append(_whole(problem, pair, tuple(producers), consumer))
    return found


def _weighing(pair: Pair) -> tuple[str, ...]:
    """The layers whose moments tell what a pair loses."""
    return pair.paths if pair.scores else (pair.consumer,)


def _is_seen(problem: Problem, layer: Layer) -> bool:
    moments = (problem.moments or {}).get(layer.path)
    return moments is None or moments.outputs is not None


def _whole(problem: Problem, pair: Pair, producers: Group, consumer: Layer) -> Whole:
    members = {layer.path: layer for layer in (*producers, consumer)}
    layers = tuple(own for own in problem.model.layers if own.path in members)
    whole = pair_layer(producers, consumer, pair)
    splits = pair.heads or 1
    full = whole.kernel_shape[0] // splits
    ranks = np.arange(1, full)
    ranks = ranks[problem.options.bounds.admit(ranks, full)]

    def apart(entry: PlannedLayer) -> list[PlannedLayer]:
        assert entry.form is not None
        return paired(producers, consumer, pair, *entry.form.ranks, dtype=entry.dtype)

    def known() -> KnownPair:
        return KnownPair(problem.evidence, problem.model, producers, consumer, pair)

    losses = PairLosses(problem.options.dtypes, known)
    # Of a query and a key too: the whole reads what passes.
    form = Form(method_of(pair._replace(scores=False), IN), splits=splits)
    return Whole(layers, whole, form, ranks, apart, lost=losses.of)
