import itertools
import math

import pytest

from experiments.error_study.error_names import ERRORS
from experiments.error_study.paper import published_study
from experiments.error_study.records import (
    Choice,
    Compressed,
    Finetuned,
    Measurements,
    Performance,
    Study,
)
from experiments.error_study.settings import StudyConfig
from experiments.error_study.tables import Resampling, measurement_rows, tau_rows, tau_tables


def tau_by_pairs(x, y):
    pairs = list(itertools.combinations(range(len(x)), 2))
    score = 0
    for i, j in pairs:
        product = (x[i] - x[j]) * (y[i] - y[j])
        score += int(product > 0) - int(product < 0)
    return score / len(pairs)


def small_study(wrong, errors, after=None, published=None, runs=1):
    """Two layers, two methods, two compressions; `wrong` and `errors` per run and choice."""
    choices = [
        Choice(layer, method, compression)
        for layer in ("a", "b")
        for method in ("cp", "tt")
        for compression in (0.5, 0.9)
    ]

    def performance(value):
        return Performance(1 - value / 100, 0.0, 100)

    def compressed(run, i):
        named = {name: float(errors[run][i]) for name in ERRORS}
        named["features/scaled"] = -named["weights/relative"] + 100.0
        result = performance(wrong[run][i])
        return Compressed((1,), 0.5, True, named, result, result)

    config = StudyConfig(
        model="net",
        data="set",
        layers=("a", "b"),
        methods=("cp", "tt"),
        compressions=(0.5, 0.9),
        runs=runs,
        seed=0,
        finetune_epochs=1 if after else 0,
        published=published,
        raw={},
    )
    records = {(c, run): compressed(run, i) for run in range(runs) for i, c in enumerate(choices)}
    tuned = {
        (choices[i], run): Finetuned(1, performance(value), performance(value))
        for run, values in enumerate(after or [])
        for i, value in enumerate(values)
        if value is not None
    }
    return Study(config, Measurements(None, records, tuned))


# In the order of `small_study`: a-cp-50, a-cp-90, a-tt-50, a-tt-90, b-cp-50, b-cp-90, ...
ERRORS_OF_CHOICES = [1, 5, 2, 6, 3, 8, 4, 7]
WRONG = [10, 50, 30, 60, 20, 70, 20, 80]
FAST = Resampling(resamples=20)


def tables_of(study, resampling=FAST):
    return tau_tables(measurement_rows(study), study.config, resampling)


def test_tables_of_a_small_study_by_hand():
    study = small_study([WRONG], [ERRORS_OF_CHOICES])

    tables = tables_of(study)
    levels, scopes, errors = tables.by_compression, tables.by_scope, tables.by_error
    # At 50 %: errors 1 2 3 4, wrong 10 30 20 20: three pairs agree, two do not, one is a tie.
    assert levels["test", "before", 0.5].mean == pytest.approx((3 - 2) / 6)
    # At 90 %: errors 5 6 8 7, wrong 50 60 70 80: all agree but the last.
    assert levels["test", "before", 0.9].mean == pytest.approx((5 - 1) / 6)
    assert levels["test", "before", 0.9].choices == 4

    # Layers at (cp, 50), (cp, 90), (tt, 50), (tt, 90): + + - +.
    assert scopes["test", "before", "layers"].mean == pytest.approx(2 / 4)
    # Methods at (a, 50), (a, 90), (b, 50), (b, 90): + + tie -.
    assert scopes["test", "before", "methods"].mean == pytest.approx(1 / 4)
    # Of 28 pairs 12 lie within a level (1 and 4 net, above); the 16 across agree.
    assert scopes["test", "before", "all"].mean == pytest.approx((1 + 4 + 16) / 28)

    assert errors["test", "before", "weights/relative"].mean == pytest.approx(21 / 28)
    assert errors["validation", "before", "features/scaled"].mean == pytest.approx(-21 / 28)
    assert not any(phase == "after" for _, phase, _ in [*levels, *scopes, *errors])


def test_only_strong_compression_counts_in_the_second_and_third_table():
    study = small_study([WRONG], [ERRORS_OF_CHOICES])
    strong = Resampling(resamples=20, least_compression=0.6)
    tables = tables_of(study, strong)
    assert tables.by_error["test", "before", "weights/relative"].choices == 4
    assert tables.by_scope["test", "before", "all"].mean == pytest.approx(4 / 6)


def test_only_choices_complete_in_every_run_count():
    after = [WRONG, [*WRONG[:6], None, None]]
    study = small_study([WRONG] * 2, [ERRORS_OF_CHOICES] * 2, after=after, runs=2)
    table = tables_of(study).by_error
    assert table["test", "before", "weights/relative"].choices == 8
    assert table["test", "after", "weights/relative"].choices == 6
    expected = tau_by_pairs(ERRORS_OF_CHOICES[:6], WRONG[:6])
    assert table["test", "after", "weights/relative"].mean == pytest.approx(expected)


def test_published_values_stand_beside_the_level_that_keeps_as_much():
    study = small_study([WRONG], [ERRORS_OF_CHOICES])
    paper = published_study("resnet18/cifar10")
    rows = tau_rows(tables_of(study).by_compression, "compression", paper.by_compression)
    rows = rows.to_dict("records")
    row = next(r for r in rows if (r["compression"], r["subset"]) == (0.9, "test"))
    assert (row["published_mean"], row["published_std"]) == (0.649, 0.007)
    validation = next(r for r in rows if r["subset"] == "validation")
    assert math.isnan(validation["published_mean"])
