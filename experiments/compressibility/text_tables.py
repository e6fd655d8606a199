"""The experiment's tables as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from experiments.compressibility.paper import published_pruning
from experiments.compressibility.settings import MAGNITUDE, Compressibility
from experiments.compressibility.tables import PHASES, own_rows
from experiments.compressibility.trials import TRIAL, Trial, enumerate_trials
from experiments.report.rows import Row, where
from experiments.report.text import DASH, TextTable, number, percent, tau_text
from tdjax.pruning.prunable import SCOPES

INDEX_TEXT = {
    "sparsity_index": "sparsity index",
    "pq_index": "PQ index",
    "effective_share": "1 \N{MINUS SIGN} effective share",
    "weights": "number of weights",
}


def text_tables(
    settings: Compressibility,
    averaged: Sequence[Row],
    gains: Sequence[Row],
    layers: Sequence[Row],
    taus: Sequence[Row],
) -> list[TextTable]:
    """All tables of whatever was measured."""
    tables = [_own_table(settings, averaged), _own_gain_table(settings, averaged, gains)]
    for phase in PHASES:
        tables += [_curve_table(settings, averaged, phase), _gain_table(settings, gains, phase)]
    tables += [
        _size_table(settings, averaged),
        _index_table(layers),
        _reached_table(layers),
        _tau_table(taus),
        _looseness_table(layers),
    ]
    return [found for found in tables if found.rows]


def _with_interval(row: Row | None, name: str, decimals: int, factor: float = 1.0) -> str:
    if row is None:
        return DASH
    text = number(factor * row[name], decimals)
    if math.isnan(row[f"{name}_lower"]):
        return text
    ends = (number(factor * row[f"{name}_{end}"], decimals) for end in ("lower", "upper"))
    return f"{text} [{', '.join(ends)}]"


def _trial(row: Row) -> Trial:
    return Trial(*(row[name] for name in TRIAL))


def _by_share(
    settings: Compressibility, rows: Sequence[Row], cell: Callable[[Row | None], str]
) -> tuple[tuple[str, ...], ...]:
    """Lines of curves, a column a share."""
    found = {(_trial(row).curve, row["share"]): row for row in rows}
    curves = dict.fromkeys(trial.curve for trial in enumerate_trials(settings))
    return tuple(
        (curve, *(cell(found.get((curve, share))) for share in settings.shares))
        for curve in curves
        if any((curve, share) in found for share in settings.shares)
    )


def _shares(settings: Compressibility) -> tuple[str, ...]:
    return tuple(f"{percent(share)} pruned" for share in settings.shares)


def _curve_table(settings: Compressibility, rows: Sequence[Row], phase: str) -> TextTable:
    own = where(rows, phase=phase)
    if settings.predicts_numbers:
        title = f"Relative rise of the mean squared error, %, {PHASES[phase]}"
        lines = _by_share(settings, own, lambda row: _with_interval(row, "rise", 1, 100.0))
    else:
        title = f"Accuracy, %, {PHASES[phase]}"
        lines = _by_share(settings, own, lambda row: _with_interval(row, "accuracy", 1, 100.0))
    return TextTable(title, ("method", *_shares(settings)), lines)


def _gain_table(settings: Compressibility, rows: Sequence[Row], phase: str) -> TextTable:
    name, factor, what = _gain(settings)
    lines = []
    for scope in SCOPES:
        own = where(rows, phase=phase, against=scope, share=lambda share: share is not None)
        found = _by_share(settings, own, lambda row: _with_interval(row, name, 1, factor))
        lines += [(curve, f"magnitude, {scope}", *cells) for curve, *cells in found]
    title = f"Gain over plain magnitude pruning at equal share, {what}, {PHASES[phase]}"
    header = ("method", "over", *_shares(settings))
    return TextTable(title, header, tuple(lines), labels=2)


def _own_table(settings: Compressibility, averaged: Sequence[Row]) -> TextTable:
    """Methods in their own settings, beside what was published of them."""
    published = published_pruning(settings.published)
    numbers, lines = settings.predicts_numbers, []
    magnitude = [
        (_trial(row), row)
        for row in where(averaged, phase="pruned", method=lambda method: method in MAGNITUDE)
        if ("magnitude", None, row["share"]) in published
    ]
    for trial, row in (*own_rows(settings, averaged), *magnitude):
        if trial.method in MAGNITUDE:
            assert trial.share is not None
            paper = published.get(("magnitude", None, trial.share))
        else:
            assert trial.value is not None
            paper = published.get((trial.method, trial.q, trial.value))
        beside = (DASH,) * 3
        if paper is not None:
            beside = (number(paper.ratio), percent(paper.share), number(100 * paper.rise, 0))
        lines.append(
            (
                trial.name,
                number(row["ratio"]),
                percent(row["pruned"], 1),
                percent(row["gone"], 1),
                *(() if numbers else (_with_interval(row, "accuracy", 1, 100.0),)),
                _with_interval(row, "rise", 1, 100.0),
                *(beside if published else ()),
            )
        )
    header = (
        "setting", "ratio", "pruned", "dead neurons too",
        *(() if numbers else ("accuracy, %",)),
        "rise of the loss, %",
        *(("published: ratio", "pruned", "rise, %") if published else ()),
    )  # fmt: skip
    return TextTable("The methods' own settings, without fine-tuning", header, tuple(lines))


def _own_gain_table(
    settings: Compressibility, averaged: Sequence[Row], gains: Sequence[Row]
) -> TextTable:
    """Methods in their own settings against plain magnitude pruning at the share that came out."""
    name, factor, what = _gain(settings)
    lines = []
    for trial, row in own_rows(settings, averaged):
        own = where(gains, phase="pruned", **trial.fields)
        against = {gain["against"]: gain for gain in own}
        cells = (_with_interval(against.get(scope), name, 1, factor) for scope in SCOPES)
        lines.append((trial.name, percent(row["pruned"], 1), *cells))
    header = ("setting", "pruned", *(f"over magnitude, {scope}" for scope in SCOPES))
    title = f"Gain of the methods' own settings over plain magnitude pruning at equal share, {what}"
    return TextTable(title, header, tuple(lines))


def _gain(settings: Compressibility) -> tuple[str, float, str]:
    """The figure that gains are shown in, its factor, and what it is."""
    if settings.predicts_numbers:
        return "rise", 100.0, "percentage points of the error's relative rise"
    return "points", 1.0, "points of accuracy"


def _size_table(settings: Compressibility, rows: Sequence[Row]) -> TextTable:
    own = where(rows, phase="pruned")
    title = "Parameters stored once dead neurons are removed, of those before"
    lines = _by_share(settings, own, lambda row: DASH if row is None else percent(row["size"], 1))
    return TextTable(title, ("method", *_shares(settings)), lines)


def _layer(row: Row) -> str:
    return row["layer"] or "network"


def _index_table(rows: Sequence[Row]) -> TextTable:
    lines = tuple(
        (
            _layer(row),
            number(row["q"], 1),
            f"{row['neurons']:,}",
            f"{row['weights']:,}",
            number(row["sparsity_index"], 3),
            number(row["pq_index"], 3),
            f"{number(row['effective_number'], 1)}"
            f" ({number(row['lower'], 1)}, {number(row['median'], 1)}, {number(row['upper'], 1)})",
            percent(row["effective_share"], 1),
        )
        for row in rows
    )
    header = (
        "layer", "q", "neurons", "weights", "sparsity index", "PQ index",
        "effective weights of a neuron (10, 50, 90 %)", "of its weights",
    )  # fmt: skip
    return TextTable("Indices, means over neurons and runs", header, lines)


def _reached_table(rows: Sequence[Row]) -> TextTable:
    lines = dict.fromkeys(
        (_layer(row), f"{row['weights']:,}", percent(row["reached"], 1))
        for row in rows
        if row["layer"]
    )
    header = ("layer", "weights", "can go")
    title = "Share of each layer alone that can go within the tolerance"
    return TextTable(title, header, tuple(lines))


def _tau_table(rows: Sequence[Row]) -> TextTable:
    lines = tuple(
        (
            INDEX_TEXT[row["index"]],
            DASH if row["q"] is None else number(row["q"], 1),
            tau_text(*(row[name] for name in ("mean", "std", "lower", "upper"))),
            str(row["layers"]),
        )
        for row in rows
    )
    title = "Kendall's tau between index and share that can go, over the layers"
    return TextTable(title, ("index", "q", "tau", "layers"), lines, labels=2)


def _looseness_table(rows: Sequence[Row]) -> TextTable:
    def ratio(row: Row, name: str) -> str:
        if math.isnan(row[name]):
            return DASH
        ends = (number(row[f"{name}_{end}"], 1) for end in ("least", "most"))
        return f"{number(row[name], 1)} [{', '.join(ends)}]"

    lines = tuple(
        (_layer(row), number(row["q"], 1), ratio(row, "bound"), ratio(row, "tail")) for row in rows
    )
    title = "Error bounds over the worst error measured: median [least, most]"
    return TextTable(title, ("layer", "q", "bound of q", "sum of what went"), lines, labels=1)
