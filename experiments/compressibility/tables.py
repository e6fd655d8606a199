"""Measurements as rows: whole networks, gains over plain magnitude, layers, what predicts them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.compressibility.settings import MAGNITUDE, Compressibility
from experiments.compressibility.trials import TRIAL, Trial, enumerate_trials, own_trials
from experiments.report.correlate import estimate_tau
from experiments.report.rows import Row, spread, where
from experiments.workdir.journal import Journal
from tdjax.pruning.prunable import SCOPES

PHASES = {"pruned": "without fine-tuning", "tuned": "after fine-tuning"}
SIZES = ("pruned", "gone", "ratio", "size")
INDICES = ("sparsity_index", "pq_index", "effective_share")


def measurement_rows(settings: Compressibility, measured: Journal) -> list[Row]:
    """One row for each pruned network and phase, in the configuration's order."""
    rows = []
    for run in range(settings.runs):
        whole = measured.get("baseline", run=run)
        if whole is None:
            continue
        for trial in enumerate_trials(settings):
            pruned = _found(measured, "pruned", run, trial)
            for phase in PHASES:
                record = _found(measured, phase, run, trial)
                if pruned is not None and record is not None:
                    rows.append(
                        {
                            "phase": phase,
                            "run": run,
                            **trial.fields,
                            **_sizes(pruned, whole),
                            **_performance(record["test"], whole["test"]),
                        }
                    )
    return rows


def figures_of(settings: Compressibility) -> tuple[str, ...]:
    """The figures of performance that the task has."""
    return ("rise", "loss") if settings.predicts_numbers else ("rise", "loss", "accuracy")


def averaged_rows(settings: Compressibility, rows: Sequence[Row]) -> list[Row]:
    """Means over the runs, with 95 % intervals by Student's t."""
    groups: dict[tuple, list[Row]] = {}
    names = ("phase", *TRIAL)
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    found = []
    for key, own in groups.items():
        row = dict(zip(names, key, strict=True)) | {"runs": len(own)}
        row |= {name: float(np.mean([one[name] for one in own])) for name in SIZES}
        for name in figures_of(settings):
            row |= spread(name, [one[name] for one in own])
        found.append(row)
    return found


def gain_rows(settings: Compressibility, measured: Journal, rows: Sequence[Row]) -> list[Row]:
    """By how much each method loses less than plain magnitude pruning at the same share.

    Differences in pairs, one for each run: of the relative rise of the loss (what magnitude
    pruning has more) and of the accuracy in percentage points (what it has less). Without
    fine-tuning methods that do not meet a share exactly, or choose their own, are compared at the
    share that they come to; after it, at the one that was asked for.
    """
    by_name = {tuple(row[name] for name in ("phase", "run", *TRIAL)): row
               for row in rows}  # fmt: skip
    groups: dict[tuple[str, Trial, str], list[tuple[Row, Row]]] = {}
    for row in rows:
        if row["method"] in MAGNITUDE:
            continue
        trial = Trial(*(row[name] for name in TRIAL))
        for scope in SCOPES:
            other = _rival(measured, row, trial, scope)
            if other is None and trial.share is not None:
                rival = Trial(f"magnitude {scope}", None, trial.share)
                other = by_name.get((row["phase"], row["run"], *rival.fields.values()))
            if other is not None:
                groups.setdefault((row["phase"], trial, scope), []).append((row, other))
    found = []
    for (phase, trial, scope), pairs in groups.items():
        gains = spread("rise", [other["rise"] - own["rise"] for own, other in pairs])
        if not settings.predicts_numbers:
            points = [100 * (own["accuracy"] - other["accuracy"]) for own, other in pairs]
            gains |= spread("points", points)
        pruned = float(np.mean([own["pruned"] for own, _ in pairs]))
        found.append(
            {"phase": phase, **trial.fields, "against": scope, "pruned": pruned}
            | {"runs": len(pairs), **gains}
        )
    return found


def layer_rows(settings: Compressibility, measured: Journal) -> list[Row]:
    """One row for each run, layer and q."""
    return [
        {
            "run": run,
            **{name: record[name] for name in ("layer", "inputs", "neurons", "reached")},
            "weights": record["inputs"] * record["neurons"],
            "q": own["q"],
            **{name: own[name] for name in ("sparsity_index", "pq_index", "effective_number")},
            "effective_share": own["effective_number"] / record["inputs"],
            **dict(zip(("lower", "median", "upper"), own["effective_quantiles"], strict=True)),
            "bounded": own["looseness"]["neurons"],
            **_ratios("bound", own["looseness"]["bound"]),
            **_ratios("tail", own["looseness"]["tail"]),
        }
        for run in range(settings.runs)
        for record in measured.of_kind("layer")
        if record["run"] == run
        for own in record["by_q"]
    ]


def averaged_layers(rows: Sequence[Row]) -> list[Row]:
    """Rows of layers over all runs, and a row for the whole network of each q.

    Indices are means; of a whole network, over all neurons. The looseness is the median of the
    runs' medians, with the least and the most of all.
    """
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["layer"], row["q"]), []).append(row)
    for q in dict.fromkeys(row["q"] for row in rows):
        groups["", q] = where(rows, q=q)
    found = []
    for (layer, q), own in groups.items():
        # Runs are alike, so that neurons weigh for layers only.
        weights = [row["neurons"] for row in own]
        row = {"layer": layer, "q": q}
        for name in ("neurons", "weights"):
            row[name] = sum(one[name] for one in own) // len({one["run"] for one in own})
        for name in (*INDICES, "effective_number", "lower", "median", "upper"):
            row[name] = float(np.average([one[name] for one in own], weights=weights))
        row["reached"] = float(np.average([one["reached"] for one in own],
                                          weights=[one["weights"] for one in own]))  # fmt: skip
        for name in ("bound", "tail"):
            known = [one for one in own if not math.isnan(one[name])]
            row |= _ratios(name, _over_runs(name, known) if known else None)
        found.append(row)
    return found


def tau_rows(settings: Compressibility, rows: Sequence[Row]) -> list[Row]:
    """How well each index orders the layers as the shares do that can go from them.

    Kendall's tau-a over the layers of a network, its mean and deviation over the runs, and 95 %
    bootstrap intervals over layers and runs. The effective share is taken from 1, so that each
    index ought to rise with what can go; the number of weights stands beside them.
    """
    found = []
    for q in settings.qs:
        own = where(rows, q=q)
        layers = list(dict.fromkeys(row["layer"] for row in own))
        runs = [where(own, run=run) for run in range(settings.runs)]
        runs = [one for one in runs if len(one) == len(layers)]
        if len(layers) < 2 or not runs:
            continue
        reached = np.array([[row["reached"] for row in one] for one in runs])
        for name in (*INDICES, "weights"):
            if name == "weights" and q != settings.qs[0]:
                continue
            sign = -1.0 if name == "effective_share" else 1.0
            values = np.array([[sign * row[name] for row in one] for one in runs])
            tau = estimate_tau(values, reached, np.zeros(len(layers), int), seed=settings.seed)
            found.append(
                {
                    "index": name,
                    "q": None if name == "weights" else q,
                    "layers": len(layers),
                    "runs": len(runs),
                    **{each: getattr(tau, each) for each in ("mean", "std", "lower", "upper")},
                }
            )
    return found


def own_rows(settings: Compressibility, averaged: Sequence[Row]) -> list[tuple[Trial, Row]]:
    """The averaged rows of methods in their own settings, without fine-tuning."""
    found = {tuple(row[name] for name in TRIAL): row for row in where(averaged, phase="pruned")}
    pairs = [(trial, found.get(tuple(trial.fields.values()))) for trial in own_trials(settings)]
    return [(trial, row) for trial, row in pairs if row is not None]


def _sizes(record: Mapping[str, Any], whole: Mapping[str, Any]) -> Row:
    """Shares of the weights that went, the compression ratio, the share of arrays' entries left."""
    return {
        "pruned": float(record["pruned"]),
        "gone": float(record["gone"]),
        "ratio": whole["params"] / record["left"],
        "size": record["size"] / whole["params"],
    }


def _performance(test: Mapping[str, Any], whole: Mapping[str, Any]) -> Row:
    row = {"loss": float(test["loss"]), "rise": float(test["loss"] / whole["loss"] - 1)}
    return row | ({"accuracy": float(test["accuracy"])} if "accuracy" in test else {})


def _rival(measured: Journal, row: Row, trial: Trial, scope: str) -> Row | None:
    if row["phase"] != "pruned":
        return None
    record, whole = (
        _found(measured, "pruned", row["run"], trial),
        measured.get("baseline", run=row["run"]),
    )
    if record is None or whole is None or "rivals" not in record:
        return None
    return _performance(record["rivals"][scope], whole["test"])


def _ratios(name: str, values: Sequence[float] | None) -> Row:
    found = [math.nan] * 3 if values is None else values
    return dict(zip((name, f"{name}_least", f"{name}_most"), found, strict=True))


def _over_runs(name: str, rows: Sequence[Row]) -> list[float]:
    return [
        float(np.median([row[name] for row in rows])),
        min(row[f"{name}_least"] for row in rows),
        max(row[f"{name}_most"] for row in rows),
    ]


def _found(measured: Journal, kind: str, run: int, trial: Trial) -> Mapping[str, Any] | None:
    return measured.get(kind, run=run, **trial.fields)
