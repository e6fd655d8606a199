"""Do the four findings of the published study hold in this one?

A finding about both phases, before and after fine-tuning, is judged in each phase that the study
measures: it does not hold where it does not in one of them, holds where it does in all, and is not
decidable otherwise. The rules are in `rules.py`.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.error_study.paper import PublishedStudy
from experiments.error_study.settings import StudyConfig
from experiments.error_study.tables import TauTables
from experiments.error_study.verdicts import (
    Evidence,
    Part,
    all_hold,
    features_no_better,
    layers_harder_than_methods,
    positive_and_growing,
    relative_weights_best,
)

Rule = Callable[[TauTables, PublishedStudy, StudyConfig, str], Part]


@dataclass(frozen=True)
class Finding:
    """A finding, the rule that decides it, and what this study says."""

    number: int
    claim: str
    rule: str
    verdict: str
    reasons: tuple[str, ...]
    evidence: tuple[Evidence, ...]


def judge_findings(
    tables: TauTables, paper: PublishedStudy, config: StudyConfig
) -> tuple[Finding, ...]:
    """The four findings, judged on the test set."""
    asked: tuple[tuple[Rule, Sequence[str]], ...] = (
        (positive_and_growing, config.phases),
        (relative_weights_best, config.phases),
        (features_no_better, config.phases),
        (layers_harder_than_methods, ("before",)),
    )
    return tuple(
        _finding(number, rule, [rule(tables, paper, config, phase) for phase in phases])
        for number, (rule, phases) in enumerate(asked, start=1)
    )


def _finding(number: int, rule: Rule, parts: list[Part]) -> Finding:
    claim, _, text = (inspect.getdoc(rule) or "").partition("\n\n")
    return Finding(
        number=number,
        claim=claim,
        rule=" ".join(text.split()),
        verdict=all_hold(part.verdict for part in parts),
        reasons=tuple(part.reason for part in parts),
        evidence=tuple(evidence for part in parts for evidence in part.evidence),
    )
