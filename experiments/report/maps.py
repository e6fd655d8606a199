"""Maps: tables of figures whose cells are the darker the more they say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Cell:
    """A figure, how dark it is from 0 to 1, and all that is known of it."""

    text: str
    shade: float
    title: str


@dataclass(frozen=True)
class Map:
    """Lines and columns of cells by their names; a place without a figure is None."""

    title: str
    corner: str
    columns: tuple[str, ...]
    lines: Mapping[str, tuple[Cell | None, ...]]


def draw_map(
    rows: pd.DataFrame,
    title: str,
    lines: tuple[str, str],
    column: str,
    heads: Mapping[Any, str],
    darkest: float,
) -> Map:
    """The map of some figures, a line for each value of a column, in the order of the rows.

    Arguments:
        rows: with `value`, `text` and `title` of each figure.
        lines: the column whose values are the lines, and what they are.
        column: whose values stand side by side.
        heads: those values, with their heads.
        darkest: the value that is darkest; the shade grows with the square root, so that small
            ones differ too.
    """
    found: dict[str, dict[Any, Cell]] = {str(name): {} for name in rows[lines[0]]}
    for row in rows.to_dict("records"):
        cell = Cell(row["text"], _shade(row["value"], darkest), row["title"])
        found[str(row[lines[0]])][row[column]] = cell
    return Map(
        title,
        lines[1],
        tuple(heads.values()),
        {name: tuple(map(own.get, heads)) for name, own in found.items()},
    )


def _shade(value: float, darkest: float) -> float:
    share = value / darkest if darkest > 0 and math.isfinite(value) else 0.0
    return round(math.sqrt(min(max(share, 0.0), 1.0)), 3)
