"""The study's four figures as PNG bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.error_study.tables import Row
from experiments.report.canvas import INK, MARKERS, MUTED, WIDTH, figure

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


def plot_by_compression(rows: Sequence[Row]) -> bytes:
    """Figure 1: tau on the test set at each compression, with intervals and published values."""
    with figure(WIDTH, 3.8) as (drawn, png):
        axes = drawn.subplots()
        levels = sorted({row["compression"] for row in rows})
        for phase, shift in _phases(rows, spread=0.16):
            shown = {row["compression"]: row for row in _of(rows, "test", phase)}
            at = [levels.index(level) + shift for level in shown]
            axes.errorbar(
                at,
                [row["mean"] for row in shown.values()],
                yerr=_intervals(shown.values()),
                color=COLORS[phase],
                marker="o",
                markersize=5.5,
                linewidth=1.4,
                elinewidth=1.4,
                capsize=3,
                label=f"{phase} fine-tuning",
            )
            _published(axes, np.array(at) + 0.07, list(shown.values()))
        labels = [f"{100 * level:g} %" for level in levels]
        _finish_tau_axes(axes, labels, "compression (share of the layer's parameters removed)")
    return png.getvalue()


def plot_bars(
    rows: Sequence[Row],
    label: str,
    names: Mapping[str, str],
    subsets: Sequence[str] = ("test",),
) -> bytes:
    """Figures 2 and 3: bars of tau before and after fine-tuning, one group per name.

    Args:
        rows: from `tables.py`.
        label: the column of `rows` that the groups stand for.
        names: its values in order, each with the text below its group; other rows are left out.
        subsets: a panel for each.
    """
    with figure(WIDTH, 3.6) as (drawn, png):
        panels = drawn.subplots(1, len(subsets), sharey=True, squeeze=False)[0]
        groups = list(names)
        for axes, subset in zip(panels, subsets, strict=True):
            for phase, shift in _phases(rows, spread=0.36):
                found = {row[label]: row for row in _of(rows, subset, phase)}
                shown = {name: found[name] for name in groups if name in found}
                at = np.array([groups.index(name) + shift for name in shown])
                axes.bar(
                    at,
                    [row["mean"] for row in shown.values()],
                    width=0.34,
                    yerr=_intervals(shown.values()),
                    color=COLORS[phase],
                    alpha=0.85,
                    error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 2.5},
                    label=f"{phase} fine-tuning",
                )
                _published(axes, at + 0.1, list(shown.values()))
            labels = [name.replace(" ", "\n") for name in names.values()]
            _finish_tau_axes(axes, labels, f"{subset} set")
    return png.getvalue()


def plot_scatter(
    choices: Sequence[Row],
    layers: Sequence[str],
    methods: Sequence[str],
    phases: Sequence[str],
    baseline_error: float | None,
) -> bytes:
    """Figure 4: Relative Weights error against classification error on the test set, log scale.

    Args:
        choices: from `export.choice_rows`; one mark each, at the means over its runs.
        layers: in order of depth, which the colours follow.
        methods: each with its own marker.
        phases: a panel for each.
        baseline_error: log classification error of the network before compression, if known.
    """
    with figure(WIDTH, 4.0) as (drawn, png):
        import matplotlib
        from matplotlib.lines import Line2D

        ramp = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(layers)))
        colors = dict(zip(layers, ramp, strict=True))
        markers = {method: MARKERS[i % len(MARKERS)] for i, method in enumerate(methods)}
        panels = drawn.subplots(1, len(phases), sharey=True, squeeze=False)[0]
        lowest, highest = _error_range(choices, phases, baseline_error)
        for axes, phase in zip(panels, phases, strict=True):
            for row in choices:
                if (log_error := row[f"test/{phase}/log_error"]) is not None:
                    axes.plot(
                        row["weights/relative"],
                        100 * math.exp(log_error),
                        linestyle="none",
                        marker=markers[row["method"]],
                        markersize=6,
                        color=colors[row["layer"]],
                        markeredgecolor="white",
                        markeredgewidth=0.5,
                    )
            if baseline_error is not None:
                axes.axhline(
                    100 * math.exp(baseline_error), color=MUTED, linewidth=1, linestyle=(0, (4, 3))
                )
            axes.set_title(f"{phase} fine-tuning")
            axes.set_xlabel("Relative Weights error")
            axes.grid(visible=True)
            _log_percent(axes, lowest, highest)
        panels[0].set_ylabel("classification error on the test set")
        marks = [
            Line2D([], [], linestyle="none", marker="o", color=colors[layer], label=layer)
            for layer in layers
        ]
        marks += [
            Line2D([], [], linestyle="none", marker=marker, color=MUTED, label=method)
            for method, marker in markers.items()
        ]
        if baseline_error is not None:
            marks.append(
                Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="baseline")
            )
        drawn.legend(handles=marks, loc="outside right center")
    return png.getvalue()


def _phases(rows: Sequence[Row], spread: float) -> list[tuple[str, float]]:
    phases = [phase for phase in COLORS if any(row["phase"] == phase for row in rows)]
    return [(phase, spread * (i - (len(phases) - 1) / 2)) for i, phase in enumerate(phases)]


def _of(rows: Sequence[Row], subset: str, phase: str) -> list[Row]:
    return [row for row in rows if (row["subset"], row["phase"]) == (subset, phase)]


def _intervals(rows: Any) -> np.ndarray:
    # A percentile interval need not contain the mean, and bars of negative length are refused.
    lengths = [(row["mean"] - row["lower"], row["upper"] - row["mean"]) for row in rows]
    return np.maximum(np.array(lengths).reshape(-1, 2).T, 0.0)


def _published(axes: Any, at: np.ndarray, rows: Sequence[Row]) -> None:
    known = [i for i, row in enumerate(rows) if not math.isnan(row["published_mean"])]
    if known:
        axes.errorbar(
            at[known],
            [rows[i]["published_mean"] for i in known],
            yerr=[rows[i]["published_std"] for i in known],
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


def _error_range(
    choices: Sequence[Row], phases: Sequence[str], baseline_error: float | None
) -> tuple[float, float]:
    logs = [row[f"test/{phase}/log_error"] for row in choices for phase in phases]
    known = [value for value in [*logs, baseline_error] if value is not None] or [math.log(0.1)]
    return 100 * math.exp(min(known)), 100 * math.exp(max(known))


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
