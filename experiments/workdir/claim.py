"""Who uses something: a file that one process makes, renews and removes, whoever looks at it.

Of a work directory, a number in a group of processes, a unit of work. Files are made with a hard
link, or else as new ones alone, which file servers keep apart too; there are no locks.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path

from experiments.workdir.fields import read_fields
from experiments.workdir.files import naming, read_json, writable
from experiments.workdir.processes import Process, this_process
from experiments.workdir.pulse import FIRST, SILENCE, Watch, beat, following
from experiments.workdir.stops import undone
from tdjax.files import one_line, partial_file, write_atomically, writing

FILE = "in_use.json"
# Files beside it, of those that are about to take it over, begin so.
BESIDE = f".{FILE}."
# The folder of the claims of a group's processes, see `experiments.workdir.group`.
PROCESSES = "processes"
# What a process of a group does that has the work directory for itself, for moments only.
GATE = "a moment for itself"
# Seconds that an unfinished file is waited for, and between two looks at what may come to an end.
PATIENCE, PAUSE = 1.0, 0.1


class InUseError(RuntimeError):
    """A work directory that another process uses; the message says which, and the remedy."""


@dataclass(frozen=True)
class Claim:
    """Who uses something, since when; no two have the same token.

    Arguments:
        doing: what for, in words; "" for the whole of a work directory.
        pulse: changes as long as the process lives; "" of earlier versions, in which it does not.
    """

    token: str
    since: str
    process: Process
    doing: str = ""
    pulse: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def owner(self) -> str:
        """The process, in words."""
        return f"process {self.process.pid} on {self.process.host}"


class State(Enum):
    """What is known of the process of a claim; UNKNOWN is to be watched for longer."""

    LIVES, ENDED, UNKNOWN = range(3)


def new_claim(doing: str = "") -> Claim:
    """One of this process."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return Claim(uuid.uuid4().hex, since, this_process(), doing, FIRST)


def state_of(claim: Claim, watch: Watch) -> State:
    """Whether the process of a claim lives.

    Of this machine, that is known. Of others it is seen by the pulse: that it changes, or that it
    has not changed for `SILENCE` seconds.
    """
    if claim.process.has_ended:
        return State.ENDED
    if claim.process.is_near or not claim.pulse:
        return State.LIVES
    silent, changed = watch.seen(claim.token, claim.pulse)
    if silent >= SILENCE:
        return State.ENDED
    return State.LIVES if changed else State.UNKNOWN


class Held:
    """A claim of this process whose file is there, and is renewed."""

    def __init__(self, path: Path, claim: Claim, descriptor: int) -> None:
        """Renew it from now on.

        Arguments:
            descriptor: of the file, open for writing: what another puts in its place is not met.
        """
        self.path, self.claim, self._descriptor, self._pulse = path, claim, descriptor, claim.pulse
        beat().add(self, self._renew)

    @property
    def is_mine(self) -> bool:
        """Whether nobody took it over."""
        try:
            return read_claim(self.path) == self.claim
        except (InUseError, OSError):
            return False

    def check(self) -> None:
        """Raise InUseError where another took it over, as no process does that sees this one."""
        if not self.is_mine:
            raise InUseError(
                f"{self.path} is no longer this process's: it was removed, or another took over "
                f"since nothing was seen of this one for {SILENCE:g} s; start again"
            )

    def release(self) -> None:
        """Remove the file, if it is still this claim's."""
        beat().remove(self)
        # A process that was forked from the holder comes here too; and whoever removed the file by
        # hand may have let another in.
        if os.getpid() == self.claim.process.pid:
            with suppress(OSError):
                os.close(self._descriptor)
            with suppress(OSError):
                if self.is_mine:
                    self.path.unlink()

    def _renew(self) -> None:
        self._pulse = following(self._pulse)
        text = replace(self.claim, pulse=self._pulse).text
        os.pwrite(self._descriptor, text.encode("utf-8"), 0)
        os.fsync(self._descriptor)


@contextmanager
def in_use(workdir: Path, doing: str = "") -> Iterator[Held]:
    """A block in which no other process can be in a block like this of the same work directory.

    The folder is made if it is not there. What a killed process left is taken over: of this machine
    at once, of others when nothing was seen of it for `SILENCE` seconds. Who uses it for a moment
    only is waited for.

    Raises InUseError, which says who uses it and what to do, and ValueError for what cannot be a
    folder, or is one that nothing can be written to.
    """
    with naming(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    with writable(workdir):
        held = wait_for(workdir / FILE, new_claim(doing), Watch())
    with undone(held.release):
        # Rights to take over from those before, which nobody can use any more.
        for right in workdir.glob(f"{BESIDE}after-*"):
            right.unlink(missing_ok=True)
        yield held


def wait_for(path: Path, mine: Claim, watch: Watch, what: str = "") -> Held:
    """Take a claim, as soon as it is known whether the one that is there is used.

    Arguments:
        what: is in use, in words; "" for the folder of the file.

    Raises InUseError where it is, but for a moment.
    """
    told = False
    while isinstance(other := take(path, mine, watch), Claim):
        state = state_of(other, watch)
        if state is State.LIVES and other.doing != GATE:
            raise refusal(path, other, what)
        if state is State.UNKNOWN and not told:
            told = True
            tell_watched(what or str(path.parent), other)
        time.sleep(PAUSE)
    return other


def tell_watched(what: str, other: Claim) -> None:
    """Say why nothing happens for a while."""
    sys.stderr.write(
        f"{what} was in use by {other.owner}: watching whether it lives, for up to {SILENCE:g} s\n"
    )


def take(path: Path, mine: Claim, watch: Watch) -> Held | Claim:
    """Make a file that says `mine`, in place of one whose process has ended; or who is there.

    Two that find the same such file must not both remove it, the second that of the first: the
    right to take it over is a file too, taken in the same way, and looked at again under it.
    """
    while (descriptor := _create(path, mine)) is None:
        other = read_claim(path)
        # None where it was released in between; equal where the answer of a file server to the
        # first try was lost.
        if other is not None and other != mine:
            if state_of(other, watch) is not State.ENDED:
                return other
            blocked = _succeed(path, other, mine, watch)
            if isinstance(blocked, Claim):
                return blocked
            other = mine if blocked else None
        if other == mine:
            return Held(path, mine, os.open(path, os.O_RDWR))
    return Held(path, mine, descriptor)


def read_claim(path: Path) -> Claim | None:
    """What a file says; None where there is none."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found = read_fields(Claim, read_json(path))
            # It becomes part of a file's name.
            int(found.token, 16)
            return found
        except FileNotFoundError:
            # A link that leads nowhere is in the way too.
            if not path.is_symlink():
                return None
            problem = "it is a link that leads nowhere"
        except (ValueError, OSError) as error:
            problem = one_line(error)
        if time.monotonic() > deadline:
            raise InUseError(
                f"{path} should say which process uses the folder, but it is damaged ({problem}): "
                "remove it if there is none"
            )
        time.sleep(0.05)


def refusal(path: Path, other: Claim, what: str = "") -> InUseError:
    """What whoever comes second is told, see `wait_for`."""
    remedy = "wait for it, stop it, or use another workdir"
    if not other.process.is_near and not other.pulse:
        remedy += f"; if it runs no more, which cannot be told from here, remove {path}"
    return InUseError(
        f"{what or path.parent} is in use by {other.owner} since {other.since}: {remedy}"
    )


def _succeed(path: Path, other: Claim, mine: Claim, watch: Watch) -> bool | Claim:
    """Take over what another left; False where somebody did before, or who is about to."""
    name = path.name.partition(".after-")[0]
    right = path.with_name(f".{name.removeprefix('.')}.after-{other.token}")
    held = take(right, mine, watch)
    if isinstance(held, Claim):
        return held
    try:
        if read_claim(path) != other:
            return False
        write_atomically(path, mine.text)
        return True
    finally:
        held.release()


def _create(path: Path, mine: Claim) -> int | None:
    """Make a file that others see whole, and its descriptor; None where it is there already."""
    name = path.name.removeprefix(".").partition(".after-")[0]
    whole = partial_file(path.with_name(f"{name}.{mine.token}"))
    try:
        descriptor = _write_new(whole, mine)
        try:
            os.link(whole, path)
        except FileExistsError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            return _create_without_links(path, mine)
        return descriptor
    finally:
        whole.unlink(missing_ok=True)


def _create_without_links(path: Path, mine: Claim) -> int | None:
    """The same on file systems that have no hard links: others may see an unfinished file."""
    try:
        return _write_new(path, mine)
    except FileExistsError:
        return None


def _write_new(path: Path, mine: Claim) -> int:
    """A new file, whole; it is removed where it cannot be written."""
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.write(descriptor, mine.text.encode("utf-8"))
            os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
    return descriptor
