"""Tables of cells with notes below, as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import NamedTuple

Row = Sequence[str]
GAP = 2
# The least that a path is shortened to.
SHORTEST = 12
MIDDLE = "..."
NUMERIC = ' class="number"'

# Colours are the notebook's own, so that they suit its dark mode too.
STYLE = """
.tdjax-plan table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.tdjax-plan th, .tdjax-plan td { padding: 0.2em 0.7em; text-align: left; white-space: nowrap; }
.tdjax-plan .number { text-align: right; }
.tdjax-plan thead tr, .tdjax-plan tbody tr:last-child { border-bottom: 1px solid currentColor; }
.tdjax-plan { overflow-x: auto; }
"""


class Table(NamedTuple):
    """What is printed.

    Arguments:
        header, rows, total: cells, equally many in each row.
        notes: lines below the table.
        numbers: columns that are aligned to the right.
        spare: columns that are left out together where a line has no room, the first ones first.
    """

    header: Row
    rows: Sequence[Row]
    total: Row
    notes: Sequence[str]
    numbers: Collection[int]
    spare: Sequence[Collection[int]] = ()


def terminal_width() -> int | None:
    """Characters of a line of the terminal that is printed to; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else None


def as_text(table: Table, width: int | None = None) -> str:
    """Columns of equal width, rules around the rows.

    Arguments:
        width: characters of a line; None for no end.
    """
    columns: Sequence[int] = range(len(table.header))
    every: Sequence[Row] = [table.header, *table.rows, table.total]
    if width is not None:
        columns, every = _within(table, every, width)
    widths = _widths(every)

    def line(row: Row) -> str:
        cells = (
            cell.rjust(size) if k in table.numbers else cell.ljust(size)
            for k, cell, size in zip(columns, row, widths, strict=True)
        )
        return (" " * GAP).join(cells).rstrip()

    rule = "-" * _across(widths)
    header, *rows, total = map(line, every)
    lines = [header, rule, *rows, rule, total]
    notes = table.notes
    if width is not None:
        notes = [part for note in notes for part in textwrap.wrap(note, width) or [""]]
    return "\n".join([*lines, "", *notes] if notes else lines)


def _within(table: Table, every: Sequence[Row], width: int) -> tuple[Sequence[int], Sequence[Row]]:
    """The columns that fit a line, and their rows, the first cell shortened where it must be."""
    columns, rows, spare = list(range(len(table.header))), every, list(table.spare)
    while _across([SHORTEST, *_widths(rows)[1:]]) > width and spare:
        without = spare.pop(0)
        columns = [k for k in columns if k not in without]
        rows = [[row[k] for k in columns] for row in every]
    most = max(width - _across([0, *_widths(rows)[1:]]), SHORTEST)
    return columns, [(_shortened(row[0], most), *row[1:]) for row in rows]


def _shortened(text: str, most: int) -> str:
    """The start and the end of a text, since layers differ most at their ends."""
    if len(text) <= most:
        return text
    end = (most - len(MIDDLE) + 1) // 2
    return text[: most - len(MIDDLE) - end] + MIDDLE + text[len(text) - end :]


def _widths(rows: Sequence[Row]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _across(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def as_html(table: Table, whole: Table | None = None) -> str:
    """A table element, and a list of the notes.

    Arguments:
        whole: a longer form of the table, to be opened below it.
    """
    inside = _table_element(table)
    if whole is not None:
        inside += f"<details><summary>all layers</summary>{_table_element(whole)}</details>"
    return f'<div class="tdjax-plan">{inside}<style>{STYLE}</style></div>'


def _table_element(table: Table) -> str:
    def line(row: Row, tag: str = "td") -> str:
        cells = []
        for k, cell in enumerate(row):
            text = html.escape(cell).replace("-&gt;", "&rarr;")
            cells.append(f"<{tag}{NUMERIC if k in table.numbers else ''}>{text}</{tag}>")
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(map(line, table.rows))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f"<table><thead>{line(table.header, 'th')}</thead><tbody>{body}</tbody>"
        f"<tfoot>{line(table.total, 'th')}</tfoot></table>" + (f"<ul>{notes}</ul>" if notes else "")
    )
