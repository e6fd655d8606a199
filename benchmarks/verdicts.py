"""How often the study's verdicts are wrong, the truth being known: `python -m benchmarks.verdicts`.

Studies are drawn, not measured: of every choice a harm, which rises with compression; the log
classification error is that harm and a little noise of the run; each of the six errors is the harm
and a noise of the choice, whose size says how well it predicts. For each truth, drawn many times,
one line for each finding: what is true of it, and how many studies got which verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pandas as pd
from absl import app, flags

from experiments.error_study.error_names import ERRORS, FEATURE_ERRORS, RELATIVE_WEIGHTS
from experiments.error_study.judging import FAILS, HOLDS, UNDECIDED
from experiments.error_study.paper import published_study
from experiments.error_study.protocol import Protocol
from experiments.error_study.tables import measured_taus
from experiments.error_study.verdicts import judge_findings
from experiments.report.correlate import log_classification_error
from experiments.workdir.fields import read_fields

STUDIES = flags.DEFINE_integer("studies", 200, "Drawn of each truth.")
RESAMPLES = flags.DEFINE_integer("resamples", 300, "Bootstrap resamples of each tau.")

SETTINGS = read_fields(
    Protocol,
    {
        "data": {"name": "drawn"},
        "model": {"name": "drawn"},
        "train": {"epochs": 1},
        "finetune": {"epochs": 0},
        "layers": [f"conv{k}" for k in range(2, 7)],
    },
)
IMAGES = 10_000
# Of a choice and of a run; harm per compression; and from harm to the log error.
HARM, RUN, RISE, BASE, SLOPE = 0.6, 0.02, 2.0, -3.2, 0.5
NOISE = 0.6
# By level, the least compression first.
EVEN, GROWING = (1.0, 1.0, 1.0, 1.0, 1.0), (4.0, 2.0, 1.0, 0.6, 0.3)

# What a verdict may not be where a finding is true, false, or on the edge of both.
TRUE, FALSE, EDGE = "true", "false", "on the edge"
WRONG = {TRUE: (FAILS,), FALSE: (HOLDS,), EDGE: (HOLDS, FAILS)}


@dataclass(frozen=True)
class Truth:
    """How the studies of one kind are drawn.

    Arguments:
        name: in words.
        findings: what is true of each of the four.
        noise: of the errors that differ from the others.
        levels: factors of the noise by level of compression.
        layer: standard deviation of what a layer adds to the harm, and to no error.
    """

    name: str
    findings: tuple[str, str, str, str]
    noise: Mapping[str, float] = field(default_factory=dict)
    levels: tuple[float, ...] = EVEN
    layer: float = 0.0


TRUTHS = {
    "a": Truth("six equal errors, tau the same at all levels", (FALSE, EDGE, TRUE, TRUE)),
    "b": Truth(
        "features better than weights",
        (FALSE, FALSE, FALSE, TRUE),
        dict.fromkeys(FEATURE_ERRORS, 0.45),
    ),
    "c": Truth(
        "Relative Weights worse than the others",
        (FALSE, FALSE, TRUE, TRUE),
        {RELATIVE_WEIGHTS: 0.75},
    ),
    "d": Truth("no relation", (FALSE, EDGE, EDGE, EDGE), dict.fromkeys(ERRORS, 1e3)),
    "e": Truth("tau grows with compression", (TRUE, EDGE, TRUE, TRUE), levels=GROWING),
    "f": Truth("tau falls with compression", (FALSE, EDGE, TRUE, EDGE), levels=GROWING[::-1]),
    "g": Truth("layers hard to compare", (FALSE, EDGE, TRUE, FALSE), layer=1.5),
}


def drawn_rows(truth: Truth, rng: np.random.Generator) -> pd.DataFrame:
    """The measurements of one study, as `tables.measurement_rows` gives them, of the test set."""
    layers, levels, runs = SETTINGS.layers, SETTINGS.levels, SETTINGS.runs
    names = list(product(layers, SETTINGS.methods, levels))
    compression = np.array([level for *_, level in names])
    harm = RISE * compression + HARM * rng.standard_normal(len(names))
    of_layer = dict(zip(layers, truth.layer * rng.standard_normal(len(layers)), strict=True))
    shift = harm + np.array([of_layer[layer] for layer, *_ in names])
    exponent = BASE + SLOPE * (shift[:, None] + RUN * rng.standard_normal((len(names), runs)))
    wrong = np.rint(IMAGES * np.clip(np.exp(exponent), 0, 0.9))
    rows = pd.DataFrame(
        [(*name, run) for name in names for run in range(runs)],
        columns=["layer", "method", "compression", "run"],
    )
    factors = dict(zip(levels, truth.levels, strict=True))
    spread = np.array([factors[level] for level in compression])
    for error in ERRORS:
        noise = truth.noise.get(error, NOISE) * spread * rng.standard_normal(len(names))
        # Every run decomposes the same kernel, a little differently.
        rows[error] = (
            (harm + noise)[:, None] + 0.1 * RUN * rng.standard_normal(wrong.shape)
        ).ravel()
    rows["test/before/accuracy"] = 1 - wrong.ravel() / IMAGES
    rows["test/before/log_error"] = [
        log_classification_error(own, IMAGES) for own in rows["test/before/accuracy"]
    ]
    return rows


def verdicts_of(truth: Truth, seed: int, resamples: int) -> list[str]:
    """The four verdicts on one drawn study."""
    rows = drawn_rows(truth, np.random.default_rng(seed))
    taus = measured_taus(rows, SETTINGS, resamples=resamples, subsets=("test",))
    findings = judge_findings(taus, published_study(None), SETTINGS.phases)
    return [finding.verdict for finding in findings]


def counted(truth: Truth, studies: int, resamples: int) -> list[Counter[str]]:
    """How many drawn studies got which verdict, by finding."""
    verdicts = [verdicts_of(truth, seed, resamples) for seed in range(studies)]
    return [Counter(own) for own in zip(*verdicts, strict=True)]


def main(_: list[str]) -> None:
    """Print the table, in Markdown."""
    print("| truth | finding | it is | holds | does not hold | not decidable | wrong |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for letter, truth in TRUTHS.items():
        found = counted(truth, STUDIES.value, RESAMPLES.value)
        for number, (own, counts) in enumerate(zip(truth.findings, found, strict=True), start=1):
            wrong = sum(counts[verdict] for verdict in WRONG[own]) / STUDIES.value
            cells = [str(counts[verdict]) for verdict in (HOLDS, FAILS, UNDECIDED)]
            line = [f"{letter}: {truth.name}", str(number), own, *cells, f"{wrong:.1%}"]
            print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
