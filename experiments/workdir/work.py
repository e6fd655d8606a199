"""A work directory that is taken, by one process or as one of a group, and left in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.workdir.claim import GATE, InUseError, in_use
from experiments.workdir.config import check_workdir, claim_workdir
from experiments.workdir.environment import environment
from experiments.workdir.fields import plain_fields, report_fields, with_earlier
from experiments.workdir.files import remove_leftovers
from experiments.workdir.group import Group, clear, refuse_members
from experiments.workdir.journal import JOURNAL, Journal, read_journal
from experiments.workdir.merge import merge
from experiments.workdir.places import Place
from experiments.workdir.reading import own_journal, own_journals
from experiments.workdir.record_fields import Identity, Schema
from experiments.workdir.stops import undone
from experiments.workdir.tensorboard import followed, writer_class
from experiments.workdir.threads import Records, Unit

# What a work directory is claimed for, see `experiments.workdir.config.check_workdir`.
Asked = tuple[dict[str, Any], tuple[str, ...], Any]


@dataclass(frozen=True)
class Work:
    """A work directory that is this process's, or its group's, and what is recorded there.

    Arguments:
        group: the processes that share the work; None for one alone.
    """

    workdir: Path
    journal: Journal
    group: Group | None = None

    def unit(
        self,
        name: str,
        names: Sequence[Identity],
        records: Callable[[Journal], Iterator[Records]],
    ) -> Unit:
        """A unit of work that makes some records.

        Arguments:
            name: in words; no two units have the same.
            names: what identifies the records.
            records: journal as it is when the unit begins -> those that are missing, or all.
        """
        journal = self.journal
        return Unit(name, partial(journal.holds, names), lambda: records(journal.again()))


@contextmanager
def begin(
    name: str,
    settings: Any,
    schema: Schema,
    workdir: Path,
    *,
    tensorboard: bool = False,
    place: Place | None = None,
) -> Iterator[Work]:
    """Make a work directory an experiment's, for as long as the block lasts this process's.

    What is recorded there already is what the block gets.

    Arguments:
        tensorboard: write curves of training as event files too.
        place: among the processes of a group that share the work; None to be alone there.

    Raises ValueError, and touches nothing, where it holds another configuration or a damaged
    journal; `experiments.workdir.claim.InUseError` where another process is at work there.
    """
    if tensorboard:
        # Before anything is touched.
        writer_class()
        if place is not None:
            raise ValueError(
                "--tensorboard: of several processes none writes event files; start one with it "
                "when all is measured"
            )
    asked = asked_for(name, settings)
    check_workdir(workdir, *asked)
    if place is not None:
        with _in_group(asked, schema, workdir, place) as work:
            yield work
        return
    path = workdir / JOURNAL
    # First as others join: for these, too, what is at work is a group, not who is refused here.
    with in_use(workdir, GATE):
        refuse_members(workdir)
    with in_use(workdir):
        refuse_members(workdir)
        claim_workdir(workdir, *asked)
        if ended := own_journals(path):
            merge(path, schema, ended=ended)
        clear(workdir)
        journal = read_journal(path, schema)
        remove_leftovers(workdir)
        with undone(partial(remove_leftovers, workdir)):
            journal = replace(journal, environment=environment())
            with followed(journal, workdir) if tensorboard else nullcontext(journal) as own:
                yield Work(workdir, own)


@contextmanager
def _in_group(asked: Asked, schema: Schema, workdir: Path, place: Place) -> Iterator[Work]:
    """See `begin`: as one of the processes of a group."""
    group, path = Group(workdir, place), workdir / JOURNAL
    with undone(group.release):
        with group.moment():
            is_first = group.enter()
            try:
                if check_workdir(workdir, *asked) and not is_first:
                    raise ValueError(
                        f"{workdir} is in use with another configuration: fields for the report "
                        "differ; use the same one, or wait for the others"
                    )
                claim_workdir(workdir, *asked)
                if is_first:
                    merge(path, schema, ended=own_journals(path))
                    remove_leftovers(workdir)
                read = read_journal(path, schema)
                # Known to all by its name, before there is anything in it.
                (own := own_journal(path, place.number)).touch()
            except BaseException:
                group.release()
                if is_first:
                    clear(workdir)
                raise
        about = {**environment(), "process": str(place)}
        journal = replace(read, path=own, environment=about, check=group.check)
        try:
            yield Work(workdir, journal, group)
        except BaseException:
            # It is told, whatever hinders the rest.
            with suppress(OSError, ValueError, InUseError):
                _leave(group, path, schema)
            raise
        _leave(group, path, schema)


def _leave(group: Group, path: Path, schema: Schema) -> None:
    """Leave a group; the last one to do so leaves one journal, and nothing of the group."""
    with group.moment():
        group.release()
        if not group.others():
            merge(path, schema, ended=own_journals(path))
            remove_leftovers(group.workdir)
            clear(group.workdir)


def asked_for(name: str, settings: Any) -> Asked:
    """What a work directory is claimed for, see `check_workdir`."""
    config, kind = {**plain_fields(settings), "experiment": name}, type(settings)
    return config, tuple(report_fields(kind)), partial(with_earlier, kind)
