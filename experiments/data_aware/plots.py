"""The experiment's figures as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.error_study.tables import Row
from experiments.report.canvas import INK, MARKERS, MUTED, WIDTH, figure

# Of Okabe and Ito: told apart by colour-blind readers.
COLORS = {
    "frobenius": "#8a8f96",
    "covariance": "#0072b2",
    "kronecker": "#d55e00",
    "sequential covariance": "#009e73",
    "sequential kronecker": "#cc79a7",
}


def plot_against(
    rows: Sequence[Row], cost: str, label: str, baseline: Row | None, methods: Sequence[str]
) -> bytes:
    """Accuracy of whole networks against what they cost: a panel a method, a curve a norm.

    Arguments:
        rows: from `tables.averaged_rows`, of one phase, source and number of images.
        cost: the column on the horizontal axis, "params" or "macs".
        label: its name.
        baseline: `accuracy` and `cost` before compression.
    """
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        for axes, method in zip(panels, methods, strict=True):
            for norm, color in COLORS.items():
                own = [row for row in rows if (row["method"], row["norm"]) == (method, norm)]
                own.sort(key=lambda row: row[cost])
                if own:
                    axes.errorbar(
                        [row[cost] for row in own],
                        [100 * row["accuracy"] for row in own],
                        yerr=_bars(own),
                        color=color,
                        marker=MARKERS[list(COLORS).index(norm)],
                        markersize=5,
                        linewidth=1.4,
                        capsize=3,
                        label=norm,
                    )
            if baseline is not None:
                axes.axhline(
                    100 * baseline["accuracy"], color=MUTED, linewidth=1, linestyle=(0, (4, 3))
                )
            axes.set_title(method)
            axes.set_xlabel(label)
            axes.grid(visible=True)
            axes.tick_params(axis="x", labelrotation=30)
        panels[0].set_ylabel("accuracy on the test set, %")
        _legend(drawn, panels)
    return png.getvalue()


def plot_layers(
    rows: Sequence[Row], layers: Sequence[str], methods: Sequence[str], accuracy: float | None
) -> bytes:
    """Accuracy with one layer compressed at a time: a panel a method, a curve a norm.

    Arguments:
        rows: from `tables.averaged_rows`, of one share kept, source and number of images.
        layers: in order of depth.
        accuracy: before compression, if it is on the same test images.
    """
    with figure(WIDTH, 2.4 * len(methods) + 0.8) as (drawn, png):
        panels = drawn.subplots(len(methods), 1, sharex=True, squeeze=False)[:, 0]
        for axes, method in zip(panels, methods, strict=True):
            for norm, color in COLORS.items():
                at = {
                    layers.index(row["layer"]): 100 * row["accuracy"]
                    for row in rows
                    if (row["method"], row["norm"]) == (method, norm)
                }
                if at:
                    axes.plot(
                        sorted(at),
                        [at[i] for i in sorted(at)],
                        color=color,
                        marker=MARKERS[list(COLORS).index(norm)],
                        markersize=4.5,
                        linewidth=1.2,
                        label=norm,
                    )
            if accuracy is not None:
                axes.axhline(100 * accuracy, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_title(method)
            axes.set_ylabel("accuracy, %")
            axes.grid(visible=True)
        panels[-1].set_xticks(range(len(layers)), layers, rotation=60, ha="right")
        _legend(drawn, panels)
    return png.getvalue()


def _bars(rows: Sequence[Row]) -> np.ndarray:
    # Accuracy has no spread where it was measured once.
    def length(row: Row, end: str) -> float:
        value = 100 * abs(row[f"accuracy_{end}"] - row["accuracy"])
        return 0.0 if math.isnan(value) else value

    return np.array([[length(row, end) for row in rows] for end in ("lower", "upper")])


def _legend(drawn: Any, panels: Any) -> None:
    marks = {
        name: mark
        for axes in panels
        for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if marks:
        drawn.legend(marks.values(), marks.keys(), ncols=len(marks), loc="outside upper left")
    else:
        panels[0].text(0.5, 0.5, "nothing measured yet", transform=panels[0].transAxes, color=INK)
