"""The experiments by name, and the steps that all of them share."""

from __future__ import annotations

import threading
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from experiments.network import checkpoints
from experiments.network.baseline import check_weights, trained
from experiments.network.forward import Variables
from experiments.network.network import Network, configured
from experiments.workdir.config import check_workdir, read_config
from experiments.workdir.fields import read_fields
from experiments.workdir.files import page_of
from experiments.workdir.journal import JOURNAL, Journal, read_journal
from experiments.workdir.merge import merge
from experiments.workdir.places import Place
from experiments.workdir.progress import progress_bar
from experiments.workdir.ranges import shown
from experiments.workdir.record_fields import Identity, Schema
from experiments.workdir.threads import Records, Task, Unit, Units, in_threads, workers
from experiments.workdir.work import Work, asked_for
from tdjax.hints import known_are


@dataclass(frozen=True)
class Experiment:
    """One of the experiments.

    Arguments:
        name: the field "experiment" of its configurations.
        settings: the dataclass that they are read to, an `ExperimentSettings`.
        run: (network, settings, workdir) -> the report's page; measures what is asked for and not
            measured yet, then reports. With `tensorboard` it writes event files, with `place` it
            shares the work, see `begin`.
        report: workdir -> the report's page, of whatever was measured.
        schema: of its journal.
        expected: (network, settings, journal) -> what identifies each record that is asked for, the
            networks before compression first; checks what `run` does before any work.
        keeps: folders in the work directory, beside those that all of them have.
    """

    name: str
    settings: type[Any]
    run: Callable[..., Path]
    report: Callable[[Path], Path]
    schema: Schema
    expected: Callable[[Network, Any, Journal], list[Identity]]
    keeps: tuple[str, ...] = ()


# The modules that define them, each imported where it is wanted.
EXPERIMENTS = {
    "study": "experiments.error_study.run",
    "data_aware": "experiments.data_aware.run",
    "compress": "experiments.compress.run",
    "compressibility": "experiments.compressibility.run",
}
REPORT = "report"
T = TypeVar("T")


def experiment_named(name: object) -> Experiment:
    """One of the experiments. Raises ValueError for a name that none has."""
    if not isinstance(name, str) or name not in EXPERIMENTS:
        known = known_are(name, (*EXPERIMENTS, REPORT))
        raise ValueError(f"config field 'experiment' is {shown(name)}: {known}")
    found: Experiment = import_module(EXPERIMENTS[name]).EXPERIMENT
    return found


def carry_out(
    raw: Mapping[str, Any],
    workdir: Path,
    *,
    tensorboard: bool = False,
    place: Place | None = None,
) -> Path:
    """Do what a configuration asks for; the path of the report's page.

    `raw` is nested mappings, such as `ConfigDict.to_dict()`. Its field "experiment" is the name of
    one, or "report" for the report of whatever was measured in a work directory.

    Whatever is wrong with configuration, data, weights or ranks is found before any work. A run
    that was killed at any moment continues when started again, and ends with the same tables.

    Work directory: `config.json`, `metrics.jsonl` (one line a measurement), `checkpoints/`,
    `report/`, `tensorboard/` where it is asked for, and what else an experiment keeps.

    Arguments:
        tensorboard: write curves of training as event files too.
        place: among several processes that share the work, each of which is called so; None for
            one alone.

    Raises ValueError or `experiments.data.DataError` that names what is wrong.
    """
    name = raw.get("experiment", "study")
    if name == REPORT:
        if tensorboard:
            raise ValueError("--tensorboard: the report alone writes no event files")
        if place is not None:
            raise ValueError("the report alone is made by one process")
        return report(workdir)
    experiment = experiment_named(name)
    settings = read_fields(experiment.settings, raw)
    return experiment.run(
        configured(settings), settings, workdir, tensorboard=tensorboard, place=place
    )


def report(workdir: Path) -> Path:
    """The report of whatever was measured in a work directory; the path of its page."""
    name = read_config(workdir).get("experiment")
    # Studies of an earlier version do not say what they are.
    known = name if isinstance(name, str) and name in EXPERIMENTS else "study"
    return experiment_named(known).report(workdir)


def recorded(experiment: Experiment, settings: Any, workdir: Path) -> Journal:
    """What is recorded already in the work directory of an experiment; nothing is touched.

    Raises ValueError where it holds another configuration or a damaged journal.
    """
    check_workdir(workdir, *asked_for(experiment.name, settings))
    return read_journal(workdir / JOURNAL, experiment.schema)


def baseline(
    work: Work,
    network: Network,
    folder: str,
    describe: Callable[[Variables, int], dict[str, Any]],
    /,
    **fields: int,
) -> Generator[Units, None, Variables]:
    """The network before compression, read or trained, and recorded, or known to be the same.

    A part of a task, `model = yield from baseline(...)`: one process trains it, and others read it.

    Arguments:
        folder: of its checkpoints, in `checkpoints/`.
        describe: (variables with a first axis of one run, epoch) -> its record.
        fields: that tell it from others, such as network=1.
    """
    where, number = work.workdir / "checkpoints" / folder, next(iter(fields.values()), 0)
    names = [work.journal.identity("baseline", fields)]
    made: list[Variables] = []

    def found(journal: Journal) -> Iterator[Records]:
        models, epoch = trained(network, where, journal, number)
        if (whole := journal.get("baseline", **fields)) is None:
            yield [describe(models, epoch)]
        else:
            check_weights(whole, models)
        made.append(models)

    def is_there() -> bool:
        there = network.is_trained or checkpoints.exist(where)
        return there and work.journal.holds(names)

    unit = work.unit(f"the training of {folder}", names, found)
    yield Units([replace(unit, is_done=is_there)])
    if not made:
        for _ in found(work.journal.again()):
            pass
    return made[0].of_run(0)


def once(
    name: str, is_done: Callable[[], bool], make: Callable[[], T]
) -> Generator[Units, None, T]:
    """What one process makes and keeps in a file, and the others read; a part of a task.

    Arguments:
        name: see `Work.unit`.
        is_done: whether the file is there.
        make: makes or reads it.
    """
    made: list[T] = []

    def work() -> Iterator[Records]:
        made.append(make())
        yield []

    yield Units([Unit(name, is_done, work)])
    return made[0] if made else make()


def measure(
    work: Work,
    expected: Collection[Identity],
    tasks: Sequence[Task],
    most: int | None = None,
) -> None:
    """Record what is missing, several tasks at once.

    Arguments:
        expected: the records that progress is counted by.
        tasks: each yields records, as soon as some are there, units or further tasks; records that
            were found before are skipped.
        most: tasks at once; None for as many as the cores bear.

    Raises `experiments.workdir.group.IncompleteError` where other processes failed at some.
    """
    journal, lock = work.journal, threading.Lock()
    counted = set(expected)
    left = counted - journal.again().found.keys()
    with progress_bar("measurements", len(counted), len(counted) - len(left)) as progress:

        def count(names: Iterable[Identity]) -> None:
            with lock:
                new = left.intersection(names)
                left.difference_update(new)
                if new:
                    progress.update(len(new))

        def take(records: Records) -> None:
            count(journal.identity(r["kind"], r) for r in journal.append(records))

        beside = 1
        if work.group is not None:
            beside = work.group.place.beside
            work.group.read_others = lambda others: count(_read_others(journal, others))
        in_threads(tasks, take, work.group, workers(beside) if most is None else most)
    if work.group is not None:
        work.group.check_whole()


def _read_others(journal: Journal, others: Iterable[int]) -> Iterable[Identity]:
    """All that is recorded by now, by processes of these numbers too."""
    journal.reader.numbers.update(others)
    return journal.reader.refresh()


def finish(work: Work, order: Sequence[Identity], write: Callable[[Path], Path]) -> Path:
    """The report, when all is measured; of a group one process writes it.

    Arguments:
        order: of the lines of the journal: what identifies each record.
        write: work directory -> the report's page.
    """
    path, schema = work.workdir / JOURNAL, work.journal.schema
    if work.group is None:
        merge(path, schema, order)
        return write(work.workdir)

    def report() -> None:
        with group.moment():
            merge(path, schema, order)
        write(work.workdir)

    group = work.group
    group.report(report)
    return page_of(work.workdir)
