"""The study's four figures as PNG bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from experiments.report.plots import INK, MARKERS, MUTED, WIDTH, draw_level, figure, in_legend

# Blue and orange of Okabe and Ito: told apart by colour-blind readers, and in grey.
COLORS = {"before": "#0072b2", "after": "#e08a00"}
PUBLISHED_AS = "published, mean ± std"
PUBLISHED: dict[str, Any] = {
    "label": PUBLISHED_AS,
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
POINTS: dict[str, Any] = {
    "marker": "o",
    "markersize": 5.5,
    "linewidth": 1.4,
    "elinewidth": 1.4,
    "capsize": 3,
}
BARS: dict[str, Any] = {
    "width": 0.34,
    "alpha": 0.85,
    "error_kw": {"ecolor": INK, "elinewidth": 1.0, "capsize": 2.5},
}


def plot_by_compression(rows: pd.DataFrame) -> bytes:
    """Figure 1: tau on the test set at each compression, with intervals and published values."""
    levels = sorted(rows["compression"].unique())
    labels = [f"{100 * level:g} %" for level in levels]
    with figure(WIDTH, 3.8) as (drawn, png):
        axes = drawn.subplots()
        draw = partial(axes.errorbar, **POINTS)
        _draw_taus(axes, draw, rows, "compression", levels, spread=0.16, beside=0.07)
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
    labels = [name.replace(" ", "\n") for name in names.values()]
    own = rows[rows[label].isin(names)]
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(subsets), sharey=True, squeeze=False)[0]
        for axes, subset in zip(panels, subsets, strict=True):
            draw = partial(axes.bar, **BARS)
            _draw_taus(axes, draw, own, label, list(names), subset, spread=0.36, beside=0.1)
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
            axes.set_title(f"{phase} fine-tuning")
            axes.set_xlabel("Relative Weights error")
            axes.grid(visible=True)
            _log_percent(axes, 100 * lowest, 100 * highest)
        panels[0].set_ylabel("classification error on the test set")
        # Marks of nothing, for the legend alone.
        for layer, color in colors.items():
            axes.plot([], [], linestyle="none", marker="o", color=color, label=in_legend(layer))
        for method, marker in markers.items():
            axes.plot([], [], linestyle="none", marker=marker, color=MUTED, label=method)
        for axes in panels:
            draw_level(axes, baseline_error)
        if baseline_error is not None:
            axes.lines[-1].set_label("baseline")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return png.getvalue()


def _draw_taus(
    axes: Any,
    draw: Callable[..., Any],
    rows: pd.DataFrame,
    label: str,
    groups: Sequence[Any],
    subset: str = "test",
    *,
    spread: float,
    beside: float,
) -> None:
    """Each tau of a set of examples at the place of its group, the published one beside it.

    Arguments:
        draw: a bar or a point for each.
        spread: between the phases.
        beside: from a tau to the published one.
    """
    phases = [phase for phase in COLORS if (rows["phase"] == phase).any()]
    for i, phase in enumerate(phases):
        own = rows[(rows["subset"] == subset) & (rows["phase"] == phase)]
        shift = spread * (i - (len(phases) - 1) / 2)
        at = np.array([groups.index(value) + shift for value in own[label]])
        # A percentile interval need not contain the mean, and bars of negative length are refused.
        ends = np.stack([own["mean"] - own["lower"], own["upper"] - own["mean"]])
        style = {"color": COLORS[phase], "label": f"{phase} fine-tuning"}
        draw(at, own["mean"], yerr=np.maximum(ends, 0.0), **style)
        known = own["published_mean"].notna().to_numpy()
        if known.any():
            means, stds = own["published_mean"][known], own["published_std"][known]
            axes.errorbar(at[known] + beside, means, yerr=stds, **PUBLISHED)


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
    spread = highest / lowest
    steps: tuple[float, ...] = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    if spread > 3:
        steps = (1, 2, 5) if spread > 20 else (1, 1.5, 2, 3, 5, 7)
    places = [step * 10.0**power for power in range(-3, 3) for step in steps]
    axes.set_yscale("log")
    axes.set_yticks(places, [f"{place:g} %" for place in places])
    axes.minorticks_off()
    axes.set_ylim(lowest / 1.12, highest * 1.12)
