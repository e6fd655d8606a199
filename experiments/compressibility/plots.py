"""Pruning curves, and what can go from a layer against its index; as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.canvas import MARKERS, MUTED, WIDTH, figure
from experiments.report.rows import Row

# Of Okabe and Ito: told apart by colour-blind readers. Plain magnitude is grey and black.
COLORS = (
    "#8a8f96", "#000000", "#b9bdc2", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00",
    "#d55e00",
)  # fmt: skip
# Hundredths of the weights between two curves.
SIDE = 0.35


def plot_curves(
    curves: Mapping[str, Sequence[Row]], name: str, label: str, whole: float | None
) -> bytes:
    """A curve for each method against the share pruned, with 95 % intervals.

    Arguments:
        curves: by name, averaged rows.
        name: the figure shown, in hundredths.
        label: its text.
        whole: the figure before pruning.
    """
    with figure(WIDTH, 4.8) as (drawn, png):
        axes: Any = drawn.subplots()
        for place, (text, rows) in enumerate(curves.items()):
            own = sorted(rows, key=lambda row: row["pruned"])
            # Beside each other, so that the intervals of one share can be told apart.
            aside = SIDE * (place - len(curves) / 2)
            ends = [[_length(row, name, end) for row in own] for end in ("lower", "upper")]
            axes.errorbar(
                [100 * row["pruned"] + aside for row in own],
                [100 * row[name] for row in own],
                yerr=ends,
                color=COLORS[place % len(COLORS)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=5,
                linewidth=1.2,
                elinewidth=0.7,
                capsize=2,
                label=text,
            )
        if whole is not None:
            axes.axhline(100 * whole, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if name == "rise":
            # Rises of many orders of magnitude, and falls.
            axes.set_yscale("symlog", linthresh=10)
        axes.set_xlabel("weights pruned, %")
        axes.set_ylabel(label)
        axes.grid(visible=True)
        if curves:
            drawn.legend(loc="outside right upper")
    return png.getvalue()


def plot_index(rows: Sequence[Row], indices: Mapping[str, str]) -> bytes:
    """The share of each layer that can go against its indices: a panel an index, a point a run.

    Arguments:
        rows: of layers, of one q.
        indices: columns with their texts.
    """
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(indices), sharey=True, squeeze=False)[0]
        layers = list(dict.fromkeys(row["layer"] for row in rows))
        for axes, (name, text) in zip(panels, indices.items(), strict=True):
            for place, layer in enumerate(layers):
                own = [row for row in rows if row["layer"] == layer]
                axes.scatter(
                    [row[name] for row in own],
                    [100 * row["reached"] for row in own],
                    color=COLORS[place % len(COLORS)],
                    marker=MARKERS[place % len(MARKERS)],
                    label=layer,
                    s=28,
                )
            axes.set_xlabel(text)
            axes.grid(visible=True)
        panels[0].set_ylabel("weights that can go, %")
        if layers:
            marks, names = panels[0].get_legend_handles_labels()
            drawn.legend(marks, names, loc="outside right upper")
    return png.getvalue()


def _length(row: Row, name: str, end: str) -> float:
    # One run has no interval.
    length = 100 * abs(row[f"{name}_{end}"] - row[name])
    return 0.0 if math.isnan(length) else length
