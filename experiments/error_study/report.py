"""From a study's work directory to its report: tables, plots, verdicts, one page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.error_study.data_errors import data_section
from experiments.error_study.deviations import deviations
from experiments.error_study.error_names import ERRORS, error_names
from experiments.error_study.judging import FAILS, HOLDS, MARGINS, UNDECIDED
from experiments.error_study.paper import published_study
from experiments.error_study.plots import plot_bars, plot_by_compression, plot_scatter
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import SUBSETS, read_study
from experiments.error_study.tables import (
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
from experiments.report.correlate import log_classification_error
from experiments.report.page import Card, Picture, Report, Section, publish
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
from experiments.workdir.journal import Record

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
DEVIATIONS = "What differs from the published study"
TABLES_NOTE = "Mean ± standard deviation over the runs [95 % bootstrap interval]."


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
    paper, baseline = published_study(settings.published), measured.get("baseline", network=0)
    rows = measurement_rows(settings, measured)
    choices, all_taus = choice_rows(rows), measured_taus(rows, settings, resamples=resamples)
    taus = {kind: tau_rows(all_taus, kind, paper) for kind in TITLES}
    findings = judge_findings(all_taus, paper, settings.phases)
    lead, finished = _progress(rows, settings)
    unsaving = unsaving_table(choices)
    report = Report(
        title=TITLE,
        subtitle=f"{settings.model.name} on {settings.data.name}",
        lead=lead,
        before="Baseline, before any compression",
        facts=_baseline_facts(settings, baseline),
        sections=[
            Section("findings", "Findings", _judged_by(finished), cards=_cards(findings)),
            Section("figures", "Figures", pictures=_pictures(settings, baseline, taus, choices)),
            Section("tables", "Tables", TABLES_NOTE, tables=_tables(settings, taus)),
            data_section(settings, measured, all_taus, taus["error"], _bars(settings)),
            Section("unsaving", unsaving.title, tables=[unsaving]),
            Section("deviations", DEVIATIONS, paragraphs=deviations(settings)),
        ],
        provenance=_provenance(settings, resamples),
        config=raw,
        files={
            "measurements.csv": to_csv(_without_constant(rows, settings)),
            "choices.csv": to_csv(choices),
            "tau_by_compression.csv": to_csv(taus["compression"], decimals=6),
            "tau_errors.csv": to_csv(taus["error"], decimals=6),
            "tau_layers_methods.csv": to_csv(taus["scope"], decimals=6),
            "verdicts.json": _verdicts(findings),
        },
    )
    return publish(workdir, report)


def _without_constant(rows: pd.DataFrame, settings: Protocol) -> pd.DataFrame:
    """The rows without the number of the network where there is one, as earlier versions had."""
    return rows if settings.networks > 1 else rows.drop(columns="network")


def _tables(settings: Protocol, taus: Mapping[str, pd.DataFrame]) -> list[Table]:
    names: dict[str, Mapping[Any, str]] = {
        "compression": {level: percent(level) for level in sorted(settings.levels)},
        "error": error_names(ERRORS),
        "scope": SCOPE_NAMES,
    }
    return [tau_table(title, kind, names[kind], taus[kind]) for kind, title in TITLES.items()]


def _pictures(
    settings: Protocol,
    baseline: Record | None,
    taus: Mapping[str, pd.DataFrame],
    choices: pd.DataFrame,
) -> list[Picture]:
    wrong, bars = None, _bars(settings)
    if baseline is not None:
        test = baseline["test"]
        wrong = math.exp(log_classification_error(test["accuracy"], test["count"]))
    return [
        Picture(
            "tau_by_compression.png",
            "Tau over layers and methods, by compression.",
            f"Relative Weights error against log classification error, test set. {bars}",
            plot_by_compression(taus["compression"]),
        ),
        Picture(
            "tau_errors.png",
            "Tau of the six approximation errors.",
            f"All choices that remove at least half of a layer, test set. {bars}",
            plot_bars(taus["error"], "error", error_names(ERRORS)),
        ),
        Picture(
            "tau_layers_methods.png",
            "Tau over layers only, methods only, and all choices.",
            "Relative Weights, choices that remove at least half of a layer; "
            f"averages over what is held fixed. {bars}",
            plot_bars(taus["scope"], "scope", SCOPE_NAMES, subsets=SUBSETS),
        ),
        Picture(
            "scatter.png",
            "Approximation error against classification error.",
            "Each mark is one choice, the mean over its runs; colour is the layer, from dark "
            "(near the input) to light, shape the method. The error axis is logarithmic.",
            plot_scatter(choices, settings.layers, settings.methods, settings.phases, wrong),
        ),
    ]


def _bars(settings: Protocol) -> str:
    text = "Bars: 95 % bootstrap intervals."
    if settings.published:
        text += f" Diamonds: values published for {settings.published}."
    return text


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


def _judged_by(finished: bool) -> str:
    provisional = "" if finished else "Provisional: the study is unfinished. "
    share = percent(MARGINS.error)
    return (
        f"{provisional}Kendall's tau-a on the test set: mean ± standard deviation over the runs, "
        "with the 95 % bootstrap interval over choices and runs in brackets. Verdicts rest on "
        "one-sided bounds, the mean less and plus a quantile of Student's t times the standard "
        f"deviation of the resamples: a wrong \N{LEFT DOUBLE QUOTATION MARK}holds"
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
    total, phases = len(settings.keys), settings.phases
    plan = f"{len(settings.choices)} choices in {settings.runs} runs"
    measured = {phase: rows[f"test/{phase}/accuracy"].count() for phase in phases}
    if set(measured.values()) == {total}:
        when = "before and after fine-tuning" if "after" in measured else "without fine-tuning"
        return f"Complete: {plan}, {total} of {total} measured {when}.", True
    counts = ", ".join(
        f"{count} of {total} measured {phase} fine-tuning" for phase, count in measured.items()
    )
    whole = " and ".join(
        f"{len(complete(rows, settings, phase)) // settings.runs} {phase}" for phase in phases
    )
    text = (
        f"Unfinished: {plan}; {counts}. "
        f"Only choices measured in every run count towards tau: {whole} fine-tuning."
    )
    return text, False


def _baseline_facts(settings: Protocol, baseline: Record | None) -> dict[str, str]:
    if baseline is None:
        return {"baseline": "not trained yet"}
    facts, asked = {}, settings.network
    for subset in SUBSETS:
        facts[f"{subset} {asked.metric_name}"] = percent(baseline[subset]["accuracy"], 2)
        facts[f"{subset} {asked.loss_name}"] = number(baseline[subset]["cross_entropy"], 3)
    facts["parameters"] = f"{baseline['params']:,}"
    # Studies of early versions lack these.
    if (macs := baseline.get("macs")) is not None:
        facts["multiply-adds"] = f"{millions(macs, 1)} M"
    if (epoch := baseline.get("epoch")) is not None:
        facts["epoch kept"] = str(epoch)
    return facts


def _provenance(settings: Protocol, resamples: int) -> dict[str, str]:
    return {
        "layers": str(len(settings.layers)),
        "methods": ", ".join(settings.methods),
        "runs": str(settings.runs),
        "seed": str(settings.seed),
        "bootstrap resamples": f"{resamples:,}",
        "published values": settings.published or DASH,
    }


def _verdicts(findings: Sequence[Finding]) -> str:
    text = json.dumps([asdict(finding) for finding in findings])
    # JSON has no NaN.
    plain = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(plain, indent=2) + "\n"
