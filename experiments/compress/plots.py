"""Accuracy of compressed networks against what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.canvas import MARKERS, MUTED, WIDTH, figure

# Of Okabe and Ito: told apart by colour-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f96", "#000000")


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], label: str, accuracy: float | None
) -> bytes:
    """One curve a strategy and norm.

    Arguments:
        curves: by name, (cost, accuracy) of each budget.
        label: of the cost.
        accuracy: before compression.

    Returns: PNG.
    """
    with figure(WIDTH, 4.6) as (drawn, png):
        axes: Any = drawn.subplots()
        for number, (name, points) in enumerate(curves.items()):
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(
                xs,
                [100 * y for y in ys],
                color=COLORS[number % len(COLORS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                linewidth=1.4,
                label=name,
            )
        if accuracy is not None:
            axes.axhline(100 * accuracy, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy on the test set, %")
        axes.grid(visible=True)
        if curves:
            axes.legend(loc="lower right")
    return png.getvalue()
