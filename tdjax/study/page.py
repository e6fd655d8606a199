"""The report's one HTML page: plain templates, all text escaped, no scripts, no outside files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from tdjax.study.findings import Finding
from tdjax.study.html import STYLE, Picture, definitions, links, picture, table
from tdjax.study.rules import FAILS, HOLDS, UNDECIDED
from tdjax.study.text import DASH, TauText, TextTable, tau_text


@dataclass(frozen=True)
class Section:
    """A part of the page with text, pictures and tables of its own; `name` is its anchor."""

    name: str
    title: str
    paragraphs: Sequence[str]
    pictures: Sequence[Picture]
    tables: Sequence[TextTable]


@dataclass(frozen=True)
class Page:
    """Everything the page shows, as text; `facts` and `provenance` are labels with values."""

    title: str
    subtitle: str
    progress: str
    facts: Mapping[str, str]
    findings: Sequence[Finding]
    judged_by: str
    pictures: Sequence[Picture]
    tables: Sequence[TextTable]
    tables_note: str
    beside: Section
    unsaving: TextTable
    provenance: Mapping[str, str]
    config: str
    files: Sequence[str]


BADGES = {HOLDS: ("holds", "\N{CHECK MARK}"), FAILS: ("fails", "\N{MULTIPLICATION SIGN}")}
BADGES[UNDECIDED] = ("undecided", "?")

TEMPLATE = Template("""<!doctype html>
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
<p class="progress">$progress</p>
<p class="baseline">Baseline, before any compression</p>
<dl class="facts">
$facts
</dl>
</header>
<main>
<section id="findings">
<h2>Findings</h2>
<p class="note">$judged_by</p>
$findings
</section>
<section id="figures">
<h2>Figures</h2>
$pictures
</section>
<section id="tables">
<h2>Tables</h2>
<p class="note">$tables_note</p>
$tables
</section>
$beside
<section id="unsaving">
<h2>$unsaving_title</h2>
$unsaving
</section>
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


def render_page(page: Page) -> str:
    """The page as HTML text; verdicts come first, then figures, tables, and where they are from."""
    return TEMPLATE.substitute(
        style=STYLE,
        title=escape(page.title),
        subtitle=escape(page.subtitle),
        progress=escape(page.progress),
        facts=definitions(page.facts),
        judged_by=escape(page.judged_by),
        findings="\n".join(map(_finding, page.findings)),
        pictures="\n".join(map(picture, page.pictures)),
        tables_note=escape(page.tables_note),
        tables="\n".join(table(shown, caption=True) for shown in page.tables),
        beside=_section(page.beside),
        unsaving_title=escape(page.unsaving.title),
        unsaving=table(page.unsaving) if page.unsaving.rows else "<p>None.</p>",
        provenance=definitions(page.provenance),
        files=links(page.files),
        config=escape(page.config),
    )


def _finding(finding: Finding) -> str:
    style, sign = BADGES[finding.verdict]
    phases = list(dict.fromkeys(evidence.phase for evidence in finding.evidence))
    by_label: dict[str, dict[str, TauText]] = {}
    for e in finding.evidence:
        text = tau_text(e.mean, e.std, e.lower, e.upper, e.published_mean, e.published_std)
        by_label.setdefault(e.label, {})[e.phase] = text
    found = TextTable(
        "Figures that decide",
        ("tau, test set", *(f"{phase} fine-tuning" for phase in phases)),
        tuple(
            (label, *(taus.get(phase, DASH) for phase in phases))
            for label, taus in by_label.items()
        ),
    )
    reasons = "\n".join(f"<p>{escape(reason)}</p>" for reason in finding.reasons)
    return f"""<article id="finding-{finding.number}">
<div>
<p class="verdict {style}"><b aria-hidden="true"><span>{sign}</span></b>{finding.verdict}</p>
<h3>{finding.number}. {escape(finding.claim)}</h3>
{reasons}
<p class="rule">Rule: {escape(finding.rule)}</p>
</div>
<div>
{table(found) if found.rows else ""}
</div>
</article>"""


def _section(section: Section) -> str:
    parts = [f'<p class="note">{escape(text)}</p>' for text in section.paragraphs[:1]]
    parts += [f"<p>{escape(text)}</p>" for text in section.paragraphs[1:]]
    parts += map(picture, section.pictures)
    parts += [table(shown, caption=True) for shown in section.tables]
    body = "\n".join(parts)
    return f"""<section id="{section.name}">
<h2>{escape(section.title)}</h2>
{body}
</section>"""
