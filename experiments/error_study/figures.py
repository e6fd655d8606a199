"""The sections of the study's report that are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.error_study.error_names import ERRORS, error_names
from experiments.error_study.plots import error_limits, loss_maps, plot_scatter, plot_taus
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import SUBSETS
from experiments.error_study.tables import SCOPE_NAMES
from experiments.report.correlate import log_classification_error
from experiments.report.curves import training_section
from experiments.report.page import Atlas, Picture, Section
from experiments.report.tables import percent
from experiments.workdir.journal import Journal
from experiments.workdir.record_fields import Record


def lost_section(settings: Protocol, rows: pd.DataFrame, baselines: Sequence[Record]) -> Section:
    """What each layer loses by each method; empty where nothing is measured yet.

    Arguments:
        rows: from `tables.measurement_rows`.
        baselines: the records of the networks.
    """
    known = {one["network"]: one["test"]["accuracy"] for one in baselines}
    name = settings.network.metric_name
    maps = [
        found
        for method in settings.methods
        for phase in settings.phases
        for found in loss_maps(rows, known, method, phase)
    ]
    atlas = Atlas(
        f"Points of {name} lost with one layer compressed.",
        f"Test {name} before compression less that after it, the mean over runs"
        f"{' and networks' if settings.networks > 1 else ''}; the darker the more. "
        "Below 0 the compressed network is better.",
        maps,
    )
    return Section("lost", "What each layer loses", atlases=[atlas] if maps else [])


def figures_section(
    settings: Protocol,
    baselines: Sequence[Record],
    taus: Mapping[str, pd.DataFrame],
    choices: pd.DataFrame,
) -> Section:
    """The study's four figures.

    Arguments:
        baselines: the records of the networks.
        taus: rows from `tables.tau_rows` by what they are of.
        choices: from `tables.choice_rows`.
    """
    levels = {level: percent(level) for level in sorted(settings.levels)}
    bars, several = bars_text(settings), " and networks" if settings.networks > 1 else ""
    pictures = [
        Picture(
            "Tau over layers and methods, by compression.",
            "Relative Weights error against log classification error, test set; a line for each "
            f"share of a layer\N{RIGHT SINGLE QUOTATION MARK}s parameters removed. {bars}",
            {"tau_by_compression.svg": plot_taus(taus["compression"], "compression", levels)},
        ),
        Picture(
            "Tau of the six approximation errors.",
            f"All choices that remove at least half of a layer, test set. {bars}",
            {"tau_errors.svg": plot_taus(taus["error"], "error", error_names(ERRORS))},
        ),
        Picture(
            "Tau over layers only, methods only, and all choices.",
            "Relative Weights, choices that remove at least half of a layer; "
            f"averages over what is held fixed. {bars}",
            {
                f"tau_layers_methods_{subset}.svg": plot_taus(
                    taus["scope"], "scope", SCOPE_NAMES, subset
                )
                for subset in SUBSETS
            },
        ),
        Picture(
            "Approximation error against classification error.",
            f"Each mark is one choice, the mean over its runs{several}; colour is the layer, from "
            "dark (near the input) to light, shape the method, size the share removed. The "
            "classification error\N{RIGHT SINGLE QUOTATION MARK}s axis is logarithmic.",
            _scatters(settings, baselines, choices),
        ),
    ]
    return Section("figures", "Figures", pictures=pictures)


def _scatters(
    settings: Protocol, baselines: Sequence[Record], choices: pd.DataFrame
) -> dict[str, str]:
    tests = [one["test"] for one in baselines]
    logs = [log_classification_error(test["accuracy"], test["count"]) for test in tests]
    # As the marks: the mean of logarithms.
    wrong = math.exp(sum(logs) / len(logs)) if logs else None
    limits = error_limits(choices, settings.phases, wrong)
    return {
        f"scatter_{phase}.svg": plot_scatter(
            choices, settings.layers, settings.methods, phase, wrong, limits
        )
        for phase in settings.phases
    }


def bars_text(settings: Protocol) -> str:
    """What the bars of a figure of taus mean."""
    text = "Bars: 95 % bootstrap intervals."
    if settings.published:
        text += f" Diamonds: values published for {settings.published}."
    return text


def curves_section(settings: Protocol, measured: Journal) -> Section:
    """Training and fine-tuning, where they are recorded."""
    records = sorted(measured.of_kind("finetuned"), key=lambda one: one["compression"])
    tuned = [(f"{percent(one['compression'])} removed", one) for one in records]
    asked = settings.network
    return training_section(measured, tuned, asked.metric_name, asked.loss_name)
