"""Figures in one style, as SVG, and the curves that several reports draw.

A figure is as wide as a phone: a page sets several side by side where there is room.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd

from experiments.report.svg import finished, printable, titled
from experiments.report.tables import interval_texts

INK, MUTED, FAINT, RIM = "#24292e", "#62686f", "#e4e2dc", "#fefefe"
# Of Okabe and Ito: told apart by colour-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f96", "#000000")
MARKERS = "osD^vPX*<>"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tdjax",
    "font.family": "DejaVu Sans",
    # On a page as wide as a phone, 400 pixels, no text is smaller than 12 of them.
    "font.size": 12.8,
    "figure.facecolor": "#ffffff",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12.8,
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "xtick.labelsize": 12.8,
    "ytick.labelsize": 12.8,
    "legend.fontsize": 12.8,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.0,
    "legend.borderaxespad": 0.2,
    # Names may hold dollar signs.
    "text.parse_math": False,
}
WIDTH = 5.2
# Characters of a legend that fit side by side, and inches that a row of it takes.
LINE, ROW = 40, 0.24


def on_test(metric: str) -> str:
    """The label of an axis of a metric."""
    return f"{metric} on the test set, %"


@contextmanager
def figure(height: float, label: str) -> Iterator[tuple[Any, io.StringIO]]:
    """A figure in the reports' style, and the buffer that holds its SVG once the block ends.

    Arguments:
        height: without a legend, in inches, of which it is 5.2 wide.
        label: what it shows.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the report's plots need matplotlib; install it with: pip install 'tdjax[experiments]'"
        ) from error
    drawing, text = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, height), layout="constrained")
        yield drawn, text
        drawn.savefig(drawing, format="svg", metadata={"Date": None})
    text.write(finished(drawing.getvalue(), label))


def draw_legend(drawn: Any, axes: Any) -> None:
    """Below the axes what the marks mean, in as many columns as fit; the figure grows by that."""
    handles, names = axes.get_legend_handles_labels()
    if names:
        # A handle takes about as much as four characters.
        columns = min(max(1, LINE // (max(map(len, names)) + 4)), len(names))
        drawn.set_figheight(drawn.get_figheight() + ROW * math.ceil(len(names) / columns))
        drawn.legend(handles, names, ncols=columns, loc="outside lower left")


def limit_shares(axes: Any, axis: str) -> None:
    """Leave out what no share can be, below 0 % and above 100 %; a horizontal axis begins at 0."""
    lower, upper = getattr(axes, f"get_{axis}lim")()
    if axis == "x":
        # The margin is one of what is measured, which may be a single share.
        lower, upper = 0.0, 1.03 * upper
    else:
        lower = max(lower, -2.0)
    getattr(axes, f"set_{axis}lim")(lower, min(upper, 102.0))


def draw_nothing(axes: Any, text: str = "nothing measured yet") -> None:
    """That there is nothing to draw."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=MUTED)


def draw_curve(
    axes: Any,
    rows: pd.DataFrame,
    x: tuple[str, str],
    y: tuple[str, str],
    *,
    label: str,
    place: int,
    colors: Sequence[str] = COLORS,
    bars: bool = True,
    **style: Any,
) -> None:
    """One curve of a figure in hundredths against another; its points say what they are.

    Arguments:
        rows: a point each.
        x: column on the horizontal axis, and its label.
        y: column on the vertical axis, and its label.
        label: the curve's name.
        place: among the curves, which gives colour and marker.
        bars: draw the intervals of `tables.averages`.
    """
    own = rows.dropna(subset=[x[0], y[0]]).sort_values(x[0])
    # A figure that was measured once has no interval.
    ends = own[[f"{y[0]}_lower", f"{y[0]}_upper"]].sub(own[y[0]], axis=0).abs().fillna(0.0)
    points, *_ = axes.errorbar(
        own[x[0]].astype(float),
        100 * own[y[0]],
        yerr=100 * ends.to_numpy(float).T if bars else None,
        color=colors[place % len(colors)],
        marker=MARKERS[place % len(MARKERS)],
        label=in_legend(label),
        **{"markersize": 5, "linewidth": 1.4, **style},
    )
    said = own[x[0]] if f"{x[0]}_said" not in own else own[f"{x[0]}_said"]
    figures = interval_texts(own, y[0], 100)
    titled(
        points,
        [
            f"{label}\n{x[1]}: {one:.6g}\n{y[1]}: {text}"
            for one, text in zip(said, figures, strict=True)
        ],
    )


def in_legend(name: Any) -> str:
    """A name as the label of what a legend shows; those that begin with "_" are left out of it."""
    text = printable(str(name))
    return f" {text}" if text.startswith("_") else text


def draw_level(axes: Any, share: float | None, label: str = "before compression") -> None:
    """A dashed line at what the network had before compression, if that is known."""
    if share is not None:
        style = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3))}
        axes.axhline(100 * share, label=label, **style)


def plot_curves(
    rows: pd.DataFrame,
    x: tuple[str, str],
    y: tuple[str, str],
    level: float | None,
    *,
    title: str = "",
    side: float = 0.0,
    symlog: bool = False,
    shares: bool = True,
    level_label: str = "before compression",
    **style: Any,
) -> str:
    """A curve for each name under "curve".

    Arguments:
        rows: from `tables.averages`.
        x: the column on the horizontal axis, and its label.
        y: the column on the vertical axis, shown in hundredths, and its label.
        level: what the network had before, under its label.
        title: above the figure.
        side: between two curves, so that the intervals at one place can be told apart.
        symlog: for what falls, or rises by many orders of magnitude.
        shares: whether the horizontal axis is in hundredths.
        style: see `draw_curve`.
    """
    with figure(3.6, f"{title}, {y[1]} against {x[1]}".lstrip(", ")) as (drawn, svg):
        axes: Any = drawn.subplots()
        curves = rows.groupby("curve", sort=False)
        for place, (name, own) in enumerate(curves):
            shift = side * (place - curves.ngroups / 2)
            beside = own.assign(**{f"{x[0]}_said": own[x[0]], x[0]: own[x[0]] + shift})
            draw_curve(axes, beside, x, y, label=str(name), place=place, **style)
        if rows.empty:
            draw_nothing(axes)
        draw_level(axes, level, level_label)
        if symlog:
            axes.set_yscale("symlog", linthresh=10)
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            limit_shares(axes, "y")
        if shares:
            limit_shares(axes, "x")
        axes.set_title(title)
        axes.set_xlabel(x[1])
        axes.set_ylabel(y[1])
        axes.grid(visible=True)
        draw_legend(drawn, axes)
    return svg.getvalue()
