"""From a study's work directory to its report: tables, plots, verdicts, one page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.error_study.data_errors import data_section, empty_section
from experiments.error_study.error_names import ERRORS, error_names
from experiments.error_study.paper import published_study
from experiments.error_study.plots import plot_bars, plot_by_compression, plot_scatter
from experiments.error_study.records import SUBSETS, Study, read_study
from experiments.error_study.settings import StudyConfig
from experiments.error_study.tables import (
    SCOPE_NAMES,
    TAU,
    Resampling,
    TauTables,
    choice_rows,
    complete,
    measurement_rows,
    tau_rows,
    tau_table,
    tau_tables,
    tau_texts,
    unsaving_table,
)
from experiments.error_study.verdicts import FAILS, HOLDS, UNDECIDED, Finding, judge_findings
from experiments.report.correlate import log_classification_error
from experiments.report.page import Card, Picture, Report, Section, publish
from experiments.report.tables import (
    DASH,
    Table,
    crossed,
    framed,
    number,
    percent,
    to_csv,
)

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
    study = read_study(workdir)
    config, paper = study.config, published_study(study.config.published)
    resampling = Resampling(resamples=resamples, seed=config.seed)
    rows = measurement_rows(study)
    choices, tables = choice_rows(rows), tau_tables(rows, config, resampling)
    taus = {
        "compression": tau_rows(tables.by_compression, "compression", paper.by_compression),
        "error": tau_rows(tables.by_error, "error", paper.by_error),
        "scope": tau_rows(tables.by_scope, "scope", paper.by_scope),
    }
    findings = judge_findings(tables, paper, config)
    lead, finished = _progress(rows, config)
    unsaving = unsaving_table(choices)
    cards = [_card(finding) for finding in findings]
    report = Report(
        title=TITLE,
        subtitle=f"{config.model} on {config.data}",
        lead=lead,
        before="Baseline, before any compression",
        facts=_baseline_facts(study),
        sections=[
            Section("findings", "Findings", _judged_by(finished), cards=cards),
            Section("figures", "Figures", pictures=_pictures(study, taus, choices)),
            Section("tables", "Tables", TABLES_NOTE, tables=_tables(config, taus)),
            _data_section(study, tables, taus["error"]),
            Section("unsaving", unsaving.title, tables=[unsaving]),
        ],
        provenance=_provenance(study, resampling),
        config=config.raw,
        files={
            "measurements.csv": to_csv(rows),
            "choices.csv": to_csv(choices),
            "tau_by_compression.csv": to_csv(taus["compression"], decimals=6),
            "tau_errors.csv": to_csv(taus["error"], decimals=6),
            "tau_layers_methods.csv": to_csv(taus["scope"], decimals=6),
            "verdicts.json": _verdicts(findings),
        },
    )
    return publish(workdir, report)


def _data_section(study: Study, tables: TauTables, by_error: pd.DataFrame) -> Section:
    measured, lacking = study.measurements.compressed, study.measurements.lacking_data_errors
    if lacking or not measured:
        return empty_section(len(measured), lacking)
    return data_section(tables, by_error, study.config.phases, _bars(study.config))


def _tables(config: StudyConfig, taus: Mapping[str, pd.DataFrame]) -> list[Table]:
    levels = {level: percent(level) for level in sorted(config.compressions)}
    names: dict[str, Mapping[Any, str]]
    names = {"compression": levels, "error": error_names(ERRORS), "scope": SCOPE_NAMES}
    titles = {
        "compression": "Tau by compression, Relative Weights",
        "error": "Tau by error, compression of 50 % and more",
        "scope": (
            "Tau over layers, methods and all, Relative Weights, compression of 50 % and more"
        ),
    }
    return [tau_table(title, name, names[name], taus[name]) for name, title in titles.items()]


def _pictures(
    study: Study, taus: Mapping[str, pd.DataFrame], choices: pd.DataFrame
) -> list[Picture]:
    config, bars = study.config, _bars(study.config)
    wrong = None
    if (baseline := study.measurements.baseline) is not None:
        test = baseline.test
        wrong = math.exp(log_classification_error(test.accuracy, test.count))
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
            plot_scatter(choices, config.layers, config.methods, config.phases, wrong),
        ),
    ]


def _bars(config: StudyConfig) -> str:
    text = "Bars: 95 % bootstrap intervals."
    if config.published:
        text += f" Diamonds: values published for {config.published}."
    return text


def _card(finding: Finding) -> Card:
    style, sign = SIGNS[finding.verdict]
    evidence = framed([dataclasses.asdict(one) for one in finding.evidence], EVIDENCE)
    heads = {phase: f"{phase} fine-tuning" for phase in evidence["phase"].unique()}
    return Card(
        name=f"finding-{finding.number}",
        title=f"{finding.number}. {finding.claim}",
        answer=finding.verdict,
        sign=sign,
        style=style,
        grounds=finding.reasons,
        rule=f"Rule: {finding.rule}",
        table=Table(
            "Figures that decide",
            crossed(tau_texts(evidence), {"label": "tau, test set"}, "phase", heads),
        ),
    )


def _judged_by(finished: bool) -> str:
    provisional = "" if finished else "Provisional: the study is unfinished. "
    return (
        f"{provisional}Kendall's tau-a on the test set: mean ± standard deviation over the runs, "
        "with the 95 % bootstrap interval over choices and runs in brackets. Two taus are not "
        "distinguishable where the interval of their difference covers 0; fewer than six complete "
        "choices decide nothing. A finding does not hold where it fails in one phase, and holds "
        "where it holds in all."
    )


def _progress(rows: pd.DataFrame, config: StudyConfig) -> tuple[str, bool]:
    """How much of the study is there, and whether it is all of it."""
    choices = len(config.layers) * len(config.methods) * len(config.compressions)
    total, plan = choices * config.runs, f"{choices} choices in {config.runs} runs"
    measured = {phase: rows[f"test/{phase}/accuracy"].count() for phase in config.phases}
    if set(measured.values()) == {total}:
        when = "before and after fine-tuning" if "after" in measured else "without fine-tuning"
        return f"Complete: {plan}, {total} of {total} measured {when}.", True
    counts = ", ".join(
        f"{count} of {total} measured {phase} fine-tuning" for phase, count in measured.items()
    )
    whole = " and ".join(
        f"{len(complete(rows, config, phase)) // config.runs} {phase}" for phase in config.phases
    )
    text = (
        f"Unfinished: {plan}; {counts}. "
        f"Only choices measured in every run count towards tau: {whole} fine-tuning."
    )
    return text, False


def _baseline_facts(study: Study) -> dict[str, str]:
    baseline = study.measurements.baseline
    if baseline is None:
        return {"baseline": "not trained yet"}
    facts = {}
    for subset in SUBSETS:
        performance = getattr(baseline, subset)
        facts[f"{subset} accuracy"] = percent(performance.accuracy, 2)
        facts[f"{subset} cross-entropy"] = number(performance.cross_entropy, 3)
    facts["parameters"] = f"{baseline.params:,}"
    if baseline.macs is not None:
        facts["multiply-adds"] = f"{baseline.macs / 1e6:,.1f} M"
    if baseline.epoch is not None:
        facts["epoch kept"] = str(baseline.epoch)
    return facts


def _provenance(study: Study, resampling: Resampling) -> dict[str, str]:
    config = study.config
    return {
        "layers": str(len(config.layers)),
        "methods": ", ".join(config.methods),
        "runs": str(config.runs),
        "seed": str(config.seed),
        "bootstrap resamples": f"{resampling.resamples:,}",
        "published values": config.published or DASH,
    }


def _verdicts(findings: Sequence[Finding]) -> str:
    def plain(record: Mapping[str, object]) -> dict[str, object]:
        # JSON has no NaN.
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in record.items()
        }

    records = [
        dataclasses.asdict(finding)
        | {"evidence": [plain(dataclasses.asdict(evidence)) for evidence in finding.evidence]}
        for finding in findings
    ]
    return json.dumps(records, indent=2) + "\n"
