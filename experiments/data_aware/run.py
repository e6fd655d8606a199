"""The experiment itself: train or read, collect moments, decompose, measure, fine-tune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from experiments.data_aware.measure import PlannedNetworks, Press, plan_networks
from experiments.data_aware.report import write_report
from experiments.data_aware.settings import DataAware
from experiments.data_aware.trials import SCHEMA, Trial, enumerate_trials, is_tuned
from experiments.network.calibrate import Calibration
from experiments.network.compressed import batches_for
from experiments.network.network import Network
from experiments.network.train_on import moments_for
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
    layers = [{"layer": path, **trial.fields} for path in planned.layers_of(trial)]
    names = [journal.identity("network", trial.fields)]
    names += [journal.identity("layer", fields) for fields in layers]
    if planned.settings.reestimate:
        names.append(journal.identity("reestimated", trial.fields))
    if is_tuned(planned.settings, trial):
        names.append(journal.identity("tuned", trial.fields))
    return names


def _measure(
    press: Press, calibration: Calibration, trials: Sequence[Trial], journal: Journal, folder: Path
) -> Iterator[Records]:
    """Yield the records of one calibration that are missing, as soon as each group is there."""
    planned, model, network = press.planned, press.model, press.planned.network
    missing = {
        trial: [name[0] for name in _names(journal, planned, trial) if name not in journal.found]
        for trial in trials
    }
    if not any(missing.values()):
        return
    batches, moments = batches_for(network, calibration), None
    if calibration.images:
        gradients = planned.settings.needs_gradients
        moments = moments_for(network, model, batches, calibration, folder, gradients=gradients)
    for trial, kinds in missing.items():
        if not kinds:
            continue
        made = press.compressed(trial, moments, batches)
        for kind in dict.fromkeys(kinds):
            if kind == "layer":
                # A write is one piece, but a reader may have cut it: what is there stays as it is.
                yield press.layer_records(trial, made)
            else:
                name = f"{calibration.subset}"
                yield [made.measured(kind, trial.fields, batches, name)[0]]
