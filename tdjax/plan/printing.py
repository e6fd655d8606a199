"""Tables of cells with notes below, as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from typing import NamedTuple

Row = Sequence[str]


class Table(NamedTuple):
    """What is printed.

    Arguments:
        header, rows, total: cells, equally many in each row.
        notes: lines below the table.
        numbers: columns that are aligned to the right.
    """

    header: Row
    rows: Sequence[Row]
    total: Row
    notes: Sequence[str]
    numbers: Collection[int]


def as_text(table: Table) -> str:
    """Columns of equal width, rules around the rows."""
    every = (table.header, *table.rows, table.total)
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]

    def line(row: Row) -> str:
        cells = (
            cell.rjust(width) if k in table.numbers else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [line(table.header), rule, *map(line, table.rows), rule, line(table.total)]
    return "\n".join([*lines, "", *table.notes] if table.notes else lines)


def as_html(table: Table) -> str:
    """A table element, and a list of the notes."""

    def line(row: Row, tag: str = "td") -> str:
        cells = (
            f'<{tag} style="text-align:{"right" if k in table.numbers else "left"}">'
            f"{html.escape(cell).replace('-&gt;', '&rarr;')}</{tag}>"
            for k, cell in enumerate(row)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(map(line, table.rows))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f"<table><thead>{line(table.header, 'th')}</thead><tbody>{body}</tbody>"
        f"<tfoot>{line(table.total, 'th')}</tfoot></table>" + (f"<ul>{notes}</ul>" if notes else "")
    )
