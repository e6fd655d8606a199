"""A plan as a table: a row for each layer, or in a large one for each kind of repeated layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tdjax.plan.dtypes import FLOAT_BYTES
from tdjax.plan.form import SCORES
from tdjax.plan.layers import Layer
from tdjax.plan.planned import PlannedLayer
from tdjax.plan.predicted import Predicted, with_times
from tdjax.plan.printing import Row, Table
from tdjax.plan.ways import ways_text
from tdjax.plan.work import Count, count_text, exact

# Layers up to which a plan has a row for each.
MANY = 40
# Paths that one note of a folded plan names.
NAMED = 3
HEADER = ("layer", "kernel", "format", "ranks", "parameters", "", "MACs", "")
# What a narrow terminal does without: first the MACs, last the share of the parameters.
SPARE = ((6, 7), (1,), (3,), (2,), (5,))
NUMBER = re.compile(r"\d+")


def table_of(
    entries: Sequence[PlannedLayer],
    total: Row,
    other_macs: Count,
    predicted: Predicted | None,
    notes: Sequence[str],
    *,
    stored: tuple[str, str],
    fold: bool | None = None,
) -> Table:
    """Layer, format, ranks, parameters, MACs, bytes and predicted time, before and after.

    Bytes where the plan says of a layer how it is stored.

    Arguments:
        entries: the layers of a plan.
        total: the last row, without the time.
        other_macs: multiply-accumulates that belong to no layer.
        notes: in front of those on single layers.
        stored: the last row's cells for bytes.
        fold: one row for factorised layers that differ in the numbers in their paths alone, as in
            repeated blocks, and one for all that are kept dense and stored alike; None for that in
            a plan of more than `MANY` layers.
    """
    folded = len(entries) > MANY if fold is None else fold
    groups = _groups(entries) if folded else [[entry] for entry in entries]
    rows = [_row(group) for group in groups]
    if other_macs:
        rows.append(("(other products)", *[""] * 5, count_text(other_macs), ""))
    every = [*notes, *_notes(entries, folded)]
    table = Table(HEADER, rows, total, every, numbers=(4, 5, 6, 7), spare=SPARE)
    if any(entry.dtype for entry in entries):
        table = _with_bytes(table, groups, stored)
    if predicted is None:
        return table
    return with_times(table, predicted, [[entry.layer.path for entry in own] for own in groups])


def _with_bytes(
    table: Table, groups: Sequence[Sequence[PlannedLayer]], total: tuple[str, str]
) -> Table:
    """The table with columns for how layers are stored."""
    cells = [
        (
            own[0].dtype or "",
            *change(
                FLOAT_BYTES * sum(entry.layer.size for entry in own),
                sum(entry.bytes for entry in own),
            ),
        )
        for own in groups
    ]
    cells += [("", "", "")] * (len(table.rows) - len(cells))
    first = len(table.header)
    return table._replace(
        header=(*table.header, "stored", "bytes", ""),
        rows=[(*row, *own) for row, own in zip(table.rows, cells, strict=True)],
        total=(*table.total, "", *total),
        numbers=(*table.numbers, first + 1, first + 2),
        # The last that is done without: the plan was asked for it.
        spare=(*table.spare, (first, first + 1, first + 2)),
    )


def _groups(entries: Iterable[PlannedLayer]) -> list[list[PlannedLayer]]:
    """Layers that share a row, in the order of the first of each; what is kept dense is last."""
    alike: dict[object, list[PlannedLayer]] = {}
    dense: dict[str | None, list[PlannedLayer]] = {}
    for entry in entries:
        if entry.form is None:
            dense.setdefault(entry.dtype, []).append(entry)
        else:
            key = (NUMBER.sub("*", entry.layer.path), entry.dtype, _row([entry])[1:])
            alike.setdefault(key, []).append(entry)
    return [*alike.values(), *dense.values()]


def _row(group: Sequence[PlannedLayer]) -> tuple[str, ...]:
    """The cells of layers that are alike but for their paths, or that are all kept dense."""
    first = group[0]
    layers = [entry.layer for entry in group]
    sizes = change(sum(layer.size for layer in layers), sum(entry.size for entry in group))
    macs = change(exact(sum(layer.macs for layer in layers)), exact(sum(e.macs for e in group)))
    figures = (*sizes, *macs)
    if first.form is None and len(group) > 1:
        return (f"({len(group)} layers)", "", first.format, "", *figures)
    copies = sum(layer.copies for layer in layers)
    kernel = (
        (f"{copies} * " if copies > 1 else "")
        + "x".join(map(str, first.layer.kernel_shape))
        + (f" /{first.layer.groups}" if first.layer.groups > 1 else "")
    )
    sparse = f" + {first.nonzeros:,} nonzeros" if first.nonzeros else ""
    return (
        _path_text([layer.path for layer in layers]),
        kernel,
        first.format,
        ranks_text(first.ranks) + sparse,
        *figures,
    )


def _path_text(paths: Sequence[str]) -> str:
    """One path, or several that differ in their numbers: `block_{0..11}/query`."""
    if len(paths) == 1:
        return paths[0] or "(model)"
    numbers = [list(map(int, NUMBER.findall(path))) for path in paths]
    columns = iter([sorted(set(column)) for column in zip(*numbers, strict=True)])

    def told(_: re.Match[str]) -> str:
        found = next(columns)
        if len(found) == 1:
            return str(found[0])
        runs = found == list(range(found[0], found[-1] + 1)) and len(found) > NAMED
        return f"{{{found[0]}..{found[-1]}}}" if runs else f"{{{','.join(map(str, found))}}}"

    return NUMBER.sub(told, paths[0])


def _notes(entries: Sequence[PlannedLayer], folded: bool) -> list[str]:
    """What is said of single layers; folded, those of which the same is said share a line."""
    said = [(entry, f"kept dense: {entry.reason}") for entry in entries if entry.reason]
    said += [(entry, ways_text(entry.stages, entry.ways)) for entry in entries if entry.ways]
    said += [(e, f"sharing the input factor of {e.shares}") for e in entries if e.shares]
    said += [(e, f"{_feeding(e)} {e.feeds} alone") for e in entries if e.feeds]
    alike: dict[object, tuple[str, list[str]]] = {}
    for number, (entry, what) in enumerate(said):
        _, paths = alike.setdefault(what if folded else number, (what, []))
        paths.append(entry.layer.path or "(model)")
    return [f"{_several(paths)} {what}" for what, paths in alike.values()]


def _feeding(entry: PlannedLayer) -> str:
    return "multiplied with" if entry.method in SCORES else "read, as far as it puts out, by"


def _several(paths: Sequence[str]) -> str:
    """The first few paths with their verb."""
    if len(paths) == 1:
        return f"{paths[0]} is"
    # The last one is named rather than counted.
    named = paths if len(paths) <= NAMED + 1 else paths[:NAMED]
    more = len(paths) - len(named)
    *most, last = [*named, f"{more} more"] if more else named
    return f"{', '.join(most)} and {last} are"


def change(before: Count, after: Count) -> tuple[str, str]:
    """A count before and after as people read it, and the share that is kept."""
    if after == before:
        return count_text(before), ""
    share = f"{float(100 * after / before):.1f} %" if before else ""
    return f"{count_text(before)} -> {count_text(after)}", share


def ranks_text(values: Sequence[int]) -> str:
    """Ranks as people read them."""
    return ", ".join(map(str, values))


def paths_text(layers: Iterable[Layer]) -> str:
    """The paths of layers, for messages."""
    return ", ".join(layer.path or "(model)" for layer in layers)
