import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from experiments.report.maps import Cell, Map
from experiments.report.page import (
    Atlas,
    Card,
    Picture,
    Report,
    Section,
    baseline_facts,
    baseline_warning,
    publish,
)
from experiments.report.tables import Table, Tau

CELLS = pd.DataFrame({"layer <1>": ["conv & dense"], "tau": [Tau(0.5, 0.1, 0.3, 0.7)]})
PLOT = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="3" height="2" viewBox="0 0 3 2">'
    '<defs><path id="m1"></path></defs><use href="#m1"></use></svg>\n'
)
CELL = Cell("3.1", 0.5, "1 < 2")
CARD = Card("one", "1. It holds.", "holds", "!", "holds", ["So."], "Rule: r.", Table("T", CELLS))
REPORT = Report(
    title="A <title>",
    subtitle="net on data",
    before="Before",
    facts={"accuracy": "93 %"},
    sections=[
        Section(
            "first",
            "First",
            "A note.",
            cards=[
                Card(
                    "one",
                    "1. It holds.",
                    "holds",
                    "!",
                    "holds",
                    ["So."],
                    "Rule: r.",
                    Table("T", CELLS),
                )
            ],
            pictures=[Picture("A plot.", "Of x.", {"plot.svg": PLOT})],
            atlases=[Atlas("A map.", "Of y.", [Map("M", "layer <2>", ("10 %",), {"l": (CELL,)})])],
        ),
        Section("second", "Second", paragraphs=["Text."], tables=[Table("A table", CELLS)]),
        Section("third", "Third", tables=[Table("Third", CELLS[:0])]),
    ],
    provenance={"seed": "0"},
    config={"name": "<script>"},
    files={"rows.csv": "x\n1\n"},
    note="It is noted.",
    summary="It is so.",
    warning="It is poor.",
    terms=("tau",),
    measured={"jax": "0.0.1"},
)


class WellFormed(HTMLParser):
    """Every tag closed in order; collects ids and links."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.files = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        links = [attributes[name] for name in ("src", "href") if name in attributes]
        # Others are of a figure's own parts.
        self.files += [link for link in links if not link.startswith("#")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    page = publish(tmp_path_factory.mktemp("published"), REPORT)
    assert page.name == "index.html"
    return page.parent


def test_the_folder_holds_what_the_page_refers_to(folder):
    assert {file.name for file in folder.iterdir()} == {
        "index.html",
        "plot.svg",
        "rows.csv",
        "tables.md",
    }
    page = WellFormed((folder / "index.html").read_text())
    assert page.files == ["plot.svg", "rows.csv", "tables.md"]
    assert page.ids == [
        *("glossary", "first", "one", "plot-svg-m1", "second", "third", "provenance")
    ]


def test_all_text_is_escaped_and_nothing_comes_from_elsewhere(folder):
    html = (folder / "index.html").read_text()
    assert "<title>A &lt;title&gt;</title>" in html
    assert "conv &amp; dense" in html
    assert "layer &lt;1&gt;" in html
    assert "&lt;script&gt;" in html
    # The page's own, and no other.
    assert html.count("<script") == 1
    assert "layer &lt;2&gt;" in html
    assert "1 &lt; 2" in html
    # In a page, SVG needs no name.
    assert "xmlns" not in html
    assert "http" not in html
    assert "{{" not in html
    assert re.search(r"body \{[^}]*font:", html)


def test_every_part_is_shown(folder):
    html = " ".join((folder / "index.html").read_text().split())
    for text in ("It is noted.", "It is so.", "It is poor.", "Of y.", "rank correlation"):
        assert text in html
    # What it was measured with, not what reports.
    assert "<dt>jax</dt><dd>0.0.1</dd>" in html
    for text in ("A note.", "1. It holds.", "Rule: r.", "Text.", "93 %", "Of x."):
        assert text in html
    # A section's only table takes its title; one without rows says so.
    assert html.count("Third") == 1
    assert "None." in html
    assert '<h3 class="table">A table</h3>' in html
    assert "± 0.10" in html
    for package in ("tdjax", "jax", "numpy"):
        assert f"<dt>{package}</dt>" in html


def test_tables_stand_alone_below_the_note(folder):
    text = (folder / "tables.md").read_text()
    assert text.startswith("It is noted.\n\n## A table\n\n| layer <1> | tau |\n")
    assert "| conv & dense | 0.50 ± 0.10 [0.30, 0.70] |" in text
    assert text.endswith("## Third\n\nNone.\n")


def test_facts_of_a_baseline():
    test = {"accuracy": 0.931, "cross_entropy": 0.2764, "count": 10_000}
    facts = baseline_facts({"params": 557_642, "macs": 94_040_000, "test": test})
    assert list(facts.values()) == ["93.10 %", "0.276", "10,000", "557,642", "94.0 M"]
    assert baseline_facts(None) == {"network": "not trained yet"}


@pytest.mark.parametrize(
    ("accuracy", "chance", "said"),
    [(0.1, 0.12, "no better than chance"), (0.5, 0.12, "less than half way"), (0.6, 0.12, ""),
     (0.4, None, "less than half way"), (0.55, None, "")],
)  # fmt: skip
def test_a_poor_baseline_is_warned_of(accuracy, chance, said):
    good = {"test": {"accuracy": 0.9}, "chance": chance}
    poor = {"test": {"accuracy": accuracy}, "chance": chance}
    found = baseline_warning([good, poor])
    assert said in found
    assert bool(found) == bool(said)
    # The mean squared error alone has no chance.
    assert baseline_warning([{"test": {"loss": 1.0}}]) == ""
