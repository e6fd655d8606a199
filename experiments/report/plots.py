"""Figures in one style, as PNG bytes, and the curves that several reports draw."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd

INK, MUTED, FAINT = "#24292e", "#6b7178", "#e4e2dc"
# Of Okabe and Ito: told apart by colour-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f96", "#000000")
MARKERS = "osD^vPX*<>"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    # Names may hold dollar signs.
    "text.parse_math": False,
}
DPI = 160
WIDTH = 9.0


def on_test(metric: str) -> str:
    """The label of an axis of a metric."""
    return f"{metric} on the test set, %"


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure in the reports' style, and the buffer that holds its PNG once the block ends."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the report's plots need matplotlib; install it with: pip install 'tdjax[experiments]'"
        ) from error
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, buffer
        drawn.savefig(buffer, format="png", dpi=DPI)


def draw_curve(
    axes: Any,
    rows: pd.DataFrame,
    x: str,
    y: str,
    *,
    place: int,
    colors: Sequence[str] = COLORS,
    bars: bool = True,
    **style: Any,
) -> None:
    """One curve of a figure in hundredths against another.

    Arguments:
        rows: a point each.
        x: column on the horizontal axis.
        y: column on the vertical axis.
        place: among the curves, which gives colour and marker.
        bars: draw the intervals of `tables.averages`.
    """
    own = rows.sort_values(x)
    # A figure that was measured once has no interval.
    ends = own[[f"{y}_lower", f"{y}_upper"]].sub(own[y], axis=0).abs().fillna(0.0)
    axes.errorbar(
        own[x].astype(float),
        100 * own[y],
        yerr=100 * ends.to_numpy(float).T if bars else None,
        color=colors[place % len(colors)],
        marker=MARKERS[place % len(MARKERS)],
        **{"markersize": 5, "linewidth": 1.4, **style},
    )


def in_legend(name: Any) -> str:
    """A name as the label of what a legend shows; those that begin with "_" are left out of it."""
    text = str(name)
    return f" {text}" if text.startswith("_") else text


def draw_level(axes: Any, share: float | None) -> None:
    """A dashed line at what the network had before compression, if that is known."""
    if share is not None:
        axes.axhline(100 * share, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))


def plot_curves(
    rows: pd.DataFrame,
    x: tuple[str, str],
    y: tuple[str, str],
    level: float | None,
    *,
    side: float = 0.0,
    symlog: bool = False,
    **style: Any,
) -> bytes:
    """A curve for each name under "curve".

    Arguments:
        rows: from `tables.averages`.
        x: the column on the horizontal axis, and its label.
        y: the column on the vertical axis, shown in hundredths, and its label.
        level: what the network had before compression.
        side: between two curves, so that the intervals at one place can be told apart.
        symlog: for what falls, or rises by many orders of magnitude.
        style: see `draw_curve`.
    """
    with figure(WIDTH, 4.8) as (drawn, png):
        axes: Any = drawn.subplots()
        curves = rows.groupby("curve", sort=False)
        for place, (name, own) in enumerate(curves):
            beside = own.assign(**{x[0]: own[x[0]] + side * (place - curves.ngroups / 2)})
            draw_curve(axes, beside, x[0], y[0], place=place, label=name, **style)
        draw_level(axes, level)
        if symlog:
            axes.set_yscale("symlog", linthresh=10)
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(x[1])
        axes.set_ylabel(y[1])
        axes.grid(visible=True)
        drawn.legend(loc="outside right upper")
    return png.getvalue()
