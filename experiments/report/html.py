"""What the pages of all reports are made of: style, labels, pictures, tables; all text escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from experiments.report.text import Cell, TauText, TextTable


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page, its title, and what it shows."""

    file: str
    title: str
    caption: str


STYLE = """
:root {
  --paper: #fbfaf7; --card: #ffffff; --ink: #24292e; --muted: #676d74; --line: #e4e2dc;
  --holds: #00609a; --fails: #b3470b; --undecided: #676d74;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --card: #1e2125; --ink: #e4e6e8; --muted: #9aa1a9; --line: #33383e;
    --holds: #63b3e8; --fails: #f0944d; --undecided: #9aa1a9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3.5rem 1.5rem 5rem; max-width: 68rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1, h2, h3 {
  font-family: "Iowan Old Style", Charter, Palatino, "Palatino Linotype", Georgia, serif;
  font-weight: 600; line-height: 1.2; text-wrap: balance;
}
h1 { font-size: 2.3rem; margin: 0.2rem 0 0.6rem; max-width: 24em; }
h2 { font-size: 1.5rem; margin: 3.5rem 0 0.6rem; }
h3 { font-size: 1.12rem; margin: 0 0 0.4rem; }
p { margin: 0.4rem 0; max-width: 46em; }
h2 + .note { margin-bottom: 1.4rem; }
.eyebrow { color: var(--muted); font-size: 0.92rem; letter-spacing: 0.03em; margin: 0; }
.progress, .note, figcaption, summary { color: var(--muted); font-size: 0.92rem; }
.baseline { margin: 1.8rem 0 0; font-weight: 600; font-size: 0.92rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1.1rem 2.2rem; margin: 0.6rem 0 0; }
.facts div { display: flex; flex-direction: column-reverse; }
.facts dt { color: var(--muted); font-size: 0.82rem; }
.facts dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.facts.small dd { font-size: 1rem; }
article {
  display: grid; gap: 0.6rem 2.4rem; border-top: 1px solid var(--line); padding: 1.5rem 0 1.4rem;
}
@media (min-width: 62rem) { article { grid-template-columns: 21rem minmax(0, 1fr); } }
.verdict { font-size: 0.86rem; font-weight: 650; margin: 0 0 0.5rem; }
.verdict b {
  display: inline-grid; place-items: center; width: 1.35em; height: 1.35em; margin-right: 0.45em;
  border-radius: 50%; background: currentColor;
}
.verdict b span { color: var(--card); font-size: 0.9em; line-height: 1; }
.verdict.holds { color: var(--holds); }
.verdict.fails { color: var(--fails); }
.verdict.undecided { color: var(--undecided); }
.rule { color: var(--muted); font-size: 0.84rem; }
figure { margin: 2rem 0 2.6rem; }
figure img {
  display: block; max-width: 100%; height: auto; padding: 0.8rem; background: #fff;
  border: 1px solid var(--line); border-radius: 6px;
}
figcaption { margin-top: 0.6rem; max-width: 48em; }
figcaption strong { color: var(--ink); }
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums lining-nums;
}
caption { text-align: left; font-weight: 600; padding: 1.6rem 0 0.5rem; }
th, td {
  padding: 0.32rem 1.4rem 0.32rem 0; text-align: left; vertical-align: top; white-space: nowrap;
}
thead th { color: var(--muted); font-weight: 500; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.number { text-align: right; }
.tau span { display: inline-block; text-align: right; }
.tau .signed { min-width: 2.7em; }
.tau .lower { min-width: 3.4em; }
.tau .interval, .tau small { color: var(--muted); }
.tau small { display: block; font-size: 0.92em; padding-left: 0.6em; }
pre {
  font-size: 0.8rem; line-height: 1.45; overflow-x: auto; padding: 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px;
}
summary { cursor: pointer; margin-top: 0.8rem; }
""".strip()


DOCUMENT = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<p class="eyebrow">$subtitle</p>
<h1>$title</h1>
<p class="progress">$lead</p>
<p class="baseline">$before</p>
<dl class="facts">
$facts
</dl>
</header>
<main>
$sections
<section id="provenance">
<h2>Provenance</h2>
<dl class="facts small">
$provenance
</dl>
<p class="note">Files beside this page: $files.</p>
<details>
<summary>Configuration</summary>
<pre>$config</pre>
</details>
</section>
</main>
</body>
</html>
""")


@dataclass(frozen=True)
class Frame:
    """What every report's page has around its own sections, as text.

    Arguments:
        lead: what the page rests on, under the title.
        before: heads `facts`, labels with values about the network before compression.
        provenance: where the figures are from, labels with values.
        config: of the experiment.
        files: beside the page.
    """

    title: str
    subtitle: str
    lead: str
    before: str
    facts: Mapping[str, str]
    provenance: Mapping[str, str]
    config: str
    files: Sequence[str]


def document(frame: Frame, sections: Sequence[str]) -> str:
    """A whole page, its sections given as HTML."""
    return DOCUMENT.substitute(
        style=STYLE,
        title=escape(frame.title),
        subtitle=escape(frame.subtitle),
        lead=escape(frame.lead),
        before=escape(frame.before),
        facts=definitions(frame.facts),
        sections="\n".join(sections),
        provenance=definitions(frame.provenance),
        files=links(frame.files),
        config=escape(frame.config),
    )


def section(name: str, title: str, *body: str, note: str = "") -> str:
    """A part of a page; `name` is its anchor, `body` HTML."""
    head = [f'<section id="{name}">', f"<h2>{escape(title)}</h2>"]
    if note:
        head.append(f'<p class="note">{escape(note)}</p>')
    return "\n".join([*head, *body, "</section>"])


def links(files: Sequence[str]) -> str:
    """Names of files beside a page, as links."""
    return ", ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in files)


def definitions(facts: Mapping[str, str]) -> str:
    """Labels with their values, for a <dl>."""
    return "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )


def picture(shown: Picture) -> str:
    """A picture with its caption."""
    return f"""<figure>
<img src="{escape(shown.file)}" alt="{escape(shown.title)}">
<figcaption><strong>{escape(shown.title)}</strong> {escape(shown.caption)}</figcaption>
</figure>"""


def table(shown: TextTable, *, caption: bool = False) -> str:
    """A table that scrolls where the page is narrow."""
    head = "".join(
        f'<th scope="col"{_class(name, i, shown)}>{escape(name)}</th>'
        for i, name in enumerate(shown.header)
    )
    body = "\n".join(f"<tr>{_cells(row, shown)}</tr>" for row in shown.rows)
    title = f"<caption>{escape(shown.title)}</caption>" if caption else ""
    return f"""<div class="scroll"><table>{title}
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""


def _cells(row: Sequence[Cell], table: TextTable) -> str:
    first = f'<th scope="row">{escape(str(row[0]))}</th>'
    return first + "".join(
        f"<td{_class(cell, i, table)}>{_cell(cell)}</td>" for i, cell in enumerate(row) if i
    )


def _class(cell: Cell, column: int, table: TextTable) -> str:
    if isinstance(cell, TauText):
        return ' class="tau"'
    holds_tau = any(isinstance(row[column], TauText) for row in table.rows)
    return "" if column < table.labels or holds_tau else ' class="number"'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    html = f'<span class="signed">{cell.mean}</span>'
    if cell.std:
        html += f" ± {cell.std}"
    if cell.lower:
        lower = f'<span class="lower">[{cell.lower},</span>'
        html += f' <span class="interval">{lower} {cell.upper}]</span>'
    if cell.published:
        html += f"<small>published {cell.published}</small>"
    return html
