"""How far long work has come: one line that changes in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

# True for lines on standard error, False for none, or what takes a line of text.
Progress = bool | Callable[[str], Any]
# Is told how many are done, and what else is to be said of them.
Tick = Callable[..., None]
# Seconds between two lines about one step, where each stays.
INTERVAL = 10.0


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
        start, known, told = time.monotonic(), "", not after
        last = start if told else start + after - INTERVAL
        of = "" if total is None else f" of {total}"
        if told:
            self._write(f"{name} ...", last=False)

        def tick(done: int, note: str = "") -> None:
            nonlocal last, known, told
            now, known = time.monotonic(), note and f", {note}"
            if (self.live and told) or now - last >= INTERVAL:
                last, told = now, True
                self._write(f"{name}: {what} {done}{of}, {now - start:.0f} s{known}", last=False)

        yield tick
        if told:
            self._write(f"{name}: {time.monotonic() - start:.1f} s{known}", last=True)

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


class Counted:
    """Things that are gone over, once or more, and counted.

    Arguments:
        things: whatever can be gone over.
        tick: is told the number of each that is done with.
    """

    def __init__(self, things: Iterable[Any], tick: Tick) -> None:
        """Nothing is gone over yet."""
        self.things, self.tick = things, tick

    def __iter__(self) -> Iterator[Any]:
        """One after another."""
        for number, thing in enumerate(self.things, 1):
            yield thing
            self.tick(number)


def number_in(things: Iterable[Any]) -> int | None:
    """How many there are, None where that is not known."""
    return len(things) if isinstance(things, Sized) else None


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
