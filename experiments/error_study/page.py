"""The report's one HTML page: plain templates, all text escaped, no scripts, no outside files."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from experiments.error_study.findings import Finding
from experiments.error_study.verdicts import FAILS, HOLDS, UNDECIDED
from experiments.report.html import Frame, Picture, document, picture, section, table
from experiments.report.text import DASH, TauText, TextTable, tau_text


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
    """Everything the page shows, as text."""

    frame: Frame
    findings: Sequence[Finding]
    judged_by: str
    pictures: Sequence[Picture]
    tables: Sequence[TextTable]
    tables_note: str
    beside: Section
    unsaving: TextTable


BADGES = {HOLDS: ("holds", "\N{CHECK MARK}"), FAILS: ("fails", "\N{MULTIPLICATION SIGN}")}
BADGES[UNDECIDED] = ("undecided", "?")


def render_page(page: Page) -> str:
    """The page as HTML text; verdicts come first, then figures, tables, and where they are from."""
    unsaving = table(page.unsaving) if page.unsaving.rows else "<p>None.</p>"
    return document(
        page.frame,
        [
            section("findings", "Findings", *map(_finding, page.findings), note=page.judged_by),
            section("figures", "Figures", *map(picture, page.pictures)),
            section("tables", "Tables", *_captioned(page.tables), note=page.tables_note),
            _beside(page.beside),
            section("unsaving", page.unsaving.title, unsaving),
        ],
    )


def _captioned(tables: Sequence[TextTable]) -> list[str]:
    return [table(shown, caption=True) for shown in tables]


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


def _beside(part: Section) -> str:
    first, *others = part.paragraphs
    paragraphs = [f"<p>{escape(text)}</p>" for text in others]
    pictures = map(picture, part.pictures)
    body = (*paragraphs, *pictures, *_captioned(part.tables))
    return section(part.name, part.title, *body, note=first)
