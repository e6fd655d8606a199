"""One process at a time in a work directory: who uses it stands in a file of it."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from experiments.workdir.fields import read_fields
from experiments.workdir.files import naming, read_json
from experiments.workdir.processes import Process, this_process
from experiments.workdir.stops import undone
from tdjax.files import one_line, partial_file, write_atomically, writing

FILE = "in_use.json"
# Files beside it, of those that are about to take it over, begin so.
BESIDE = f".{FILE}."
# Seconds that an unfinished file is waited for.
PATIENCE = 1.0


class InUseError(RuntimeError):
    """A work directory that another process uses; the message says which, and the remedy."""


@dataclass(frozen=True)
class Claim:
    """Who uses a work directory, since when; no two have the same token."""

    token: str
    since: str
    process: Process

    @property
    def text(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self), indent=2) + "\n"


@contextmanager
def in_use(workdir: Path) -> Iterator[None]:
    """A block in which no other process can be in a block like this of the same work directory.

    The folder is made if it is not there. What a killed process of this machine left is taken over.

    Raises InUseError, which says who uses it and what to do, and ValueError for what cannot be a
    folder.
    """
    with naming(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    mine = Claim(uuid.uuid4().hex, since, this_process())
    _take(workdir / FILE, mine)
    with undone(partial(_release, workdir / FILE, mine)):
        # Rights to take over from those before, which nobody can use any more.
        for right in workdir.glob(f"{BESIDE}after-*"):
            right.unlink(missing_ok=True)
        yield


def _take(path: Path, mine: Claim) -> None:
    """Make a file that says `mine`, in place of one whose process has ended.

    Two that find the same such file must not both remove it, the second that of the first: the
    right to take it over is a file too, taken in the same way, and looked at again under it.
    """
    while not _create(path, mine):
        other = _read(path)
        if other == mine:
            # The answer of a file server to the first try was lost.
            return
        # None where it was released in between.
        if other is not None and _succeeds(path, other, mine):
            return


def _succeeds(path: Path, other: Claim, mine: Claim) -> bool:
    """Take over what another left; False where somebody did before."""
    if not other.process.has_ended:
        raise _refusal(path, other)
    right = path.with_name(f"{BESIDE}after-{other.token}")
    _take(right, mine)
    try:
        if _read(path) != other:
            return False
        write_atomically(path, mine.text)
        return True
    finally:
        right.unlink(missing_ok=True)


def _create(path: Path, mine: Claim) -> bool:
    """Make a file that others see whole; False where it is there already."""
    whole = partial_file(path.with_name(f"{FILE}.{mine.token}"))
    try:
        _write_new(whole, mine)
        try:
            os.link(whole, path)
        except FileExistsError:
            return False
        except OSError:
            return _create_without_links(path, mine)
        return True
    finally:
        whole.unlink(missing_ok=True)


def _create_without_links(path: Path, mine: Claim) -> bool:
    """The same on file systems that have no hard links: others may see an unfinished file."""
    try:
        _write_new(path, mine)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _write_new(path: Path, mine: Claim) -> None:
    with writing(path), open(path, "x", encoding="utf-8") as file:
        file.write(mine.text)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> Claim | None:
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


def _refusal(path: Path, other: Claim) -> InUseError:
    process, remedy = other.process, "wait for it, stop it, or use another workdir"
    here = this_process()
    if process.boot != here.boot or process.namespace != here.namespace:
        remedy += f"; if it runs no more, which cannot be told from here, remove {path}"
    return InUseError(
        f"{path.parent} is in use by process {process.pid} on {process.host} since {other.since}: "
        f"{remedy}"
    )


def _release(path: Path, mine: Claim) -> None:
    # A process that was forked from the holder comes here too; and whoever removed the file by hand
    # may have let another in.
    if os.getpid() == mine.process.pid:
        with suppress(OSError, InUseError):
            if _read(path) == mine:
                path.unlink()
