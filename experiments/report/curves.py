"""How training went, where the journal tells: a curve for each network, or for what was tuned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.report.page import Picture, Section
from experiments.report.plots import COLORS, draw_legend, figure, in_legend
from experiments.report.svg import titled
from experiments.report.tables import number
from experiments.workdir.journal import Journal
from experiments.workdir.record_fields import Record

Curves = Mapping[str, Sequence[float]]
"""Values by epoch, the first of epoch 1, of each curve by its name."""


def training_section(
    measured: Journal, tuned: Iterable[tuple[str, Record]], metric: str, loss: str
) -> Section:
    """Training before compression and after it; empty where nothing is recorded of them.

    Arguments:
        tuned: records with a "curve", each under the name of those it belongs to.
        metric, loss: their names.
    """
    pictures = []
    if epochs := measured.of_kind("epoch"):
        pictures.append(_training(epochs, metric, loss))
    by_name: dict[str, list[Record]] = {}
    for name, record in tuned:
        if record.get("curve", {}).get("train_loss"):
            by_name.setdefault(name, []).append(record["curve"])
    if by_name:
        pictures.append(_tuning(by_name, metric, loss))
    return Section("training", "Training", pictures=pictures)


def _training(epochs: Sequence[Record], metric: str, loss: str) -> Picture:
    ordered = sorted(epochs, key=lambda one: (one["network"], one["epoch"]))
    networks = dict.fromkeys(one["network"] for one in ordered)

    def curves(name: str, said: str) -> Curves:
        return {
            (f"{said}, network {network}" if len(networks) > 1 else said): _by_epoch(
                [one for one in ordered if one["network"] == network], name
            )
            for network in networks
        }

    drawings = {
        "training_loss.svg": _plot(
            {**curves("train_loss", "training"), **curves("validation_loss", "validation")},
            loss, 1.0, count=len(networks),
        )
    }  # fmt: skip
    if any("validation_accuracy" in one for one in epochs):
        shares = curves("validation_accuracy", "validation")
        drawings["training_metric.svg"] = _plot(shares, f"{metric}, %", 100.0, count=len(networks))
    caption = "The loss of training is the mean over the steps of an epoch."
    return Picture("Training before compression.", caption, drawings)


def _tuning(by_name: Mapping[str, Sequence[Curves]], metric: str, loss: str) -> Picture:
    def means(name: str) -> Curves:
        found = {
            label: _mean([own[name] for own in curves if own.get(name)])
            for label, curves in by_name.items()
        }
        return {label: values for label, values in found.items() if values}

    drawings = {"tuning_loss.svg": _plot(means("train_loss"), f"training {loss}", 1.0)}
    if shares := means("validation_accuracy"):
        drawings["tuning_metric.svg"] = _plot(shares, f"validation {metric}, %", 100.0)
    elif losses := means("validation_loss"):
        drawings["tuning_validation_loss.svg"] = _plot(losses, f"validation {loss}", 1.0)
    caption = "Means over all that were trained on; one that ended early stays as it was."
    return Picture("Training after compression.", caption, drawings)


def _by_epoch(epochs: Sequence[Record], name: str) -> list[float]:
    found = {one["epoch"]: one.get(name, math.nan) for one in epochs}
    return [found.get(epoch, math.nan) for epoch in range(1, max(found) + 1)]


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    longest = max(map(len, curves), default=0)
    # In whatever order they were recorded, the sums are the same to the last digit.
    whole = sorted([*own, *[own[-1]] * (longest - len(own))] for own in curves)
    return np.mean(whole, axis=0).tolist() if whole else []


def _plot(curves: Curves, label: str, factor: float, count: int = 1) -> str:
    """A line for each curve; `count` in a row have one colour."""
    with figure(3.0, f"{label} by epoch") as (drawn, svg):
        axes = drawn.subplots()
        for place, (name, values) in enumerate(curves.items()):
            color = COLORS[(place // count) % len(COLORS)]
            known = [(i, factor * v) for i, v in enumerate(values, 1) if math.isfinite(v)]
            (line,) = axes.plot(
                [epoch for epoch, _ in known],
                [value for _, value in known],
                color=color,
                marker="o",
                markersize=3,
                linewidth=1.2,
                label=in_legend(name.partition(", network")[0]) if place % count == 0 else None,
            )
            titled(line, [f"{name}, epoch {i}\n{label}: {number(v, 3)}" for i, v in known])
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(visible=True)
        draw_legend(drawn, axes)
    return svg.getvalue()
