"""The study's four figures as PNG bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.report.plots import INK, MARKERS, MUTED, WIDTH, draw_level, figure

# Blue and orange of Okabe and Ito: told apart by colour-blind readers, and in grey.
COLORS = {"before": "#0072b2", "after": "#e08a00"}
PUBLISHED_AS = "published, mean ± std"
PUBLISHED: dict[str, Any] = {
    "marker": "D",
    "markersize": 5,
    "markerfacecolor": "white",
    "markeredgecolor": INK,
    "markeredgewidth": 1.1,
    "ecolor": INK,
    "elinewidth": 0.9,
    "linestyle": "none",
    "zorder": 5,
}


def plot_by_compression(rows: pd.DataFrame) -> bytes:
    """Figure 1: tau on the test set at each compression, with intervals and published values."""
    with figure(WIDTH, 3.8) as (drawn, png):
        axes = drawn.subplots()
        levels = sorted(rows["compression"].unique())
        for phase, shift, own in _phases(rows, "test", spread=0.16):
            at = np.array([levels.index(level) + shift for level in own["compression"]])
            axes.errorbar(
                at,
                own["mean"],
                yerr=_intervals(own),
                color=COLORS[phase],
                marker="o",
                markersize=5.5,
                linewidth=1.4,
                elinewidth=1.4,
                capsize=3,
                label=f"{phase} fine-tuning",
            )
            _published(axes, at + 0.07, own)
        labels = [f"{100 * level:g} %" for level in levels]
        _finish_tau_axes(axes, labels, "compression (share of the layer's parameters removed)")
    return png.getvalue()


def plot_bars(
    rows: pd.DataFrame,
    label: str,
    names: Mapping[str, str],
    subsets: Sequence[str] = ("test",),
) -> bytes:
    """Figures 2 and 3: bars of tau before and after fine-tuning, one group per name.

    Arguments:
        rows: from `tables.tau_rows`.
        label: the column of `rows` that the groups stand for.
        names: its values in order, each with the text below its group; other rows are left out.
        subsets: a panel for each.
    """
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(subsets), sharey=True, squeeze=False)[0]
        groups = list(names)
        for axes, subset in zip(panels, subsets, strict=True):
            for phase, shift, own in _phases(rows[rows[label].isin(groups)], subset, spread=0.36):
                at = np.array([groups.index(name) + shift for name in own[label]])
                axes.bar(
                    at,
                    own["mean"],
                    width=0.34,
                    yerr=_intervals(own),
                    color=COLORS[phase],
                    alpha=0.85,
                    error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 2.5},
                    label=f"{phase} fine-tuning",
                )
                _published(axes, at + 0.1, own)
            labels = [name.replace(" ", "\n") for name in names.values()]
            _finish_tau_axes(axes, labels, f"{subset} set")
    return png.getvalue()


def plot_scatter(
    choices: pd.DataFrame,
    layers: Sequence[str],
    methods: Sequence[str],
    phases: Sequence[str],
    baseline_error: float | None,
) -> bytes:
    """Figure 4: Relative Weights error against classification error on the test set, log scale.

    Arguments:
        choices: from `tables.choice_rows`; one mark each, at the means over its runs.
        layers: in order of depth, which the colours follow.
        methods: each with its own marker.
        phases: a panel for each.
        baseline_error: classification error of the network before compression, if known.
    """
    with figure(WIDTH, 4.0) as (drawn, png):
        import matplotlib

        ramp = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(layers)))
        colors = dict(zip(layers, ramp, strict=True))
        markers = {method: MARKERS[i % len(MARKERS)] for i, method in enumerate(methods)}
        panels = drawn.subplots(1, len(phases), sharey=True, squeeze=False)[0]
        wrong = {phase: np.exp(choices[f"test/{phase}/log_error"]) for phase in phases}
        known = pd.concat([*wrong.values(), pd.Series([baseline_error], dtype=float)]).dropna()
        lowest, highest = (known.min(), known.max()) if len(known) else (0.1, 0.1)
        for axes, phase in zip(panels, phases, strict=True):
            marks = choices.assign(wrong=100 * wrong[phase]).dropna(subset=["wrong"])
            for (layer, method), own in marks.groupby(["layer", "method"], sort=False):
                axes.plot(
                    own["weights/relative"],
                    own["wrong"],
                    linestyle="none",
                    marker=markers[str(method)],
                    markersize=6,
                    color=colors[str(layer)],
                    markeredgecolor="white",
                    markeredgewidth=0.5,
                )
            draw_level(axes, baseline_error)
            axes.set_title(f"{phase} fine-tuning")
            axes.set_xlabel("Relative Weights error")
            axes.grid(visible=True)
            _log_percent(axes, 100 * lowest, 100 * highest)
        panels[0].set_ylabel("classification error on the test set")
        _scatter_legend(drawn, colors, markers, has_baseline=baseline_error is not None)
    return png.getvalue()


def _scatter_legend(
    drawn: Any, colors: Mapping[str, Any], markers: Mapping[str, str], *, has_baseline: bool
) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], linestyle="none", marker="o", color=color, label=layer)
        for layer, color in colors.items()
    ]
    marks += [
        Line2D([], [], linestyle="none", marker=marker, color=MUTED, label=method)
        for method, marker in markers.items()
    ]
    if has_baseline:
        marks.append(
            Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="baseline")
        )
    drawn.legend(handles=marks, loc="outside right center")


def _phases(
    rows: pd.DataFrame, subset: str, spread: float
) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """Each phase, how far it stands beside the middle, and its rows."""
    phases = [phase for phase in COLORS if (rows["phase"] == phase).any()]
    for i, phase in enumerate(phases):
        own = rows[(rows["subset"] == subset) & (rows["phase"] == phase)]
        yield phase, spread * (i - (len(phases) - 1) / 2), own


def _intervals(rows: pd.DataFrame) -> np.ndarray:
    # A percentile interval need not contain the mean, and bars of negative length are refused.
    lengths = np.stack([rows["mean"] - rows["lower"], rows["upper"] - rows["mean"]])
    return np.maximum(lengths, 0.0)


def _published(axes: Any, at: np.ndarray, rows: pd.DataFrame) -> None:
    known = rows["published_mean"].notna().to_numpy()
    if known.any():
        own = rows[known]
        axes.errorbar(
            at[known],
            own["published_mean"],
            yerr=own["published_std"],
            label=PUBLISHED_AS,
            **PUBLISHED,
        )


def _finish_tau_axes(axes: Any, labels: Sequence[str], xlabel: str) -> None:
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(xlabel)
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("Kendall's tau-a")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.grid(visible=True, axis="y")
    axes.spines["bottom"].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    once = dict(sorted(zip(names, handles, strict=True), key=lambda item: item[0] == PUBLISHED_AS))
    if not once:
        unmeasured = "no choice is measured in every run yet"
        axes.text(0.5, 0.5, unmeasured, transform=axes.transAxes, ha="center", color=MUTED)
    elif axes.get_subplotspec().is_first_col():
        axes.figure.legend(once.values(), once.keys(), ncols=len(once), loc="outside upper left")


def _log_percent(axes: Any, lowest: float, highest: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.12, highest * 1.12)
    spread = highest / lowest
    if spread > 20:
        steps: tuple[float, ...] = (1, 2, 5)
    elif spread > 3:
        steps = (1, 1.5, 2, 3, 5, 7)
    else:
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    axes.yaxis.set_major_locator(
        FixedLocator([step * 10.0**power for power in range(-3, 3) for step in steps])
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
