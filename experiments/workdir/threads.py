"""Several tasks of measuring at once, in threads, and in processes that share their units."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

import jax

from experiments.workdir.devices import own_devices

Records = list[dict[str, Any]]
# Seconds between two looks at what other processes do: at first, and at most.
PAUSE, LONGEST_PAUSE = 0.05, 3.0


@dataclass(frozen=True)
class Further:
    """Tasks that what a task has found makes possible; they begin before those that wait.

    So what they need in common is not held longer than it must be.
    """

    tasks: Sequence[Task]


@dataclass(frozen=True, eq=False)
class Unit:
    """A piece of work that one process does, whichever, while others go on with other units.

    Arguments:
        name: in words, the same in every process.
        is_done: whether its results are there.
        work: yields its records, or nothing where its result is a file.
    """

    name: str
    is_done: Callable[[], bool]
    work: Callable[[], Iterator[Records]]


@dataclass(frozen=True)
class Units:
    """Units in whatever order; a task that yields them goes on when all are done, by whomever."""

    units: Sequence[Unit]


Task = Callable[[], Iterator[Records | Further | Units]]


class Share(Protocol):
    """How the units are dealt out to processes."""

    def take(self, unit: Unit) -> AbstractContextManager[Any] | None:
        """A context in which the unit is this process's; None where it is another's."""

    def has_failed(self, unit: Unit) -> bool:
        """Whether another process failed at it in a way that this one would, too."""

    def refresh(self) -> None:
        """Look what others have done."""

    def wait(self, units: Sequence[Unit]) -> None:
        """Tell that nothing is left but these, which are others'."""


class Alone:
    """One process, which does all of them."""

    def take(self, unit: Unit) -> AbstractContextManager[Any] | None:
        """Each is its own."""
        return nullcontext(unit)

    def has_failed(self, unit: Unit) -> bool:
        """An error ends all."""
        return False

    def refresh(self) -> None:
        """There are no others."""

    def wait(self, units: Sequence[Unit]) -> None:
        """There are none."""


def last_units(units: Sequence[Unit]) -> Units | Further:
    """Units that a task ends with: tasks of their own where they are dealt out to devices."""
    if len(own_devices()) == 1:
        return Units(units)
    return Further([partial(_alone, unit) for unit in units])


def _alone(unit: Unit) -> Iterator[Units]:
    yield Units([unit])


def workers(beside: int = 1) -> int:
    """How many tasks run at once.

    An accelerator is kept busy by one. On CPU, small networks leave all cores but one idle, and
    one task's programs compile while another's run; measurements do not depend on the number.

    Arguments:
        beside: processes that share the cores, this one too.
    """
    if jax.default_backend() != "cpu":
        return len(own_devices())
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min(4, cores // beside))


def in_threads(
    tasks: Sequence[Task],
    take: Callable[[Records], None],
    share: Share | None = None,
    most: int | None = None,
) -> None:
    """Run generators in threads, handing what they yield to `take`, one call at a time.

    Where one runs at a time, that is in the thread of the caller. Where there are several devices
    each task computes on one of them, and all that it makes lies there.

    The first error is raised at once and stops all of them: nothing that another yields later is
    taken, and it ends there.

    Arguments:
        share: of the work with other processes; None for none.
        most: how many run at once; None for `workers()`.
    """
    count = workers() if most is None else most
    pool = _Pool(take, share or Alone(), count)
    pool.start(tasks)
    if count > 1:
        pool.run_in_threads(count)
    else:
        pool.run()


@dataclass
class _Course:
    """A task that has begun, and the units that it waits for.

    Arguments:
        is_broken: whether one of them failed elsewhere, so that it cannot go on.
    """

    steps: Iterator[Records | Further | Units]
    units: list[Unit] = field(default_factory=list)
    is_broken: bool = False


class _Pool:
    """Threads that work on tasks, those that are found on the way too."""

    def __init__(self, take: Callable[[Records], None], share: Share, count: int) -> None:
        self._take, self.share = take, share
        self.devices = _turns(own_devices(), count)
        # Held to take records: one call at a time, and none after an error.
        self.taking = threading.Lock()
        self.change = threading.Condition()
        self.waiting: deque[Task | _Course] = deque()
        # Courses all of whose units are others', when they are tried again, and how long after.
        self.parked: list[_Course] = []
        self.due, self.pause = 0.0, PAUSE
        self.running = 0
        self.error: BaseException | None = None

    def start(self, tasks: Sequence[Task]) -> None:
        """These are begun before those that wait."""
        with self.change:
            self.waiting.extendleft(reversed(tasks))
            self.change.notify_all()

    def run_in_threads(self, count: int) -> None:
        """`run` in so many threads, which are not waited for after an error."""
        left = [count]

        def run() -> None:
            error = None
            try:
                self.run()
            except BaseException as raised:
                error = raised
            with self.change:
                left[0] -= 1
            self._stop(error)

        for _ in range(count):
            threading.Thread(target=run).start()
        try:
            with self.change:
                self.change.wait_for(lambda: self.error is not None or not left[0])
        except BaseException as error:
            self._stop(error)
            raise
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """Work until nothing is left."""
        while (course := self._next()) is not None:
            try:
                with self._device():
                    is_over = self._work(course)
            except BaseException:
                with self.change:
                    self.running -= 1
                raise
            with self.change:
                self.running -= 1
                if not is_over:
                    self.parked.append(course)
                self.change.notify_all()

    @contextmanager
    def _device(self) -> Iterator[None]:
        """A block that computes on a device which no other does as long as there are enough."""
        device = self.devices.get()
        try:
            with nullcontext() if device is None else jax.default_device(device):
                yield
        finally:
            self.devices.put(device)

    def _stop(self, error: BaseException | None) -> None:
        # Not in the midst of a call of `take`.
        with self.taking, self.change:
            self.error = self.error or error
            self.change.notify_all()

    def _next(self) -> _Course | None:
        """What to go on with; None where all is done, or was stopped by an error."""
        while True:
            with self.change:
                if self.error is not None:
                    return None
                if self.parked and time.monotonic() >= self.due:
                    self.waiting.extend(self.parked)
                    self.parked.clear()
                    self.due = time.monotonic() + self.pause
                    self.pause = min(1.5 * self.pause, LONGEST_PAUSE)
                if self.waiting:
                    self.running += 1
                    first = self.waiting.popleft()
                    return first if isinstance(first, _Course) else _Course(first())
                if not self.parked and not self.running:
                    return None
                if not self.running:
                    self.share.wait([unit for course in self.parked for unit in course.units])
                left = self.due - time.monotonic() if self.parked else None
                self.change.wait(left if left is None else max(left, 0.001))

    def _work(self, course: _Course) -> bool:
        """Go on with a task; whether it is at its end, not at units of others."""
        while True:
            if not self._do_units(course):
                return self.error is not None
            if course.is_broken:
                return True
            found = next(course.steps, None)
            if found is None:
                return True
            if isinstance(found, Further):
                self.start(found.tasks)
            elif isinstance(found, Units):
                course.units = list(found.units)
            elif not self._record(found):
                return True

    def _do_units(self, course: _Course) -> bool:
        """Do those of a task's units that others do not; whether all are done."""
        if course.units:
            self.share.refresh()
        for unit in list(course.units):
            if not unit.is_done() and not self.share.has_failed(unit) and not self._do(unit):
                continue
            course.is_broken |= not unit.is_done() and self.share.has_failed(unit)
            course.units.remove(unit)
        return not course.units

    def _do(self, unit: Unit) -> bool:
        """Whether a unit is done now, or has failed elsewhere; else it is another's to do."""
        own = self.share.take(unit)
        if own is None:
            return False
        with own:
            # What happened until it was taken.
            self.share.refresh()
            if not unit.is_done() and not self.share.has_failed(unit):
                with self.change:
                    self.pause = PAUSE
                for records in unit.work():
                    if not self._record(records):
                        return False
        return True

    def _record(self, records: Records) -> bool:
        """Whether they were taken: after an error nothing is."""
        with self.taking:
            if self.error is not None:
                return False
            self._take(records)
        return True


def _turns(devices: Sequence[jax.Device], number: int) -> SimpleQueue[jax.Device | None]:
    """The devices for so many tasks at once; None for where JAX puts all by itself."""
    queue: SimpleQueue[jax.Device | None] = SimpleQueue()
    for turn in range(max(number, len(devices))):
        queue.put(devices[turn % len(devices)] if len(devices) > 1 else None)
    return queue
