"""Processes that take units of work by leases, simulated event by event.

A unit is taken by one process at a time, the first that is free. A unit of a network is free once
that network is trained, which is a unit of its own, or once another unit is done that it needs, as
a decomposition is by its fine-tuning; who finds nothing looks again after a while. A process goes
on with what needs the same as what it did last, or that itself; else with the first that is free.
A lease is renewed while its owner lives, and taken over when nobody has renewed it for so long, as
whoever waits sees it; what the owner had done of the unit is lost, of a training what came after
its last checkpoint. A process that dies is started again after a while.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

HOUR = 3600.0


class Unit(NamedTuple):
    """What one process does under one lease.

    Arguments:
        network: whose training it waits for.
        program: what is compiled for it; another unit of this name needs no more compiling.
        seconds: of work, once compiled.
        compiling: seconds, where it is compiled.
        needs: the place, among the units of the study, of one before it that must be done; None for
            none but the training.
    """

    network: int
    program: str
    seconds: float
    compiling: float = 0.0
    needs: int | None = None


class Study(NamedTuple):
    """What there is to do.

    Arguments:
        trainings: one for each network, in their order.
        units: behind them, in the order in which they are taken.
        checkpoint: seconds of a training between two checkpoints; 0 where none are kept.
    """

    name: str
    trainings: tuple[Unit, ...]
    units: tuple[Unit, ...]
    checkpoint: float = 0.0

    @property
    def work(self) -> float:
        """Seconds of all units, without start and compiling."""
        return sum(unit.seconds for unit in (*self.trainings, *self.units))


@dataclass(frozen=True)
class Circumstances:
    """What processes are like; all times in seconds.

    Arguments:
        start: least and most that a process takes until it can work.
        deaths: of a process, an hour.
        restart: from a death to the next start.
        renewal: between two renewals of a lease.
        timeout: without renewal, after which a lease is taken over.
        watching: at most that long until somebody who waits has seen that.
        look: between two looks of who found nothing free.
        shared: whether programs that one process has compiled are read by the others.
        reading: of a program that another has compiled, as a share of the time to compile it.
        spread: whether process k of N begins to look at the k-th of N parts of the units, and then
            goes on from where it is; else each looks from the first unit on.
    """

    start: tuple[float, float] = (10.0, 20.0)
    deaths: float = 0.0
    restart: float = 60.0
    renewal: float = 10.0
    timeout: float = 90.0
    watching: float = 30.0
    look: float = 5.0
    shared: bool = True
    reading: float = 0.1
    spread: bool = False


@dataclass
class Outcome:
    """How it went; shares are of the time of all processes from the start to the end."""

    processes: int
    makespan: float = 0.0
    takeovers: int = 0
    deaths: int = 0
    work: float = 0.0
    overhead: float = 0.0
    untrained: float = 0.0
    nothing_left: float = 0.0
    lost: float = 0.0
    dead: float = 0.0

    def share(self, seconds: float) -> float:
        """Of the time of all processes."""
        return seconds / (self.processes * self.makespan) if self.makespan else 0.0


@dataclass
class _Process:
    """One process.

    Arguments:
        life: how often it was started; what was arranged for an earlier life is void.
        unit: its lease, or None.
        since: when it began to do what it does now.
        free: when it can begin to work, after start and compiling.
        programs: that it has in memory.
        place: of the unit from which on it looks for another.
        course: the place of the unit whose fine-tuning it goes on with, if there is more; or None.
    """

    number: int
    place: int = 0
    life: int = 0
    alive: bool = False
    unit: int | None = None
    since: float = 0.0
    free: float = 0.0
    programs: set[str] = field(default_factory=set)
    course: int | None = None


class _Simulation:
    """Events in the order of their times, ties in the order in which they were arranged."""

    def __init__(self, study: Study, processes: int, how: Circumstances, seed: int) -> None:
        self.study, self.how, self.random = study, how, Random(seed)
        self.all = (*study.trainings, *study.units)
        self.left = [unit.seconds for unit in self.all]
        # What can be taken, in its order.
        self.open = list(range(len(study.trainings)))
        # By the place of what they need.
        self.waiting: dict[int, list[int]] = {}
        trained = {unit.network: place for place, unit in enumerate(study.trainings)}
        for place in range(len(study.trainings), len(self.all)):
            self.waiting.setdefault(self._needed(place, trained), []).append(place)
        # Of fine-tuning; a training is followed by whatever is first.
        self.behind = {
            place: tuple(own) for place, own in self.waiting.items() if place >= len(trained)
        }
        # When each program is in the shared cache.
        self.compiled: dict[str, float] = {}
        self.abandoned: set[int] = set()
        self.undone = len(self.all)
        self.untrained = len(study.trainings)
        self.events: list[tuple[float, int, str, int, int]] = []
        self.arranged = 0
        first = len(study.trainings)
        self.members = [
            _Process(k, first + k * len(study.units) // processes) for k in range(processes)
        ]
        self.outcome = Outcome(processes)

    def _needed(self, place: int, trained: Mapping[int, int]) -> int:
        """The place of what a unit needs."""
        needs = self.all[place].needs
        return trained[self.all[place].network] if needs is None else needs + len(trained)

    def run(self) -> Outcome:
        """To the end of the last unit."""
        for process in self.members:
            self._at(0.0, "born", process.number)
        while self.undone:
            now, _, name, number, life = heapq.heappop(self.events)
            if name == "freed":
                self.abandoned.add(number)
                bisect.insort(self.open, number)
                continue
            process = self.members[number]
            if life == process.life:
                getattr(self, f"_{name}")(process, now)
        end = self.outcome.makespan = now
        for process in self.members:
            if process.alive:
                self._spent(process, end)
            else:
                self.outcome.dead += end - process.since
        return self.outcome

    def _at(self, when: float, name: str, number: int) -> None:
        life = 0 if name == "freed" else self.members[number].life
        heapq.heappush(self.events, (when, self.arranged, name, number, life))
        self.arranged += 1

    def _born(self, process: _Process, now: float) -> None:
        self.outcome.dead += now - process.since
        process.alive, process.since, process.unit = True, now, None
        process.programs, process.course = set(), None
        process.free = now + self.random.uniform(*self.how.start)
        if self.how.deaths:
            self._at(now + self.random.expovariate(self.how.deaths / HOUR), "dies", process.number)
        self._at(process.free, "looks", process.number)

    def _looks(self, process: _Process, now: float) -> None:
        self._spent(process, now)
        if not self.open:
            process.free = now
            self._at(now + self.how.look, "looks", process.number)
            return
        place = self._taken(process)
        if place in self.abandoned:
            self.abandoned.remove(place)
            self.outcome.takeovers += 1
        process.unit, process.free = place, now + self._compiling(process, self.all[place], now)
        self._at(process.free + self.left[place], "done", process.number)

    def _taken(self, process: _Process) -> int:
        """The next unit for a process: a training, where there is one."""
        start = 0
        if (own := self._goes_on(process)) is not None:
            start = own
        elif self.how.spread and self.open[0] >= len(self.study.trainings):
            start = bisect.bisect_left(self.open, process.place) % len(self.open)
        place = self.open.pop(start)
        if self.how.spread and place >= len(self.study.trainings):
            process.place = place
        needs = self.all[place].needs
        process.course = place if needs is None else needs + len(self.study.trainings)
        return place

    def _goes_on(self, process: _Process) -> int | None:
        """Which of the open units needs what this process goes on with; None for none."""
        if process.course is None:
            return None
        behind = self.behind.get(process.course, ())
        for place in behind:
            found = bisect.bisect_left(self.open, place)
            if found < len(self.open) and self.open[found] == place:
                return found
        return None

    def _compiling(self, process: _Process, unit: Unit, now: float) -> float:
        """Seconds until a process has the program of a unit."""
        if unit.program in process.programs:
            return 0.0
        process.programs.add(unit.program)
        there = self.compiled.get(unit.program, math.inf)
        if self.how.shared and there <= now:
            return unit.compiling * self.how.reading
        self.compiled[unit.program] = min(there, now + unit.compiling)
        return unit.compiling

    def _done(self, process: _Process, now: float) -> None:
        assert process.unit is not None
        self._spent(process, now)
        place, process.unit = process.unit, None
        self.undone -= 1
        if place < len(self.study.trainings):
            # What they waited for until now.
            for other in self.members:
                if other.alive:
                    self._spent(other, now)
            self.untrained -= 1
        for behind in self.waiting.pop(place, ()):
            bisect.insort(self.open, behind)
        process.free = now
        if self.undone:
            self._looks(process, now)

    def _dies(self, process: _Process, now: float) -> None:
        place, worked = process.unit, max(0.0, now - process.free)
        self._spent(process, now)
        if place is not None:
            kept = self._kept(place, worked)
            self.left[place] -= kept
            self.outcome.work -= worked - kept
            self.outcome.lost += worked - kept
            last = now - self.random.uniform(0, self.how.renewal)
            seen = self.how.timeout + self.random.uniform(0, self.how.watching)
            self._at(max(now, last + seen), "freed", place)
            if now < process.free == self.compiled.get(self.all[place].program):
                # It was not written.
                del self.compiled[self.all[place].program]
        self.outcome.deaths += 1
        process.alive, process.unit, process.since = False, None, now
        process.life += 1
        self._at(now + self.how.restart, "born", process.number)

    def _kept(self, place: int, worked: float) -> float:
        """Seconds of a training that its last checkpoint holds; of any other unit none."""
        step = self.study.checkpoint
        if place >= len(self.study.trainings) or not step:
            return 0.0
        return worked // step * step

    def _spent(self, process: _Process, now: float) -> None:
        """Book what a process did since it was last asked."""
        middle = min(max(process.free, process.since), now)
        rest = now - middle
        self.outcome.overhead += middle - process.since
        if process.unit is not None:
            self.outcome.work += rest
        elif self.untrained:
            self.outcome.untrained += rest
        else:
            self.outcome.nothing_left += rest
        process.since = now


def simulated(
    study: Study, processes: int, how: Circumstances | None = None, seed: int = 0
) -> Outcome:
    """What N processes make of a study.

    Raises ValueError for no process, no unit, a time that is no number of seconds, a unit of a
    network that nobody trains, or that needs one which is not before it.
    """
    how = Circumstances() if how is None else how
    if processes < 1:
        raise ValueError(f"simulated: at least 1 process is needed, got {processes}")
    every = (*study.trainings, *study.units)
    if not every:
        raise ValueError(f"simulated: {study.name} has no units")
    times = [time for unit in every for time in (unit.seconds, unit.compiling)]
    times += [*how.start, how.deaths, how.restart, how.renewal, how.timeout, how.watching]
    if not all(math.isfinite(time) and time >= 0 for time in times) or not how.look > 0:
        raise ValueError("simulated: all times must be finite and not negative, look above 0")
    trained = {unit.network for unit in study.trainings}
    for unit in study.units:
        if unit.network not in trained:
            raise ValueError(f"simulated: nobody trains network {unit.network} of {study.name}")
    for place, unit in enumerate(study.units):
        if unit.needs is not None and not 0 <= unit.needs < place:
            raise ValueError(f"simulated: unit {place} needs {unit.needs}, which is not before it")
    return _Simulation(study, processes, how, seed).run()


def bounds(study: Study, processes: int, how: Circumstances) -> dict[str, float]:
    """Seconds that no schedule can be below, by what sets them; starts are taken as the shortest.

    "units": each process does at least so many units as come out when they are divided, and these
    are at least the shortest ones.
    """
    seconds = sorted(unit.seconds for unit in study.units)
    rounds = -(-len(seconds) // processes)
    trained = {unit.network: unit.seconds for unit in study.trainings}
    chains: list[float] = []
    for unit in study.units:
        before = trained[unit.network] if unit.needs is None else chains[unit.needs]
        chains.append(before + unit.seconds)
    first = min(trained.values(), default=0.0)
    start = how.start[0]
    return {
        "work": start + study.work / processes,
        "chain": start + max(chains, default=max(trained.values(), default=0.0)),
        "units": start + first + sum(seconds[:rounds]),
    }
