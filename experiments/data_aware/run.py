"""The experiment itself: train or read, collect moments, decompose, measure, fine-tune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from experiments.data_aware.measure import (
    PlannedNetworks,
    Press,
    measured_records,
    plan_networks,
    reestimated_record,
    tuned_record,
)
from experiments.data_aware.report import write_report
from experiments.data_aware.settings import DataAware
from experiments.data_aware.trials import SCHEMA, Trial, enumerate_trials, is_tuned
from experiments.network.calibrate import Calibration, seen
from experiments.network.network import Network
from experiments.network.train_on import moments_for
from experiments.network.training import Variables
from experiments.runner import Experiment, baseline, begin, measure
from experiments.workdir.journal import Identity, Journal
from experiments.workdir.threads import Records


def run(network: Network, settings: DataAware, workdir: Path) -> Path:
    """Measure everything that is asked for and not measured yet, then report.

    The work directory also holds `moments/`. Returns the path of the report's page; see
    `experiments.runner.carry_out`.
    """
    planned = plan_networks(network, settings)
    journal = begin(EXPERIMENT.name, settings, SCHEMA, workdir)
    sizes = [
        {"method": method, "keep": keep, "params": plan.size, "macs": plan.macs}
        for (method, keep), plan in planned.plans.items()
    ]
    model = baseline(network, journal, workdir, ("test",), sizes=sizes)
    press, trials = Press(planned, model), enumerate_trials(settings)
    measure(
        journal,
        [name for own in trials.values() for t in own for name in _names(journal, planned, t)],
        [
            partial(_measure, press, calibration, own, journal, workdir / "moments")
            for calibration, own in trials.items()
        ],
    )
    return write_report(workdir)


EXPERIMENT = Experiment("data_aware", DataAware, run, write_report)


def _names(journal: Journal, planned: PlannedNetworks, trial: Trial) -> list[Identity]:
    """What identifies each record of a trial."""
    kinds = ["network"]
    if planned.settings.reestimate:
        kinds.append("reestimated")
    if is_tuned(planned.settings, trial):
        kinds.append("tuned")
    whole = [journal.identity(kind, trial.fields) for kind in kinds]
    layers = planned.layers_of(trial)
    return whole + [journal.identity("layer", {"layer": p, **trial.fields}) for p in layers]


def _measure(
    press: Press, calibration: Calibration, trials: Sequence[Trial], journal: Journal, folder: Path
) -> Iterator[Records]:
    """Yield the records of one calibration that are missing, as soon as each group is there."""
    planned, model = press.planned, press.model
    settings, network, batches, moments = planned.settings, planned.network, [], None
    wanted = {
        trial: kinds
        for trial in trials
        if (kinds := {n[0] for n in _names(journal, planned, trial) if n not in journal.found})
    }
    if not wanted:
        return
    if calibration.images or settings.reestimate:
        batches = network.batches(seen(settings.calibration, calibration))
    if calibration.images:
        gradients = settings.needs_gradients
        moments = moments_for(network, model, batches, calibration, folder, gradients=gradients)
    for trial, kinds in wanted.items():
        factors, dense = press.factors(trial, moments, batches)
        if kinds & {"network", "layer"}:
            # A write is one piece, but a reader may have cut it: what is there stays as it is.
            yield measured_records(planned, model, trial, dense)
        if "reestimated" in kinds:
            yield [reestimated_record(planned, Variables(dense, model.state), trial, batches)]
        if "tuned" in kinds:
            yield [tuned_record(planned, model, trial, factors)]
