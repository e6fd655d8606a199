"""Calls timed in turns, in which those that have lost drop out."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax

Key = TypeVar("Key", bound=Hashable)

# Rounds that all calls take part in; slower by so much than the best of its group, one then drops
# out.
FIRST_ROUNDS, CLEARLY = 2, 2.0


def seconds_of(
    calls: Mapping[Key, Callable[[], Any]],
    rounds: int,
    *,
    reference: Key,
    group_of: Callable[[Key], Hashable],
) -> dict[Key, float]:
    """Seconds of some calls, the slow ones of each group less surely than the fast ones.

    All are made in turns with one that they are compared with: what is returned is the median over
    the rounds of its seconds, and that times the median of each other's ratio to it. So a slow
    moment of the machine does not decide between two.

    Arguments:
        calls: of which each has run once before, for its compilation.
        rounds: at least 1.
        reference: the call that others are compared with; it never drops out.
        group_of: calls of equal groups compete.
    """
    taken: dict[Key, list[float]] = {key: [] for key in calls}
    running = list(calls)
    for number in range(rounds):
        if number == FIRST_ROUNDS:
            running = _left(taken, reference, group_of)
        for key in running:
            start = time.perf_counter()
            jax.block_until_ready(calls[key]())
            taken[key].append(time.perf_counter() - start)
    own = taken[reference]
    base = statistics.median(own)
    # Those that dropped out have fewer rounds.
    return {
        key: base * statistics.median(a / b for a, b in zip(found, own, strict=False))
        for key, found in taken.items()
    }


def _left(
    taken: Mapping[Key, list[float]], reference: Key, group_of: Callable[[Key], Hashable]
) -> list[Key]:
    """The calls that may still be the fastest of their group."""
    best: dict[Hashable, float] = defaultdict(lambda: float("inf"))
    for key, seconds in taken.items():
        best[group_of(key)] = min(best[group_of(key)], min(seconds))
    return [
        key
        for key, seconds in taken.items()
        if key == reference or min(seconds) <= CLEARLY * best[group_of(key)]
    ]
