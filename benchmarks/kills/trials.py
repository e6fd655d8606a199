"""An experiment that is killed until there were enough kills, alone or as a group."""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kills.configs import CONFIGS
from benchmarks.kills.left import check_results, results
from benchmarks.kills.starts import Run, points_of, start, start_group
from experiments.runner import carry_out

# Kills on the way from an empty folder to the end, about.
KILLS = 8


def chain(
    run: Run, folder: Path, rng: random.Random, before: Counter[str], count: Counter[str], most: int
) -> Counter[str]:
    """Kill an experiment until it comes to its end, or `most` times; how often at which point.

    Each time at a point of the kind at which it was killed least often.

    Arguments:
        before: kills of earlier ones.
        count: of the points of an undisturbed run, by kind.
    """
    kills: Counter[str] = Counter()
    while kills.total() < most:
        kind = min(count, key=lambda kind: (before + kills)[kind])
        last = rng.randint(1, max(2 * count[kind] // KILLS, 1))
        if start(run, last, folder, kind) is None:
            # So near to its end that it has no more of them.
            return kills
        kills[kind] += 1
    start(run, None, folder)
    return kills


def try_alone(name: str, kills: int, seed: int) -> Counter[str]:
    """Kill an experiment so many times; how often at which point.

    Raises RuntimeError where a start fails or the results differ.
    """
    rng, done = random.Random(f"{name} {seed}"), Counter[str]()
    with undisturbed(name) as (run, whole, expected):
        count = Counter(points_of(whole / "points"))

        def killed(folder: Path) -> str:
            found = chain(run, folder, rng, done, count, kills - done.total())
            done.update(found)
            return f"killed at {', '.join(found)}"

        again(name, killed, expected, lambda: done.total() >= kills)
    return done


def try_group(name: str, kills: int, count: int, seed: int) -> Counter[str]:
    """Kill processes of groups so many times; how often in which way.

    Raises as `try_alone` does.
    """
    rng, done = random.Random(f"{name} {count} {seed}"), Counter[str]()
    with undisturbed(name) as (run, whole, expected):
        (together := whole / "group").mkdir()
        begun = time.monotonic()
        calls = start_group(run, together, count, {}, {}).calls
        spent = time.monotonic() - begun
        check_results(f"{name} by {count} processes", together / "run", expected)

        def killed(folder: Path) -> str:
            victims = rng.sample(range(count), rng.randint(1, min(2, kills - done.total())))
            by_time = {v: rng.uniform(0, spent) for v in victims if rng.random() < 0.5}
            by_call = {v: rng.randint(1, calls[v]) for v in victims if v not in by_time}
            ended = start_group(run, folder, count, by_call, by_time)
            done["at some time"] += sum(not ended.calls[v] for v in by_time)
            done["at a call"] += sum(not ended.calls[v] for v in by_call)
            told = f"{count} processes, killed at calls {by_call}, after seconds {by_time}"
            if ended.is_unattended:
                more = rng.randint(1, count)
                told += f", nobody was left, {more} went on"
                start_group(run, folder, more, {}, {})
            return told

        again(name, killed, expected, lambda: done.total() >= kills)
    return done


@contextmanager
def undisturbed(name: str) -> Iterator[tuple[Run, Path, dict[str, Any]]]:
    """An experiment, the folder where it ran once by one process, and its results."""
    run: Run = partial(carry_out, {"experiment": name, **CONFIGS[name]})
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary).resolve()
        start(run, None, whole)
        yield run, whole, results(whole / "run")


def again(
    name: str,
    killed: Callable[[Path], str],
    expected: Mapping[str, Any],
    is_enough: Callable[[], bool],
) -> None:
    """From an empty folder to the end, again and again; each time with the same results.

    Arguments:
        killed: folder -> in words, how an experiment was killed there before its end.
    """
    while not is_enough():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder).resolve()
            told = killed(path)
            check_results(f"{name}, {told}", path / "run", expected)
            print(f"{name}: equal, {told}", flush=True)
