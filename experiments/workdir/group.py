"""Processes that share the work on one work directory, through files in it alone.

Each holds a claim of its number, and one of each unit of work that it does, in `processes/`; all
are renewed, and what a process leaves that has ended is taken over. None waits for another that
has ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from experiments.workdir.claim import (
    GATE,
    PROCESSES,
    Claim,
    Held,
    InUseError,
    State,
    in_use,
    new_claim,
    read_claim,
    refusal,
    state_of,
    take,
    tell_watched,
    wait_for,
)
from experiments.workdir.files import read_json
from experiments.workdir.places import Place
from experiments.workdir.pulse import Watch
from experiments.workdir.threads import LONGEST_PAUSE, PAUSE, Unit
from tdjax.files import FULL, one_line, write_atomically

MEMBER, UNIT, FAILED, REPORTED = "member-", "unit-", "failed-", "reported.json"


class IncompleteError(RuntimeError):
    """Units that were not done, as a process failed at them; the message says which."""


def numbers(workdir: Path) -> set[int]:
    """The numbers of a group's processes, ended or not."""
    found = (workdir / PROCESSES).glob(f"{MEMBER}*.json")
    return {int(path.stem.removeprefix(MEMBER)) for path in found}


def members(workdir: Path, watch: Watch) -> dict[int, Claim]:
    """The processes of a group whose end is not known, by number."""
    found = {}
    for number in sorted(numbers(workdir)):
        claim = read_claim(_member_file(workdir, number))
        if claim is not None and state_of(claim, watch) is not State.ENDED:
            found[number] = claim
    return found


def _member_file(workdir: Path, number: int) -> Path:
    return workdir / PROCESSES / f"{MEMBER}{number}.json"


def refuse_members(workdir: Path) -> None:
    """Raise InUseError where a group is at work; whether one of another machine lives is awaited.

    To be called by a process that has the work directory for itself.
    """
    watch, told = Watch(), False
    while found := members(workdir, watch):
        for number, claim in found.items():
            if state_of(claim, watch) is State.LIVES:
                raise refusal(_member_file(workdir, number), claim, str(workdir))
            if not told:
                told = True
                tell_watched(str(workdir), claim)
        time.sleep(PAUSE)


def clear(workdir: Path) -> None:
    """Remove what a group left of whose processes none lives."""
    shutil.rmtree(workdir / PROCESSES, ignore_errors=True)


class Group:
    """The group on a work directory, as one of its processes knows it; deals out the units.

    Arguments:
        read_others: numbers of processes -> reads what they have recorded; to be set before units
            are dealt out.
        failures: what others failed at, by the names of the units.
    """

    def __init__(self, workdir: Path, place: Place) -> None:
        """Outside of the group as yet."""
        self.workdir, self.folder, self.place = workdir, workdir / PROCESSES, place
        self.watch = Watch()
        self.read_others: Callable[[set[int]], object] = lambda _: None
        self._held: dict[object, Held] = {}
        self._lock = threading.Lock()
        self._old_failures: set[str] = set()
        self._told = ""
        self.failures: dict[str, str] = {}

    def moment(self) -> AbstractContextManager[Held]:
        """A block in which no other process joins, leaves, or is alone at work."""
        return in_use(self.workdir, GATE)

    def enter(self) -> bool:
        """Take the place, in a `moment`; whether no other process is there.

        Raises InUseError where another process has the same number.
        """
        self.folder.mkdir(exist_ok=True)
        path = _member_file(self.workdir, self.place.number)
        what = f"{self.workdir}: number {self.place.number}"
        self._held[self] = wait_for(path, new_claim(str(self.place)), self.watch, what)
        if not (others := self.others()):
            for left in self.folder.iterdir():
                if left != path:
                    left.unlink(missing_ok=True)
        self._old_failures = {token for token, _ in self._failures().values()}
        return not others

    def others(self) -> dict[int, Claim]:
        """The other processes, as far as is known, by number."""
        found = members(self.workdir, self.watch)
        found.pop(self.place.number, None)
        return found

    def check(self) -> None:
        """Raise InUseError where anything that this process held was taken over."""
        # Not while another thread lets go of a unit, whose file is then gone rightly.
        with self._lock:
            if not self._held:
                raise InUseError(f"{self.workdir}: {self.place} has left; start again")
            for own in self._held.values():
                own.check()

    def release(self) -> None:
        """Let go of all that is held: of the place, too."""
        with self._lock:
            for own in self._held.values():
                own.release()
            self._held.clear()

    def take(self, unit: Unit) -> AbstractContextManager[object] | None:
        """See `experiments.workdir.threads.Share`."""
        path = self._path(UNIT, unit)
        # Most often it is another's: no file is made then.
        other = read_claim(path)
        if other is not None and state_of(other, self.watch) is not State.ENDED:
            return None
        held = take(path, new_claim(f"{self.place}: {unit.name}"), self.watch)
        return None if isinstance(held, Claim) else self._doing(unit, held)

    def has_failed(self, unit: Unit) -> bool:
        """See `experiments.workdir.threads.Share`."""
        path = self._path(FAILED, unit)
        if not path.exists():
            return False
        token, problem = self._failures().get(path.name, ("", ""))
        if not token or token in self._old_failures:
            return False
        self.failures[unit.name] = problem
        return True

    def refresh(self) -> None:
        """See `experiments.workdir.threads.Share`."""
        self.read_others(numbers(self.workdir))

    def wait(self, units: Sequence[Unit]) -> None:
        """See `experiments.workdir.threads.Share`."""
        doing = []
        for unit in units:
            claim = read_claim(self._path(UNIT, unit))
            if claim is not None:
                doing.append(f"{claim.owner} ({claim.doing})")
        if doing:
            more = f" and {len(doing) - 1} more" if len(doing) > 1 else ""
            self.tell(f"waiting for {doing[0]}{more}")

    def tell(self, text: str) -> None:
        """A line on standard error, unless it was the last one."""
        if text != self._told:
            self._told = text
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def check_whole(self) -> None:
        """Raise IncompleteError where others failed at units."""
        if self.failures:
            (unit, problem), *more = self.failures.items()
            others = f", and {len(more)} more" if more else ""
            raise IncompleteError(
                f"not all is measured: {unit}: {problem}{others}; start the same command again to "
                "try it again"
            )

    def report(self, write: Callable[[], object]) -> None:
        """Let the process with the lowest number `write`, the next one if that ends before."""
        lasting = PAUSE
        while not self._is_reported():
            others = self.others()
            if min(others, default=self.place.number) >= self.place.number:
                write()
                claims = [*others.values(), self._held[self].claim]
                # Those who join later wait for another.
                told = json.dumps([claim.token for claim in claims])
                write_atomically(self.folder / REPORTED, told)
                return
            first, claim = next(iter(others.items()))
            self.tell(f"waiting for process {first}, {claim.owner}, which writes the report")
            time.sleep(lasting)
            lasting = min(1.5 * lasting, LONGEST_PAUSE)

    @contextmanager
    def _doing(self, unit: Unit, held: Held) -> Iterator[None]:
        with self._lock:
            self._held[unit] = held
        try:
            yield
        except Exception as error:
            # Of what is wrong with this machine another process may know nothing.
            if not _is_of_machine(error):
                self._tell_failure(unit, held, error)
            raise
        finally:
            with self._lock:
                self._held.pop(unit, None)
                held.release()

    def _tell_failure(self, unit: Unit, held: Held, error: Exception) -> None:
        text = f"{self.place} failed: {one_line(error)}"
        with suppress(OSError):
            told = json.dumps([held.claim.token, text])
            write_atomically(self._path(FAILED, unit), told)

    def _failures(self) -> dict[str, tuple[str, str]]:
        found = {}
        for path in self.folder.glob(f"{FAILED}*.json"):
            with suppress(OSError, ValueError, TypeError):
                token, text = read_json(path)
                found[path.name] = str(token), str(text)
        return found

    def _is_reported(self) -> bool:
        try:
            return self._held[self].claim.token in read_json(self.folder / REPORTED)
        except (FileNotFoundError, ValueError, TypeError):
            return False

    def _path(self, what: str, unit: Unit) -> Path:
        # Names may be long, and hold anything.
        digest = hashlib.sha256(unit.name.encode("utf-8", "backslashreplace")).hexdigest()
        return self.folder / f"{what}{digest[:24]}.json"


def _is_of_machine(error: BaseException | None) -> bool:
    """Whether an error may be that of the machine: its memory, its disk; or of the group."""
    while error is not None:
        text = str(error)
        if isinstance(error, OSError | MemoryError | InUseError) or "RESOURCE_EXHAUSTED" in text:
            return True
        if any(os.strerror(number) in text for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
