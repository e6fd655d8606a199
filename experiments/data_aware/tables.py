"""Measurements as rows: one each, averaged over calibration subsets, and compared in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from experiments.data_aware.settings import FROBENIUS, SEQUENTIAL, DataAware
from experiments.data_aware.trials import sees_data
from experiments.report.rows import Row, spread
from experiments.workdir.journal import Journal

PHASES = {
    "network": "before",
    "reestimated": "re-estimated",
    "tuned": "after",
    "layer": "before",
}
PAIRS = (
    ("covariance", FROBENIUS),
    ("kronecker", FROBENIUS),
    ("kronecker", "covariance"),
    (f"{SEQUENTIAL}covariance", "covariance"),
    (f"{SEQUENTIAL}kronecker", "kronecker"),
    (f"{SEQUENTIAL}kronecker", f"{SEQUENTIAL}covariance"),
)
FIGURES = ("accuracy", "cross_entropy")


def measurement_rows(settings: DataAware, measured: Journal) -> list[Row]:
    """One row for each record, in the configuration's order, whatever order they came in."""
    columns = (
        settings.methods,
        settings.keeps,
        settings.norms,
        settings.correct_bias,
        ("", *settings.calibration.sources),
    )

    def place(record: Mapping[str, Any]) -> tuple[Any, ...]:
        names = ("method", "keep", "norm", "correct_bias", "source")
        at = tuple(values.index(record[name]) for values, name in zip(columns, names, strict=True))
        kind, layer = tuple(PHASES).index(record["kind"]), record.get("layer", "")
        return (kind, *at, record["images"], record["subset"], layer)

    return [
        {
            "phase": PHASES[record["kind"]],
            "layer": record.get("layer", ""),
            **{name: record[name] for name in ("method", "keep", "norm", "correct_bias")},
            **{name: record[name] for name in ("source", "images", "subset")},
            **{name: float(record["test"][name]) for name in FIGURES},
            "count": record["test"]["count"],
        }
        for record in sorted(measured.of_kind(*PHASES), key=place)
    ]


def averaged_rows(rows: Iterable[Row], sizes: Mapping[tuple[str, float], Row]) -> list[Row]:
    """Means over the calibration subsets, with 95 % intervals by Student's t.

    An interval is left out where there is one measurement only.

    Arguments:
        rows: from `measurement_rows`.
        sizes: parameters and MACs of the whole compressed network by method and share kept.
    """
    groups: dict[tuple, list[Row]] = {}
    names = ("phase", "layer", "method", "keep", "norm", "correct_bias", "source", "images")
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    found = []
    for key, own in groups.items():
        row = dict(zip(names, key, strict=True))
        size = {} if row["layer"] else sizes.get((row["method"], row["keep"]), {})
        row |= {name: size.get(name) for name in ("params", "macs")} | {"subsets": len(own)}
        for figure in FIGURES:
            row |= spread(figure, [one[figure] for one in own])
        found.append(row)
    return found


def reference(row: Row, other: str) -> tuple:
    """What tells a measurement in another norm with all else equal, as `by_trial` names it."""
    seen = sees_data(other, row["correct_bias"])
    # Without data there is one CP for each start, and one of everything else.
    subset = row["subset"] if seen or row["method"] == "cp" else 0
    calibration = (row["source"], row["images"]) if seen else ("", 0)
    own = tuple(row[name] for name in ("phase", "layer", "method", "keep"))
    return (*own, other, row["correct_bias"], *calibration, subset)


def by_trial(rows: Iterable[Row]) -> dict[tuple, Row]:
    """Rows by all that tells one from another."""
    names = ("phase", "layer", "method", "keep", "norm", "correct_bias", "source", "images")
    return {tuple(row[name] for name in (*names, "subset")): row for row in rows}


def comparison_rows(settings: DataAware, rows: Sequence[Row]) -> list[Row]:
    """What one norm gains over another, all else equal: differences in pairs.

    For each method alone and, under "mean", for the mean over all methods, whose interval is over
    the subsets in which every method is there. Accuracy is in percentage points.
    """
    known, found = by_trial(rows), []
    whole = [row for row in rows if not row["layer"]]
    conditions = product(
        dict.fromkeys(PHASES.values()),
        settings.calibration.sources,
        settings.calibration.images,
        settings.correct_bias,
        settings.keeps,
        PAIRS,
    )
    for phase, source, images, correct, keep, (norm, other) in conditions:
        gains: dict[str, dict[int, tuple[float, float]]] = {}
        for row in whole:
            if (row["phase"], row["source"], row["images"], row["correct_bias"]) != (
                phase,
                source,
                images,
                correct,
            ) or (row["keep"], row["norm"]) != (keep, norm):
                continue
            base = known.get(reference(row, other))
            if base is not None:
                gains.setdefault(row["method"], {})[row["subset"]] = (
                    100 * (row["accuracy"] - base["accuracy"]),
                    row["cross_entropy"] - base["cross_entropy"],
                )
        if not gains:
            continue
        shared = sorted(set.intersection(*(set(own) for own in gains.values())))
        if shared and len(gains) > 1:
            gains["mean"] = {
                subset: tuple(np.mean([own[subset] for own in gains.values()], axis=0))
                for subset in shared
            }
        for method, own in gains.items():
            found.append(
                {
                    "phase": phase,
                    "keep": keep,
                    "norm": norm,
                    "against": other,
                    "method": method,
                    "correct_bias": correct,
                    "source": source,
                    "images": images,
                    "subsets": len(own),
                    **spread("points", [gain[0] for gain in own.values()]),
                    **spread("cross_entropy", [gain[1] for gain in own.values()]),
                }
            )
    return found


def layer_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over all layers compressed one at a time, by method, share and norm."""
    groups: dict[tuple, list[Row]] = {}
    names = ("method", "keep", "norm", "correct_bias", "source", "images")
    for row in rows:
        if row["layer"]:
            groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        dict(zip(names, key, strict=True))
        | {"layers": len({row["layer"] for row in own})}
        | {figure: float(np.mean([row[figure] for row in own])) for figure in FIGURES}
        for key, own in groups.items()
    ]
