"""Rows of measurements: chosen, and averaged with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, Any]


def where(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """The rows whose fields have these values, or fulfil these conditions."""

    def fits(value: Any, wanted: Any) -> bool:
        return wanted(value) if callable(wanted) else value == wanted

    return [row for row in rows if all(fits(row[name], want) for name, want in fields.items())]


def spread(name: str, values: Sequence[float]) -> Row:
    """Mean, standard deviation and 95 % interval of the mean; NaN where one value has none."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {name: mean, f"{name}_std": math.nan, f"{name}_lower": math.nan} | {
            f"{name}_upper": math.nan
        }
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {
        name: mean,
        f"{name}_std": std,
        f"{name}_lower": mean - half,
        f"{name}_upper": mean + half,
    }
