"""The study's figures, and the maps of what each layer loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.error_study.error_names import ERRORS, error_name
from experiments.error_study.tables import CHOICE, TAU
from experiments.report.maps import Map, draw_map
from experiments.report.plots import (
    INK,
    MARKERS,
    MUTED,
    RIM,
    draw_legend,
    draw_nothing,
    figure,
    in_legend,
)
from experiments.report.svg import titled
from experiments.report.tables import Tau, number, percent

# Blue and orange of Okabe and Ito: told apart by colour-blind readers, and in grey.
COLORS = {"before": "#0072b2", "after": "#e69f00"}
PUBLISHED: dict[str, Any] = {
    "marker": "D",
    "markersize": 5,
    "markerfacecolor": "#ffffff",
    "markeredgecolor": INK,
    "markeredgewidth": 1.1,
    "ecolor": INK,
    "elinewidth": 0.9,
    "linestyle": "none",
    "zorder": 5,
}
POINTS: dict[str, Any] = {
    "marker": "o",
    "markersize": 6,
    "linestyle": "none",
    "elinewidth": 1.6,
    "capsize": 3,
}
# Of marks, by how much of the layer is removed.
SMALLEST, LARGEST = 4.0, 9.5


def plot_taus(
    rows: pd.DataFrame, label: str, names: Mapping[Any, str], subset: str = "test"
) -> str:
    """Figures 1 to 3: taus before and after fine-tuning with intervals, a line for each name.

    Arguments:
        rows: from `tables.tau_rows`.
        label: the column of `rows` that the lines stand for.
        names: its values in order, each with its text; other rows are left out.
        subset: the set of examples that performance is measured on.
    """
    own = rows[rows[label].isin(names) & (rows["subset"] == subset)]
    phases = [phase for phase in COLORS if (own["phase"] == phase).any()]
    places = {value: place for place, value in enumerate(names)}
    with figure(1.1 + 0.42 * len(names), f"Kendall's tau-a, {subset} set") as (drawn, svg):
        axes = drawn.subplots()
        for i, phase in enumerate(phases):
            of_phase = own[own["phase"] == phase]
            at = of_phase[label].map(places).to_numpy(float)
            at += 0.3 * (i - (len(phases) - 1) / 2)
            _draw_taus(axes, of_phase, at, phase, [names[value] for value in of_phase[label]])
        if own.empty:
            draw_nothing(axes, "no choice is measured in every run yet")
        axes.set_title(f"{subset} set")
        axes.set_yticks(range(len(names)), list(names.values()))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.locator_params(axis="x", nbins=6, steps=[1, 2, 2.5, 5, 10])
        axes.set_xlabel("Kendall's tau-a")
        axes.grid(visible=True, axis="x")
        axes.spines["left"].set_visible(False)
        draw_legend(drawn, axes)
    return svg.getvalue()


def _draw_taus(
    axes: Any, rows: pd.DataFrame, at: np.ndarray, phase: str, names: Sequence[str]
) -> None:
    when = f"{phase} fine-tuning"
    # A percentile interval need not contain the mean, and bars of negative length are refused.
    ends = np.stack([rows["mean"] - rows["lower"], rows["upper"] - rows["mean"]])
    ends = np.maximum(np.nan_to_num(ends), 0.0)
    color = COLORS[phase]
    points, *_ = axes.errorbar(rows["mean"], at, xerr=ends, color=color, label=when, **POINTS)
    taus = [Tau(*values) for values in rows[list(TAU)].to_numpy(float)]
    titled(
        points,
        [f"{name}, {when}\ntau {tau}" for name, tau in zip(names, taus, strict=True)],
    )
    known = rows["published_mean"].notna().to_numpy()
    if known.any():
        means, stds = rows["published_mean"][known], rows["published_std"][known]
        label = "published" if phase == "before" else None
        points, *_ = axes.errorbar(means, at[known] + 0.1, xerr=stds, label=label, **PUBLISHED)
        titled(
            points,
            [
                f"{name}, {when}\npublished tau {tau.published}"
                for name, tau in zip(names, taus, strict=True)
                if tau.published
            ],
        )


def plot_scatter(
    choices: pd.DataFrame,
    layers: Sequence[str],
    methods: Sequence[str],
    phase: str,
    baseline_error: float | None,
    limits: tuple[float, float],
) -> str:
    """Figure 4: Relative Weights error against classification error on the test set, log scale.

    Arguments:
        choices: from `tables.choice_rows`; one mark each, at the means over its runs, the larger
            the more of the layer is removed.
        layers: in order of depth, which the colours follow.
        methods: each with its own marker.
        baseline_error: classification error of the network before compression, if known.
        limits: of the classification errors, see `error_limits`.
    """
    marks = choices.assign(wrong=100 * np.exp(choices[f"test/{phase}/log_error"]))
    marks = marks.dropna(subset=["wrong"])
    with figure(3.9, f"Approximation and classification error, {phase}") as (drawn, svg):
        axes = drawn.subplots()
        colors = _ramp(layers)
        markers = {method: MARKERS[i % len(MARKERS)] for i, method in enumerate(methods)}
        for row, text in zip(marks.to_dict("records"), _texts(marks, phase), strict=True):
            style = {"marker": markers[row["method"]], "color": colors[row["layer"]]}
            (mark,) = axes.plot(
                row["weights/relative"],
                row["wrong"],
                markersize=_size(row["compression"]),
                markeredgecolor=RIM,
                markeredgewidth=0.6,
                **style,
            )
            titled(mark, [text])
        axes.set_title(f"{phase} fine-tuning")
        axes.set_xlabel("Relative Weights error")
        axes.set_ylabel("classification error on the test set")
        axes.grid(visible=True)
        _log_percent(axes, *limits)
        _draw_key(axes, colors, markers, sorted(set(choices["compression"])))
        if baseline_error is not None:
            style = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3))}
            axes.axhline(100 * baseline_error, label="baseline", **style)
        draw_legend(drawn, axes)
    return svg.getvalue()


def error_limits(
    choices: pd.DataFrame, phases: Sequence[str], baseline_error: float | None
) -> tuple[float, float]:
    """The least and the largest classification error of any phase, in hundredths."""
    logs = [choices[f"test/{phase}/log_error"] for phase in phases]
    known = [*np.exp(pd.concat(logs)), baseline_error or np.nan]
    if np.isnan(known).all():
        return 10.0, 10.0
    return 100 * float(np.nanmin(known)), 100 * float(np.nanmax(known))


def _texts(choices: pd.DataFrame, phase: str) -> list[str]:
    """What each choice is, and what is measured of it."""
    return [
        "\n".join(
            [
                f"{row['layer']}, {row['method']}, compression {percent(row['compression'])}",
                f"ranks {row['ranks']}, keeps {percent(row['kept'], 1)}",
                f"test accuracy {percent(row[f'test/{phase}/accuracy'], 2)}",
                *(f"{error_name(error)} {row[error]:.4g}" for error in ERRORS),
            ]
        )
        for row in choices.to_dict("records")
    ]


def _ramp(layers: Sequence[str]) -> dict[str, Any]:
    import matplotlib

    ramp = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.92, len(layers)))
    return dict(zip(layers, ramp, strict=True))


def _size(compression: float) -> float:
    return SMALLEST + (LARGEST - SMALLEST) * compression


def _draw_key(
    axes: Any, colors: Mapping[str, Any], markers: Mapping[str, str], levels: Sequence[float]
) -> None:
    """Marks of nothing, for the legend alone."""

    def key(label: str, **style: Any) -> None:
        style |= {"linestyle": "none", "markeredgecolor": RIM, "markeredgewidth": 0.6}
        axes.plot([], [], label=in_legend(label), **style)

    for layer, color in colors.items():
        key(layer, marker="o", color=color)
    for method, marker in markers.items():
        key(method, marker=marker, color=MUTED)
    for level in dict.fromkeys([*levels[:1], *levels[-1:]]):
        key(f"{percent(level)} removed", marker="o", color=MUTED, markersize=_size(level))


def loss_maps(
    rows: pd.DataFrame, baselines: Mapping[int, float], method: str, phase: str
) -> list[Map]:
    """What each layer loses by a method, layers by compression; none where none is measured.

    Accuracy on the test set before compression less that after it, in points; the mean over runs
    and networks.

    Arguments:
        rows: from `tables.measurement_rows`.
        baselines: accuracy on the test set before compression, by network.
        phase: before or after fine-tuning.
    """
    own = rows[(rows["method"] == method) & rows[f"test/{phase}/accuracy"].notna()]
    own = own.assign(
        accuracy=own[f"test/{phase}/accuracy"], whole=own["network"].map(baselines).astype(float)
    )
    by = own.groupby(list(CHOICE), sort=False)
    found = by[["accuracy", "whole", "kept"]].mean()
    found = found.assign(ranks=by["ranks"].first(), count=by.size()).reset_index()
    found["value"] = 100 * (found["whole"] - found["accuracy"])
    found["text"] = [number(value, 1) for value in found["value"]]
    found["title"] = [_lost(row, phase) for row in found.to_dict("records")]
    if found.empty:
        return []
    heads = {level: percent(level) for level in sorted(rows["compression"].unique())}
    title, line = f"{method}, {phase} fine-tuning", ("layer", "layer, compression")
    return [draw_map(found, title, line, "compression", heads, 100.0)]


def _lost(row: Mapping[str, Any], phase: str) -> str:
    return (
        f"{row['layer']}, {row['method']}, compression {percent(row['compression'])}, "
        f"{phase} fine-tuning\n"
        f"loses {number(row['value'], 2)} points: {percent(row['accuracy'], 2)} "
        f"of {percent(row['whole'], 2)}\n"
        f"ranks {row['ranks']}, keeps {percent(row['kept'], 1)}\n"
        f"mean of {row['count']} measurements"
    )


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
