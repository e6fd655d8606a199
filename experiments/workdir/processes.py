"""Which process on which machine, so that another can tell whether it is still there."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Arguments:
        pid: its number.
        started: when it began, as the machine counts; "" where that is not known.
        host: name of the machine.
        machine, boot, namespace: what tells machines of one name, their starts, and containers
            apart; each "" where there is no such thing.
    """

    pid: int
    started: str
    host: str
    machine: str
    boot: str
    namespace: str

    @property
    def is_near(self) -> bool:
        """Whether it is of this machine, and can be seen from here."""
        here = this_process()
        near = (self.boot, self.namespace) == (here.boot, here.namespace)
        return near and (self.boot != "" or self.host == here.host)

    @property
    def has_ended(self) -> bool:
        """Whether it is certain that it runs no more."""
        here = this_process()
        if self.boot != here.boot:
            # The same machine, started again since; or another, of which nothing is known here.
            return self.machine != "" and (self.host, self.machine) == (here.host, here.machine)
        if not self.is_near:
            return False
        started = start_of(self.pid)
        return started is None or ("" not in (started, self.started) and started != self.started)


def this_process() -> Process:
    """The process that asks."""
    pid = os.getpid()
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return Process(
        pid,
        start_of(pid) or "",
        socket.gethostname(),
        _line("/etc/machine-id"),
        _line("/proc/sys/kernel/random/boot_id"),
        namespace,
    )


def start_of(pid: int) -> str | None:
    """When a process of this machine began; "" where that is not known, None where it has ended."""
    if pid < 1:
        # The system takes these for groups of processes.
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        # It is another user's.
        pass
    # The name of the program, in brackets, may hold anything.
    state, *fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split() or ("", *19 * ("",))
    # One that nobody asked how it ended is there as a zombie.
    return None if state in ("Z", "X") else fields[18]


def _line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""
