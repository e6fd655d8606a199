"""A report's folder: its files, its pictures, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from experiments.network.settings import NetworkSettings
from experiments.report.glossary import meanings
from experiments.report.maps import Map
from experiments.report.svg import inline
from experiments.report.tables import Table, Tau, millions, number, percent, to_markdown
from experiments.workdir.environment import measured_with, versions
from experiments.workdir.files import page_of, remove_leftovers
from experiments.workdir.journal import Journal, read_workdir
from experiments.workdir.record_fields import Schema
from experiments.workdir.stops import undone
from tdjax.files import write_atomically

T = TypeVar("T", bound=NetworkSettings)


@dataclass(frozen=True)
class Picture:
    """Figures side by side, their title, and what they show; SVG by the files' names."""

    title: str
    caption: str
    drawings: Mapping[str, str]


@dataclass(frozen=True)
class Atlas:
    """Maps side by side, their title, and what they show."""

    title: str
    caption: str
    maps: Sequence[Map]


@dataclass(frozen=True)
class Card:
    """A question that is answered: the answer with its sign and style, its grounds, its rule."""

    name: str
    title: str
    answer: str
    sign: str
    style: str
    grounds: Sequence[str]
    rule: str
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page; `name` is its anchor, `note` stands under its title."""

    name: str
    title: str
    note: str = ""
    cards: Sequence[Card] = ()
    paragraphs: Sequence[str] = ()
    atlases: Sequence[Atlas] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()

    @property
    def shown(self) -> bool:
        """Whether there is anything in it."""
        return any((self.cards, self.paragraphs, self.atlases, self.pictures, self.tables))


@dataclass(frozen=True)
class Report:
    """Everything that a report shows, and the files beside it.

    Arguments:
        summary: what it all says, in a sentence or two.
        terms: of `glossary.TERMS`, that the page explains.
        warning: why little can be made of it, "" where nothing speaks against it.
        measured: when and with what, see `environment.measured_with`.
        lead: what it rests on, under the title.
        note: the configuration's own, above the tables too where they stand alone.
        before: heads `facts`, labels with values about the network before compression.
        provenance: where the figures are from, labels with values.
        config: of the experiment.
        files: contents by name; `tables.md`, all tables of the sections, comes with them.
    """

    title: str
    before: str
    facts: Mapping[str, str]
    sections: Sequence[Section]
    provenance: Mapping[str, str]
    files: Mapping[str, str]
    summary: str = ""
    terms: Sequence[str] = ()
    warning: str = ""
    measured: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    subtitle: str = ""
    lead: str = ""
    note: str = ""


def write_report(
    workdir: Path, settings: type[T], schema: Schema, compose: Callable[[T, Journal], Report]
) -> Path:
    """Write `workdir/report/` from `config.json` and `metrics.jsonl`; return its `index.html`.

    An unfinished experiment is reported too. The same measurements give the same tables, byte for
    byte, in whatever order they were recorded.

    Arguments:
        compose: what the report shows, but for what its head and its end tell of the settings.

    Raises FileNotFoundError where the configuration is missing, ValueError where one of the files
    cannot be understood, ImportError where matplotlib is not installed.
    """
    raw, asked, measured = read_workdir(workdir, settings, schema)
    subtitle, report = f"{asked.model.name} on {asked.data.name}", compose(asked, measured)
    known = replace(report, subtitle=subtitle, note=asked.note, config=raw)
    return publish(workdir, replace(known, measured=measured_with(measured)))


def publish(workdir: Path, report: Report) -> Path:
    """Write `workdir/report/`; return its `index.html`."""
    folder = page_of(workdir).parent
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    with undone(partial(remove_leftovers, folder)):
        return _publish(folder, report)


def _publish(folder: Path, report: Report) -> Path:
    tables = [table for section in report.sections for table in section.tables]
    pictures = [picture for section in report.sections for picture in section.pictures]
    files = {**report.files, "tables.md": to_markdown(tables, report.note)}
    drawings = {name: svg for one in pictures for name, svg in one.drawings.items()}
    for name, content in {**files, **drawings}.items():
        write_atomically(folder / name, _encoded(content))
    # Last, so that whatever the page refers to is already there.
    write_atomically(folder / "index.html", _encoded(render(report, list(files))))
    return folder / "index.html"


def _encoded(content: str) -> bytes:
    # JSON can hold halves of characters, which no file of text can.
    return content.encode("utf-8", "backslashreplace")


def render(report: Report, files: Sequence[str]) -> str:
    """The page as HTML with links to `files`, all text escaped; nothing comes from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["tau"] = lambda cell: isinstance(cell, Tau)
    environment.filters["number"] = number
    environment.filters["inline"] = inline
    return environment.get_template("page.html.j2").render(
        report=report,
        files=files,
        config=json.dumps(report.config, indent=2),
        meanings=meanings(report.terms),
        provenance={**report.provenance, **versions(), **report.measured},
    )


def baseline_warning(baselines: Iterable[Mapping[str, Any]], metric: str = "accuracy") -> str:
    """Why what compression costs the poorest of some networks says little; "" where it does not.

    It does where the network is no better than chance, and where it is less than half way from
    there to a network without errors: what such a network still has to lose, others need not.

    Arguments:
        baselines: their lines of `metrics.jsonl`; those of earlier versions do not tell the chance.
        metric: its name.
    """
    known = [
        (one["test"]["accuracy"], one.get("chance"))
        for one in baselines
        if "accuracy" in one["test"]
    ]
    if not known:
        return ""
    accuracy, chance = min(known, key=lambda one: one[0])
    has = f"The network before compression has a test {metric} of {percent(accuracy, 2)}"
    if chance is not None and accuracy <= chance:
        return f"{has}, no better than chance: what compression costs it says nothing."
    if accuracy < (1 + (chance or 0.0)) / 2:
        by = "" if chance is None else f" ({percent(chance, 1)})"
        return (
            f"{has}, less than half way from chance{by} to none wrong: what compression costs it "
            "need not be what it costs a network that is trained well."
        )
    return ""


def baseline_facts(
    baseline: Mapping[str, Any] | None, metric: str = "accuracy", loss: str = "cross-entropy"
) -> dict[str, str]:
    """What the page says of a network before compression, from its line of `metrics.jsonl`.

    Arguments:
        metric, loss: their names.
    """
    if not baseline:
        return {"network": "not trained yet"}
    test = baseline["test"]
    return {
        f"test {metric}": percent(test["accuracy"], 2),
        f"test {loss}": number(test["cross_entropy"], 3),
        "test examples": f"{test['count']:,}",
        "parameters": f"{baseline['params']:,}",
        "multiply-adds": f"{millions(baseline['macs'], 1)} M",
    }
