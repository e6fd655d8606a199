"""How far work is: a bar in a terminal, in pipes, log files and notebooks a line now and then."""

from __future__ import annotations

import io
import os
import sys
import time
from types import TracebackType
from typing import Any, TextIO

# Seconds between two lines: so many, or this share of all the time until then where that is more,
# which keeps the log of a long run short.
INTERVAL, SHARE = 10.0, 0.02


def progress_bar(what: str, total: int, done: int = 0) -> Any:
    """A `tqdm.tqdm` on standard error in a terminal, else `Lines`: a context with `update`.

    Arguments:
        what: is counted, by its method `update`.
        total: number of these, of which `done` were there before.

    Raises ImportError that names the extra where there is a terminal, but no tqdm.
    """
    # Whoever silences tqdm wants no lines either.
    if not (sys.stderr.isatty() or os.environ.get("TQDM_DISABLE")):
        return Lines(what, total, done)
    try:
        from tqdm import tqdm
    except ImportError as error:
        message = "experiments show progress with tqdm: install the extra 'experiments'"
        raise ImportError(message) from error
    return tqdm(desc=what, total=total, initial=done, mininterval=0.5, dynamic_ncols=True)


class Lines:
    """Progress as plain lines on standard error, each of less than 120 characters.

    Arguments:
        what, total, done: see `progress_bar`.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        """Nothing is told yet."""
        self.what, self.total, self.done, self.before = what, total, done, done
        self.start = self.last = time.monotonic()

    def __enter__(self) -> Lines:
        """Tell where the work begins."""
        self._tell("" if self.done < self.total else ", all there before")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell where it ended, unless that was told."""
        if self.done > self.before:
            self._tell(f" in {clock(time.monotonic() - self.start)}")

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        now = time.monotonic()
        spent = now - self.start
        if now - self.last < max(INTERVAL, SHARE * spent) or self.done in (
            self.before,
            self.total,
        ):
            return
        self.last = now
        left = spent / (self.done - self.before) * (self.total - self.done)
        self._tell(f", {clock(spent)} elapsed, about {clock(left)} left")

    def _tell(self, rest: str) -> None:
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        # One write, so that lines of several threads stay whole.
        line = f"{self.what}: {self.done} of {self.total}{share}{rest}\n"
        sys.stderr.write(line)
        sys.stderr.flush()


class Prefixed(io.TextIOBase):
    """A stream of text whose lines begin with who wrote them; never a terminal.

    Arguments:
        stream: where they go.
        prefix: of each line.
    """

    def __init__(self, stream: TextIO, prefix: str) -> None:
        """At the start of a line."""
        super().__init__()
        self._stream, self._prefix, self._is_start = stream, prefix, True

    def write(self, text: str) -> int:
        """Write some lines, or parts of them, at once."""
        lines = text.splitlines(keepends=True)
        starts = [self._is_start, *(line.endswith("\n") for line in lines[:-1])]
        told = "".join(
            f"{self._prefix if start else ''}{line}"
            for start, line in zip(starts, lines, strict=False)
        )
        self._stream.write(told)
        if lines:
            self._is_start = lines[-1].endswith("\n")
        return len(text)

    def flush(self) -> None:
        """Nothing is kept here."""
        self._stream.flush()

    def fileno(self) -> int:
        """Of the stream below."""
        return self._stream.fileno()


def clock(seconds: float) -> str:
    """A time as "0:09" or "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
