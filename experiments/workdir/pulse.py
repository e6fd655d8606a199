"""That a process lives, told by files which it renews, and seen by others who watch them change.

Clocks of two machines are never compared: whoever watches counts the time that a file stays the
same by its own clock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

# Seconds between two renewals, and of silence after which nobody is there any more.
RENEWED, SILENCE = 10.0, 90.0
# Digits of the count of renewals: a file is renewed in its place, and stays of one length.
DIGITS = 10
FIRST = "0" * DIGITS


def following(pulse: str) -> str:
    """The pulse after another."""
    return f"{(int(pulse) + 1) % 10**DIGITS:0{DIGITS}}"


class Beat:
    """A thread that renews what this process holds, for as long as it holds anything."""

    def __init__(self) -> None:
        """Nothing is held yet."""
        self._held: dict[object, Callable[[], None]] = {}
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, key: object, renew: Callable[[], None]) -> None:
        """From now on call `renew` now and then; an OSError of it is the end of no process."""
        with self._change:
            self._held[key] = renew
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def remove(self, key: object) -> None:
        """No more."""
        with self._change:
            self._held.pop(key, None)
            self._change.notify()

    def _run(self) -> None:
        due = time.monotonic() + RENEWED
        while True:
            with self._change:
                if not self._held:
                    self._thread = None
                    return
                if (left := due - time.monotonic()) > 0:
                    self._change.wait(left)
                    continue
                held = list(self._held.values())
            for renew in held:
                # A disk that is away for a while.
                with suppress(OSError):
                    renew()
            due = time.monotonic() + RENEWED


# Threads do not go on in a process that is forked.
_beats: dict[int, Beat] = {}


def beat() -> Beat:
    """That of this process."""
    return _beats.setdefault(os.getpid(), Beat())


class Watch:
    """What one process has seen of the pulses of others."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._seen: dict[str, tuple[str, float, bool]] = {}
        self._lock = threading.Lock()

    def seen(self, token: str, pulse: str) -> tuple[float, bool]:
        """For how many seconds a pulse has been seen unchanged, and whether it ever changed."""
        now = time.monotonic()
        with self._lock:
            before, since, changed = self._seen.get(token, (pulse, now, False))
            if before != pulse:
                since, changed = now, True
            self._seen[token] = pulse, since, changed
        return now - since, changed
