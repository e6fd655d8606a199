"""The maps of which layer got what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from experiments.compress.settings import Compress
from experiments.report.maps import Map, draw_map
from experiments.report.page import Atlas, Section
from experiments.report.tables import percent


def layers_section(settings: Compress, layers: pd.DataFrame) -> Section:
    """Which layer got what; strategies whose plans are the same share a map.

    Arguments:
        layers: of each network that a point of a curve stands for, with the curve's name.
    """
    maps: dict[Any, list[Map]] = {}
    for name, rows in layers.groupby("curve", sort=False):
        found = _layer_map(settings, str(name), rows)
        maps.setdefault(tuple(found.lines.items()), []).append(found)
    shared = [
        replace(alike[0], title="; ".join(one.title for one in alike)) for alike in maps.values()
    ]
    atlas = Atlas(
        "Which layer got what.",
        "The share of each layer\N{RIGHT SINGLE QUOTATION MARK}s parameters that is kept and its "
        "format, by the share of the network that is kept; the darker the more.",
        shared,
    )
    return Section("layers", "Layers", atlases=[atlas] if shared else [])


def _layer_map(settings: Compress, name: str, rows: pd.DataFrame) -> Map:
    kept = rows["params"] / rows["params_before"]
    cells = rows.assign(
        value=kept,
        text=[
            "dense" if row["format"] == "dense" else f"{percent(row['share'])} {row['format']}"
            for row in rows.assign(share=kept).to_dict("records")
        ],
        title=[_got(row) for row in rows.to_dict("records")],
    )
    heads = {budget: percent(budget) for budget in sorted(settings.budgets, reverse=True)}
    return draw_map(cells, name, ("layer", "layer, network kept"), "budget", heads, 1.0)


def _got(row: Mapping[Any, Any]) -> str:
    ranks = f", ranks {row['ranks']}" if row["ranks"] else ""
    reason = f"\n{row['reason']}" if row["reason"] else ""
    return (
        f"{row['layer']}, {percent(row['budget'])} of the network kept\n{row['format']}{ranks}\n"
        f"parameters {row['params']:,} of {row['params_before']:,}\n"
        f"multiply-adds {row['macs']:,} of {row['macs_before']:,}{reason}"
    )
