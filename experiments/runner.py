"""The experiments by name, and the steps that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.network.baseline import baseline_record, check_weights, trained
from experiments.network.forward import Variables
from experiments.network.network import Network, configured
from experiments.workdir.claim import in_use
from experiments.workdir.config import check_workdir, claim_workdir, read_config
from experiments.workdir.environment import environment
from experiments.workdir.fields import (
    plain_fields,
    read_fields,
    report_fields,
    with_earlier,
)
from experiments.workdir.files import remove_leftovers
from experiments.workdir.journal import Identity, Journal, Schema, read_journal
from experiments.workdir.progress import progress_bar
from experiments.workdir.ranges import shown
from experiments.workdir.stops import undone
from experiments.workdir.tensorboard import followed, writer_class
from experiments.workdir.threads import Records, Task, in_threads
from tdjax.hints import known_are


@dataclass(frozen=True)
class Experiment:
    """One of the experiments.

    Arguments:
        name: the field "experiment" of its configurations.
        settings: the dataclass that they are read to, an `ExperimentSettings`.
        run: (network, settings, workdir) -> the report's page; measures what is asked for and not
            measured yet, then reports. With `tensorboard` it writes event files, see `begin`.
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


def experiment_named(name: object) -> Experiment:
    """One of the experiments. Raises ValueError for a name that none has."""
    if not isinstance(name, str) or name not in EXPERIMENTS:
        known = known_are(name, (*EXPERIMENTS, REPORT))
        raise ValueError(f"config field 'experiment' is {shown(name)}: {known}")
    found: Experiment = import_module(EXPERIMENTS[name]).EXPERIMENT
    return found


def carry_out(raw: Mapping[str, Any], workdir: Path, *, tensorboard: bool = False) -> Path:
    """Do what a configuration asks for; the path of the report's page.

    `raw` is nested mappings, such as `ConfigDict.to_dict()`. Its field "experiment" is the name of
    one, or "report" for the report of whatever was measured in a work directory.

    Whatever is wrong with configuration, data, weights or ranks is found before any work. A run
    that was killed at any moment continues when started again, and ends with the same tables.

    Work directory: `config.json`, `metrics.jsonl` (one line a measurement), `checkpoints/`,
    `report/`, `tensorboard/` where it is asked for, and what else an experiment keeps.

    Raises ValueError or `experiments.data.DataError` that names what is wrong.
    """
    name = raw.get("experiment", "study")
    if name == REPORT:
        if tensorboard:
            raise ValueError("--tensorboard: the report alone writes no event files")
        return report(workdir)
    experiment = experiment_named(name)
    settings = read_fields(experiment.settings, raw)
    return experiment.run(configured(settings), settings, workdir, tensorboard=tensorboard)


def report(workdir: Path) -> Path:
    """The report of whatever was measured in a work directory; the path of its page."""
    name = read_config(workdir).get("experiment")
    # Studies of an earlier version do not say what they are.
    known = name if isinstance(name, str) and name in EXPERIMENTS else "study"
    return experiment_named(known).report(workdir)


@contextmanager
def begin(
    name: str, settings: Any, schema: Schema, workdir: Path, *, tensorboard: bool = False
) -> Iterator[Journal]:
    """Make a work directory an experiment's, for as long as the block lasts this process's alone.

    What is recorded there already is what the block gets.

    Arguments:
        tensorboard: write curves of training as event files too.

    Raises ValueError, and touches nothing, where it holds another configuration or a damaged
    journal; `experiments.workdir.claim.InUseError` where another process is at work there.
    """
    if tensorboard:
        # Before anything is touched.
        writer_class()
    asked = _asked(name, settings)
    check_workdir(workdir, *asked)
    with in_use(workdir):
        claim_workdir(workdir, *asked)
        journal = read_journal(workdir / "metrics.jsonl", schema)
        remove_leftovers(workdir)
        with undone(partial(remove_leftovers, workdir)):
            journal = replace(journal, environment=environment())
            with followed(journal, workdir) if tensorboard else nullcontext(journal) as own:
                yield own


def recorded(experiment: Experiment, settings: Any, workdir: Path) -> Journal:
    """What is recorded already in the work directory of an experiment; nothing is touched.

    Raises ValueError where it holds another configuration or a damaged journal.
    """
    check_workdir(workdir, *_asked(experiment.name, settings))
    return read_journal(workdir / "metrics.jsonl", experiment.schema)


def _asked(name: str, settings: Any) -> tuple[dict[str, Any], tuple[str, ...], Any]:
    """What a work directory is claimed for, see `check_workdir`."""
    config, kind = {**plain_fields(settings), "experiment": name}, type(settings)
    return config, tuple(report_fields(kind)), partial(with_earlier, kind)


def baseline(
    network: Network, journal: Journal, workdir: Path, subsets: Sequence[str], /, **fields: Any
) -> Variables:
    """The network before compression, read or trained, and recorded, or known to be the same.

    Arguments:
        subsets: the sets of examples that it is measured on.
        fields: further fields of its record, "network" where there are several.
    """
    number = fields.get("network", 0)
    folder = workdir / "checkpoints" / (f"baseline-{number}" if number else "baseline")
    models, epoch = trained(network, folder, journal, number)
    whole = journal.get("baseline", **fields)
    if whole is None:
        journal.append([{**baseline_record(network, models, epoch, subsets), **fields}])
    else:
        check_weights(whole, models)
    return models.of_run(0)


def measure(
    journal: Journal,
    expected: Collection[Identity],
    tasks: Sequence[Task],
) -> None:
    """Record what is missing, several tasks at once.

    Arguments:
        expected: the records that progress is counted by.
        tasks: each yields records, as soon as some are there, or further tasks; records that were
            found before are skipped.
    """
    counted = set(expected)
    done = len(counted & journal.found.keys())
    with progress_bar("measurements", len(counted), done) as progress:

        def take(records: Records) -> None:
            new = journal.append(records)
            progress.update(sum(journal.identity(r["kind"], r) in counted for r in new))

        in_threads(tasks, take)
