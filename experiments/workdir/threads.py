"""Several tasks of measuring at once, in threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

import jax

from experiments.workdir.devices import own_devices

Records = list[dict[str, Any]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Further:
    """Tasks that what a task has found makes possible; they begin before those that wait.

    So what they need in common is not held longer than it must be.
    """

    tasks: Sequence[Task]


Task = Callable[[], Iterator[Records | Further]]


def workers() -> int:
    """How many tasks run at once.

    An accelerator is kept busy by one. On CPU, small networks leave all cores but one idle, and
    one task's programs compile while another's run; measurements do not depend on the number.
    """
    if jax.default_backend() != "cpu":
        return len(own_devices())
    return min(4, os.cpu_count() or 1)


def apart(items: Sequence[Item]) -> list[list[Item]]:
    """Items by task: each its own where tasks are dealt out to several devices, else one of all."""
    return [[item] for item in items] if len(own_devices()) > 1 else [list(items)]


def in_threads(tasks: Sequence[Task], take: Callable[[Records], None]) -> None:
    """Run generators in threads, handing what they yield to `take`, one call at a time.

    Where one runs at a time, that is in the thread of the caller. Where there are several devices
    each task computes on one of them, and all that it makes lies there.

    The first error is raised at once and stops all of them: nothing that another yields later is
    taken, and it ends there.
    """
    if workers() > 1:
        _Pool(take).work(tasks)
        return
    waiting = deque(tasks)
    while waiting:
        for found in waiting.popleft()():
            if isinstance(found, Further):
                waiting.extendleft(reversed(found.tasks))
            else:
                take(found)


class _Pool:
    """Threads that work on tasks, those that are found on the way too."""

    def __init__(self, take: Callable[[Records], None]) -> None:
        self.take = take
        self.threads = ThreadPoolExecutor(workers())
        self.devices = _turns(own_devices(), workers())
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.ended: SimpleQueue[Future[None]] = SimpleQueue()
        self.started = 0
        self.waiting: deque[Task] = deque()

    def work(self, tasks: Sequence[Task]) -> None:
        """See `in_threads`."""
        try:
            with self.lock:
                self._start(tasks)
            done = 0
            # A task that starts others ends after that.
            while done < self.started:
                self.ended.get().result()
                done += 1
        except BaseException:
            # Not in the midst of a call of `take`.
            with self.lock:
                self.stop.set()
            raise
        finally:
            self.threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, tasks: Sequence[Task]) -> None:
        self.started += len(tasks)
        self.waiting.extendleft(reversed(tasks))
        for _ in tasks:
            self.threads.submit(self._run).add_done_callback(self.ended.put)

    def _run(self) -> None:
        device = self.devices.get()
        try:
            with nullcontext() if device is None else jax.default_device(device):
                self._carry_out(self.waiting.popleft())
        finally:
            self.devices.put(device)

    def _carry_out(self, task: Task) -> None:
        for found in task():
            with self.lock:
                if self.stop.is_set():
                    return
                if isinstance(found, Further):
                    self._start(found.tasks)
                else:
                    self.take(found)


def _turns(devices: Sequence[jax.Device], number: int) -> SimpleQueue[jax.Device | None]:
    """The devices for so many tasks at once; None for where JAX puts all by itself."""
    queue: SimpleQueue[jax.Device | None] = SimpleQueue()
    for turn in range(max(number, len(devices))):
        queue.put(devices[turn % len(devices)] if len(devices) > 1 else None)
    return queue
