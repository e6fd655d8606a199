from collections import Counter
from functools import partial

import pytest

from tdjax.timings import turns
from tdjax.timings.calibrate import Whole, fit_of


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
def test_networks_are_a_rest_and_their_layers(factor):
    rest = 3.0
    dense, *others = (Whole(own, rest + factor * own) for own in (10.0, 4.0, 7.0, 2.0))
    assert fit_of(dense, others) == pytest.approx((factor, rest))
    # Without the rest, layers alone cannot take longer than the network.
    whole = fit_of(Whole(10.0, 8.0), [Whole(4.0, 2.0), Whole(6.0, 4.0)])
    assert whole.rest == 0
    assert 0.5 <= whole.factor <= 0.8


def test_a_dense_network_that_is_slower_than_its_parts_tells_nothing_of_them():
    others = [Whole(own, 1.0 + 1.1 * own) for own in (9.0, 14.0, 23.0)]
    assert fit_of(Whole(37.0, 77.0), others) == pytest.approx((1.1, 1.0))


def test_too_little_is_known_for_a_factor():
    # What differs by little tells nothing of it.
    assert fit_of(Whole(10.0, 8.0), [Whole(9.5, 1.0)]) == pytest.approx((0.8, 0.0))
    assert fit_of(Whole(5.0, 8.0), []) == pytest.approx((1.0, 3.0))
    assert fit_of(Whole(0.0, 8.0), [Whole(0.0, 9.0)]) == (1.0, 8.0)
    # Networks do not grow slower as their layers get faster.
    assert fit_of(Whole(5.0, 8.0), [Whole(2.0, 8.5), Whole(3.0, 8.2)]).factor == 0.5
