"""The experiment itself: train or read, allocate, decompose, measure, train on, keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.compress.checks import check_reach
from experiments.compress.report import write_report
from experiments.compress.settings import SCHEMA, Compress, Trial, enumerate_trials
from experiments.compress.trials import greatest_bound, press
from experiments.data import rows
from experiments.network.baseline import baseline_record
from experiments.network.calibrate import Calibration
from experiments.network.compressed import (
    batches_for,
)
from experiments.network.forward import Variables
from experiments.network.network import Network
from experiments.network.refine import check_refine
from experiments.network.train_on import moments_file, moments_for
from experiments.runner import Experiment, baseline, finish, measure
from experiments.workdir.devices import here
from experiments.workdir.journal import Journal
from experiments.workdir.places import Place
from experiments.workdir.record_fields import Identity
from experiments.workdir.threads import Further, Records, Unit, Units, last_units
from experiments.workdir.work import Work, begin
from tdjax.dispatch.saving import load_factorised, save_factorised
from tdjax.params.saving import CheckpointError
from tdjax.plan.timing import profile_calls


def run(
    network: Network,
    settings: Compress,
    workdir: Path,
    *,
    tensorboard: bool = False,
    place: Place | None = None,
) -> Path:
    """Compress and measure everything that is asked for and not measured yet, then report.

    The work directory also holds `moments/` and `compressed/`, one folder a network, for
    `tdjax.load_factorised`; the times are not those of an unbroken run. Returns the path of the
    report's page; see `experiments.runner.carry_out`.
    """
    check_reach(network, settings)
    check_refine(network, settings.refine)
    trials = enumerate_trials(settings)
    options: dict[str, Any] = {"tensorboard": tensorboard, "place": place}
    with begin(EXPERIMENT.name, settings, SCHEMA, workdir, **options) as work:
        names = [name for trial in trials for name in _names(work.journal, settings, trial)]
        models: list[Variables] = []
        measure(work, names, [partial(_measure, network, settings, models, trials, work)])
        if settings.timed_images:
            measure(
                work,
                _timed_names(work.journal, trials),
                [partial(_time, network, settings, models[0], trials, work)],
            )
        return finish(work, expected(network, settings, work.journal), write_report)


def expected(network: Network, settings: Compress, journal: Journal) -> list[Identity]:
    """What identifies each record that is asked for."""
    check_reach(network, settings)
    check_refine(network, settings.refine)
    trials = enumerate_trials(settings)
    names = [name for trial in trials for name in _names(journal, settings, trial)]
    if settings.timed_images:
        names += _timed_names(journal, trials)
    return [journal.identity("baseline", {}), *names]


EXPERIMENT = Experiment(
    "compress", Compress, run, write_report, SCHEMA, expected, ("moments", "compressed")
)


def _names(journal: Journal, settings: Compress, trial: Trial) -> list[Identity]:
    """What identifies each record of a trial, the times apart."""
    kinds = ["network"]
    if settings.reestimate:
        kinds.append("reestimated")
    if settings.refine.epochs:
        kinds.append("refined")
    if settings.finetune.epochs:
        kinds.append("tuned")
    return [journal.identity(kind, trial.fields) for kind in kinds]


def _timed_names(journal: Journal, trials: Sequence[Trial]) -> list[Identity]:
    return [journal.identity("timed", trial.fields) for trial in trials]


def _measure(
    network: Network,
    settings: Compress,
    models: list[Variables],
    trials: Sequence[Trial],
    work: Work,
) -> Iterator[Records | Units | Further]:
    """Yield the records that are missing, a trial at a time, its checkpoint written before.

    Arguments:
        models: gets the network before compression.
    """
    describe = partial(baseline_record, network, subsets=("test",))
    model = yield from baseline(work, network, "baseline", describe)
    models.append(model)
    units, calibrations = [], set()
    for trial in trials:
        names = _names(work.journal, settings, trial)
        if not work.journal.holds(names):
            kinds = [kind for kind, *_ in names]
            made = partial(_made, network, settings, model, trial, kinds, work.workdir)
            units.append(work.unit(f"trial {trial.name}", names, partial(_tried, made)))
            calibrations.add(trial.calibration)
    folder = work.workdir / "moments"
    # What many trials need is made by one process each, before all of them.
    yield Units(
        [
            _moments_unit(network, settings, model, calibration, folder)
            for calibration in sorted(calibrations)
            if calibration.images
        ]
    )
    yield last_units(units)


def _moments_unit(
    network: Network, settings: Compress, model: Variables, calibration: Calibration, folder: Path
) -> Unit:
    """The moments of the uncompressed network on a calibration, in their file."""

    def work() -> Iterator[Records]:
        batches = batches_for(network, settings, calibration)
        moments_for(network, here(model), batches, calibration, folder, gradients=True)
        yield []

    is_done = moments_file(calibration, folder).exists
    return Unit(f"moments on {calibration}", is_done, work)


def _tried(made: Callable[[], Records], _: Journal) -> Iterator[Records]:
    yield made()


def _made(
    network: Network,
    settings: Compress,
    model: Variables,
    trial: Trial,
    kinds: Sequence[str],
    workdir: Path,
) -> Records:
    """The records of a trial, once its checkpoint is written."""
    model = here(model)
    batches = batches_for(network, settings, trial.calibration)
    kept = made = press(network, settings, model, trial, batches, workdir / "moments")
    records = []
    for kind in kinds:
        fields = trial.fields
        if kind == "network":
            fields["plan"] = made.plan.to_json()
        # The last is kept: refined or, before all, trained on with labels, if asked.
        record, kept = made.measured(kind, fields, batches, f"{trial.name}, last")
        records.append(record)
    if trial.strategy.startswith("alds") and settings.rounds == 1:
        records[0]["bound"] = greatest_bound(model, made.plan)
    saved = network.apply.saved(Variables(kept.factors, kept.state))
    save_factorised(workdir / "compressed" / trial.name, saved, kept.plan)
    return records


def _time(
    network: Network, settings: Compress, model: Variables, trials: Sequence[Trial], work: Work
) -> Iterator[Units]:
    """Inference of each network against that of the original, in turns, nothing beside it."""
    names = _timed_names(work.journal, trials)
    times = partial(_times, network, settings, model, trials, work.workdir)
    yield Units([work.unit("times of inference", names, times)])


def _times(
    network: Network,
    settings: Compress,
    model: Variables,
    trials: Sequence[Trial],
    workdir: Path,
    journal: Journal,
) -> Iterator[Records]:
    """Yield the records of the times that are missing."""
    timed = rows(network.splits.test.images, slice(settings.timed_images))
    images = jax.tree.map(jnp.asarray, timed)
    before = jax.jit(lambda model: network.apply(model.params, model.state, images, None)[0])
    for trial in trials:
        if journal.get("timed", **trial.fields):
            continue
        folder = workdir / "compressed" / trial.name
        if not folder.exists():
            # Removed, as it is measured already.
            kinds = [kind for kind, *_ in _names(journal, settings, trial)]
            _made(network, settings, model, trial, kinds, workdir)
        try:
            variables, plan = load_factorised(folder, like=network.apply.like(model))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove {folder} to have it made again") from error
        small = network.apply.factorised(plan)
        after = jax.jit(lambda variables, small=small: small(variables, images))
        profile = profile_calls(partial(before, model), partial(after, variables))
        times = ("before", "after", "speedup", "least", "most")
        measured = {name: getattr(profile, name) for name in times}
        yield [{"kind": "timed", **trial.fields, **measured}]
