"""Layers that may share one input factor, in a budget: their matrices side by side as one layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tdjax.allocation.choices import low_rank_choices
from tdjax.allocation.problem import Problem
from tdjax.allocation.together import Group, Whole, check_counted
from tdjax.moments.collect import LayerMoments
from tdjax.params.kernels import Weights
from tdjax.params.shared import joined_array, joined_weights
from tdjax.plan.form import Form
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.shared import group_problem, joined
from tdjax.plan.sharing import shared

# Of a group of more layers, fewer than all share only where one of them is left out.
MOST_PARTED = 3
# For messages.
WHAT, ARGUMENT = "shared input factors", "shared"


def sharing_wholes(problem: Problem, groups: Sequence[Sequence[str]]) -> list[Whole]:
    """All or some of each group of a problem's layers, by their paths, that may share.

    Layers that rules are for, and those that are left dense in any case, share with none.

    Raises KeyError for a path that is no layer's, ValueError for layers that do not read the same
    input, as far as shapes tell, for layers in two groups, and where it is not known what layers
    that share take.
    """
    if "svd" not in problem.options.methods:
        raise ValueError("allocate: shared input factors are those of 'svd': add it to methods")
    check_counted(problem, WHAT, ARGUMENT)
    layers = {layer.path: layer for layer in problem.model.layers}
    seen: set[str] = set()
    found = []
    for paths in groups:
        if isinstance(paths, str):
            raise TypeError(f"allocate: shared: a group is a sequence of paths, got {paths!r}")
        for path in paths:
            if path not in layers:
                raise KeyError(f"allocate: shared: no layer {path!r}")
            if path in seen:
                raise ValueError(f"allocate: shared: layer {path!r} is in two groups")
            seen.add(path)
        group = tuple(layer for path, layer in layers.items() if path in set(paths))
        wrong = group_problem(group)
        if wrong is not None:
            raise ValueError(f"allocate: shared: {wrong}")
        free = tuple(own for own in group if own.path in problem.free)
        free = tuple(own for own in free if own.path not in problem.rules)
        found += [_whole(problem, part) for part in _parts(free)]
    return found


def _parts(family: Group) -> list[Group]:
    """The layers of a family, two or more of them."""
    least = 2 if len(family) <= MOST_PARTED else len(family) - 1
    sizes = range(least, len(family) + 1)
    return [part for size in sizes for part in itertools.combinations(family, size)]


def _whole(problem: Problem, group: Group) -> Whole:
    layer = joined(group)

    def apart(entry: PlannedLayer) -> list[PlannedLayer]:
        assert entry.form is not None
        return shared([PlannedLayer(own, dtype=entry.dtype) for own in group], *entry.form.ranks)

    def array() -> Any:
        return joined_array([problem.model.array_of(own) for own in group], group)

    def moments() -> LayerMoments:
        own = [(problem.moments or {})[layer.path] for layer in group]
        weights = joined_weights([Weights(one.inputs, one.outputs) for one in own], group)
        return replace(own[0], outputs=weights.outputs)

    (ranks,) = low_rank_choices(layer, problem.options.bounds).ranks.T
    return Whole(group, layer, Form("svd"), ranks, apart, array, moments)
