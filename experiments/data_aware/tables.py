"""Measurements as rows: one each, averaged over subsets, compared in pairs, and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from experiments.data_aware.settings import NORMS, TRIAL, DataAware
from experiments.network.compressed import FROBENIUS, KINDS, SEQUENTIAL
from experiments.report.tables import (
    DASH,
    Table,
    arranged,
    averages,
    crossed,
    framed,
    interval_texts,
    millions,
    number,
    percent,
)
from experiments.workdir.journal import Journal

PHASES = {
    "network": "before",
    "reestimated": "re-estimated",
    "refined": "refined",
    "tuned": "after",
    "layer": "before",
}
WHEN = {
    "before": "without fine-tuning",
    "re-estimated": "without fine-tuning, batch statistics re-estimated",
    "refined": "after refinement without labels",
    "after": "after fine-tuning",
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
# What the measurements of one network on several subsets have in common.
NETWORK = ("phase", "layer", "method", "keep", "norm", "correct_bias", "source", "images")
GAIN = ("phase", "keep", "norm", "against", "method", "correct_bias", "source", "images")
# The columns of rows with their types.
MEASURED = {
    **{"kind": str, "phase": str, "layer": str, **TRIAL},
    **{"accuracy": float, "cross_entropy": float, "count": int},
}
SIZES = {"layer": str, "method": str, "keep": float, "params": "Int64", "macs": "Int64"}


def measurement_rows(settings: DataAware, measured: Journal) -> pd.DataFrame:
    """One row for each record, in the configuration's order, whatever order they came in."""
    rows = [
        {"layer": "", **record, "phase": PHASES[record["kind"]], **record["test"]}
        for record in measured.of_kind(*PHASES)
    ]
    found = framed(rows, MEASURED).sort_values(["images", "subset", "layer"])
    places = {
        "kind": PHASES,
        "method": settings.methods,
        "keep": settings.keeps,
        "norm": settings.norms,
        "correct_bias": settings.correct_bias,
        "source": ("", *settings.calibration.sources),
    }
    return arranged(found, places).drop(columns="kind").reset_index(drop=True)


def averaged_rows(rows: pd.DataFrame, sizes: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Means over the calibration subsets, with intervals.

    Arguments:
        rows: from `measurement_rows`.
        sizes: parameters and MACs of the whole compressed network by method and share kept.
    """
    found = averages(rows, NETWORK, FIGURES, count="subsets")
    whole = framed([{"layer": "", **size} for size in sizes], SIZES)
    sized = found.merge(whole, "left", ["layer", "method", "keep"])
    return sized[[*NETWORK, "params", "macs", *found.columns[len(NETWORK) :]]]


def comparison_rows(settings: DataAware, rows: pd.DataFrame) -> pd.DataFrame:
    """What one norm gains over another, all else equal: differences in pairs.

    For each method alone and, under "mean", for the mean over all methods, whose interval is over
    the subsets in which every method is there. Accuracy is in percentage points.
    """
    whole = rows[rows["layer"] == ""]
    gains = pd.concat([_gains(whole, norm, other) for norm, other in PAIRS])
    condition = [name for name in GAIN if name != "method"]
    methods = gains.groupby(condition)["method"].transform("nunique")
    here = gains.groupby([*condition, "subset"])["method"].transform("size")
    shared = gains[(here == methods) & (methods > 1)]
    means = averages(
        shared, [*condition, "subset"], (), count="methods", means=("points", "cross_entropy")
    )
    places = {
        "phase": WHEN,
        "source": settings.calibration.sources,
        "images": settings.calibration.images,
        "correct_bias": settings.correct_bias,
        "keep": settings.keeps,
        "norm": NORMS,
        "against": NORMS,
    }
    found = arranged(pd.concat([gains, means.assign(method="mean")]), places)
    return averages(found, GAIN, ("points", "cross_entropy"), count="subsets")


def _gains(whole: pd.DataFrame, norm: str, other: str) -> pd.DataFrame:
    """Each measurement in a norm less that in another with all else equal, where both are there."""
    own = whole[whole["norm"] == norm]
    seen = own["correct_bias"] | (other != FROBENIUS)
    # Without data there is one CP for each start, and one of everything else.
    twin = own.assign(
        norm=other,
        source=own["source"].where(seen, ""),
        images=own["images"].where(seen, 0),
        subset=own["subset"].where(seen | (own["method"] == "cp"), 0),
    )[[*NETWORK, "subset"]]
    base = twin.merge(whole, "left", [*NETWORK, "subset"]).set_axis(own.index)
    return own.assign(
        against=other,
        points=100 * (own["accuracy"] - base["accuracy"]),
        cross_entropy=own["cross_entropy"] - base["cross_entropy"],
    )[base["accuracy"].notna()]


def text_tables(
    settings: DataAware, averaged: pd.DataFrame, compared: pd.DataFrame, rows: pd.DataFrame
) -> list[Table]:
    """All tables of whatever was measured: whole networks, gains, single layers, transfer."""
    whole = averaged[averaged["layer"] == ""]
    by_layer = rows[rows["layer"] != ""]
    over_layers = averages(by_layer, NETWORK[2:], (), count="layers", means=FIGURES)
    tables = [
        *(_network_table(settings, whole[whole["phase"] == phase], phase) for phase in WHEN),
        *(_gain_table(settings, compared[compared["phase"] == phase], phase) for phase in WHEN),
        _layer_table(settings, over_layers),
    ]
    if "refined" in set(whole["phase"]):
        tables.append(_side_by_side(settings, whole))
    known = [found for found in tables if len(found.cells)]
    if len(settings.calibration.sources) > 1:
        seen = whole[(whole["phase"] == "before") & (whole["source"] != "")]
        known.append(_transfer_table(settings, seen))
    return known


def condition_text(source: str, images: int, correct: bool) -> str:
    """Calibration images, and what was done with them, in words."""
    return f"{source}, {images}" + (", bias corrected" if correct else "")


def _conditions(settings: DataAware) -> pd.DataFrame:
    calibration = settings.calibration
    own = list(product(calibration.sources, calibration.images, settings.correct_bias))
    found = pd.DataFrame(own, columns=["source", "images", "correct_bias"])
    return found.assign(condition=[condition_text(*one) for one in own])


def _under_conditions(settings: DataAware, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows by method and share, under their condition; what saw no data, under each."""
    conditions = _conditions(settings)
    blind = rows[rows["images"] == 0].drop(columns=["source", "images"])
    found = pd.concat([rows.merge(conditions), blind.merge(conditions)])
    return _by_method(settings, found, condition=conditions["condition"])


def _by_method(settings: DataAware, rows: pd.DataFrame, **places: Any) -> pd.DataFrame:
    return arranged(rows, {"method": settings.methods, "keep": settings.keeps, **places})


def _network_table(settings: DataAware, rows: pd.DataFrame, phase: str) -> Table:
    own = _under_conditions(settings, rows)
    # Every condition of what was measured under one of them.
    names = ["method", "keep", "correct_bias"]
    conditions = _conditions(settings)
    like = _by_method(
        settings,
        rows[names].drop_duplicates().merge(conditions),
        condition=conditions["condition"],
    )
    cells = _norm_cells(settings, own.assign(text=interval_texts(own, "accuracy", 100)), like)
    sizes = like.merge(rows.drop_duplicates(["method", "keep"]), "left", ["method", "keep"])
    cells["parameters"] = [DASH if pd.isna(one) else f"{one:,}" for one in sizes["params"]]
    cells["MACs, M"] = [DASH if pd.isna(one) else millions(one, 2) for one in sizes["macs"]]
    return Table(f"Whole network, {WHEN[phase]}: {settings.metric_name}, %", cells, labels=3)


def _side_by_side(settings: DataAware, rows: pd.DataFrame) -> Table:
    """The metric of each network, a column for each phase."""
    own = _under_conditions(settings, rows)
    own = arranged(own, {"method": settings.methods, "keep": settings.keeps, "norm": NORMS})
    own["text"] = interval_texts(own, "accuracy", 100)
    lines = {"method": "method", "keep": "kept", "norm": "norm", "condition": "calibration"}
    known = set(own["phase"])
    heads = {PHASES[kind]: head for kind, head in KINDS.items() if PHASES[kind] in known}
    title = f"Whole network, side by side: {settings.metric_name}, %"
    return Table(title, _percent(crossed(own, lines, "phase", heads)), labels=4)


def _layer_table(settings: DataAware, rows: pd.DataFrame) -> Table:
    own = _under_conditions(settings, rows)
    texts = [number(100 * accuracy) for accuracy in own["accuracy"]]
    title = f"One layer at a time: {settings.metric_name}, %, mean over the layers"
    return Table(title, _norm_cells(settings, own.assign(text=texts), own), labels=3)


def _norm_cells(settings: DataAware, rows: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    lines = {"method": "method", "keep": "kept", "condition": "calibration"}
    heads = {norm: norm for norm in settings.norms}
    return _percent(crossed(rows, lines, "norm", heads, like))


def _percent(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.assign(kept=[percent(keep) for keep in cells["kept"]])


def _gain_table(settings: DataAware, rows: pd.DataFrame, phase: str) -> Table:
    own = rows.merge(_conditions(settings))
    own["norms"] = own["norm"] + " over " + own["against"]
    own["text"] = interval_texts(own, "points")
    lines = {"keep": "kept", "norms": "norms", "condition": "calibration"}
    known = set(own["method"])
    heads = {name: name for name in ("mean", *settings.methods) if name in known}
    title = f"Gain in {settings.metric_name} {WHEN[phase]}, points"
    return Table(title, _percent(crossed(own, lines, "method", heads)), labels=3)


def _transfer_table(settings: DataAware, rows: pd.DataFrame) -> Table:
    images, correct_bias = settings.calibration.images, settings.correct_bias
    own = _by_method(settings, rows, norm=settings.norms, images=images, correct_bias=correct_bias)
    bias = own["correct_bias"].map({True: ", bias corrected", False: ""})
    own["seen"] = own["norm"] + ", " + own["images"].astype(str) + bias
    own["text"] = interval_texts(own, "accuracy", 100)
    lines = {"method": "method", "keep": "kept", "seen": "norm, examples"}
    heads = {name: f"moments from {name}" for name in settings.calibration.sources}
    title = f"Transfer: moments of one data set, {settings.metric_name} on the network's own, %"
    return Table(title, _percent(crossed(own, lines, "source", heads)), labels=3)
