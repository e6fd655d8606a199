"""The published figures of pruning, to set beside measured ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class PublishedPruning:
    """Compression ratio, share of weights pruned, relative rise of the mean squared error."""

    ratio: float
    share: float
    rise: float


def published_pruning(
    name: str | None,
) -> Mapping[tuple[str, float | None, float], PublishedPruning]:
    """The published figures for `name`, such as "yang2022/california_housing"; None has none.

    Returns: by method ("abp-m", "abp-l", or "magnitude", of no known scope), q, and eta, penalty or
    share.

    Raises ValueError that lists the known names for another one.
    """
    if name is None:
        return {}
    known = _published()
    if name not in known:
        raise ValueError(
            f"published figures of {name!r} are unknown; known are: {', '.join(sorted(known))}"
        )
    return {
        (row["method"], row["q"], row["value"]): PublishedPruning(
            row["ratio"], row["share"], row["rise"]
        )
        for row in known[name]
    }


def published_names() -> tuple[str, ...]:
    """What `published_pruning` knows."""
    return tuple(sorted(_published()))


def _published() -> dict[str, Any]:
    path = resources.files("experiments.compressibility") / "published" / "pruning.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known.pop("note")
    return known
