import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.error_study.error_names import ERRORS
from experiments.error_study.networks import counted_networks, network_rows, network_tables
from experiments.error_study.paper import published_study
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import SCHEMA
from experiments.error_study.tables import measured_taus, measurement_rows, tau_rows
from experiments.report.tables import number
from experiments.workdir.fields import read_fields
from experiments.workdir.journal import Journal
from experiments.workdir.reading import Reader


def tau_by_pairs(x, y):
    pairs = list(itertools.combinations(range(len(x)), 2))
    score = 0
    for i, j in pairs:
        product = (x[i] - x[j]) * (y[i] - y[j])
        score += int(product > 0) - int(product < 0)
    return score / len(pairs)


def small_study(wrong, errors, after=None, published=None, runs=1, networks=1):
    """Two layers, two methods, two compressions; `wrong` and `errors` per run and choice.

    Runs of one network after those of the other; None for what is not measured.
    """
    raw = {
        "data": {"name": "set"},
        "model": {"name": "net"},
        "train": {"epochs": 1},
        "layers": ["a", "b"],
        "methods": ["cp", "tt"],
        "compressions": [0.5, 0.9],
        "runs": runs,
        "networks": networks,
        "finetune": {"epochs": 1 if after else 0},
        "published": published,
    }
    path, settings = Path("metrics.jsonl"), read_fields(Protocol, raw)
    journal = Journal(path, Reader(path, SCHEMA), {})
    choices = list(itertools.product(("a", "b"), ("cp", "tt"), (0.5, 0.9)))

    def record(kind, run, i, value, **fields):
        layer, method, compression = choices[i]
        own = {"layer": layer, "method": method, "compression": compression}
        own |= {"network": run // runs, "run": run % runs}
        result = {"accuracy": 1 - value / 100, "cross_entropy": 0.0, "count": 100}
        own |= {"kind": kind, "validation": result, "test": result, **fields}
        journal.found[journal.identity(kind, own)] = own

    for run, i in itertools.product(range(len(wrong)), range(len(choices))):
        if wrong[run][i] is None:
            continue
        named = {name: float(errors[run][i]) for name in ERRORS}
        named["features/scaled"] = -named["weights/relative"] + 100.0
        fields = {"ranks": (1,), "kept": 0.5, "saves": True, "errors": named}
        record("compressed", run, i, wrong[run][i], **fields)
    for run, values in enumerate(after or []):
        for i, value in enumerate(values):
            if value is not None:
                record("finetuned", run, i, value, epoch=1)
    return settings, journal


# In the order of `small_study`: a-cp-50, a-cp-90, a-tt-50, a-tt-90, b-cp-50, b-cp-90, ...
ERRORS_OF_CHOICES = [1, 5, 2, 6, 3, 8, 4, 7]
WRONG = [10, 50, 30, 60, 20, 70, 20, 80]


def tables_of(study, **options):
    settings, journal = study
    return measured_taus(measurement_rows(settings, journal), settings, resamples=20, **options)


def test_tables_of_a_small_study_by_hand():
    study = small_study([WRONG], [ERRORS_OF_CHOICES])

    taus = tables_of(study)
    # At 50 %: errors 1 2 3 4, wrong 10 30 20 20: three pairs agree, two do not, one is a tie.
    assert taus["compression", "test", "before", 0.5].mean == pytest.approx((3 - 2) / 6)
    # At 90 %: errors 5 6 8 7, wrong 50 60 70 80: all agree but the last.
    assert taus["compression", "test", "before", 0.9].mean == pytest.approx((5 - 1) / 6)
    assert taus["compression", "test", "before", 0.9].choices == 4

    # Layers at (cp, 50), (cp, 90), (tt, 50), (tt, 90): + + - +.
    assert taus["scope", "test", "before", "layers"].mean == pytest.approx(2 / 4)
    # Methods at (a, 50), (a, 90), (b, 50), (b, 90): + + tie -.
    assert taus["scope", "test", "before", "methods"].mean == pytest.approx(1 / 4)
    # Of 28 pairs 12 lie within a level (1 and 4 net, above); the 16 across agree.
    assert taus["scope", "test", "before", "all"].mean == pytest.approx((1 + 4 + 16) / 28)

    assert taus["error", "test", "before", "weights/relative"].mean == pytest.approx(21 / 28)
    assert taus["error", "validation", "before", "features/scaled"].mean == pytest.approx(-21 / 28)
    assert not any(phase == "after" for _, _, phase, _ in taus)


def test_only_strong_compression_counts_in_the_second_and_third_table():
    study = small_study([WRONG], [ERRORS_OF_CHOICES])
    tables = tables_of(study, strong=0.6)
    assert tables["error", "test", "before", "weights/relative"].choices == 4
    assert tables["scope", "test", "before", "all"].mean == pytest.approx(4 / 6)


def test_only_choices_complete_in_every_run_count():
    after = [WRONG, [*WRONG[:6], None, None]]
    study = small_study([WRONG] * 2, [ERRORS_OF_CHOICES] * 2, after=after, runs=2)
    tables = tables_of(study)
    assert tables["error", "test", "before", "weights/relative"].choices == 8
    assert tables["error", "test", "after", "weights/relative"].choices == 6
    expected = tau_by_pairs(ERRORS_OF_CHOICES[:6], WRONG[:6])
    assert tables["error", "test", "after", "weights/relative"].mean == pytest.approx(expected)


def test_taus_of_several_networks_by_hand():
    wrong = [WRONG, WRONG[::-1], [WRONG[i] for i in (1, 0, 3, 2, 5, 4, 7, 6)]]
    study = small_study(wrong, [ERRORS_OF_CHOICES] * 3, networks=3)
    settings, journal = study
    rows, taus = measurement_rows(settings, journal), tables_of(study)
    place = "error", "test", "before", "weights/relative"
    by_hand = [tau_by_pairs(ERRORS_OF_CHOICES, own) for own in wrong]
    assert taus[place].by_network == pytest.approx(by_hand)
    assert taus[place].std == pytest.approx(np.std(by_hand, ddof=1))
    row = tau_rows(taus, "error", published_study(None), several=True).iloc[-1]
    assert (row["networks"], row["runs"], row["choices"]) == (3, 1, 8)
    found = network_rows(taus, counted_networks(rows, settings))
    found = found[(found["value"] == "weights/relative") & (found["subset"] == "test")]
    assert list(found["network"]) == [0, 1, 2]
    assert list(found["mean"]) == pytest.approx(by_hand)
    (table,) = network_tables(network_rows(taus, counted_networks(rows, settings)), ["before"])
    line = table.cells.set_index("error").loc["Relative Weights"]
    assert list(map(str, line)) == [number(own) for own in by_hand]


@pytest.mark.parametrize(
    ("known", "counted", "choices"),
    [((8, 8, 8), [0, 1, 2], 8), ((8, 5, 8), [0, 2], 8), ((3, 7, 7), [1], 7), ((0, 0, 0), [], 0)],
)
def test_networks_count_once_all_their_choices_are_measured(known, counted, choices):
    wrong = [[*WRONG[:most], *[None] * (8 - most)] for most in known]
    study = small_study(wrong, [ERRORS_OF_CHOICES] * 3, networks=3)
    settings, journal = study
    rows = measurement_rows(settings, journal)
    assert counted_networks(rows, settings) == {"before": counted}
    found = {tau.choices for place, tau in tables_of(study).items() if place[0] == "error"}
    assert found == ({choices} if choices else set())


def test_published_values_stand_beside_the_level_that_keeps_as_much():
    study = small_study([WRONG], [ERRORS_OF_CHOICES])
    paper = published_study("resnet18/cifar10")
    rows = tau_rows(tables_of(study), "compression", paper)
    rows = rows.to_dict("records")
    row = next(r for r in rows if (r["compression"], r["subset"]) == (0.9, "test"))
    assert (row["published_mean"], row["published_std"]) == (0.649, 0.007)
    validation = next(r for r in rows if r["subset"] == "validation")
    assert math.isnan(validation["published_mean"])
