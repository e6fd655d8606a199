"""Several tasks of measuring at once, in threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import jax

Records = list[dict[str, Any]]


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
    return 1 if jax.default_backend() != "cpu" else min(4, os.cpu_count() or 1)


def in_threads(tasks: Sequence[Task], take: Callable[[Records], None]) -> None:
    """Run generators in threads, handing what they yield to `take`, one call at a time.

    Where one runs at a time, that is in the thread of the caller.

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
        for found in self.waiting.popleft()():
            with self.lock:
                if self.stop.is_set():
                    return
                if isinstance(found, Further):
                    self._start(found.tasks)
                else:
                    self.take(found)
