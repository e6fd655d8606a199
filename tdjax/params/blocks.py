"""Layers that are decomposed together, as those of one block of a transformer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tdjax.hints import did_you_mean
from tdjax.params.tree import block_around, join_path, split_path

AUTO = "auto"
# Paths of layers, in the order in which they are called.
Block = tuple[str, ...]


def blocks_of(paths: Sequence[str], wanted: str | Sequence[str] | None) -> list[Block]:
    """The blocks, in the order in which the first layer of each is called.

    Arguments:
        paths: of the layers, in the order of their calls.
        wanted: None for each layer alone; "auto" for the largest modules that hold at most a
            quarter of the layers; or patterns for `re.fullmatch` of the paths of modules. The
            outermost module around a layer that one matches is its block; others stand alone.

    Raises ValueError for a pattern that finds no layer.
    """
    if wanted is None:
        return [(path,) for path in paths]
    found: dict[str, list[str]] = {}
    if wanted == AUTO:
        for path in paths:
            found.setdefault(block_around(path, paths), []).append(path)
        return list(map(tuple, found.values()))
    patterns = [wanted] if isinstance(wanted, str) else wanted
    used = set()
    for path in paths:
        names = split_path(path)
        around = [join_path(*names[:depth]) for depth in range(len(names) + 1)]
        first = next(((m, own) for m in around for own in patterns if re.fullmatch(own, m)), None)
        block, pattern = (path, None) if first is None else first
        found.setdefault(block, []).append(path)
        used.add(pattern)
    for pattern in patterns:
        if pattern not in used:
            raise ValueError(
                f"factorize_sequentially: blocks {pattern!r}: matches no module around a layer of "
                f"the plan that no pattern before it matches{did_you_mean(pattern, paths)}"
            )
    return list(map(tuple, found.values()))
