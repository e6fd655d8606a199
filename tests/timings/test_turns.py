from collections import Counter
from functools import partial

import pytest

from tdjax.timings import turns
from tdjax.timings.calibrate import Whole, factor_of


class Clock:
    """Seconds of calls, which return their names, and how often each was made."""

    def __init__(self, seconds):
        self.seconds, self.made = seconds, Counter()

    def __call__(self, call):
        self.made[call()] += 1
        return self.seconds(call(), self.made[call()])


def timed(monkeypatch, seconds, rounds, groups):
    clock = Clock(seconds)
    monkeypatch.setattr(turns, "_seconds", clock)
    calls = {key: partial(str, key) for key in groups}
    found = turns.seconds_of(calls, rounds, reference="dense", group_of=groups.get)
    return found, clock.made


def test_calls_that_have_lost_drop_out(monkeypatch):
    own = {"dense": 4e-3, "fast": 1e-3, "near": 1.5e-3, "slow": 3e-3, "lost": 0.05, "alone": 7e-3}
    groups = dict.fromkeys(own, "form") | {"dense": None, "alone": "other"}
    found, made = timed(monkeypatch, lambda call, _: own[call], 6, groups)
    assert found == pytest.approx(own)
    every = 1 + 6 * turns.CALLS
    assert (made["dense"], made["fast"], made["near"]) == (every, every, every)
    # Twice as slow as the best of its group after two rounds; at once where it is hopeless. What
    # is alone in its group loses to the dense layer only where it is clearly slower.
    assert made["slow"] == 1 + turns.FIRST_ROUNDS * turns.CALLS
    assert made["lost"] == 1
    assert made["alone"] == every


def test_a_slow_moment_of_the_machine_decides_nothing(monkeypatch):
    # In some rounds all take twice as long, and now and then a call is interrupted.
    def seconds(call, number):
        turn = (number - 2) // turns.CALLS
        slow = 2.0 if turn % 2 else 1.0
        interrupted = 9e-3 if number % turns.CALLS == 0 else 0.0
        return slow * {"dense": 4e-3, "fast": 1e-3}[call] + interrupted

    found, _ = timed(monkeypatch, seconds, 5, {"dense": None, "fast": "form"})
    assert found == pytest.approx({"dense": 4e-3, "fast": 1e-3})


def test_long_calls_are_made_once_a_round(monkeypatch):
    own = {"dense": 0.5, "short": 0.01}
    _, made = timed(monkeypatch, lambda call, _: own[call], 4, dict.fromkeys(own, "form"))
    assert made == {"dense": 1 + 4, "short": 1 + 4 * turns.CALLS}


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.2])
def test_the_factor_is_that_of_the_networks(factor):
    rest = 3.0
    dense, *others = (Whole(own, rest + factor * own) for own in (10.0, 4.0, 7.0))
    assert factor_of(dense, others) == pytest.approx(factor)


def test_layers_do_not_add_up_to_more_than_the_network():
    dense = Whole(10.0, 8.0)
    assert factor_of(dense, [Whole(4.0, 2.0)]) == pytest.approx(0.8)
    # What differs by little tells nothing of the factor.
    assert factor_of(dense, [Whole(9.5, 1.0)]) == pytest.approx(0.8)
    assert factor_of(Whole(5.0, 8.0), []) == 1.0
    # Nor do networks that grow slower as their layers get faster.
    assert factor_of(Whole(5.0, 8.0), [Whole(2.0, 9.0)]) == 0.5
