"""Starts of an experiment, in processes of their own that are killed at some point."""

import itertools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from experiments.workdir.group import MEMBER
from experiments.workdir.places import Place

CALLS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "fsync", "write")
# What an experiment does in a work directory.
Run = Callable[..., Any]


def hook(
    workdir: Path, last: int | None, send: Callable[[str], object], kind: str | None = None
) -> None:
    """Count the points at which a process can be killed, and kill this one at the `last`.

    Arguments:
        send: takes each point as it is reached: the time, the file or folder, where, the call.
        kind: of the points that count, as "half write" or, of one file, "name half write"; None for
            all.
    """
    count = itertools.count(1)

    def reached(call: str, where: str, what: Any) -> bool:
        point = f"{where} {call}"
        of_file = f"{os.path.basename(_named(what))} {point}"
        send(f"{time.monotonic()} {of_file}")
        return kind in (None, point, of_file) and next(count) == last

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hooked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not _is_inside(workdir, args[0], kwargs.get("dir_fd")):
                return call(*args, **kwargs)
            if reached(name, "before", args[0]):
                kill()
            if name == "write" and reached(name, "half", args[0]):
                call(args[0], args[1][: len(args[1]) // 2])
                kill()
            result = call(*args, **kwargs)
            if reached(name, "after", args[0]):
                kill()
            return result

        return run

    for name in CALLS:
        setattr(os, name, hooked(name, getattr(os, name)))


def _is_inside(workdir: Path, what: Any, folder: int | None) -> bool:
    try:
        what = _named(what)
        if folder is not None:
            what = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), what)
        return Path(what).is_relative_to(workdir)
    except OSError:
        return False


def _named(what: Any) -> str:
    """The path of a file, which may be open."""
    return os.fsdecode(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what)


def child(
    run: Run, workdir: Path, last: int | None, kind: str | None, log: Path, points: Path
) -> None:
    """One start of an experiment, in a process of its own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    told = os.open(points, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    write = os.write
    hook(workdir, last, lambda point: write(told, f"{point}\n".encode()), kind)
    try:
        run(workdir)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def start(run: Run, last: int | None, folder: Path, kind: str | None = None) -> list[str] | None:
    """Start an experiment and wait for it: the points it came to where it was killed, else None.

    Arguments:
        last: the point to kill it at, from 1, of those of a `kind`; None for none.
        folder: holds its work directory, "run", its output, "log", and the points it came to.

    Raises RuntimeError where it ended otherwise.
    """
    log, points = folder / "log", folder / "points"
    process = multiprocessing.get_context("fork").Process(
        target=child, args=(run, folder / "run", last, kind, log, points)
    )
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"it ended with {process.exitcode}: {log.read_text()[-3000:]}")
    return points_of(points) if process.exitcode else None


def points_of(told: Path) -> list[str]:
    """The points that a process came to, such as "before link"."""
    # Names of files that are gone end with " (deleted)".
    return [" ".join(line.split(" ")[-2:]) for line in told.read_text().splitlines()]


@dataclass(frozen=True)
class Ended:
    """What became of a group.

    Arguments:
        calls: how many each of its processes came to, 0 where it was killed.
        is_unattended: whether one was killed when no other was left in the group, so that nobody
            was there to see to what it left.
    """

    calls: list[int]
    is_unattended: bool


def start_group(
    run: Run, folder: Path, count: int, last: Mapping[int, int], after: Mapping[int, float],
    kinds: Mapping[int, str] | None = None,
) -> Ended:  # fmt: skip
    """Start a group and wait for it.

    Arguments:
        last: the calls at which processes of these numbers kill themselves.
        after: seconds after which others of these numbers are killed.
        kinds: of the calls that count, see `hook`; all where it is not said.

    Raises RuntimeError where one ended otherwise.
    """
    fork, processes = multiprocessing.get_context("fork"), []
    logs = [folder / f"log-{number}" for number in range(count)]
    points = [folder / f"points-{number}" for number in range(count)]
    for number in range(count):
        place = Place(number, count) if count > 1 else None
        own = partial(run, place=place)
        kind = (kinds or {}).get(number)
        about = (own, folder / "run", last.get(number), kind, logs[number], points[number])
        processes.append(fork.Process(target=child, args=about))
        processes[-1].start()
    ends = _ends(processes, after)
    deaths, leaves, calls = [], [], []
    for number, process in enumerate(processes):
        if process.exitcode == 0:
            leaves.append(_left_at(points[number], number))
            calls.append(len(points_of(points[number])))
        elif number in {**last, **after} and process.exitcode == -signal.SIGKILL:
            deaths.append(ends[number])
            calls.append(0)
        else:
            told = logs[number].read_text()[-3000:]
            raise RuntimeError(f"process {number} ended with {process.exitcode}: {told}")
    # Whoever leaves later than the last death must have seen it: it looks after it has left.
    is_unattended = bool(deaths) and max(leaves, default=0.0) < max(deaths)
    return Ended(calls, is_unattended)


def _ends(processes: list[Any], after: Mapping[int, float]) -> list[float]:
    """When each process was seen to have ended; some are killed after so many seconds."""
    begun = time.monotonic()
    due = {begun + seconds: number for number, seconds in after.items()}
    running = {process.sentinel: number for number, process in enumerate(processes)}
    ends = [0.0] * len(processes)
    while running:
        rest = max(0.0, min(due) - time.monotonic()) if due else None
        ended = wait(list(running), rest)
        for sentinel in ended:
            ends[running.pop(sentinel)] = time.monotonic()
        if due and min(due) <= time.monotonic():
            processes[due.pop(min(due))].kill()
    for process in processes:
        process.join()
    return ends


def _left_at(told: Path, number: int) -> float:
    """When a process that came to its end left its group, by the points that it came to."""
    point = f" {MEMBER}{number}.json after unlink"
    found = [line for line in told.read_text().splitlines() if line.endswith(point)]
    return float(found[-1].split(" ", 1)[0]) if found else 0.0
