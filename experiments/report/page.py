"""A report's folder: its files, its pictures, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from experiments.network.settings import NetworkSettings
from experiments.report.tables import Table, Tau, millions, number, percent, to_markdown
from experiments.workdir.environment import versions
from experiments.workdir.files import remove_leftovers
from experiments.workdir.journal import Journal, Schema, read_workdir
from experiments.workdir.stops import undone
from tdjax.files import write_atomically

T = TypeVar("T", bound=NetworkSettings)


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page, its title, and what it shows."""

    file: str
    title: str
    caption: str
    png: bytes


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
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Report:
    """Everything that a report shows, and the files beside it.

    Arguments:
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
    subtitle = f"{asked.model.name} on {asked.data.name}"
    report = compose(asked, measured)
    return publish(workdir, replace(report, subtitle=subtitle, note=asked.note, config=raw))


def publish(workdir: Path, report: Report) -> Path:
    """Write `workdir/report/`; return its `index.html`."""
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    with undone(partial(remove_leftovers, folder)):
        return _publish(folder, report)


def _publish(folder: Path, report: Report) -> Path:
    tables = [table for section in report.sections for table in section.tables]
    pictures = [picture for section in report.sections for picture in section.pictures]
    files: dict[str, str | bytes] = {**report.files, "tables.md": to_markdown(tables, report.note)}
    for name, content in {**files, **{one.file: one.png for one in pictures}}.items():
        write_atomically(folder / name, _encoded(content))
    # Last, so that whatever the page refers to is already there.
    write_atomically(folder / "index.html", _encoded(render(report, list(files))))
    return folder / "index.html"


def _encoded(content: str | bytes) -> bytes:
    # JSON can hold halves of characters, which no file of text can.
    return content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")


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
    return environment.get_template("page.html.j2").render(
        report=report,
        files=files,
        config=json.dumps(report.config, indent=2),
        provenance={**report.provenance, **versions()},
    )


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
        "test images": f"{test['count']:,}",
        "parameters": f"{baseline['params']:,}",
        "multiply-adds": f"{millions(baseline['macs'], 1)} M",
    }
