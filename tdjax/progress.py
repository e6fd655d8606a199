"""How far long work has come: one line that changes in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

# True for lines on standard error, False for none, or what takes a line of text.
Progress = bool | Callable[[str], Any]
# Is told how many are done, and what else is to be said of them.
Tick = Callable[..., None]
# Seconds between two lines about one step, where each stays.
INTERVAL = 10.0
# Seconds of which nothing is told where most calls take less.
QUIET = 3.0


class Part:
    """Given as `progress`, makes the steps of a call a part of a step that is told of already.

    Arguments:
        tick: of that step.
    """

    def __init__(self, tick: Tick) -> None:
        """Nothing is done yet."""
        self.tick = tick

    def __call__(self, line: str) -> None:
        """No lines of its own."""


class Steps:
    """The steps of one piece of work, told one after another.

    Arguments:
        work: its name, in front of every line.
        progress: see `Progress`.
    """

    def __init__(self, work: str, progress: Progress) -> None:
        """Nothing is told yet."""
        self.work = work
        self.say = _on_stderr if progress is True else progress or None
        self.live = progress is True and sys.stderr.isatty()
        self.part = progress if isinstance(progress, Part) else None

    @contextmanager
    def step(
        self, name: str, what: str = "", total: int | None = None, *, after: float = 0.0
    ) -> Iterator[Tick]:
        """A step; the function that it gives is told how many of `total` are done.

        What else it is told stands at the end of the line, and of the last one.

        Arguments:
            what: is counted.
            after: seconds; of work that is over before then nothing is told.
        """
        if self.part is not None:
            outer = self.part.tick
            yield lambda done, note="", _=None: outer(done, note, total)
            return
        start, known, told = time.monotonic(), "", not after
        last = start if told else start + after - INTERVAL
        if told:
            self._write(f"{name} ...", last=False)

        def tick(done: int, note: str = "", known_total: int | None = total) -> None:
            nonlocal last, known, told
            now, known = time.monotonic(), note and f", {note}"
            if (self.live and told) or now - last >= INTERVAL:
                last, told = now, True
                of = "" if known_total is None else f" of {known_total}"
                self._write(f"{name}: {what} {done}{of}, {now - start:.0f} s{known}", last=False)

        try:
            yield tick
        except BaseException:
            if self.live and told:
                # What is said of an error starts a line of its own.
                sys.stderr.write("\n")
            raise
        if told:
            self._write(f"{name}: {time.monotonic() - start:.1f} s{known}", last=True)

    def lasting(self, name: str, what: str, total: int | None) -> AbstractContextManager[Tick]:
        """A step of which nothing is told that is over within `QUIET` seconds."""
        return self.step(name, what, total, after=QUIET)

    @contextmanager
    def over(self, name: str, batches: Iterable[Any]) -> Iterator[Iterable[Any]]:
        """Such a step that goes over batches: gives them, to be counted as they are."""
        with self.lasting(name, "batch", number_in(batches)) as tick:
            counted = Counted(batches, tick)
            # What can be read but once still shows that.
            yield iter(counted) if iter(batches) is batches else counted

    def tell(self, text: str) -> None:
        """A line for itself."""
        self._write(text, last=True)

    def _write(self, text: str, *, last: bool) -> None:
        if self.live:
            # From the start of the line on, with nothing left of a longer one.
            sys.stderr.write(f"\r\033[K{self.work}: {text}" + "\n" * last)
            sys.stderr.flush()
        elif self.say is not None:
            self.say(f"{self.work}: {text}")


class Done:
    """Is called for each thing that is done, from any thread, and tells their number in its order.

    Arguments:
        tick: is told the number.
    """

    def __init__(self, tick: Tick) -> None:
        """Nothing is done yet."""
        self.tick, self.number, self.lock = tick, 0, threading.Lock()

    def __call__(self) -> None:
        """One more."""
        with self.lock:
            self.number += 1
            self.tick(self.number)


class Counted:
    """Things that are gone over, once or more, and counted.

    Arguments:
        things: whatever can be gone over.
        tick: is told the number of each that is done with.
    """

    def __init__(self, things: Iterable[Any], tick: Tick) -> None:
        """Nothing is gone over yet."""
        self.things, self.tick, self.passes = things, tick, 0

    def __iter__(self) -> Iterator[Any]:
        """One after another."""
        note = ""
        for number, thing in enumerate(self.things, 1):
            yield thing
            if number == 1:
                # A look at the first alone is no pass.
                self.passes += 1
                note = f"pass {self.passes}" if self.passes > 1 else ""
            self.tick(number, note)


def number_in(things: Iterable[Any]) -> int | None:
    """How many there are, None where that is not known."""
    try:
        return len(things)  # type: ignore[arg-type]
    except TypeError:
        return None


# Tells nothing.
SILENT = Steps("", progress=False)


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
