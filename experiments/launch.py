"""Several processes of one run on this machine, started and waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from experiments.workdir.places import BESIDE
from experiments.workdir.stops import WITH_INPUT, undone

# Seconds between two looks at the processes, and that they have to end when they are stopped.
PAUSE, PATIENCE = 0.1, 5.0


def launch(count: int, arguments: Sequence[str]) -> None:
    """Start `experiments.main` so many times with these flags, and wait for all.

    One that ends with an error has told it; the others go on with its work. All end with this one.

    Raises RuntimeError where none came to the end of the work.
    """
    command = [sys.executable, "-m", "experiments.main", *arguments, "--processes=1"]
    environment = {**os.environ, BESIDE: str(count), WITH_INPUT: "1"}
    processes: list[subprocess.Popen[bytes]] = []
    with undone(partial(_stop, processes)):
        for number in range(count):
            processes.append(
                subprocess.Popen(
                    [*command, f"--process={number}/{count}"],
                    env=environment,
                    # Closed when this process ends, however that comes about.
                    stdin=subprocess.PIPE,
                    # What it prints is printed once, for all.
                    stdout=subprocess.DEVNULL,
                )
            )
        running = dict(enumerate(processes))
        while running:
            time.sleep(PAUSE)
            for number, process in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    _tell(number, process.returncode, others=len(running))
    if all(process.returncode for process in processes):
        raise RuntimeError(
            f"none of the {count} processes came to the end of the work, see what they say above"
        )


def _tell(number: int, status: int, others: int) -> None:
    if status < 0:
        with suppress(ValueError):
            name = signal.Signals(-status).name
            rest = "; the others go on with its work" if others else ""
            sys.stderr.write(f"process {number} was ended by {name}{rest}\n")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
