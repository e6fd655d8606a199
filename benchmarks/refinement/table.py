"""Runs as a table: a row for each budget and rate, the figures of all subsets in one cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from benchmarks.refinement.records import Record, Records
from benchmarks.refinement.runs import Asked
from experiments.report.tables import Table, averages, interval_texts, percent, to_markdown

FIGURES = ("before", "accuracy", "labelled")


def table_of(asked: Asked, records: Records, digest: str) -> str:
    """Markdown of what is recorded of the runs that are asked for.

    Accuracies are in percent of the test images, with the 95 % interval of the mean over the
    subsets by Student's t; where there are labels, of the best of their rates for each subset.
    """
    rows = []
    for run in asked.refinements(digest):
        found = records.get(run)
        if found is not None:
            rows.append({**found, **_with_labels(asked, records, found)})
    if not rows:
        return "nothing is recorded"
    return to_markdown([Table(_head(asked, records, digest), _cells(pd.DataFrame(rows)), labels=2)])


def _with_labels(asked: Asked, records: Records, found: Record) -> dict[str, float]:
    own = [records.get(run) for run in asked.labelled(found)]
    best = max((run for run in own if run), key=lambda run: run["accuracy"], default=None)
    if best is None:
        return {"labelled": math.nan, "label_rate": math.nan}
    return {"labelled": best["accuracy"], "label_rate": best["rate"]}


def _head(asked: Asked, records: Records, digest: str) -> str:
    dense = records.get(asked.dense(digest))
    accuracy = "" if dense is None else f" ({percent(dense['accuracy'], 2)} dense)"
    subsets = ", ".join(map(str, asked.subsets))
    return (
        f"{asked.network}{accuracy}, ranks by {asked.plan}, {asked.epochs} epochs over "
        f"{asked.images} images; subsets {subsets}: mean [95 % interval, Student's t]"
    )


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    by = ["budget", "rate"]
    means = averages(rows, by, FIGURES, count="subsets", means=["kept"])
    groups = rows.groupby(by, sort=False)
    cells = {
        "kept": [percent(value, 1) for value in means["kept"]],
        "rate": means["rate"],
        "subsets": means["subsets"],
        "compressed": interval_texts(means, "before", 100),
        "refined": interval_texts(means, "accuracy", 100),
        "s": [_range(own["seconds"], ".0f") for _, own in groups],
        "learning rate": [_range(own["learning_rate"].astype(float), ".2g") for _, own in groups],
        "with labels": interval_texts(means, "labelled", 100),
        "their rate": [_range(own["label_rate"], ".2g") for _, own in groups],
    }
    frame = pd.DataFrame(cells)
    return frame if means["labelled"].notna().any() else frame.drop(columns=frame.columns[-2:])


def _range(values: pd.Series, form: str) -> str:
    """The least and the greatest."""
    known = values.dropna()
    if not len(known):
        return ""
    ends: Sequence[str] = [format(end, form) for end in (known.min(), known.max())]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
