"""Wall-clock time of a model before and after, as a plan shows it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax


class Profile(NamedTuple):
    """Measured seconds of one call.

    Arguments:
        before, after: median seconds of the dense and of the factorised model.
        speedup: median over the rounds of before / after.
        least, most: of that ratio.
        rounds: number of rounds, both models in turns.
    """

    before: float
    after: float
    speedup: float
    least: float
    most: float
    rounds: int

    def __str__(self) -> str:
        """One line, in milliseconds."""
        return (
            f"measured: {1e3 * self.before:.3g} ms -> {1e3 * self.after:.3g} ms, "
            f"{self.speedup:.2f} times as fast [{self.least:.2f}, {self.most:.2f}], "
            f"median [least, most] of {self.rounds} rounds"
        )


def profile_calls(
    dense: Callable[[], Any], factorised: Callable[[], Any], rounds: int = 10
) -> Profile:
    """Time two calls in turns, so that a slow moment of the machine hits both.

    Each is made once before, untimed, for compilation.

    Arguments:
        dense, factorised: calls of the two models, compiled functions with their arguments bound.
        rounds: timed calls of each, at least 1.

    Raises ValueError for no rounds, TypeError for something that cannot be called.
    """
    for name, call in (("dense", dense), ("factorised", factorised)):
        if not callable(call):
            raise TypeError(
                f"profile: {name} is of type {type(call).__name__}: pass a function that calls the "
                "model, lambda: apply(variables, x)"
            )
    before, after = seconds_in_turns((dense, factorised), rounds)
    ratios = sorted(slow / fast for slow, fast in zip(before, after, strict=True))
    return Profile(
        statistics.median(before), statistics.median(after), statistics.median(ratios),
        ratios[0], ratios[-1], rounds,
    )  # fmt: skip


def seconds_in_turns(
    calls: Sequence[Callable[[], Any]], rounds: int, rest: float = 0.0
) -> tuple[tuple[float, ...], ...]:
    """Seconds that each call takes, round by round; each is made once before, untimed.

    Arguments:
        rest: seconds of rest in front of each.

    Raises ValueError for no rounds.
    """
    if rounds < 1:
        raise ValueError(f"profile: rounds must be at least 1, got {rounds}")
    for call in calls:
        jax.block_until_ready(call())
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for own, call in zip(seconds, calls, strict=True):
            time.sleep(rest)
            start = time.perf_counter()
            jax.block_until_ready(call())
            own.append(time.perf_counter() - start)
    return tuple(map(tuple, seconds))
