"""How a run of the command line ends: at a signal with one line, and nothing left behind.

The standard library alone, so that signals are answered before anything else is loaded.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# With the names that people know them by.
STOPS = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "the end of the terminal"}

# Where it is set, a process ends when its standard input does, which what started it holds open.
WITH_INPUT = "EXPERIMENTS_END_WITH_INPUT"

# What is to be undone where the process ends before it comes to it, in the order of its beginning.
_pending: dict[object, Callable[[], None]] = {}


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """A block at whose end `undo` is called, once: at an error and at a signal too."""
    key = object()
    _pending[key] = undo
    try:
        yield
    finally:
        # Whoever takes it out calls it.
        if _pending.pop(key, None) is not None:
            undo()


def answer_signals() -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP end this process with one line: 130, 143, 129.

    A handler in Python waits until the main thread is back from compiled code, which a compilation
    keeps for minutes, and an exception would come up in the midst of whatever runs; so a thread of
    its own ends the process. All files are written so that a kill at any moment loses nothing.

    Signals that the process was started to ignore stay ignored. To be called by the main thread.
    """
    known = {getattr(signal, name): told for name, told in STOPS.items() if hasattr(signal, name)}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in known:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    threading.Thread(target=_wait, args=(reading, known), daemon=True).start()


def end_with_input() -> None:
    """From now on end this process as Ctrl-C does when its standard input ends, if that was asked.

    Whoever started it holds the other end of that pipe: its end, even by `kill -9`, closes it.
    """
    # Not what this process starts in turn: for that, there is no input.
    if os.environ.pop(WITH_INPUT, "") == "":
        return
    held, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_wait_for_end, args=(held,), daemon=True).start()


def end(status: int, line: str) -> None:
    """End this process at once, whatever its threads do: with a last line on standard error."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{line}\n")):
        # A pipe whose reader has gone, or a full disk: there is nobody to tell.
        with suppress(OSError, ValueError):
            stream.write(text)
            stream.flush()
    while _pending:
        with suppress(Exception):
            _pending.popitem()[1]()
    os._exit(status)


def _wait(reading: int, known: dict[int, str]) -> None:
    while (number := os.read(reading, 1)[0]) not in known:
        pass
    _end_stopped(128 + number, known[number])


def _wait_for_end(held: int) -> None:
    while os.read(held, 1):
        pass
    _end_stopped(129, "the end of what started it")


def _end_stopped(status: int, by: str) -> None:
    # A progress bar may stand there.
    start = "\n" if "tqdm" in sys.modules else ""
    end(
        status,
        f"{start}stopped by {by}: start the same command again to go on; "
        "nothing that was measured is lost",
    )
