"""Rows of measurements: averaged, set side by side, and written as CSV and Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """A titled table of text; the first `labels` columns say what a line is, the others figures."""

    title: str
    cells: pd.DataFrame
    labels: int = 1

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold plain numbers, neither labels nor taus."""
        columns = zip(*self.cells.to_numpy().tolist(), strict=True)
        return [
            place >= self.labels and not any(isinstance(cell, Tau) for cell in column)
            for place, column in enumerate(columns)
        ]


@dataclass(frozen=True)
class Tau:
    """Kendall's tau as a cell, whose parts a page can align; a part that is not known is NaN."""

    mean: float
    std: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    published_mean: float = math.nan
    published_std: float = math.nan

    @property
    def published(self) -> str:
        """The published tau, "" where there is none."""
        beside = (number(self.published_mean), number(self.published_std))
        return " ± ".join(part for part in beside if part)

    def __str__(self) -> str:
        """For example `0.82 ± 0.03 [0.75, 0.88] (published 0.81 ± 0.02)`."""
        mean, std, lower, upper = map(number, (self.mean, self.std, self.lower, self.upper))
        spread = f" ± {std}" if std else ""
        interval = f" [{lower}, {upper}]" if lower else ""
        published = f" (published {self.published})" if self.published else ""
        return f"{mean}{spread}{interval}{published}"


def number(value: float, decimals: int = 2) -> str:
    """A number with a true minus sign; empty for NaN, and no minus before a zero."""
    if math.isnan(value):
        return ""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def millions(value: float, decimals: int) -> str:
    """A number in millions; of less than a tenth of one three digits."""
    return f"{value / 1e6:,.{decimals}f}" if value >= 1e5 else f"{value / 1e6:.3g}"


def percent(share: float, decimals: int = 0) -> str:
    """A share as a percentage."""
    return f"{number(100 * share, decimals)} %"


def interval_texts(
    rows: pd.DataFrame,
    name: str,
    factor: float = 1.0,
    decimals: int = 2,
    ends: tuple[str, str] | None = None,
) -> list[str]:
    """A figure of each row, with its interval in brackets where it has one.

    Arguments:
        name: of the figure's column.
        factor: what it is shown in.
        ends: columns of the interval; None for those of `averages`.
    """
    lower, upper = ends or (f"{name}_lower", f"{name}_upper")
    texts = []
    for values in rows[[name, lower, upper]].to_numpy(float):
        middle, *interval = (number(factor * value, decimals) for value in values)
        texts.append(f"{middle} [{', '.join(interval)}]" if interval[0] else middle)
    return texts


def framed(rows: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> pd.DataFrame:
    """Rows as a frame, whose columns have their types even where there is no row."""
    return pd.DataFrame(rows, columns=list(types)).astype(dict(types))


def averages(
    rows: pd.DataFrame,
    by: Sequence[str],
    figures: Sequence[str],
    *,
    count: str,
    means: Sequence[str] = (),
) -> pd.DataFrame:
    """Means over the rows that have the columns `by` in common, in the order of their first rows.

    Arguments:
        figures: columns that also get their standard deviation (ddof=1) and the 95 % interval of
            the mean by Student's t, NaN where there is one row alone: `_std`, `_lower`, `_upper`.
        count: the column that tells of how many rows.
        means: columns that get their mean alone.
    """
    groups = rows.groupby(list(by), sort=False, dropna=False)
    sizes = groups.size()
    columns = {count: sizes} | {name: groups[name].agg(_mean) for name in means}
    quantile = stats.t.ppf(0.975, sizes - 1)
    for name in figures:
        mean, std = groups[name].agg(_mean), groups[name].agg(_std)
        half = quantile * std / np.sqrt(sizes)
        columns |= {name: mean, f"{name}_std": std}
        columns |= {f"{name}_lower": mean - half, f"{name}_upper": mean + half}
    return pd.DataFrame(columns).reset_index()


# NumPy's, on which the last digit of published tables rests; those of pandas add up otherwise.
def _mean(values: pd.Series) -> float:
    return float(np.mean(values.to_numpy()))


def _std(values: pd.Series) -> float:
    return float(np.std(values.to_numpy(), ddof=1)) if len(values) > 1 else math.nan


def arranged(rows: pd.DataFrame, places: Mapping[str, Iterable[Any]]) -> pd.DataFrame:
    """The rows sorted by columns, each by the place that its values have in a list."""
    orders = {name: {value: i for i, value in enumerate(own)} for name, own in places.items()}

    def place(column: pd.Series) -> pd.Series:
        return column.map(orders[str(column.name)])

    return rows.sort_values(list(orders), kind="stable", key=place)


def crossed(
    rows: pd.DataFrame,
    lines: Mapping[str, str],
    column: str,
    heads: Mapping[Any, str],
    like: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Texts side by side, a dash where there is none.

    Arguments:
        rows: with the text of each under "text".
        lines: columns that a line has in common, with their heads.
        column: whose values stand side by side.
        heads: those values, with their heads.
        like: rows whose lines stand there, in the order of their first; None for `rows`.
    """
    wide = rows.pivot(index=list(lines), columns=column, values="text")
    order = (rows if like is None else like).set_index(list(lines)).index.unique()
    cells = wide.reindex(index=order, columns=list(heads)).astype(object).fillna(DASH)
    return cells.set_axis(list(heads.values()), axis=1).reset_index(names=list(lines.values()))


def to_csv(rows: pd.DataFrame, decimals: int | None = None) -> str:
    """CSV text; numbers in full, or rounded to `decimals`, empty cells for what is not known.

    Truth values are `true` and `false`. No rows make no text.
    """
    if rows.empty:
        return ""
    flags = {
        str(name): rows[name].map({True: "true", False: "false"})
        for name in rows.select_dtypes(bool)
    }
    places = None if decimals is None else f"%.{decimals}f"
    return rows.assign(**flags).to_csv(index=False, lineterminator="\n", float_format=places)


def to_markdown(tables: Iterable[Table], note: str = "") -> str:
    """The tables as GitHub-flavoured Markdown, each under a heading, below a note.

    All text stands as it is: what would be markup is escaped, line breaks are spaces.
    """
    above = _escaped(note)
    # What would begin a heading, a quotation or a list.
    above = re.sub(r"^(\d*)([#>+.)=-])", r"\1\\\2", above)
    return "\n".join([*([above, ""] if above else []), *map(_markdown, tables)])


def _markdown(table: Table) -> str:
    cells, labels = table.cells, table.labels
    rules = ["---"] * labels + ["---:"] * (len(cells.columns) - labels)
    heads, *rows = (
        [_escaped(str(cell)) for cell in row]
        for row in (list(cells.columns), *cells.to_numpy().tolist())
    )
    shown = [heads, rules, *rows] if rows else []
    lines = ["| " + " | ".join(row) + " |" for row in shown]
    return "\n".join([f"## {_escaped(table.title)}", "", *(lines or ["None."]), ""])


def _escaped(text: str) -> str:
    """Text in one line that Markdown shows as it is.

    Brackets, "<" and "&" alone, as around an interval, are no markup.
    """
    line = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*", " ", text.strip())
    return re.sub(r"[\\`*_|~$]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|](?=[(\[:])", r"\\\g<0>", line)
