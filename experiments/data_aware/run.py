"""The experiment itself: train or read, collect moments, decompose, measure, fine-tune."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax

from experiments.data_aware.bench import AwareBench, set_up
from experiments.data_aware.measure import Press, measured_records, reestimated_record, tuned_record
from experiments.data_aware.records import Measured, identity, read_records
from experiments.data_aware.report import write_report
from experiments.data_aware.settings import DataAware, settings_to_dict
from experiments.data_aware.trials import Trial, enumerate_trials, images_of, is_tuned
from experiments.network.baseline import baseline_record
from experiments.network.calibrate import Calibration, moments_for
from experiments.network.network import ReadWeights
from experiments.network.training import Model
from experiments.workdir.journal import append_records, claim_workdir
from experiments.workdir.progress import Progress
from experiments.workdir.threads import Records, in_threads


def run_data_aware(
    settings: DataAware, workdir: Path, read_weights: ReadWeights | None = None
) -> Path:
    """Measure everything that is asked for and not measured yet, then report.

    Work directory: `config.json`, `metrics.jsonl` (one line a measurement), `checkpoints/`,
    `moments/`, `report/`. Whatever is wrong with configuration, data, weights or ranks is found
    before any work; a run killed at any moment continues when started again, and ends with the
    same tables.

    Arguments:
        read_weights: reads the file that `settings.weights` names, see `bench.set_up`.

    Returns the path of the report's page.

    Raises ValueError or `experiments.data.DataError` that names what is wrong.
    """
    bench = set_up(settings, read_weights)
    claim_workdir(workdir, settings_to_dict(dataclasses.replace(settings, experiment="data_aware")))
    journal = workdir / "metrics.jsonl"
    measured = read_records(journal)
    models, epoch = bench.subject.trained(workdir / "checkpoints" / "baseline")
    if measured.baseline is None:
        record_of = baseline_record(
            bench.subject.network,
            bench.subject.splits,
            bench.subject.dense,
            models,
            epoch,
            ("test",),
        )
        sizes = [
            {"method": method, "keep": keep, "params": plan.size, "macs": plan.macs}
            for (method, keep), plan in bench.plans.items()
        ]
        append_records(journal, [{**record_of, "sizes": sizes}])
    press = Press(bench, jax.tree.map(lambda leaf: leaf[0], models))
    trials = enumerate_trials(settings)
    expected = [name for found in trials.values() for t in found for name in _names(bench, t)]
    done = sum(name in measured.tests for name in expected)
    with Progress("measurements", len(expected), done) as progress:

        def record(records: Records) -> None:
            append_records(journal, records)
            progress.advance(len(records))

        in_threads(
            [
                partial(_measure, press, calibration, found, measured, workdir / "moments")
                for calibration, found in trials.items()
            ],
            record,
        )
    return write_report(workdir)


def _names(bench: AwareBench, trial: Trial) -> list[tuple]:
    """What identifies each record of a trial."""
    kinds = ["network"]
    if bench.settings.reestimate:
        kinds.append("reestimated")
    if is_tuned(bench.settings, trial):
        kinds.append("tuned")
    whole = [identity({"kind": kind, **trial.fields}) for kind in kinds]
    layers = bench.layers_of(trial)
    return whole + [identity({"kind": "layer", "layer": p, **trial.fields}) for p in layers]


def _measure(
    press: Press,
    calibration: Calibration,
    trials: Sequence[Trial],
    measured: Measured,
    folder: Path,
) -> Iterator[Records]:
    """Yield the records of one calibration that are missing, as soon as each group is there."""
    bench, model = press.bench, press.model
    settings, batches, moments = bench.settings, [], None
    wanted = {
        trial: missing
        for trial in trials
        if (missing := {name for name in _names(bench, trial) if name not in measured.tests})
    }
    if not wanted:
        return
    images = images_of(settings, next(iter(wanted)))
    if calibration.images or settings.reestimate:
        batches = bench.subject.batches(images)
    if calibration.images:
        moments = moments_for(
            settings,
            bench.subject.module,
            model,
            batches,
            calibration,
            folder,
            gradients=settings.needs_gradients,
        )
    for trial, missing in wanted.items():
        kinds = {name[0] for name in missing}
        factors, dense = press.factors(trial, moments, batches)
        if kinds & {"network", "layer"}:
            records = measured_records(bench, model, trial, dense)
            # A write is one piece, but a reader may have cut it: what is there stays as it is.
            yield [record for record in records if identity(record) in missing]
        if "reestimated" in kinds:
            yield [reestimated_record(bench, Model(dense, model.state), trial, batches)]
        if "tuned" in kinds:
            yield [tuned_record(bench, model, trial, factors)]
