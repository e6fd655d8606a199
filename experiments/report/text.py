"""Rows of tau as tables of text, which the page and the Markdown file share."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.error_study.tables import Row

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class TauText:
    """Tau in parts, so that a page can align each; a part that is not known is empty."""

    mean: str
    std: str = ""
    lower: str = ""
    upper: str = ""
    published: str = ""

    def __str__(self) -> str:
        """For example `0.82 ± 0.03 [0.75, 0.88] (published 0.81 ± 0.02)`."""
        spread = f" ± {self.std}" if self.std else ""
        interval = f" [{self.lower}, {self.upper}]" if self.lower else ""
        published = f" (published {self.published})" if self.published else ""
        return f"{self.mean}{spread}{interval}{published}"


Cell = str | TauText


@dataclass(frozen=True)
class TextTable:
    """A titled table; the first `labels` columns are text, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: int = 1


def number(value: float, decimals: int = 2) -> str:
    """A number with a true minus sign; empty for NaN, and no minus before a zero."""
    if math.isnan(value):
        return ""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def percent(share: float, decimals: int = 0) -> str:
    """A share as a percentage."""
    return f"{number(100 * share, decimals)} %"


def tau_text(
    mean: float,
    std: float = math.nan,
    lower: float = math.nan,
    upper: float = math.nan,
    published_mean: float = math.nan,
    published_std: float = math.nan,
) -> TauText:
    """Tau with two decimals; each NaN is left out."""
    beside = [number(value) for value in (published_mean, published_std)]
    return TauText(
        number(mean),
        number(std),
        number(lower),
        number(upper),
        " ± ".join(part for part in beside if part),
    )


def tau_table(
    title: str, label: str, names: Sequence[tuple[object, str]], rows: Sequence[Row]
) -> TextTable:
    """Rows of tau with one line per value of `label`, and a column per subset and phase.

    Args:
        title: what the table shows.
        label: the column of `rows` that the lines stand for.
        names: its values in order, each with the text to show.
        rows: from `tables.py`.
    """
    columns = list(dict.fromkeys((row["subset"], row["phase"]) for row in rows))
    columns.sort(key=lambda column: (column[0] != "test", column[1] != "before"))
    cells = {(row[label], row["subset"], row["phase"]): row for row in rows}
    lines = []
    for value, name in names:
        found = [cells.get((value, *column)) for column in columns]
        if any(found):
            counts = dict.fromkeys(str(row["choices"]) for row in found if row)
            taus = [_row_text(row) if row else DASH for row in found]
            lines.append((name, *taus, " / ".join(counts)))
    header = (label, *(f"{subset}, {phase}" for subset, phase in columns), "choices")
    return TextTable(title, header, tuple(lines))


def _row_text(row: Row) -> TauText:
    names = ("mean", "std", "lower", "upper", "published_mean", "published_std")
    return tau_text(*(row[name] for name in names))


def unsaving_table(choices: Iterable[Row]) -> TextTable:
    """The choices whose ranks keep as many parameters as the layer had, or more."""
    return TextTable(
        "Choices that save no parameters",
        ("layer", "method", "ranks", "asked to keep", "really keeps"),
        tuple(
            (
                row["layer"],
                row["method"],
                row["ranks"].replace(" ", ", "),
                percent(1 - row["compression"]),
                percent(row["kept"], 1),
            )
            for row in choices
            if not row["saves"]
        ),
        labels=3,
    )


def to_markdown(table: TextTable) -> str:
    """The table as GitHub-flavoured Markdown, under a heading."""
    rules = ["---" if i < table.labels else "---:" for i in range(len(table.header))]
    body = [table.header, tuple(rules), *table.rows] if table.rows else []
    lines = [
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in body
    ]
    return "\n".join([f"## {table.title}", "", *(lines or ["None."]), ""])
