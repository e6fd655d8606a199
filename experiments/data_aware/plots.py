"""The experiment's figures as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.report.plots import ACCURACY, INK, WIDTH, draw_curve, draw_level, figure

# Of Okabe and Ito: told apart by colour-blind readers.
COLORS = {
    "frobenius": "#8a8f96",
    "covariance": "#0072b2",
    "kronecker": "#d55e00",
    "sequential covariance": "#009e73",
    "sequential kronecker": "#cc79a7",
}


def plot_against(
    rows: pd.DataFrame, cost: str, label: str, accuracy: float | None, methods: Sequence[str]
) -> bytes:
    """Accuracy of whole networks against what they cost: a panel a method, a curve a norm.

    Arguments:
        rows: from `tables.averaged_rows`, of one phase, source and number of images.
        cost: the column on the horizontal axis, "params" or "macs".
        label: its name.
        accuracy: before compression.
    """
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        for axes, method in zip(panels, methods, strict=True):
            _draw_norms(axes, rows, method, cost, accuracy, capsize=3)
            axes.set_xlabel(label)
            axes.tick_params(axis="x", labelrotation=30)
        panels[0].set_ylabel(ACCURACY)
        _legend(drawn, panels)
    return png.getvalue()


def plot_layers(
    rows: pd.DataFrame, layers: Sequence[str], methods: Sequence[str], accuracy: float | None
) -> bytes:
    """Accuracy with one layer compressed at a time: a panel a method, a curve a norm.

    Arguments:
        rows: from `tables.averaged_rows`, of one share kept, source and number of images.
        layers: in order of depth.
        accuracy: before compression, if it is on the same test images.
    """
    at = rows.assign(at=[layers.index(layer) for layer in rows["layer"]])
    with figure(WIDTH, 2.4 * len(methods) + 0.8) as (drawn, png):
        panels = drawn.subplots(len(methods), 1, sharex=True, squeeze=False)[:, 0]
        for axes, method in zip(panels, methods, strict=True):
            style = {"bars": False, "markersize": 4.5, "linewidth": 1.2}
            _draw_norms(axes, at, method, "at", accuracy, **style)
            axes.set_ylabel("accuracy, %")
        panels[-1].set_xticks(range(len(layers)), layers, rotation=60, ha="right")
        _legend(drawn, panels)
    return png.getvalue()


def _draw_norms(
    axes: Any, rows: pd.DataFrame, method: str, x: str, accuracy: float | None, **style: Any
) -> None:
    for place, norm in enumerate(COLORS):
        own = rows[(rows["method"] == method) & (rows["norm"] == norm)]
        if len(own):
            colors = tuple(COLORS.values())
            draw_curve(axes, own, x, "accuracy", place=place, colors=colors, label=norm, **style)
    draw_level(axes, accuracy)
    axes.set_title(method)
    axes.grid(visible=True)


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
