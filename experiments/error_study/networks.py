"""What a study of several networks says of each, and how its figures speak of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.error_study.error_names import DATA_ERRORS, ERRORS, error_names
from experiments.error_study.protocol import Protocol
from experiments.error_study.tables import Row, TauTable, complete
from experiments.report.tables import Table, Tau, crossed, framed

COLUMNS = {
    **dict.fromkeys(("by", "value", "subset", "phase"), str),
    **{"network": int, "mean": float, "std": float, "choices": int, "runs": int},
}


def counted_networks(rows: pd.DataFrame, settings: Protocol) -> dict[str, list[int]]:
    """The numbers of the networks that count towards tau, by phase, see `tables.complete`."""
    return {
        phase: sorted(complete(rows, settings, phase)["network"].unique())
        for phase in settings.phases
    }


def network_rows(taus: TauTable, counted: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """One row per tau and network: the mean over its runs, and their standard deviation (ddof=1).

    Arguments:
        counted: from `counted_networks`.
    """
    rows: list[Row] = []
    for (kind, subset, phase, value), tau in taus.items():
        runs = tau.per_run.shape[1]
        spread = tau.per_run.std(axis=1, ddof=1) if runs > 1 else [float("nan")] * len(tau.per_run)
        own = {"by": kind, "value": str(value), "subset": subset, "phase": phase}
        rows += [
            {**own, "network": network, "mean": mean, "std": std}
            | {"choices": tau.choices, "runs": runs}
            for network, mean, std in zip(counted[phase], tau.by_network, spread, strict=True)
        ]
    return framed(rows, COLUMNS)


def network_tables(rows: pd.DataFrame, phases: Sequence[str]) -> list[Table]:
    """Tau of each error on each network, on the test set, a table for each phase.

    Arguments:
        rows: from `network_rows`.
    """
    names = error_names(ERRORS + DATA_ERRORS)
    own = rows[(rows["by"] == "error") & (rows["subset"] == "test")]
    own = own.assign(value=own["value"].map(names))
    own["text"] = pd.Series(
        [Tau(*values) for values in own[["mean", "std"]].to_numpy(float)], own.index, dtype=object
    )
    heads = {number: f"network {number}" for number in own["network"].unique()}
    return [
        Table(
            f"Tau by network {phase} fine-tuning, test set, compression of 50 % and more",
            crossed(own[own["phase"] == phase], {"value": "error"}, "network", heads),
        )
        for phase in phases
    ]


def meaning_of_figures(settings: Protocol) -> str:
    """What stands for a tau: its mean, spread and interval."""
    if settings.networks == 1:
        return "mean ± standard deviation over the runs [95 % bootstrap interval]"
    return (
        "mean over the networks ± standard deviation between them [95 % interval of a bootstrap "
        "of networks, choices and runs, widened as few networks demand]"
    )


def reach_of_figures(settings: Protocol) -> str:
    """What the intervals and verdicts of a study speak of."""
    if settings.networks == 1:
        return "One network was trained: intervals and verdicts speak of that network alone."
    return (
        "Each resample draws networks, then choices, then runs within each network drawn. All "
        "networks see the same choices, as all of these are measured on each network. Intervals "
        "and verdicts speak of other networks of this kind and other choices on these layers."
    )
