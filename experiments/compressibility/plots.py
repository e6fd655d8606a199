"""What can go from a layer against its index, as PNG."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from experiments.report.plots import MARKERS, WIDTH, figure

# Of Okabe and Ito: told apart by colour-blind readers. Plain magnitude is grey and black.
COLORS = (
    "#8a8f96", "#000000", "#b9bdc2", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00",
    "#d55e00",
)  # fmt: skip


def plot_index(rows: pd.DataFrame, indices: Mapping[str, str]) -> bytes:
    """The share of each layer that can go against its indices: a panel an index, a point a run.

    Arguments:
        rows: of layers, of one q.
        indices: columns with their texts.
    """
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(indices), sharey=True, squeeze=False)[0]
        for axes, (name, text) in zip(panels, indices.items(), strict=True):
            for place, (layer, own) in enumerate(rows.groupby("layer", sort=False)):
                axes.scatter(
                    own[name],
                    100 * own["reached"],
                    color=COLORS[place % len(COLORS)],
                    marker=MARKERS[place % len(MARKERS)],
                    label=layer,
                    s=28,
                )
            axes.set_xlabel(text)
            axes.grid(visible=True)
        panels[0].set_ylabel("weights that can go, %")
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return png.getvalue()
