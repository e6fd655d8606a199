"""From a study's work directory to its report: tables, plots, verdicts, one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.error_study.answers import what_to_use
from experiments.error_study.data_errors import data_section
from experiments.error_study.deviations import deviations
from experiments.error_study.error_names import ERRORS, error_names
from experiments.error_study.figures import (
    bars_text,
    curves_section,
    figures_section,
    lost_section,
)
from experiments.error_study.judging import FAILS, HOLDS, MARGINS, UNDECIDED
from experiments.error_study.networks import (
    counted_networks,
    meaning_of_figures,
    network_rows,
    network_tables,
    reach_of_figures,
)
from experiments.error_study.paper import published_study
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import SUBSETS, read_study
from experiments.error_study.tables import (
    CHOICE,
    SCOPE_NAMES,
    TAU,
    choice_rows,
    complete,
    measured_taus,
    measurement_rows,
    tau_rows,
    tau_table,
    tau_texts,
    unsaving_table,
)
from experiments.error_study.verdicts import Finding, judge_findings
from experiments.report.page import (
    Card,
    Report,
    Section,
    baseline_warning,
    publish,
)
from experiments.report.tables import (
    DASH,
    Table,
    crossed,
    framed,
    millions,
    number,
    percent,
    to_csv,
)
from experiments.workdir.environment import measured_with
from experiments.workdir.journal import Journal
from experiments.workdir.record_fields import Record

TITLE = (
    "Does the approximation error predict "
    "the compressed network\N{RIGHT SINGLE QUOTATION MARK}s performance?"
)
SIGNS = {
    HOLDS: ("holds", "\N{CHECK MARK}"),
    FAILS: ("fails", "\N{MULTIPLICATION SIGN}"),
    UNDECIDED: ("undecided", "?"),
}
EVIDENCE = {"label": str, "phase": str, **dict.fromkeys(TAU, float)}
TITLES = {
    "compression": "Tau by compression, Relative Weights",
    "error": "Tau by error, compression of 50 % and more",
    "scope": "Tau over layers, methods and all, Relative Weights, compression of 50 % and more",
}
TERMS = (
    "choice", "compression", "run", "network", "phase", "tau", "absolute, relative, scaled",
    "weights", "features", "covariance, kronecker", "interval",
)  # fmt: skip
DEVIATIONS = "What differs from the published study"


def write_report(workdir: Path, *, resamples: int = 2000) -> Path:
    """Write `workdir/report/` from `config.json` and `metrics.jsonl`; return its `index.html`.

    An unfinished study is reported too, with how much of it is there. The same measurements give
    the same tables, byte for byte, in whatever order they were recorded.

    Arguments:
        workdir: the study's work directory.
        resamples: bootstrap resamples behind each interval, drawn with the study's seed.

    Raises:
        FileNotFoundError: where one of the two files is missing.
        ValueError: where one of them cannot be understood (see `records.read_study`).
        ImportError: where matplotlib is not installed.
    """
    raw, settings, measured = read_study(workdir)
    paper, baselines = published_study(settings.published), _baselines(measured)
    rows = measurement_rows(settings, measured)
    choices, all_taus = choice_rows(rows), measured_taus(rows, settings, resamples=resamples)
    several, counted = settings.networks > 1, counted_networks(rows, settings)
    taus = {kind: tau_rows(all_taus, kind, paper, several=several) for kind in TITLES}
    by_network = network_rows(all_taus, counted) if several else None
    findings = judge_findings(all_taus, paper, settings.phases)
    lead, finished = _progress(rows, settings)
    unsaving = unsaving_table(choices)
    report = Report(
        title=TITLE,
        summary=what_to_use(all_taus, paper, settings.phases),
        warning=baseline_warning(baselines, settings.network.metric_name),
        terms=TERMS,
        subtitle=f"{settings.model.name} on {settings.data.name}",
        lead=lead,
        before="Baseline, before any compression",
        facts=_baseline_facts(settings, baselines),
        sections=[
            Section("findings", "Findings", _judged_by(settings, finished), cards=_cards(findings)),
            lost_section(settings, rows, baselines),
            figures_section(settings, baselines, taus, choices),
            curves_section(settings, measured),
            _tables(settings, taus, by_network),
            data_section(settings, measured, all_taus, taus["error"], bars_text(settings)),
            Section("unsaving", unsaving.title, tables=[unsaving]),
            Section("deviations", DEVIATIONS, paragraphs=deviations(settings)),
        ],
        provenance=_provenance(settings, resamples),
        measured=measured_with(measured),
        config=raw,
        files={
            "measurements.csv": to_csv(_without_constant(rows, settings)),
            "choices.csv": to_csv(choices),
            "tau_by_compression.csv": to_csv(taus["compression"], decimals=6),
            "tau_errors.csv": to_csv(taus["error"], decimals=6),
            "tau_layers_methods.csv": to_csv(taus["scope"], decimals=6),
            "verdicts.json": _verdicts(findings),
            **({} if by_network is None else {"tau_by_network.csv": to_csv(by_network, 6)}),
        },
    )
    return publish(workdir, report)


def _baselines(measured: Journal) -> list[Record]:
    return sorted(measured.of_kind("baseline"), key=lambda one: one["network"])


def _without_constant(rows: pd.DataFrame, settings: Protocol) -> pd.DataFrame:
    """The rows without the number of the network where there is one, as earlier versions had."""
    return rows if settings.networks > 1 else rows.drop(columns="network")


def _tables(
    settings: Protocol, taus: Mapping[str, pd.DataFrame], by_network: pd.DataFrame | None
) -> Section:
    names: dict[str, Mapping[Any, str]] = {
        "compression": {level: percent(level) for level in sorted(settings.levels)},
        "error": error_names(ERRORS),
        "scope": SCOPE_NAMES,
    }
    tables = [tau_table(title, kind, names[kind], taus[kind]) for kind, title in TITLES.items()]
    if by_network is not None:
        tables += network_tables(by_network, settings.phases)
    note = meaning_of_figures(settings)
    return Section("tables", "Tables", f"{note[0].upper()}{note[1:]}.", tables=tables)


def _cards(findings: Sequence[Finding]) -> list[Card]:
    cards = []
    for finding in findings:
        style, sign = SIGNS[finding.verdict]
        evidence = framed(finding.evidence, EVIDENCE)
        heads = {phase: f"{phase} fine-tuning" for phase in evidence["phase"].unique()}
        cells = crossed(tau_texts(evidence), {"label": "tau, test set"}, "phase", heads)
        card = Card(
            name=f"finding-{finding.number}",
            title=f"{finding.number}. {finding.claim}",
            answer=finding.verdict,
            sign=sign,
            style=style,
            grounds=finding.reasons,
            rule=f"Rule: {finding.rule}",
            table=Table("Figures that decide", cells),
        )
        cards.append(card)
    return cards


def _judged_by(settings: Protocol, finished: bool) -> str:
    provisional = "" if finished else "Provisional: the study is unfinished. "
    share = percent(MARGINS.error)
    return (
        f"{provisional}Kendall's tau-a on the test set: {meaning_of_figures(settings)}. "
        f"{reach_of_figures(settings)} Verdicts rest on one-sided bounds, the mean less and plus a "
        "quantile of Student's t times its standard error, which is taken from pairs of choices "
        "that share one, and from how networks differ: a wrong \N{LEFT DOUBLE QUOTATION MARK}holds"
        f"\N{RIGHT DOUBLE QUOTATION MARK} has a probability of at most {share}, and so has a wrong "
        "\N{LEFT DOUBLE QUOTATION MARK}does not hold\N{RIGHT DOUBLE QUOTATION MARK}, for each "
        "finding, whichever of several comparisons leads to it. An error is no better than another "
        f"where its tau is higher by less than {MARGINS.better:g}, and taus are about equal where "
        f"they differ by less than {MARGINS.near:g}. Fewer than six complete choices decide "
        "nothing. A finding does not hold where it fails in one phase, and holds where it holds "
        "in all."
    )


def _progress(rows: pd.DataFrame, settings: Protocol) -> tuple[str, bool]:
    """How much of the study is there, and whether it is all of it."""
    total, phases, several = len(settings.keys), settings.phases, settings.networks > 1
    plan = f"{len(settings.choices)} choices in {settings.runs} runs"
    plan += f" on each of {settings.networks} networks" if several else ""
    measured = {phase: rows[f"test/{phase}/accuracy"].count() for phase in phases}
    if set(measured.values()) == {total}:
        when = "before and after fine-tuning" if "after" in measured else "without fine-tuning"
        return f"Complete: {plan}, {total} of {total} measured {when}.", True
    counts = ", ".join(
        f"{count} of {total} measured {phase} fine-tuning" for phase, count in measured.items()
    )
    counted = {phase: complete(rows, settings, phase) for phase in phases}
    whole = " and ".join(f"{len(own.drop_duplicates(CHOICE))} {p}" for p, own in counted.items())
    text = (
        f"Unfinished: {plan}; {counts}. "
        f"Only choices measured in every run count towards tau: {whole} fine-tuning."
    )
    if several:
        networks = " and ".join(f"{own['network'].nunique()} {p}" for p, own in counted.items())
        text += (
            " Of networks those count on which all choices are, and until there is one the "
            f"furthest alone: {networks} fine-tuning."
        )
    return text, False


def _baseline_facts(settings: Protocol, baselines: Sequence[Record]) -> dict[str, str]:
    if not baselines:
        return {"baseline": "not trained yet"}
    facts, asked, first = {}, settings.network, baselines[0]

    def mean(subset: str, name: str) -> float:
        return sum(one[subset][name] for one in baselines) / len(baselines)

    for subset in SUBSETS:
        facts[f"{subset} {asked.metric_name}"] = percent(mean(subset, "accuracy"), 2)
        facts[f"{subset} {asked.loss_name}"] = number(mean(subset, "cross_entropy"), 3)
    facts["parameters"] = f"{first['params']:,}"
    # Studies of early versions lack these.
    if (macs := first.get("macs")) is not None:
        facts["multiply-adds"] = f"{millions(macs, 1)} M"
    epochs = [one["epoch"] for one in baselines if one.get("epoch") is not None]
    if epochs:
        facts["epoch kept"] = ", ".join(map(str, epochs))
    if settings.networks > 1:
        facts["networks, of which these are means"] = str(len(baselines))
    return facts


def _provenance(settings: Protocol, resamples: int) -> dict[str, str]:
    seeds = range(settings.seed, settings.seed + settings.networks)
    return {
        "layers": str(len(settings.layers)),
        "methods": ", ".join(settings.methods),
        "networks": str(settings.networks),
        "runs": str(settings.runs),
        "seed" if settings.networks == 1 else "seeds": ", ".join(map(str, seeds)),
        "bootstrap resamples": f"{resamples:,}",
        "published values": settings.published or DASH,
    }


def _verdicts(findings: Sequence[Finding]) -> str:
    text = json.dumps([asdict(finding) for finding in findings])
    # JSON has no NaN.
    plain = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(plain, indent=2) + "\n"
