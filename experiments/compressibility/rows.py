"""Measurements as rows: whole networks, gains over plain magnitude, layers, what predicts them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from experiments.compressibility.settings import MAGNITUDE, Compressibility, enumerate_trials
from experiments.report.correlate import estimate_tau
from experiments.report.tables import averages, framed
from experiments.workdir.journal import Journal
from tdjax.pruning.prunable import SCOPES

Row = dict[str, Any]
Record = Mapping[str, Any]

PHASES = {"pruned": "without fine-tuning", "tuned": "after fine-tuning"}
INDICES = ("sparsity_index", "pq_index", "effective_share")
LOOSENESS = tuple(f"{name}{end}" for name in ("bound", "tail") for end in ("", "_least", "_most"))
# The columns of rows with their types.
TRIAL = {"method": str, "q": float, "share": float, "value": float}
SIZES = dict.fromkeys(("pruned", "gone", "ratio", "size"), float)
PERFORMANCE = dict.fromkeys(("loss", "rise", "accuracy"), float)
MEASURED = {"phase": str, "run": int, **TRIAL, **SIZES, **PERFORMANCE}
RIVALS = {"phase": str, "run": int, **TRIAL, "against": str, **PERFORMANCE}
LAYERS = {
    **{"run": int, "layer": str, "inputs": int, "neurons": int, "reached": float},
    **{"weights": int, "q": float, "sparsity_index": float, "pq_index": float},
    **dict.fromkeys(("effective_number", "effective_share", "lower", "median", "upper"), float),
    **{"bounded": int, **dict.fromkeys(LOOSENESS, float)},
}
TAUS = {
    **{"index": str, "q": float, "layers": int, "runs": int},
    **dict.fromkeys(("mean", "std", "lower", "upper"), float),
}


def measurement_rows(
    settings: Compressibility, measured: Journal
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of pruned networks, and of plain magnitude pruning at the shares that methods came to.

    One for each network and phase, in the configuration's order.
    """
    rows: list[Row] = []
    rivals: list[Row] = []
    for run, trial in product(range(settings.runs), enumerate_trials(settings)):
        whole, name = measured.get("baseline", run=run), {"run": run, **trial.fields}
        pruned = measured.get("pruned", **name)
        if whole is None or pruned is None:
            continue
        sizes = {
            "pruned": pruned["pruned"],
            "gone": pruned["gone"],
            "ratio": whole["params"] / pruned["left"],
            "size": pruned["size"] / whole["params"],
        }
        rows += [
            {"phase": phase, **name, **sizes, **_performance(record["test"], whole)}
            for phase in PHASES
            if (record := measured.get(phase, **name))
        ]
        rivals += [
            {"phase": "pruned", **name, "against": scope, **_performance(test, whole)}
            for scope, test in pruned.get("rivals", {}).items()
        ]
    found = framed(rows, MEASURED)
    if settings.predicts_numbers:
        found = found.drop(columns="accuracy")
    return found, framed(rivals, RIVALS)


def _performance(test: Record, whole: Record) -> Row:
    before = whole["test"]["loss"]
    # Of a loss of zero there is no share.
    return {**test, "rise": test["loss"] / before - 1 if before else math.nan}


def averaged_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the runs, with 95 % intervals by Student's t."""
    figures = [name for name in ("rise", "loss", "accuracy") if name in rows]
    return averages(rows, ("phase", *TRIAL), figures, count="runs", means=list(SIZES))


def gain_rows(rows: pd.DataFrame, rivals: pd.DataFrame) -> pd.DataFrame:
    """By how much each method loses less than plain magnitude pruning at the same share.

    Differences in pairs, one for each run: of the relative rise of the loss (what magnitude
    pruning has more) and of the accuracy in percentage points (what it has less). Without
    fine-tuning methods that do not meet a share exactly, or choose their own, are compared at the
    share that they come to; after it, at the one that was asked for.
    """
    scopes = pd.DataFrame({"against": SCOPES})
    own = rows[~rows["method"].isin(MAGNITUDE)].merge(scopes, "cross")
    magnitude = rows[rows["method"].isin(MAGNITUDE)].rename(columns={"method": "against"})
    magnitude["against"] = magnitude["against"].str.removeprefix("magnitude ")
    at_share = ["phase", "run", "share", "against"]
    name = ["phase", "run", *TRIAL, "against"]
    figures = [figure for figure in ("rise", "accuracy") if figure in rows]
    asked = own[name].merge(magnitude[[*at_share, *figures]], on=at_share)
    others = pd.concat([rivals[[*name, *figures]], asked]).drop_duplicates(name)
    pairs = own.merge(others, on=name, suffixes=("", "_other"))
    pairs["rise"] = pairs["rise_other"] - pairs["rise"]
    gains = ["rise"]
    if "accuracy" in rows:
        pairs["points"] = 100 * (pairs["accuracy"] - pairs["accuracy_other"])
        gains.append("points")
    by = ("phase", *TRIAL, "against")
    found = averages(pairs, by, gains, count="runs", means=("pruned",))
    # The share comes before the number of runs.
    return found[[*by, "pruned", "runs", *found.columns[len(by) + 2 :]]]


def layer_rows(measured: Journal) -> pd.DataFrame:
    """One row for each run, layer and q."""
    rows = [
        {
            **{**record, **own},
            "weights": record["inputs"] * record["neurons"],
            "effective_share": own["effective_number"] / record["inputs"],
            **dict(zip(("lower", "median", "upper"), own["effective_quantiles"], strict=True)),
            "bounded": own["looseness"]["neurons"],
            **dict(zip(LOOSENESS, _ratios(own["looseness"]), strict=True)),
        }
        for record in sorted(measured.of_kind("layer"), key=lambda record: record["run"])
        for own in record["by_q"]
    ]
    return framed(rows, LAYERS)


def _ratios(looseness: Record) -> Sequence[float]:
    return [one for name in ("bound", "tail") for one in looseness[name] or [math.nan] * 3]


def averaged_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of layers over all runs, and a row for the whole network of each q.

    Indices are means; of a whole network, over all neurons. The looseness is the median of the
    runs' medians, with the least and the most of all.
    """
    both = pd.concat([rows, rows.assign(layer="")])
    found: list[Row] = []
    for (layer, q), own in both.groupby(["layer", "q"], sort=False):
        runs = own["run"].nunique()
        # Runs are alike, so that neurons weigh for layers only.
        means = (*INDICES, "effective_number", "lower", "median", "upper")
        row = {name: np.average(own[name], weights=own["neurons"]) for name in means}
        row |= {name: own[name].sum() // runs for name in ("neurons", "weights")}
        row["reached"] = np.average(own["reached"], weights=own["weights"])
        for name in ("bound", "tail"):
            row[name] = own[name].median()
            row[f"{name}_least"] = own[f"{name}_least"].min()
            row[f"{name}_most"] = own[f"{name}_most"].max()
        found.append({**row, "layer": layer, "q": q})
    types = {name: LAYERS[name] for name in LAYERS if name not in ("run", "inputs", "bounded")}
    return framed(found, types)


def tau_rows(settings: Compressibility, rows: pd.DataFrame) -> pd.DataFrame:
    """How well each index orders the layers as the shares do that can go from them.

    Kendall's tau-a over the layers of a network, its mean and deviation over the runs, and 95 %
    bootstrap intervals over layers and runs. The effective share is taken from 1, so that each
    index ought to rise with what can go; the number of weights stands beside them.
    """
    found: list[Row] = []
    signed = rows.assign(effective_share=-rows["effective_share"])
    for q in settings.qs:
        own = signed[signed["q"] == q]
        layers = own["layer"].nunique()
        whole = own[own.groupby("run")["layer"].transform("size") == layers]
        if layers < 2 or whole.empty:
            continue
        by_run = {
            name: whole[name].to_numpy(float).reshape(1, -1, layers)
            for name in (*INDICES, "weights", "reached")
        }
        for name in INDICES if q != settings.qs[0] else (*INDICES, "weights"):
            groups = np.zeros(layers, int)
            tau = estimate_tau(by_run[name], by_run["reached"], groups, seed=settings.seed)
            row = {"index": name, "q": math.nan if name == "weights" else q, "layers": layers}
            row |= {each: getattr(tau, each) for each in ("mean", "std", "lower", "upper")}
            found.append({**row, "runs": tau.per_run.size})
    return framed(found, TAUS)
