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

    The first error stops all of them and is raised.
    """
    lock, stop = threading.Lock(), threading.Event()

    def run(task: Callable[[], Iterator[Records]]) -> None:
        for records in task():
            with lock:
                if stop.is_set():
                    return
                take(records)

    with ThreadPoolExecutor(workers()) as pool:
        futures = [pool.submit(run, task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
