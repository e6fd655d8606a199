"""From a study's work directory to its report: tables, plots, verdicts, one page."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.error_study.data_section import data_section
from experiments.error_study.error_names import ERRORS, error_names
from experiments.error_study.export import choice_rows, measurement_rows, to_csv
from experiments.error_study.findings import Finding, judge_findings
from experiments.error_study.page import Page, render_page
from experiments.error_study.paper import published_study
from experiments.error_study.plots import plot_bars, plot_by_compression, plot_scatter
from experiments.error_study.records import SUBSETS, Study, read_study
from experiments.error_study.tables import (
    SCOPE_NAMES,
    Resampling,
    Row,
    compression_rows,
    error_rows,
    scope_rows,
    tau_tables,
)
from experiments.report.correlate import log_classification_error
from experiments.report.html import Frame, Picture
from experiments.report.text import (
    DASH,
    TextTable,
    number,
    percent,
    tau_table,
    to_markdown,
    unsaving_table,
)
from experiments.report.versions import versions
from tdjax.files import write_atomically

TITLE = (
    "Does the approximation error predict "
    "the compressed network\N{RIGHT SINGLE QUOTATION MARK}s performance?"
)


def write_report(workdir: Path, *, resamples: int = 2000) -> Path:
    """Write `workdir/report/` from `config.json` and `metrics.jsonl`; return its `index.html`.

    An unfinished study is reported too, with how much of it is there. The same measurements give
    the same tables, byte for byte, in whatever order they were recorded.

    Args:
        workdir: the study's work directory.
        resamples: bootstrap resamples behind each interval, drawn with the study's seed.

    Raises:
        FileNotFoundError: where one of the two files is missing.
        ValueError: where one of them cannot be understood (see `records.read_study`).
        ImportError: where matplotlib is not installed.
    """
    study = read_study(workdir)
    resampling = Resampling(resamples=resamples, seed=study.config.seed)
    paper = published_study(study.config.published)
    tables = tau_tables(study, resampling)
    by_compression = compression_rows(tables, paper)
    by_error = error_rows(tables, paper)
    by_scope = scope_rows(tables, paper)
    choices = choice_rows(study)
    findings = judge_findings(tables, paper, study.config)
    texts = _text_tables(study, by_compression, by_error, by_scope)
    unsaving = unsaving_table(choices)
    beside, beside_pictures = data_section(study, tables, by_error, _bars(study))

    files: dict[str, str | bytes] = {
        "measurements.csv": to_csv(measurement_rows(study)),
        "choices.csv": to_csv(choices),
        "tau_by_compression.csv": to_csv(by_compression, decimals=6),
        "tau_errors.csv": to_csv(by_error, decimals=6),
        "tau_layers_methods.csv": to_csv(by_scope, decimals=6),
        "tables.md": "\n".join(map(to_markdown, (*texts, *beside.tables, unsaving))),
        "verdicts.json": _verdicts(findings),
    }
    pictures = _pictures(study, by_compression, by_error, by_scope, choices)
    frame = Frame(
        title=TITLE,
        subtitle=f"{study.config.model} on {study.config.data}",
        lead=_progress(study),
        before="Baseline, before any compression",
        facts=_baseline_facts(study),
        provenance=_provenance(study, resampling),
        config=json.dumps(study.config.raw, indent=2),
        files=list(files),
    )
    page = Page(
        frame=frame,
        findings=findings,
        judged_by=_judged_by(study),
        pictures=[picture for picture, _ in pictures],
        tables=texts,
        tables_note="Mean ± standard deviation over the runs [95 % bootstrap interval].",
        beside=beside,
        unsaving=unsaving,
    )
    report = workdir / "report"
    report.mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomically(report / name, content)
    for picture, png in (*pictures, *beside_pictures):
        write_atomically(report / picture.file, png)
    # Last, so that whatever the page refers to is already there.
    write_atomically(report / "index.html", render_page(page))
    return report / "index.html"


def _text_tables(
    study: Study,
    by_compression: Sequence[Row],
    by_error: Sequence[Row],
    by_scope: Sequence[Row],
) -> list[TextTable]:
    levels = [(level, percent(level)) for level in sorted(study.config.compressions)]
    return [
        tau_table("Tau by compression, Relative Weights", "compression", levels, by_compression),
        tau_table(
            "Tau by error, compression of 50 % and more",
            "error",
            list(error_names(ERRORS).items()),
            by_error,
        ),
        tau_table(
            "Tau over layers, methods and all, Relative Weights, compression of 50 % and more",
            "scope",
            list(SCOPE_NAMES.items()),
            by_scope,
        ),
    ]


def _pictures(
    study: Study,
    by_compression: Sequence[Row],
    by_error: Sequence[Row],
    by_scope: Sequence[Row],
    choices: Sequence[Row],
) -> list[tuple[Picture, bytes]]:
    config, baseline = study.config, study.measurements.baseline
    baseline_error = (
        log_classification_error(baseline.test.accuracy, baseline.test.count) if baseline else None
    )
    bars = _bars(study)
    return [
        (
            Picture(
                "tau_by_compression.png",
                "Tau over layers and methods, by compression.",
                f"Relative Weights error against log classification error, test set. {bars}",
            ),
            plot_by_compression(by_compression),
        ),
        (
            Picture(
                "tau_errors.png",
                "Tau of the six approximation errors.",
                f"All choices that remove at least half of a layer, test set. {bars}",
            ),
            plot_bars(by_error, "error", error_names(ERRORS)),
        ),
        (
            Picture(
                "tau_layers_methods.png",
                "Tau over layers only, methods only, and all choices.",
                "Relative Weights, choices that remove at least half of a layer; "
                f"averages over what is held fixed. {bars}",
            ),
            plot_bars(by_scope, "scope", SCOPE_NAMES, subsets=SUBSETS),
        ),
        (
            Picture(
                "scatter.png",
                "Approximation error against classification error.",
                "Each mark is one choice, the mean over its runs; colour is the layer, from dark "
                "(near the input) to light, shape the method. The error axis is logarithmic.",
            ),
            plot_scatter(choices, config.layers, config.methods, config.phases, baseline_error),
        ),
    ]


def _bars(study: Study) -> str:
    text = "Bars: 95 % bootstrap intervals."
    if study.config.published:
        text += f" Diamonds: values published for {study.config.published}."
    return text


def _judged_by(study: Study) -> str:
    provisional = "" if _is_complete(study) else "Provisional: the study is unfinished. "
    return (
        f"{provisional}Kendall's tau-a on the test set: mean ± standard deviation over the runs, "
        "with the 95 % bootstrap interval over choices and runs in brackets. Two taus are not "
        "distinguishable where the interval of their difference covers 0; fewer than six complete "
        "choices decide nothing. A finding does not hold where it fails in one phase, and holds "
        "where it holds in all."
    )


def _is_complete(study: Study) -> bool:
    total = len(study.choices) * study.config.runs
    return all(len(study.records(phase)) == total for phase in study.config.phases)


def _progress(study: Study) -> str:
    config = study.config
    total = len(study.choices) * config.runs
    measured = {phase: len(study.records(phase)) for phase in config.phases}
    plan = f"{len(study.choices)} choices in {config.runs} runs"
    if _is_complete(study):
        when = "before and after fine-tuning" if "after" in measured else "without fine-tuning"
        return f"Complete: {plan}, {total} of {total} measured {when}."
    counts = ", ".join(
        f"{count} of {total} measured {phase} fine-tuning" for phase, count in measured.items()
    )
    complete = " and ".join(
        f"{len(study.complete_choices(phase))} {phase}" for phase in config.phases
    )
    return (
        f"Unfinished: {plan}; {counts}. "
        f"Only choices measured in every run count towards tau: {complete} fine-tuning."
    )


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
        **versions(),
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
