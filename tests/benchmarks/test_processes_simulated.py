"""The simulated processes against closed forms."""

import json
import math

import pytest

from benchmarks.processes_events import Circumstances, Study, Unit, bounds, simulated
from benchmarks.processes_simulated import rows
from benchmarks.processes_units import measured

AT_ONCE = Circumstances(start=(0.0, 0.0))


def study(seconds, training=(0.0,), compiling=0.0, checkpoint=0.0):
    trainings = tuple(Unit(k, "training", own) for k, own in enumerate(training))
    units = tuple(Unit(k % len(training), f"{k}", own, compiling) for k, own in enumerate(seconds))
    return Study("test", trainings, units, checkpoint)


@pytest.mark.parametrize("number", [1, 2, 3, 7, 10, 11, 1000])
def test_equal_units_take_as_many_rounds_as_there_are(number):
    found = simulated(study([6.0] * 10), number, AT_ONCE)
    # Who looked before the training of no length was done looks again.
    assert found.makespan == pytest.approx(6.0 * math.ceil(10 / number), abs=AT_ONCE.look)
    assert found.takeovers == found.deaths == 0


def test_one_process_does_all_in_turn():
    units = study([3.0, 5.0, 11.0, 2.0], training=(7.0, 13.0), compiling=0.5)
    assert simulated(units, 1, AT_ONCE).makespan == pytest.approx(41.0 + 4 * 0.5)
    how = Circumstances(start=(4.0, 4.0))
    assert simulated(units, 1, how).makespan == pytest.approx(47.0)


def test_others_wait_for_the_training():
    units = study([10.0] * 9, training=(100.0,))
    found = simulated(units, 10, Circumstances(start=(1.0, 1.0), look=1.0))
    assert found.makespan == pytest.approx(1 + 100 + 10)
    assert found.untrained == pytest.approx(9 * 100)
    # One of ten has no unit.
    assert found.nothing_left == pytest.approx(10)
    assert found.share(found.untrained) == pytest.approx(900 / 1110)


@pytest.mark.parametrize(("shared", "each"), [(False, 8.0), (True, 2.0)])
def test_a_program_is_compiled_or_read(shared, each):
    # Both processes do two units of one program, one of them behind the first's training.
    units = Study("test", (Unit(0, "own", 20.0, 8.0),), (Unit(0, "own", 50.0, 8.0),) * 2)
    how = Circumstances(start=(0.0, 0.0), shared=shared, reading=0.25)
    found = simulated(units, 2, how)
    # The first has it since the training.
    assert found.overhead == pytest.approx(8 + each)


def test_a_process_goes_on_with_what_it_has_decomposed():
    # Two decompositions of 5 s, four trainings of 10 s behind each, of a program each.
    units = []
    for name in "ab":
        first = len(units)
        units.append(Unit(0, f"{name} decomposed", 5.0))
        units += [Unit(0, name, 10.0, 3.0, needs=first)] * 4
    both = Study("test", (Unit(0, "training", 1.0),), tuple(units))
    how = Circumstances(start=(0.0, 0.0), shared=False, look=1.0)
    found = simulated(both, 2, how)
    assert found.overhead == pytest.approx(2 * 3)
    assert found.makespan == pytest.approx(1 + 5 + 3 + 4 * 10)
    # With more processes than decompositions the others wait, and then help.
    assert simulated(both, 8, how).makespan == pytest.approx(1 + 5 + 3 + 10, abs=how.look)
    assert bounds(both, 8, how)["chain"] == 1 + 5 + 10


@pytest.mark.parametrize("seed", range(5))
def test_all_time_is_accounted_for(seed):
    how = Circumstances(deaths=6.0)
    found = simulated(study([70.0] * 40, (100.0, 50.0), 10.0, checkpoint=5.0), 7, how, seed)
    parts = (
        found.work, found.overhead, found.untrained, found.nothing_left, found.lost, found.dead,
    )  # fmt: skip
    assert min(parts) >= 0
    assert found.deaths > 0
    assert sum(parts) == pytest.approx(7 * found.makespan)
    # What was lost was done again.
    assert found.work == pytest.approx(40 * 70 + 150)


@pytest.mark.parametrize("seed", range(20))
def test_a_death_costs_at_most_a_unit_the_lease_and_the_wait(seed):
    how = Circumstances(start=(0.0, 0.0), deaths=20.0)
    found = simulated(study([60.0] * 30), 3, how, seed)
    assert 0 < found.takeovers <= found.deaths
    assert found.lost <= 60.0 * found.takeovers
    each = 60.0 + how.timeout + how.watching + how.look + how.restart
    assert found.makespan <= 600.0 + how.look + found.deaths * each


def test_a_taken_over_lease_is_seen_in_time():
    # The only unit; the process that takes it dies within it now and then.
    how = Circumstances(start=(0.0, 0.0), deaths=12.0, restart=0.0, look=0.1)
    delays = []
    for seed in range(200):
        found = simulated(study([30.0]), 1, how, seed)
        if found.takeovers == found.deaths == 1:
            delays.append(found.makespan - 30.0 - found.lost)
    least, most = how.timeout - how.renewal, how.timeout + how.watching
    assert len(delays) > 3
    assert all(least <= delay <= most + how.look for delay in delays)


def test_training_goes_on_from_its_checkpoint():
    how = Circumstances(start=(0.0, 0.0), deaths=30.0)
    lost = [simulated(study([], (600.0,), checkpoint=10.0), 2, how, seed) for seed in range(5)]
    assert any(found.takeovers for found in lost)
    assert all(found.lost <= 10.0 * found.takeovers for found in lost)


def test_a_seed_gives_one_outcome():
    how = Circumstances(deaths=3.0)
    units = study([50.0 + k for k in range(30)], (40.0,))
    assert simulated(units, 5, how, 1) == simulated(units, 5, how, 1)
    assert simulated(units, 5, how, 1) != simulated(units, 5, how, 2)


@pytest.mark.parametrize("number", [1, 4, 9, 64])
def test_no_schedule_is_below_the_bounds(number):
    units = study([20.0 + 3 * k for k in range(24)], (50.0, 90.0), 5.0)
    how = Circumstances()
    found = simulated(units, number, how)
    assert found.makespan >= max(bounds(units, number, how).values())


def test_the_table_starts_at_efficiency_one():
    lines = rows(study([50.0] * 8, (40.0,)), [1, 2], Circumstances())
    assert lines[2].split("|")[3].strip() == "1.00"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("number", "how", "units", "match"),
    [
        (0, AT_ONCE, study([1.0]), "at least 1 process"),
        (1, AT_ONCE, Study("none", (), ()), "no units"),
        (1, AT_ONCE, study([math.nan]), "finite"),
        (1, Circumstances(look=0.0), study([1.0]), "look above 0"),
        (1, AT_ONCE, Study("test", (), (Unit(3, "", 1.0),)), "nobody trains network 3"),
        (1, AT_ONCE, study([1.0])._replace(units=(Unit(0, "", 1.0, needs=0),)), "not before it"),
    ],
)
def test_what_cannot_be_simulated_is_refused(number, how, units, match):
    with pytest.raises(ValueError, match=match):
        simulated(units, number, how)


def record(kind, network, second, layer=None, method=None):
    found = {"kind": kind, "network": network, "layer": layer, "method": method}
    return found | ({} if second is None else {"at": f"2026-01-01T00:00:{second:02d}+00:00"})


def test_times_are_read_from_a_journal():
    records = [
        {
            "kind": "environment",
            "started": "2026-01-01T00:00:00+00:00",
            "processor": "some, 1 cores",
        },
        record("epoch", 0, 4),
        record("baseline", 0, 8),
        record("compressed", 0, None, "conv", "cp"),
        record("compressed", 0, 18, "conv", "tt"),
        record("finetuned", 0, 24, "conv", "cp"),
        record("finetuned", 0, 29, "conv", "cp"),
        record("baseline", 1, 33),
        record("compressed", 1, 36, "conv", "cp"),
        record("finetuned", 1, None, "conv", "cp"),
        record("finetuned", 1, 38, "conv", "cp"),
    ]
    found = measured(map(json.dumps, records), 0.5)
    assert found["training"] == [4.0, 2.0]
    assert found["layers"]["conv"] == {"decomposed": [5.0, 1.5], "tuned": {"cp": [5.5, 1.0, 2]}}
    other = [records[0] | {"processor": "some, 2 cores"}, *records[1:]]
    with pytest.raises(ValueError, match="one core is needed"):
        measured(map(json.dumps, other))
    with pytest.raises(ValueError, match="two networks"):
        measured(map(json.dumps, records[:7]))


def test_spread_processes_compile_less():
    # Two programs of ten units: two processes that start apart need one each.
    units = tuple(Unit(0, name, 10.0, 100.0) for name in "ab" for _ in range(10))
    both = Study("test", (Unit(0, "training", 0.0),), units)
    apart = Circumstances(start=(0.0, 0.0), shared=False, spread=True)
    found = simulated(both, 2, apart)
    assert found.overhead == pytest.approx(200)
    assert simulated(both, 2, Circumstances(start=(0.0, 0.0), shared=False)).overhead > 300
    assert found.work == pytest.approx(200)
