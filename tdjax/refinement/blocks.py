"""The blocks of a model: modules that are refined one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tdjax.hints import did_you_mean
from tdjax.params.tree import block_around, inside
from tdjax.plan.plan import Plan

AUTO = "auto"


def blocks_of(plan: Plan, modules: Sequence[str], wanted: str | Sequence[str]) -> list[str]:
    """The paths of blocks, in the order in which the model calls their first layers.

    Arguments:
        modules: the paths of all modules.
        wanted: "auto" for the largest modules with at most a quarter of the factorised layers, or
            patterns for `re.fullmatch`.

    Raises ValueError for a pattern that matches no module with a factorised layer, and for blocks
    inside each other.
    """
    layers = [entry.layer.path for entry in plan.factorised]
    if wanted == AUTO:
        return list(dict.fromkeys(block_around(path, layers, modules) for path in layers))
    found = matched("blocks", [wanted] if isinstance(wanted, str) else wanted, modules)
    blocks = {block for paths in found.values() for block in paths}
    order = list(dict.fromkeys(b for layer in layers for b in blocks if inside(layer, b)))
    for pattern, paths in found.items():
        if not set(paths) & set(order):
            raise ValueError(f"refine: blocks {pattern!r}: there is no factorised layer in it")
    for block in order:
        outer = next((b for b in order if b != block and inside(block, b)), None)
        if outer is not None:
            raise ValueError(f"refine: blocks {block!r} is inside {outer!r}: name one of them")
    return order


def matched(argument: str, patterns: Sequence[str], modules: Sequence[str]) -> dict[str, list[str]]:
    """By pattern, the paths of the modules that it matches. Raises ValueError for none."""
    found = {}
    for pattern in patterns:
        found[pattern] = [path for path in modules if re.fullmatch(pattern, path)]
        if not found[pattern]:
            near = did_you_mean(pattern, modules)
            raise ValueError(f"refine: {argument} {pattern!r}: matches no module{near}")
    return found
