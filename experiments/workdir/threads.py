"""Several tasks of measuring at once, in threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax

Records = list[dict[str, Any]]


def workers() -> int:
    """How many tasks run at once.

    An accelerator is kept busy by one. On CPU, small networks leave all cores but one idle, and
    one task's programs compile while another's run; measurements do not depend on the number.
    """
    return 1 if jax.default_backend() != "cpu" else min(4, os.cpu_count() or 1)


def in_threads(
    tasks: Sequence[Callable[[], Iterator[Records]]], take: Callable[[Records], None]
) -> None:
    """Run generators in threads, handing what they yield to `take`, one call at a time.

    Where one runs at a time, that is in the thread of the caller.

    The first error is raised at once and stops all of them: nothing that another yields later is
    taken, and it ends there.
    """
    if min(workers(), len(tasks)) <= 1:
        for task in tasks:
            for records in task():
                take(records)
        return
    lock, stop = threading.Lock(), threading.Event()

    def run(task: Callable[[], Iterator[Records]]) -> None:
        for records in task():
            with lock:
                if stop.is_set():
                    return
                take(records)

    pool = ThreadPoolExecutor(workers())
    try:
        for future in as_completed([pool.submit(run, task) for task in tasks]):
            future.result()
    except BaseException:
        # Not in the midst of a call of `take`.
        with lock:
            stop.set()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
