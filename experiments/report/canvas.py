"""Figures in one style, as PNG bytes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK, MUTED, FAINT = "#24292e", "#6b7178", "#e4e2dc"
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
}
DPI = 160
WIDTH = 9.0


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure in the reports' style, and the buffer that holds its PNG once the block ends."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the report's plots need matplotlib; install it with: pip install 'tdjax[study]'"
        ) from error
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, buffer
        drawn.savefig(buffer, format="png", dpi=DPI)
