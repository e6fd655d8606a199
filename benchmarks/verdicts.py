"""How often the study's verdicts are wrong, the truth being known: `python -m benchmarks.verdicts`.

Studies are drawn, not measured: of every choice a harm, which rises with compression; the log
classification error is that harm and a little noise of the run; each of the six errors is the harm
and a noise of the choice, whose size says how well it predicts. Harm and noise are in part the same
on all networks, in part each network's own; and on each network all errors predict a little better
or worse, and of several networks every error by itself, and every level. (On one network that would
be the truth that its verdicts speak of.)

For each truth and number of networks, one line for each finding: what is true of it, how many
studies got which verdict, how many of these are wrong, and how many pairs of studies contradict
each other: the same choices, other networks. Last, how often studies of more networks decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product

import numpy as np
import pandas as pd
from absl import app, flags

from experiments.error_study.error_names import ERRORS, FEATURE_ERRORS, RELATIVE_WEIGHTS
from experiments.error_study.judging import FAILS, HOLDS, UNDECIDED
from experiments.error_study.paper import published_study
from experiments.error_study.protocol import Protocol
from experiments.error_study.tables import measured_taus
from experiments.error_study.verdicts import judge_findings
from experiments.workdir.fields import read_fields

PAIRS = flags.DEFINE_integer("pairs", 200, "Of studies drawn of each truth.")
RESAMPLES = flags.DEFINE_integer("resamples", 300, "Bootstrap resamples of each tau.")
NETWORKS = flags.DEFINE_list("networks", ["1", "5"], "How many networks a study has.")
LETTERS = flags.DEFINE_list("truths", [], "Letters of those that are drawn; none for all.")
MORE = flags.DEFINE_list(
    "more", ["1", "2", "5", "10"], "Networks of the last table; none for none."
)
POWER = flags.DEFINE_string("power", "b", "Letter of the truth of the last table.")

IMAGES = 10_000
# Of a choice and of a run; harm per compression; and from harm to the log error.
HARM, RUN, RISE, BASE, SLOPE = 0.6, 0.02, 2.0, -3.2, 0.5
NOISE = 0.6
# How much of the variance of a choice is the same on all networks.
SHARED = 0.5
# By how much, in powers of e, the noise differs between networks: of all errors; and of each.
LUCK, TASTE = 0.15, 0.1
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


def settings_of(networks: int) -> Protocol:
    """A study of so many networks, as they are drawn here."""
    raw = {
        "data": {"name": "drawn"},
        "model": {"name": "drawn"},
        "train": {"epochs": 1},
        "finetune": {"epochs": 0},
        "layers": [f"conv{k}" for k in range(2, 7)],
        "networks": networks,
        "runs": 2,
    }
    return read_fields(Protocol, raw)


@dataclass(frozen=True)
class Draws:
    """Where the numbers of a study come from: its choices', and its networks'."""

    choices: np.random.Generator
    networks: np.random.Generator

    def normal(self, networks: int, *shape: int) -> np.ndarray:
        """Standard normal numbers, in part the same for all networks."""
        common = self.choices.standard_normal(shape)
        own = self.networks.standard_normal((networks, *shape))
        return np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own

    def factors(self, size: float, *shape: int) -> np.ndarray:
        """By how much networks differ."""
        return np.exp(size * self.networks.standard_normal(shape))


def drawn_rows(truth: Truth, settings: Protocol, draws: Draws) -> pd.DataFrame:
    """The measurements of one study, as `tables.measurement_rows` gives them, of the test set."""
    layers, levels, runs = settings.layers, settings.levels, settings.runs
    names, networks = list(product(layers, settings.methods, levels)), settings.networks
    keys = [(*name, k, run) for k in range(networks) for name in names for run in range(runs)]
    rows = pd.DataFrame(keys, columns=["layer", "method", "compression", "network", "run"])
    level, layer = (
        np.array([own.index(name[place]) for name in names])
        for own, place in ((levels, 2), (layers, 0))
    )
    shape = networks, len(names), runs
    harm = RISE * np.array(levels)[level] + HARM * draws.normal(networks, len(names))
    shift = harm + truth.layer * draws.normal(networks, len(layers))[:, layer]
    noise = RUN * draws.networks.standard_normal(shape)
    wrong = np.rint(IMAGES * np.clip(np.exp(BASE + SLOPE * (shift[..., None] + noise)), 0, 0.9))
    taste = TASTE if networks > 1 else 0.0
    spread = np.array(truth.levels) * draws.factors(LUCK, networks, 1)
    spread = (spread * draws.factors(taste, networks, len(levels)))[:, level]
    for error in ERRORS:
        size = truth.noise.get(error, NOISE) * spread * draws.factors(taste, networks, 1)
        found = harm + size * draws.normal(networks, len(names))
        # Every run decomposes the same kernel, a little differently.
        own = 0.1 * RUN * draws.networks.standard_normal(shape)
        rows[error] = (found[..., None] + own).ravel()
    rows["test/before/accuracy"] = 1 - wrong.ravel() / IMAGES
    rows["test/before/log_error"] = np.log(np.maximum(wrong, 0.5) / IMAGES).ravel()
    return rows


def verdicts_of(truth: Truth, networks: int, pair: int, one: int, resamples: int) -> list[str]:
    """The four verdicts on one drawn study of a pair."""
    settings = settings_of(networks)
    draws = Draws(np.random.default_rng(pair), np.random.default_rng((pair, one)))
    rows = drawn_rows(truth, settings, draws)
    taus = measured_taus(rows, settings, resamples=resamples, subsets=("test",))
    findings = judge_findings(taus, published_study(None), settings.phases)
    return [finding.verdict for finding in findings]


@dataclass(frozen=True)
class Counts:
    """How many drawn studies got which verdict on a finding, and how many pairs contradict."""

    verdicts: Counter[str]
    contradictions: int

    def wrong(self, truth: str) -> float:
        """The share of verdicts that are wrong, from what is true of the finding."""
        return sum(self.verdicts[verdict] for verdict in WRONG[truth]) / self.verdicts.total()


def counted(truth: Truth, networks: int, pairs: int, resamples: int) -> list[Counts]:
    """What came out, by finding."""
    drawn = [
        [verdicts_of(truth, networks, pair, one, resamples) for one in range(2)]
        for pair in range(pairs)
    ]
    by_finding = [[list(own) for own in zip(*pair, strict=True)] for pair in drawn]
    return [
        Counts(Counter(chain(*own)), sum({HOLDS, FAILS} == set(pair) for pair in own))
        for own in zip(*by_finding, strict=True)
    ]


def print_line(*cells: object) -> None:
    """A line of a table in Markdown."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_verdicts(truths: Mapping[str, Truth], networks: Sequence[int]) -> None:
    """The table of all truths and findings."""
    heads = ("networks", "truth", "finding", "it is", HOLDS, FAILS, UNDECIDED, "wrong")
    print_line(*heads, "contradictions")
    print_line("---:", "---", "---:", "---", *["---:"] * 5)
    for many, (letter, truth) in product(networks, truths.items()):
        found = counted(truth, many, PAIRS.value, RESAMPLES.value)
        for number, (own, counts) in enumerate(zip(truth.findings, found, strict=True), start=1):
            cells = [counts.verdicts[verdict] for verdict in (HOLDS, FAILS, UNDECIDED)]
            line = [many, f"{letter}: {truth.name}", number, own, *cells]
            print_line(*line, f"{counts.wrong(own):.1%}", counts.contradictions)


def print_power(truth: Truth, networks: Sequence[int], pairs: int) -> None:
    """How often the findings that are true or false are found to be so, by number of networks."""
    right = {TRUE: HOLDS, FALSE: FAILS}
    numbers = [number for number, own in enumerate(truth.findings) if own in right]
    print(f"\n{truth.name}: share of right verdicts\n")
    print_line("networks", *(f"finding {number + 1}" for number in numbers))
    print_line("---:", *["---:"] * len(numbers))
    for many in networks:
        found = counted(truth, many, pairs, RESAMPLES.value)
        shares = [
            found[number].verdicts[right[truth.findings[number]]] / (2 * pairs)
            for number in numbers
        ]
        print_line(many, *(f"{share:.0%}" for share in shares))


def main(_: list[str]) -> None:
    """Print both tables."""
    letters = LETTERS.value or list(TRUTHS)
    print_verdicts({letter: TRUTHS[letter] for letter in letters}, [*map(int, NETWORKS.value)])
    if MORE.value:
        print_power(TRUTHS[POWER.value], [*map(int, MORE.value)], PAIRS.value // 4)


if __name__ == "__main__":
    app.run(main)
