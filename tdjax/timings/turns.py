"""Calls timed in turns, in which those that have lost drop out."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax

Key = TypeVar("Key", bound=Hashable)

# Slower by so much than the best of its group, or than the reference, a call drops out:
# after a first heat, in which each is made once, and after some rounds.
FIRST_ROUNDS, CLEARLY, HEAT = 2, 2.0, 4.0
# Calls one after another, of which the fastest counts: others were interrupted, or found nothing
# in the caches. Those that take longer than so many seconds are made once: it is little to them.
CALLS, LONG = 3, 0.02


def seconds_of(
    calls: Mapping[Key, Callable[[], Any]],
    rounds: int,
    *,
    reference: Key,
    group_of: Callable[[Key], Hashable],
) -> dict[Key, float]:
    """Seconds of some calls, the slow ones of each group less surely than the fast ones.

    All are made in turns, some times in each round, with one that they are compared with: what is
    returned is the median over the rounds of its seconds, and that times the median of each other's
    ratio to it. So a slow moment of the machine does not decide between two.

    Arguments:
        calls: of which each has run once before, for its compilation.
        rounds: at least 1.
        reference: the call that others are compared with; it never drops out.
        group_of: calls of equal groups compete.
    """
    taken = {key: [_seconds(call)] for key, call in calls.items()}
    running = _left(taken, HEAT, reference, group_of)
    repeated = {key: CALLS if taken[key][0] < LONG else 1 for key in running}
    # Of those that go on, the heat is no round.
    taken |= {key: [] for key in running}
    for number in range(rounds):
        if number == FIRST_ROUNDS:
            running = _left({key: taken[key] for key in running}, CLEARLY, reference, group_of)
        for key in running:
            found = [_seconds(calls[key]) for _ in range(repeated[key])]
            taken[key].append(min(found))
    own = taken[reference]
    base = statistics.median(own)
    # Those that dropped out have fewer rounds.
    return {
        key: base * statistics.median(a / b for a, b in zip(found, own, strict=False))
        for key, found in taken.items()
    }


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _left(
    taken: Mapping[Key, list[float]],
    slower: float,
    reference: Key,
    group_of: Callable[[Key], Hashable],
) -> list[Key]:
    """The calls that may still be the fastest of their group."""
    best: dict[Hashable, float] = defaultdict(lambda: min(taken[reference]))
    for key, seconds in taken.items():
        best[group_of(key)] = min(best[group_of(key)], *seconds)
    return [
        key
        for key, own in taken.items()
        if key == reference or min(own) <= slower * best[group_of(key)]
    ]
